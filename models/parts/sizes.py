"""Sizes of pictures as people write them, "40x24": width and height."""

import re
from collections.abc import Sequence
from typing import Final

from torch import Tensor
from torch.nn import functional as F

WRITTEN: Final = re.compile(r"[1-9][0-9]{0,3}x[1-9][0-9]{0,3}")


def sides(size: str) -> tuple[int, int]:
    """Return the height and the width, as tensors have them.

    Raises:
        ValueError: it is no size.

    Example:
        >>> sides("40x24")
        (24, 40)
    """
    if not WRITTEN.fullmatch(size):
        raise ValueError(f"sizes are written like 40x24, width and height, got {size!r}")
    width, _, height = size.partition("x")
    return int(height), int(width)


def chosen(size: str | None, sizes: Sequence[str]) -> str | None:
    """Return which of its sizes a model draws: the first one where none is asked for; None where it has one alone.

    Raises:
        ValueError: it has no such size.

    Example:
        >>> chosen(None, ("32x32", "40x24")), chosen("40x24", ("32x32", "40x24")), chosen(None, ())
        ('32x32', '40x24', None)
    """
    if size is None:
        return next(iter(sizes), None)
    if size not in sizes:
        raise ValueError(f"size: this model draws {', '.join(sizes)}, got {size[:40]!r}")
    return size


def around(side: int, sizes: Sequence[str]) -> tuple[int | None, int | None]:
    """Return height and width at a port: those of a square, or any where pictures have several sizes."""
    return (None, None) if sizes else (side, side)


def squared(pixels: Tensor, side: int) -> Tensor:
    """Return pictures (B, C, H, W) as squares, stretched where they are none: how networks of one size see them all."""
    if pixels.shape[2:] == (side, side):
        return pixels
    return F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
