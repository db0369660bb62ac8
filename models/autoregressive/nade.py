"""Neural autoregressive distribution estimator (Larochelle & Murray 2011, AISTATS, PMLR 15:29-37).

A picture of D bits in a fixed order has p(x) = prod_d p(x_d | x_<d), with eq. 3 to 6 of the paper:

    a_1 = c,   a_{d+1} = a_d + W_d x_d,   h_d = sigmoid(a_d),   p(x_d = 1 | x_<d) = sigmoid(b_d + V_d h_d)

Shape letters: B pictures, C channels, H and W pixels, D = C H W bits, N of them at a time, U hidden units. Pixels
are in [0, 1]; likelihoods and losses are exact sums over a picture's bits, in nats a picture.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds
from models.parts.levels import Binarize, observed
from models.parts.noise import uniforms
from models.request import Request

CHUNK: Final = 28  # bits whose hidden units a CPU computes together


@dataclass(frozen=True, kw_only=True, slots=True)
class NADEConfig:
    """What is learned, in which order, and the network's size."""

    image_size: int = 28  # pixels a side
    channels: int = 1
    hidden: int = 500
    binarize: Binarize = "dynamic"
    order: Literal["raster", "random"] = "raster"
    order_seed: int = 0  # of the random order
    mask: Literal["A", "B"] = "A"  # B is the broken control: a bit sees itself

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, dict.fromkeys(("image_size", "channels", "hidden"), bounds.SIZE))

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        return self.channels, self.image_size, self.image_size


class NADE(Family):
    """Bits one after another; what the hidden units know of those before is summed as it grows."""

    Config = NADEConfig
    presets: ClassVar[Mapping[str, NADEConfig]] = {
        "tiny": NADEConfig(image_size=8, hidden=32),
        "base": NADEConfig(),
        "small": NADEConfig(image_size=8, hidden=64),
    }
    config: NADEConfig

    def __init__(self, config: NADEConfig) -> None:
        super().__init__()
        self.config = config
        bits = math.prod(config.shape)
        order_D = torch.arange(bits)
        if config.order == "random":
            order_D = torch.randperm(
                bits, generator=torch.Generator().manual_seed(config.order_seed)
            )
        self.order_D: Tensor
        self.register_buffer("order_D", order_D)  # saved: weights mean nothing in another order
        self.W_DU = nn.Parameter(_uniform(bits, config.hidden, fan_in=bits))
        self.V_DU = nn.Parameter(_uniform(bits, config.hidden, fan_in=config.hidden))
        self.b_D = nn.Parameter(torch.zeros(bits))
        self.c_U = nn.Parameter(torch.zeros(config.hidden))

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
        """Return the logits (B, D) of every bit given those before it, all at once.

        On a CPU some bits at a time, whose hidden units fit its cache: four times as fast for 784 bits and 500 units.
        """
        a_BU, logits = self.c_U.expand(len(x_BD), -1), []
        size = CHUNK if x_BD.device.type == "cpu" else len(self.W_DU)
        parts = [
            torch.split(x_BD, size, 1),
            *(torch.split(w, size) for w in (self.W_DU, self.V_DU)),
        ]
        for x_BN, W_NU, V_NU in zip(*parts, strict=True):
            if self.config.mask == "A":  # one later: a_d has heard of the bits before d
                heard_NBU = x_BN.T[:-1, :, None] * W_NU[:-1, None]
                heard_NBU = torch.cat([a_BU[None], heard_NBU]).cumsum(0)
            else:
                heard_NBU = a_BU + (x_BN.T[:, :, None] * W_NU[:, None]).cumsum(0)
            logits.append(torch.einsum("nbu,nu->bn", heard_NBU.sigmoid(), V_NU))
            with torch.autocast(x_BD.device.type, enabled=False):  # a sum over all bits before
                a_BU = a_BU + x_BN @ W_NU
        return self.b_D + torch.cat(logits, 1)

    def _log_prob(self, x_BD: Tensor) -> Tensor:
        logits_BD = self.logits(x_BD).float()
        return -F.binary_cross_entropy_with_logits(logits_BD, x_BD, reduction="none").sum(1)

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Draw bit after bit; returns pictures (B, C, H, W) of 0 and 1.

        The activation a_d is kept and one product added to it, so a picture costs O(D U) instead of O(D^2 U). All is
        done row by row: a seed gives the same bits alone or in a batch.
        """
        self.check(request)
        u_BD = uniforms(request.seeds, (len(self.order_D),), self.W_DU.device)
        a_BU = self.c_U.expand(len(u_BD), -1)
        x_BD = torch.zeros_like(u_BD)
        for d in range(u_BD.shape[1]):
            logit_B = self.b_D[d] + (a_BU.sigmoid() * self.V_DU[d]).sum(1)
            x_BD[:, d] = (u_BD[:, d] < logit_B.sigmoid()).float()
            a_BU = a_BU + x_BD[:, d, None] * self.W_DU[d]
        return self._pictures(x_BD)

    def _pictures(self, x_BD: Tensor) -> Tensor:
        """Return bits put back from the model's order to their places."""
        raster_BD = torch.empty_like(x_BD).index_copy_(1, self.order_D, x_BD)
        return raster_BD.view(-1, *self.config.shape)


def _uniform(rows: int, columns: int, fan_in: int) -> Tensor:
    return (torch.rand(rows, columns) * 2 - 1) / math.sqrt(fan_in)
