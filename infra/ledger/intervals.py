"""How sure a share is that was counted: Wilson's interval, whose width stays where all or none were."""

from math import sqrt
from typing import Final

Z95: Final = 1.959964  # standard deviations to either side that hold 95 % of a normal distribution


def wilson(count: float, total: int, z: float = Z95) -> tuple[float, float]:
    """Return the bounds of a rate (Wilson 1927), 95 % unless `z` says otherwise; (0, 1) where nothing was counted.

    It stays inside [0, 1] and keeps its width where all agree, unlike a bootstrap over them. What counts half, as a tie
    of votes, errs to the wide side.
    """
    if not total:
        return 0.0, 1.0
    rate, extra = count / total, z * z / total
    middle = (rate + extra / 2) / (1 + extra)
    apart = z / (1 + extra) * sqrt(rate * (1 - rate) / total + extra / total / 4)
    return max(0.0, min(rate, middle - apart)), min(1.0, max(rate, middle + apart))  # rounding
