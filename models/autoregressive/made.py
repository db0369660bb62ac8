"""Masked autoencoder for distribution estimation (Germain et al. 2015, arXiv:1502.03509).

An autoencoder whose d-th output hears only the bits before d is a product of conditionals, p(x) = prod_d p(x_d | x_<d).
Every unit has a degree, the number of bits that it may have heard of, and weights from a higher degree to a lower one
are masked (eq. 12 and 13), so plain matrix products give all D conditionals at once.

Shape letters: B pictures, C channels, H and W pixels, D = C H W bits, U hidden units, O and I outputs and inputs of a
layer. Pixels are in [0, 1]; likelihoods and losses are exact sums over a picture's bits, in nats a picture.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds
from models.parts.levels import Binarize, observed
from models.parts.noise import uniforms
from models.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class MADEConfig:
    """What is learned, in which order, and the network's size."""

    image_size: int = 28  # pixels a side
    channels: int = 1
    hidden: tuple[int, ...] = (500, 500)
    binarize: Binarize = "dynamic"
    order: Literal["raster", "random"] = "raster"
    order_seed: int = 0  # of the random order
    mask: Literal["A", "B"] = "A"  # B is the broken control: a bit sees itself
    degrees: Literal["even", "first"] = "even"  # of fewer units than bits; first: older versions'

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, dict.fromkeys(("image_size", "channels", "hidden"), bounds.SIZE))
        if self.bits < 2:
            raise ValueError(f"a picture needs at least 2 bits, got {self.bits}")

    @property
    def bits(self) -> int:
        """D."""
        return math.prod(self.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        return self.channels, self.image_size, self.image_size


class MaskedLinear(nn.Linear):
    """A linear layer without the weights that the mask (O, I) leaves out."""

    def __init__(self, mask_OI: Tensor) -> None:
        outputs, inputs = mask_OI.shape
        super().__init__(inputs, outputs)
        self.mask_OI: Tensor
        self.register_buffer("mask_OI", mask_OI.to(self.weight.dtype), persistent=False)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Return (B, O)."""
        return F.linear(x_BI, self.weight * self.mask_OI, self.bias)


def degrees(units: int, bits: int, kind: Literal["even", "first"] = "even") -> Tensor:
    """Return the units' degrees, which span 1..bits - 1 evenly: each as often as another, or every so many-th once.

    By "first" too few units have the first degrees alone, and do not hear the last bits: so weights were once trained.
    """
    if units >= bits - 1 or kind == "first":
        return 1 + torch.arange(units) % (bits - 1)
    return torch.linspace(1, bits - 1, units, dtype=torch.float64).round().long()


class MADE(Family):
    """Bits one after another from one masked network."""

    Config = MADEConfig
    presets: ClassVar[Mapping[str, MADEConfig]] = {
        "tiny": MADEConfig(image_size=8, hidden=(64,)),
        "base": MADEConfig(),
        "small": MADEConfig(image_size=8, hidden=(256, 256)),
    }
    implied: ClassVar[Mapping[str, str]] = {"degrees": "first"}
    config: MADEConfig

    def __init__(self, config: MADEConfig) -> None:
        super().__init__()
        self.config = config
        order_D = torch.arange(config.bits)
        if config.order == "random":
            generator = torch.Generator().manual_seed(config.order_seed)
            order_D = torch.randperm(config.bits, generator=generator)
        self.order_D: Tensor
        self.register_buffer("order_D", order_D)  # saved: weights mean nothing in another order
        own_D = torch.arange(1, config.bits + 1)
        degrees_by_layer = [
            own_D,
            *(degrees(units, config.bits, config.degrees) for units in config.hidden),
        ]
        self.hidden = nn.ModuleList(
            MaskedLinear(above[:, None] >= below)
            for below, above in itertools.pairwise(degrees_by_layer)
        )
        seen = own_D if config.mask == "A" else own_D + 1
        self.output = MaskedLinear(seen[:, None] > degrees_by_layer[-1])
        self.direct = MaskedLinear(seen[:, None] > own_D)  # section 4: from the bits themselves

    @property
    def capabilities(self) -> Capabilities:
        """Return what this model can do."""
        return Capabilities(likelihood=True)

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean exact negative log-likelihood."""
        nats_B = -self._log_prob(self.bits(batch["pixels"]))
        return Losses(nats_B.mean(), len(nats_B))

    @torch.no_grad()
    def log_prob(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return log p(x) in nats (B,), exact; grey levels are binarised first, as in training.

        Draws come from `generator`, on the model's device, or from torch's global one.
        """
        return self._log_prob(self.bits(batch["pixels"], generator))

    def bits(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the pictures' bits in the model's order, (B, D)."""
        x_BCHW = observed(pixels, 2, self.config.binarize, generator)
        return x_BCHW.flatten(1)[:, self.order_D]

    def logits(self, x_BD: Tensor) -> Tensor:
        """Return the logits (B, D) of every bit given those before it."""
        h_BU = x_BD
        for layer in self.hidden:
            h_BU = layer(h_BU).relu()
        found: Tensor = self.output(h_BU) + self.direct(x_BD)
        return found

    def _log_prob(self, x_BD: Tensor) -> Tensor:
        logits_BD = self.logits(x_BD).float()
        return -F.binary_cross_entropy_with_logits(logits_BD, x_BD, reduction="none").sum(1)

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Draw bit after bit, a pass each; returns pictures (B, C, H, W) of 0 and 1."""
        self.check(request)
        u_BD = uniforms(request.seeds, (self.config.bits,), self.order_D.device)
        x_BD = torch.zeros_like(u_BD)
        for d in range(self.config.bits):
            x_BD[:, d] = (u_BD[:, d] < self.logits(x_BD)[:, d].sigmoid()).float()
        raster_BD = torch.empty_like(x_BD).index_copy_(1, self.order_D, x_BD)
        return raster_BD.view(-1, *self.config.shape)
