"""What the autoregressive families' tests share: sharp networks, all outcomes there are, and who hears of whom."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.functional import jacobian as jacobian_of

from models.parts.levels import sound_of
from tests.models.families_kit import tiny

Logits = Callable[[Any, Tensor], Tensor]
"""A model and inputs (B, T) of 0 and 1 to the logits (B, T, K), where place t is given the inputs before t."""
WORDS = ("one", "three", "two")


def sharp(name: str, seed: int = 0, **change: Any) -> Any:
    """A tiny model whose weights are large enough that everything matters to what comes after it."""
    model = tiny(name, seed, **change)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
            if name in {"made", "nade"}:  # whose first weights are near zero
                parameter.add_(torch.randn_like(parameter))
    return model.eval()


def every_picture(side: int, levels: int = 2, channels: int = 1) -> Tensor:
    values = [level / (levels - 1) for level in range(levels)]
    every = list(itertools.product(values, repeat=channels * side * side))
    return torch.tensor(every).view(-1, channels, side, side)


def every_sound(samples: int, levels: int) -> Tensor:
    return sound_of(torch.tensor(list(itertools.product(range(levels), repeat=samples))), levels)


def influence(model: Any) -> Tensor:
    """|d logits_i / d x_j| of grey pictures, the largest over the levels, (pixels, pixels) in raster order; float64."""
    side = model.config.image_size
    start = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)).double()
    found = jacobian_of(model.double().logits, start)  # type: ignore[no-untyped-call]
    assert isinstance(found, Tensor)
    return found.abs().amax((0, 1)).reshape(side * side, side * side)


def of_bits(model: Any, x_BT: Tensor) -> Tensor:
    logits: Tensor = model.logits(x_BT)[..., None]
    return logits


def hears(model: Any, logits: Logits, places: int) -> Tensor:
    """Return (T, T) bool: whether the logits at each place (rows) change with each input (columns)."""
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randint(2, (places,), generator=generator).double()
    changed_TT = torch.where(torch.eye(places).bool(), 1 - x_T, x_T)
    with torch.no_grad():
        found = logits(model, torch.cat([x_T[None], changed_TT])).double()
    moved_TTK = (found[1:] - found[:1]).abs()
    return (moved_TTK.amax(2) > 1e-9).T
