"""Ranges that settings and requests keep to, refused in one sentence with the value and the limit."""

import math
from collections.abc import Mapping
from typing import Final, TypeAlias

Range: TypeAlias = tuple[float, float]
"""The least and the most, both allowed."""

POSITIVE: Final[Range] = (1, math.inf)
"""Of counts and sizes: at least 1."""


def check(config: object, bounds: Mapping[str, Range]) -> None:
    """Refuse a config with a field out of its range.

    Raises:
        ValueError: names the field, its range and its value.
    """
    for name, allowed in bounds.items():
        within(name, getattr(config, name), allowed)


def within(name: str, value: float, allowed: Range) -> None:
    """Refuse a value out of its range; nan is out of every one.

    Raises:
        ValueError: names it, its range and its value.
    """
    least, most = allowed
    if not least <= value <= most:
        limit = f"at least {least}" if most == math.inf else f"between {least} and {most}"
        raise ValueError(f"{name} must be {limit}, got {value}")
