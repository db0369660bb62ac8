"""What discrete likelihoods are of: bits or levels from pixels in [0, 1] or sound in [-1, 1], and their draws."""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Binarize: TypeAlias = Literal["dynamic", "threshold"]
"""dynamic: grey levels are probabilities, redrawn at every step; threshold: 1 from one half up. Bits stay bits."""


def observed(
    pixels: Tensor, levels: int, binarize: Binarize, generator: torch.Generator | None = None
) -> Tensor:
    """Return the levels 0..levels - 1 that pixels stand for, as floats of the same shape.

    Two levels follow `binarize`, and draw from `generator` or torch's global one; more are rounded to the nearest.

    Example:
        >>> observed(torch.tensor([0.0, 0.4, 1.0]), 17, "dynamic").tolist()
        [0.0, 6.0, 16.0]
    """
    if levels > 2:
        return (pixels * (levels - 1)).round()
    if binarize == "threshold":
        return (pixels >= 0.5).to(pixels.dtype)
    return torch.bernoulli(pixels, generator=generator)


def levels_of(sound: Tensor, levels: int) -> Tensor:
    """Return the levels 0..levels - 1 (int64) of sound in [-1, 1], mu-law companded with mu = levels - 1.

    Symmetric: -x has the level that mirrors x's, but on an edge, as 0 is one.

    Example:
        >>> levels_of(torch.tensor([-1.0, -0.1, 0.1, 1.0]), 16).tolist()
        [0, 5, 10, 15]
    """
    mu = levels - 1
    companded = sound.sign() * torch.log1p(mu * sound.abs()) / math.log1p(mu)
    return ((companded + 1) / 2 * mu).round().long().clamp(0, mu)


def sound_of(level: Tensor, levels: int) -> Tensor:
    """Return the sound in [-1, 1] in the middle of each level: the inverse of `levels_of`."""
    mu = levels - 1
    companded = 2 * level / mu - 1
    return companded.sign() * torch.expm1(companded.abs() * math.log1p(mu)) / mu


def drawn(logits_BK: Tensor, u_B: Tensor) -> Tensor:
    """Return the levels (B,), as floats, at which the distribution function first exceeds u."""
    below_BK = (
        logits_BK.float().softmax(1).cumsum(1)[:, :-1]
    )  # the last level takes what rounding leaves
    return (below_BK <= u_B[:, None]).sum(1).float()
