"""`atelier` as a process of its own without its imports: forked from one that has made them, once for the run.

A command imports for up to six seconds and then works for a fraction of one; tests give hundreds. This file is also
what that process runs: it reads a command a line, forks, and answers with the exit code.
"""

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
PRELOADED: Final = (
    *("flows.lifecycle", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store"),
    *(
        "mlflow.store.model_registry.sqlalchemy_store",
        "prefect.context",
        "torch",
        "safetensors.torch",
    ),
)
AT_IMPORT: Final = {"COLUMNS": "200", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
"""What a command sets, or is given, before it imports the tools that read it once."""


class Commands:
    """Runs commands one at a time; starts its process at the first."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()

    def run(
        self, *words: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `atelier words...` in a folder, with just these variables (else the test's own)."""
        with self._one_at_a_time, tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            asked = {
                "words": words,
                "cwd": str(cwd),
                "environment": dict(os.environ if env is None else env),
                "outputs": [str(out), str(err)],
            }
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, f"the process that runs `atelier {' '.join(words)}` has ended"
            return subprocess.CompletedProcess(
                ["atelier", *words], json.loads(answer), out.read_text(), err.read_text()
            )

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, **AT_IMPORT}, start_new_session=True,
            )  # fmt: skip
        return self._process


commands: Final = Commands()
"""The run's own; conftest closes it."""


def serve() -> None:
    """Import what commands import; then fork for each line that comes in."""
    sys.path[0] = str(ROOT)  # in place of tests/, whose folders have the packages' names
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(asked)
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


def _become(asked: Mapping[str, Any]) -> None:
    """Be the command: its outputs, folder and variables; leaves as a fresh process would."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, path in enumerate(asked["outputs"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    sys.argv = ["atelier", *asked["words"]]
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()  # it was made of the variables that stood at the import
    from flows.__main__ import main

    main()


if __name__ == "__main__":
    serve()
