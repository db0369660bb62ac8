"""DVC, driven through its command line: one `repro` a preparation, its lock file read, its errors in one line."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from data.params import CatalogError
from infra.documents import DocumentError, read_json, read_yaml
from infra.storage import atomic_write

READ_BY_DVC: Final = ("dvc.yaml", "dvc.lock", "params.yaml")  # without bounds
FAILED: Final = re.compile(r"failed to reproduce '(\w[\w-]*)@([\w-]+)'")


class PrepareError(CatalogError):
    """A preparation that failed, in one line, or a line for each refused picture."""


def reproduce(
    name: str, project: Path, on_stage: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Run the dataset's changed stages, waiting for whoever else does; returns the stages that ran, told as they start.

    Raises:
        PrepareError: no DVC, no repository, a full disk, a stage that failed (with the stage's own reason), or a file
            of DVC's that is no YAML or unfolds without end.
    """
    if not (project / ".dvc").is_dir():
        raise PrepareError(f"{project} is not a DVC repository: run `dvc init` there")
    for path in (project / file for file in READ_BY_DVC):
        try:
            read_yaml(path)
        except FileNotFoundError:
            continue
        except DocumentError as error:
            raise PrepareError(str(error)) from None
    scratch = project / ".dvc" / "tmp"
    scratch.mkdir(exist_ok=True)
    with FileLock(scratch / f"prepare-{name}.lock"):  # DVC's own wait ends where a stage runs
        return _reproduce(name, project, on_stage)


def _reproduce(name: str, project: Path, on_stage: Callable[[str], None]) -> list[str]:
    repair_locks(project)
    for leftover in (project / "data" / "made" / name).glob(".samples-*"):  # of a killed maker
        shutil.rmtree(leftover, ignore_errors=True)
    environment = {
        **os.environ,
        "ATELIER_PROJECT": str(project.resolve()),
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",  # DVC's lines come when they are written
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", f"shards@{name}"]
    lines, ran = [], []
    with subprocess.Popen(
        command,
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if begun := re.match(rf"Running stage '(\w+)@{re.escape(name)}'", line):
                ran.append(begun[1])
                on_stage(begun[1])
    if process.returncode:
        raise PrepareError(reason(name, lines))
    return ran


def reason(name: str, lines: list[str]) -> str:
    """Return why a `repro` failed: the stage's own words, else DVC's."""
    ours = [line.removeprefix("atelier: ") for line in lines if line.startswith("atelier: ")]
    if ours:
        return "\n".join(ours)
    text = "\n".join(lines)
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if "No module named dvc" in text:
        return f"DVC is not installed beside {sys.executable}: install the project again"
    if "No space left on device" in text:
        return f"{name}: no space left on the disk: free some and prepare again"
    if busy := re.search(r"is busy, it is being blocked by:\s+\(PID (\d+)\)", text):
        return f"{name} is being prepared by process {busy[1]}: wait for it and prepare again"
    if failed := FAILED.search(text):
        errors.insert(0, f"stage {failed[1]} of {failed[2]}")
        traceback = [
            line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)
        ]
        errors = [errors[0], *traceback[-1:]] if traceback else errors
    return f"cannot prepare {name}: " + (": ".join(errors) or (lines or ["no word from DVC"])[-1])


def repair_locks(project: Path) -> bool:
    """Remove a `rwlock` that a killed DVC left half-written, which DVC itself refuses for ever; returns whether it did.

    DVC writes that file only while it holds `rwlock.lock`, so nobody is writing while we hold it.
    """
    path = project / ".dvc" / "tmp" / "rwlock"
    if not path.is_file():
        return False
    with (path.with_name("rwlock.lock")).open("a+") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # a living DVC writes it just now
        try:
            read_json(path)
        except FileNotFoundError:
            return False
        except ValueError:
            path.unlink()
            return True
    return False


def sweep(project: Path, *, really: bool) -> str:
    """Have DVC's cache drop what the workspace does not use, or only tell what that is; returns DVC's words.

    A cache outside of the project is left alone: other projects may share it, and DVC would drop what they use.

    Raises:
        PrepareError: DVC refuses; in its own words.
    """
    cache = Path(_dvc(project, "cache", "dir").strip()).resolve()
    if not cache.is_relative_to(project.resolve()):
        return f"{cache} is outside of this project, and others may use it: nothing was looked for"
    told = _dvc(project, "gc", "--workspace", "--force", *([] if really else ["--dry"]))
    said = [line for line in told.splitlines() if line and "No unused" not in line]
    return "; ".join(said) or "nothing that the workspace does not use"


def _dvc(project: Path, *arguments: str) -> str:
    """Return what DVC prints.

    Raises:
        PrepareError: it refuses.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=project,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = done.stderr.splitlines() or ["no word from DVC"]
        raise PrepareError(f"cannot clean DVC's cache: {lines[-1]}")
    return done.stdout


def unlock(name: str, project: Path) -> None:
    """Take a dataset's stages out of dvc.lock, keeping its other lines."""
    path = project / "dvc.lock"
    try:
        lines = path.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept, ours = [], False
    for line in lines:
        if re.match(r"( {2})?[\w@-]", line):  # a stage, or a section
            ours = bool(re.match(rf"  \w+@{re.escape(name)}:", line))
        if not ours:
            kept.append(line)
    with atomic_write(path) as file:
        file.write("".join(kept).encode())


def locked(name: str, project: Path) -> str | None:
    """Return the identity of a dataset's prepared bytes as dvc.lock has it, or None where it has none.

    Raises:
        CatalogError: dvc.lock cannot be read.
    """
    path = project / "dvc.lock"
    try:
        document: Any = read_yaml(path)
        stage = ((document or {}).get("stages") or {}).get(f"shards@{name}")
        return None if stage is None else str(stage["outs"][0]["md5"])
    except FileNotFoundError:
        return None
    except (OSError, DocumentError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise CatalogError(
            f"cannot read {path}: {' '.join(str(error).split())}; delete it and prepare again"
        ) from None
