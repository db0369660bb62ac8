"""What the autoregressive families' tests share: sharp networks, all pictures there are, and who hears of whom."""

import dataclasses
import itertools
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.functional import jacobian as jacobian_of

from models.autoregressive.pixelcnn import PixelCNN
from models.autoregressive.pixelrnn import PixelRNN
from models.family import Family

WORDS = ("one", "three", "two")
Sharp = TypeVar("Sharp", bound=Family)


def sharp(kind: type[Sharp], seed: int = 0, **change: object) -> Sharp:
    """A tiny model whose weights are large enough that everything matters to what comes after it."""
    torch.manual_seed(seed)
    model = kind(dataclasses.replace(kind.presets["tiny"], **change))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model.eval()


def every_picture(side: int, levels: int) -> Tensor:
    values = [level / (levels - 1) for level in range(levels)]
    return torch.tensor(list(itertools.product(values, repeat=side * side))).view(-1, 1, side, side)


def total_probability(model: PixelCNN | PixelRNN, side: int, levels: int = 2) -> float:
    """The sum over all pictures, 1 for a density."""
    log_prob = model.log_prob({"pixels": every_picture(side, levels)})
    return float(log_prob.double().exp().sum())


def log_probs_by_caption(model: PixelCNN | PixelRNN) -> list[Tensor]:
    """Of all pictures of 3 x 3 bits, given each of WORDS and two of them."""
    pixels, found = every_picture(3, 2), []
    for caption in (*WORDS, "two three"):
        tokens = model.encode([caption] * len(pixels))
        assert tokens is not None
        found.append(model.log_prob({"pixels": pixels, "tokens": tokens}).double())
    return found


def influence(model: PixelCNN | PixelRNN) -> Tensor:
    """|d logits_i / d x_j|, the largest over the levels, (pixels, pixels) in raster order; float64."""
    side = model.config.image_size
    start = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)).double()
    found = jacobian_of(model.double().logits, start)  # type: ignore[no-untyped-call]
    assert isinstance(found, Tensor)
    return found.abs().amax((0, 1)).reshape(side * side, side * side)
