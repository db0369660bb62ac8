"""Shares of an engine's time: what each model has had of it, and how long its steps take.

The model that has had least goes next (start-time fair queuing, Goyal et al. 1996). One that comes back after a pause
starts at the clock, which is where the least of the busy ones stands: it has saved up nothing, and owes nothing.

Whoever waits for a picture or a line of chat is not to feel a sound of half a minute: where every row of a model takes
LONG_S or more, its time counts LONG_COSTS times, so that short rows have three quarters of what the two share. Jobs,
for which nobody waits at all, yield to everybody: what they take counts BEHIND_COSTS times, so that they come forward
even where people never leave off.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

LONG_S: Final = 1.0  # of the engine's time: a row that takes more is long
LONG_COSTS: Final = 3.0  # what a second of long rows counts for
BEHIND_COSTS: Final = 20.0  # what a second of a job's rows counts for
PIECE_S: Final = 0.1  # of drawing in one go, where fewer rows at a time make it shorter
KEPT: Final = 15  # durations of each batch size
TRUSTED: Final = 3  # durations of a size before it has a pace: the first are of a cold start
FRESH_S: Final = 60.0  # how long a pace holds at the door: a busy machine does not stay so


@dataclass(eq=False, slots=True)
class Account:
    """What one model has had of the engine's time."""

    used_s: float = 0.0  # on the clock that all accounts share
    noted: float = -math.inf  # when a step was last charged, by time.monotonic
    _took: dict[int, deque[float]] = field(default_factory=dict)  # by batch size

    def note(self, size: int, seconds: float, now: float, *, counts: float = 1.0) -> None:
        """Charge a step of so many rows, a second as so many."""
        self.used_s += seconds * counts
        self.noted = now
        self._took.setdefault(size, deque(maxlen=KEPT)).append(seconds)

    def pace(self, size: int) -> float | None:
        """Return the seconds of a step of `size` rows, the best of the last, or None where no step was measured.

        Of a size that was not measured itself it is at least what a smaller one takes, and its part of a larger one.
        """
        known = self._known()
        least = [took * min(1.0, size / one) for one, took in known.items()]
        return known.get(size, max(least, default=None))

    def short(self, size: int) -> bool:
        """Return whether `size` rows in one go take at most PIECE_S: measured, or as that many times a smaller size."""
        known = self._known()
        nearest = max((one for one in known if one <= size), default=None)
        return nearest is not None and known[nearest] * size / nearest <= PIECE_S

    def _known(self) -> dict[int, float]:
        """Return the least seconds of each size that was measured often enough."""
        return {size: min(took) for size, took in self._took.items() if len(took) >= TRUSTED}
