"""Wasserstein autoencoder with an MMD penalty, WAE-MMD (Tolstikhin et al. 2018, arXiv:1711.01558, algorithm 2).

Encoder and decoder are deterministic. A picture's cost is the squared distance to its reconstruction; the penalty
draws the codes of all pictures together, not each picture's own as a VAE's KL does, to the prior N(0, I).

Shape letters: B pictures, C channels, H and W pixels, Z latent width. Pixels are in [0, 1]; costs are sums over a
picture's pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds
from models.parts.autoencoder import Network, autoencoder, check_halving
from models.parts.mmd import excess, mmd
from models.parts.noise import normals
from models.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class WAEConfig:
    """The network's sizes and the penalty's weight."""

    image_size: int = 28  # pixels a side
    channels: int = 1
    network: Network = "mlp"
    hidden: tuple[int, ...] = (400, 400)  # mlp: widths; conv: channels, each halving the side
    latent: int = 8
    penalty: float = 200.0  # lambda; the authors' code: 10 over a cost of 0.05 times the squares

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(
            self, dict.fromkeys(("image_size", "channels", "hidden", "latent"), bounds.SIZE)
        )
        if self.network == "conv":
            check_halving(self.image_size, self.hidden)
        bounds.within("penalty", self.penalty, bounds.WEIGHT)


class WAE(Family):
    """A code for each picture; all codes together are drawn to the prior."""

    Config = WAEConfig
    presets: ClassVar[Mapping[str, WAEConfig]] = {
        "tiny": WAEConfig(image_size=8, hidden=(32,), latent=4, penalty=10.0),
        "digits": WAEConfig(image_size=8, hidden=(200, 200), latent=6, penalty=20.0),
        "base": WAEConfig(),
        "conv": WAEConfig(network="conv", hidden=(32, 64)),
        "large": WAEConfig(
            image_size=64, channels=3, network="conv", hidden=(128, 256, 512, 512), latent=64
        ),
    }
    measures: ClassVar[tuple[str, ...]] = ("mmd_excess", "cost")
    config: WAEConfig

    def __init__(self, config: WAEConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.channels, config.image_size, config.image_size)
        self.encoder, self.decoder = autoencoder(
            config.network, shape, config.hidden, config.latent, config.latent
        )

    @property
    def capabilities(self) -> Capabilities:
        """Return what every config can do: draw pictures, without a likelihood."""
        return Capabilities()

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the cost plus lambda MMD^2, eq. 4 of the paper; a batch of 100 or more, or the penalty is noise."""
        x_BCHW = batch["pixels"]
        z_BZ = self.latents(x_BCHW)
        cost = (self.decode(z_BZ) - x_BCHW).square().flatten(1).sum(1).mean()
        prior_NZ = batch["prior"] if "prior" in batch else torch.randn_like(z_BZ)
        penalty = mmd(z_BZ, prior_NZ, batch.get("codes"))
        return Losses(
            cost + self.config.penalty * penalty,
            len(z_BZ),
            {"cost": cost.detach(), "mmd": penalty.detach()},
        )

    @torch.no_grad()
    def survey(self, batch: Batch, player: str = "model") -> Batch:  # noqa: ARG002 - one player
        """Return the `codes` of these pictures and as many draws from the `prior`: all are compared with all."""
        z_BZ = self.latents(batch["pixels"])
        return {"codes": z_BZ, "prior": torch.randn_like(z_BZ)}

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Decode draws from the prior; returns (B, C, H, W) in [0, 1]."""
        self.check(request)
        device = next(self.parameters()).device
        return self.decode(normals(request.seeds, (self.config.latent,), device))

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return how far the codes are from the prior (`models.parts.mmd.excess`) and the cost a picture."""
        x_BCHW = batch["pixels"]
        z_BZ = self.latents(x_BCHW)
        cost_B = (self.decode(z_BZ) - x_BCHW).square().flatten(1).sum(1)
        return {"mmd_excess": excess(z_BZ), "cost": cost_B}

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the pictures' codes (B, Z)."""
        z_BZ: Tensor = self.encoder(pixels * 2 - 1).float()
        return z_BZ

    def decode(self, z_BZ: Tensor) -> Tensor:
        """Return the codes' pictures (B, C, H, W) in [0, 1]."""
        x_BCHW: Tensor = self.decoder(z_BZ).float().sigmoid()
        return x_BCHW
