"""Ranges that settings and requests keep to, refused in one sentence with the value and the limit."""

import math
from collections.abc import Mapping
from typing import Final, TypeAlias

Range: TypeAlias = tuple[float, float]
"""The least and the most, both allowed."""

SIZE: Final[Range] = (1, math.inf)
WEIGHT: Final[Range] = (0, math.inf)
SHARE: Final[Range] = (0, math.nextafter(1, 0))
"""Of a whole that must not be all of it, such as dropout."""


def check(config: object, bounds: Mapping[str, Range]) -> None:
    """Refuse a config with a field out of its range; of a tuple each item counts, and there must be one.

    Raises:
        ValueError: names the field, its range and its value.
    """
    for name, allowed in bounds.items():
        value = getattr(config, name)
        if not isinstance(value, tuple):
            within(name, value, allowed)
            continue
        for item in value or (-math.inf,):
            if not _inside(item, allowed):
                raise ValueError(f"each of {name} must be {_limit(allowed, item)}, got {value}")


def within(name: str, value: float, allowed: Range) -> None:
    """Refuse a value out of its range; nan and infinity are out of every one.

    Raises:
        ValueError: names it, its range and its value.
    """
    if not _inside(value, allowed):
        raise ValueError(f"{name} must be {_limit(allowed, value)}, got {value}")


def check_norm(what: str, width: int, side: int, groups: int) -> None:
    """Refuse features of side x side places where a group norm has one number a group, of which it leaves 0.

    Raises:
        ValueError: names the width and what it must be.
    """
    if width * side**2 <= groups:
        raise ValueError(
            f"{what} must be at least {2 * groups} where pictures have come down to one place, for a"
            f" norm of {groups} groups leaves nothing of fewer; got {width}"
        )


def _inside(value: float, allowed: Range) -> bool:
    return math.isfinite(value) and allowed[0] <= value <= allowed[1]


def _limit(allowed: Range, value: float) -> str:
    least, most = allowed
    if allowed == SHARE:
        return "in [0, 1)"
    if most == math.inf:
        return f"at least {least}{' and finite' if value == math.inf else ''}"
    return f"between {least} and {most}"
