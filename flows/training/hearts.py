"""A beating heart a rank: tells a worker that is late, and is waited for, from one that is hung.

A rank writes its beats into a file of the run's journal, from a thread, so also while a step, a read or a checkpoint
takes long. Whoever follows the run takes a rank for hung whose heart stands still while another's beats; the others
wait for it in a collective until then, up to `ranks.PATIENCE`. Where no heart beats, all workers are gone, as Ray sees.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

from infra.repeating import repeating

BEAT_S: Final = 1.0


@contextmanager
def beating(journal: Path, attempt: int, rank: int) -> Iterator[None]:
    """Let this rank's heart beat inside the block; one that ends by itself leaves none behind."""
    heart, beats = journal / f"{attempt}.rank{rank}.heart", count(1)

    def beat() -> None:
        heart.write_text(
            str(next(beats))
        )  # opened anew: so a network file system shows it elsewhere

    try:
        beat()
        with repeating(beat, BEAT_S, "heart"):
            yield
    finally:
        heart.unlink(missing_ok=True)


@dataclass
class Hearts:
    """The hearts of a run's newest attempt, as whoever follows it sees them."""

    journal: Path
    _seen: dict[Path, tuple[str, float]] = field(default_factory=dict)  # the last change of each

    def hung(self, attempt: int, limit_s: float, now: float) -> str:
        """Return which rank has been silent for so long while another's heart beat; nothing where none has.

        Args:
            attempt: the newest one.
            limit_s: seconds of silence.
            now: seconds on a clock that only goes forward.
        """
        silent = {}
        for path in self.journal.glob(f"{attempt}.rank*.heart"):
            with suppress(FileNotFoundError):  # it has just ended
                beats = path.read_text()
                if path not in self._seen or self._seen[path][0] != beats:
                    self._seen[path] = beats, now
                silent[path] = now - self._seen[path][1]
        if not silent or min(silent.values()) > limit_s / 2:
            return ""
        path, seconds = max(silent.items(), key=lambda one: one[1])
        if seconds < limit_s:
            return ""
        return f"{path.name.split('.')[1]} has not been heard of for {seconds:.0f} s and is taken for hung"
