"""Judge networks and the metrics computed with them."""

from typing import Final

LEAST_HELD_OUT: Final = (
    20  # samples never learned from, below which nothing is said of a distribution
)
