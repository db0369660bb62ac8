"""What an attempt tells the world: a step counter, metrics and pictures in files of its own, read by whoever waits.

The journal is the spool: training appends a line and goes on, however slow or dead the tracking server is. The process
that called `fit` follows the journal, so workers import no MLflow, one process alone writes to the MLflow run however
often workers die, and a line that was sent is not sent again by a later call.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infra.documents import parse_json, read_json
from infra.storage import write_json


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is; `note` says why it does not move, where it does not."""

    step: int
    steps: int
    loss: float
    samples_per_s: float
    seconds_left: float
    note: str = ""


class Journal:
    """The files of one attempt; rank 0 writes them."""

    def __init__(self, folder: Path, attempt: int, first_step: int) -> None:
        self.folder, self.attempt = folder, attempt
        self._lines = (folder / f"{attempt}.jsonl").open("a")
        self._counter = os.open(folder / f"{attempt}.step", os.O_RDWR | os.O_CREAT)
        self.count(first_step)
        write_json(folder / f"{attempt}.json", {"first_step": first_step, "at": time.time()})

    def count(self, step: int) -> None:
        """Note that `step` steps are done; a microsecond, and a killed process leaves it behind."""
        os.pwrite(self._counter, step.to_bytes(8, "little"), 0)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Note the means since the last line."""
        self._write({"step": step, "metrics": values})

    def note(self, step: int, text: str) -> None:
        """Say something once that a person should know."""
        self._write({"step": step, "note": text})

    def picture(self, step: int, png: bytes) -> None:
        """Keep a sample grid."""
        path = self.folder / f"{self.attempt}-{step:08d}.png"
        path.write_bytes(png)
        self._write({"step": step, "picture": path.name})

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        os.close(self._counter)

    def _write(self, line: dict[str, Any]) -> None:
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()


def sign_in(folder: Path, attempt: int, rank: int) -> None:
    """Note which process works as `rank`, for whoever looks after the run."""
    facts = {"pid": os.getpid(), "host": socket.gethostname()}
    write_json(folder / f"{attempt}.rank{rank}.json", facts)


def repeated_steps(folder: Path) -> int:
    """Return how many steps were done more than once, because an attempt ended after its last checkpoint."""
    total = reached = 0
    for path in sorted(folder.glob("*.step"), key=lambda path: int(path.stem)):
        start = path.with_suffix(".json")
        if start.is_file():
            total += max(0, reached - int(read_json(start)["first_step"]))
            reached = int.from_bytes(path.read_bytes()[:8], "little")
    return total


@dataclass
class Reader:
    """Reads the lines that all attempts have written so far, each once; a half-written line waits."""

    folder: Path
    _offsets: dict[Path, int] = field(default_factory=dict)

    @classmethod
    def from_now(cls, folder: Path) -> "Reader":
        """Return a reader of what is written from now on."""
        return cls(folder, {path: path.stat().st_size for path in folder.glob("*.jsonl")})

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the new lines in the order of attempts."""
        for path in sorted(self.folder.glob("*.jsonl"), key=lambda path: int(path.stem)):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offsets[path] = self._offsets.get(path, 0) + len(line)
                    yield parse_json(line, str(path))


class Reporter:
    """Turns metric lines into calls of `on_progress`; a step that was repeated is told once."""

    def __init__(
        self, on_progress: Callable[[Progress], None], steps: int, batch_size: int
    ) -> None:
        self.on_progress, self.steps, self.batch_size = on_progress, steps, batch_size
        self.last = Progress(0, steps, float("nan"), 0.0, float("inf"))

    def line(self, line: dict[str, Any]) -> None:
        """Pass one line of the journal on."""
        if "note" in line:
            self.note(line["note"])
        if "metrics" not in line or line["step"] <= self.last.step:
            return
        rate = line["metrics"]["samples_per_s"]
        left = (self.steps - line["step"]) * self.batch_size / max(rate, 1e-9)
        loss = line["metrics"].get("loss", self.last.loss)  # none where no step was taken yet
        self.last = Progress(line["step"], self.steps, loss, rate, left)
        self.on_progress(self.last)

    def resumed(self, step: int) -> None:
        """Begin at a step that an earlier call came to."""
        self.last = replace(self.last, step=step)
        self.note(f"resumed at step {step} of {self.steps}")

    def note(self, text: str) -> None:
        """Say why training does not move, or what it cannot use."""
        last = self.last
        self.on_progress(
            Progress(last.step, self.steps, last.loss, 0.0, last.seconds_left, note=text)
        )
