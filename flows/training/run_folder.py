"""One training's folder on storage that every node shares: the only truth about how far it came.

    <runs>/<identity>/
        spec.json            what is trained
        lease                the word of the call of `fit` whose workers may claim an attempt
        failed-<lease>.json  why that call's training cannot end, from the worker that found it
        attempt              the number of the attempt that may publish; LATEST: the newest checkpoint's name
        ckpt-<attempt>-<step>/   a sealed checkpoint; without a manifest it does not exist
        journal/<attempt>.*  metrics, the step counter, and pictures; see journal.py
        quarantine/          checkpoints whose bytes were altered, kept as evidence
        final/               the sealed result

Ray keeps no checkpoint of ours: its own snapshot is written in place (a full disk makes a run unrecoverable although
the checkpoints are intact) and starts over silently when missing. Every attempt claims a number; only the newest may
publish, so a worker that outlives its cluster can burn CPU but cannot change a run.
"""

import fcntl
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.documents import read_json
from infra.storage import (
    MANIFEST,
    IntegrityError,
    atomic_write,
    faultpoint,
    seal,
    sync_directory,
    verify,
    write_json,
)


class Fenced(RuntimeError):
    """A newer attempt has taken the run over; this one may not publish."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one identity."""

    path: Path

    @property
    def final(self) -> Path:
        """Where the sealed result lies once training has ended."""
        return self.path / "final"

    @property
    def journal(self) -> Path:
        """Where attempts write their metrics."""
        return self.path / "journal"

    def attempt(self) -> int:
        """Return the newest attempt's number; 0 before the first."""
        try:
            return int((self.path / "attempt").read_text())
        except FileNotFoundError:
            return 0

    def lease(self) -> str:
        """Return a new word that an attempt must show to claim the run; older ones are void."""
        word = uuid.uuid4().hex
        with self._alone(), atomic_write(self.path / "lease") as file:
            file.write(word.encode())
        return word

    def step(self) -> int:
        """Return the newest checkpoint's step, 0 before the first."""
        newest = self.checkpoints()[:1]
        return _age(newest[0])[0] if newest else 0

    def claim(self, lease: str) -> int:
        """Return a new attempt's number and shut every earlier attempt out.

        Raises:
            Fenced: the lease is void, a newer call of `fit` has taken the run over.
        """
        self.journal.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if (self.path / "lease").read_text() != lease:
                raise Fenced(f"{self.path.name} was taken over by a newer call")
            number = self.attempt() + 1
            with atomic_write(self.path / "attempt") as file:
                file.write(str(number).encode())
            for leftover in self.path.glob("ckpt-*"):
                if not (leftover / MANIFEST).is_file():
                    shutil.rmtree(leftover)
        return number

    def fail(self, lease: str, kind: str, why: str) -> None:
        """Say why trying again cannot help, to the call that waits and through it to the other workers."""
        write_json(self._failure(lease), {"kind": kind, "why": why})

    def failure(self, lease: str) -> tuple[str, str] | None:
        """Return (class of the error, words) of a worker that failed for good under a lease, or None."""
        try:
            said = read_json(self._failure(lease))
        except FileNotFoundError:
            return None
        return said["kind"], said["why"]

    def _failure(self, lease: str) -> Path:
        return self.path / f"failed-{lease}.json"

    def save(
        self,
        attempt: int,
        step: int,
        write: Callable[[Path], None],
        facts: dict[str, object],
        keep: int,
    ) -> Path:
        """Publish a checkpoint that `write` fills; returns its directory once it is durable. Keeps `keep` >= 2.

        Raises:
            Fenced: a newer attempt has claimed the run.
        """
        directory = self.path / f"ckpt-{attempt}-{step}"
        directory.mkdir()
        faultpoint("checkpoint.begin")
        write(directory)
        faultpoint("checkpoint.written")
        with self._alone():
            self._fence(attempt)
            seal(directory, {"kind": "checkpoint", "attempt": attempt, "step": step, **facts})
            faultpoint("checkpoint.sealed")
            with atomic_write(self.path / "LATEST") as file:
                file.write(directory.name.encode())
            faultpoint("checkpoint.published")
            for old in self.checkpoints()[keep:]:
                (old / MANIFEST).unlink()  # first, so that half a directory is none
                shutil.rmtree(old)
        return directory

    def finish(self, attempt: int, write: Callable[[Path], None], facts: dict[str, object]) -> Path:
        """Publish the result under `final`; equal work that is there already stays.

        Raises:
            Fenced: a newer attempt has claimed the run.
        """
        directory = self.path / f"final-{attempt}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        write(directory)
        with self._alone():
            self._fence(attempt)
            seal(directory, {"kind": "training", "attempt": attempt, **facts})
            faultpoint("final.sealed")
            if self.final.is_dir():
                self.set_aside(self.final)
            directory.rename(self.final)
            sync_directory(self.path)
        return self.final

    def newest(self) -> Path | None:
        """Return the newest good checkpoint, its bytes verified; None where none was ever written.

        An altered one is moved to `quarantine/` and the one before is taken.

        Raises:
            IntegrityError: there were checkpoints, and none is good.
        """
        for directory in self.checkpoints():
            try:
                verify(directory)
            except IntegrityError:
                self.set_aside(directory)
            else:
                return directory
        if (self.path / "LATEST").exists():
            raise IntegrityError(
                f"no good checkpoint is left in {self.path}, the altered ones are in its quarantine/;"
                " delete that folder to start over"
            )
        return None

    def checkpoints(self) -> list[Path]:
        """Return the sealed checkpoints, the one to resume from first."""
        sealed = [path for path in self.path.glob("ckpt-*") if (path / MANIFEST).is_file()]
        return sorted(sealed, key=_age, reverse=True)

    def altered(self) -> list[str]:
        """Return the names of what lies in quarantine."""
        return sorted(path.name for path in (self.path / "quarantine").glob("*"))

    def set_aside(self, directory: Path) -> None:
        """Keep a damaged directory as evidence, out of the way."""
        aside = self.path / "quarantine" / f"{directory.name}.{time.time_ns()}"
        aside.parent.mkdir(exist_ok=True)
        directory.rename(aside)

    def _fence(self, attempt: int) -> None:
        if (current := self.attempt()) != attempt:
            raise Fenced(f"attempt {attempt} of {self.path.name} was replaced by attempt {current}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with locked(self.path / "fence.lock"):
            yield


@contextmanager
def locked(path: Path, busy: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on `path`, also between hosts where storage is shared; `busy` is called before a wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy is not None:
                busy()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _age(path: Path) -> tuple[int, int]:
    _, attempt, step = path.name.split("-")
    return int(step), int(attempt)
