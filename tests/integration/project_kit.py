"""A stranger's project: our code, `tiny.yaml`'s data in a DVC cache that all such projects share, its command line."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.command_kit import commands
from tests.flows.training_kit import wait_until

ROOT = Path(__file__).parents[2]


def make_project(folder: Path, dvc_cache: Path) -> None:
    """Copy what a project has into a folder, with a DVC repository without git."""
    ignored = shutil.ignore_patterns("made", "prepared", "raw", "quarantine", "__pycache__")
    for package in ("data", "infra", "models", "flows", "services"):
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()  # as `dvc init --no-scm` makes it, in two seconds
    (folder / ".dvc" / "config").write_text(
        f"[core]\n    no_scm = True\n[cache]\n    dir = {dvc_cache}\n"
    )


@dataclass(frozen=True)
class Workshop:
    folder: Path
    environment: dict[str, str]

    def run(self, *words: str, code: int = 0) -> str:
        """Run `atelier words...`; give what it printed."""
        return "".join(self._printed(words, code))

    def _printed(self, words: Sequence[str], code: int) -> tuple[str, str]:
        done = commands.run(*words, cwd=self.folder, env=self.environment)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout, done.stderr

    def killed(self, when: Callable[[], Any], *words: str) -> None:
        """Run `atelier words...`, and kill it with -9 as soon as `when` says so."""
        with ThreadPoolExecutor(1) as beside:

            def kill(pid: int) -> None:
                wait_until(lambda: when() or not psutil.pid_exists(pid))
                os.kill(pid, signal.SIGKILL)

            killer: list[Future[None]] = []
            done = commands.run(
                *words,
                cwd=self.folder,
                env=self.environment,
                began=lambda pid: killer.append(beside.submit(kill, pid)),
            )
            killer[0].result()
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr

    def json(self, *words: str) -> Any:
        """Run a verb with --json; nothing but the document is on its standard output."""
        return json.loads(self._printed((*words, "--json"), 0)[0])
