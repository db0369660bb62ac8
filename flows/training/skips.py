"""Steps that were not taken because their gradient was not finite: counted, and too many in a row end the training.

The device decides by itself, so nothing waits for it: weights, their average, the optimiser's state and buffers are
what they were before such a step. The host learns of it with the next line of metrics.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor

from flows.recipe import Training

SKIPPED: Final = "skipped"  # how a scalar's name ends that is 1 where a player's step was skipped
TOTAL: Final = "skipped_steps"  # the metric: so many since the training began


class Skips:
    """What the steps' scalars, a table (steps, names), say of steps that were skipped."""

    def __init__(self, rules: Training, means: Mapping[str, float]) -> None:
        self.steps = rules.steps
        self.limit = min(rules.max_skipped, rules.steps)
        self.total, self.in_a_row = int(means.get(TOTAL, 0)), 0

    def trouble(self, table: Tensor, names: Sequence[str], first: int) -> str:
        """Return what ends the training; nothing where it may go on. `first` is the step of the first row."""
        gone = self._gone(table, names)
        for row, skipped in enumerate(gone.tolist()):
            self.total += skipped
            self.in_a_row = self.in_a_row + 1 if skipped else 0
            broken = bool((~table[row].isfinite()).any())
            if self.in_a_row == self.limit or (broken and not skipped):
                column = int((~table[row].isfinite()).nonzero()[0])
                found = f"{names[column]} is {float(table[row, column])} at step {first + row} of {self.steps}"
                before = f", like the {self.limit - 1} steps before it (training.max_skipped)"
                return found + (before if skipped and self.limit > 1 else "")
        return ""

    def means(self, table: Tensor, names: Sequence[str]) -> dict[str, float]:
        """Return the scalars' means over the steps that were taken; empty where none was."""
        kept = table[~self._gone(table, names)]
        if not len(kept):
            return {}
        means = dict(zip(names, kept.mean(0).tolist(), strict=True))
        means = {name: value for name, value in means.items() if not name.endswith(SKIPPED)}
        return {**means, TOTAL: float(self.total)}

    def _gone(self, table: Tensor, names: Sequence[str]) -> Tensor:
        columns = [place for place, name in enumerate(names) if name.endswith(SKIPPED)]
        gone: Tensor = (table[:, columns] > 0).any(1)
        return gone
