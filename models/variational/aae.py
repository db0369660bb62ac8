"""Adversarial autoencoder (Makhzani et al. 2016, arXiv:1511.05644), with the deterministic encoder of section 2.

Two players with an optimiser each, in turn. The discriminator learns to tell draws from the prior N(0, I), its
"real" samples, from the codes of pictures, its "fake" ones. The autoencoder learns to reconstruct and, through the
encoder, to be taken for the prior: the paper's reconstruction phase and the second half of its regularisation phase
in one step. The generator's loss is the one that does not saturate (Goodfellow et al. 2014, section 3).

Shape letters: B pictures, C channels, H and W pixels, Z latent width. Pixels are in [0, 1]; costs are sums over a
picture's pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds
from models.parts.autoencoder import Network, autoencoder, check_halving, dense
from models.parts.mmd import excess
from models.parts.noise import normals
from models.request import Request

DRAWS: Final = 4096  # from the prior, in a measurement


@dataclass(frozen=True, kw_only=True, slots=True)
class AAEConfig:
    """The networks' sizes and the adversary's weight."""

    image_size: int = 28  # pixels a side
    channels: int = 1
    network: Network = "mlp"
    hidden: tuple[int, ...] = (1000, 1000)  # mlp: widths; conv: channels, each halving the side
    latent: int = 8
    discriminator: tuple[int, ...] = (1000, 1000)  # widths
    adversary: float = 1.0  # weight of fooling the discriminator beside the squared error

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(
            self,
            dict.fromkeys(
                ("image_size", "channels", "hidden", "latent", "discriminator"), bounds.SIZE
            ),
        )
        if self.network == "conv":
            check_halving(self.image_size, self.hidden)
        bounds.within("adversary", self.adversary, bounds.WEIGHT)


class AAE(Family):
    """A code for each picture; a discriminator draws all codes together to the prior."""

    Config = AAEConfig
    presets: ClassVar[Mapping[str, AAEConfig]] = {
        "tiny": AAEConfig(image_size=8, hidden=(32,), latent=4, discriminator=(32,)),
        "digits": AAEConfig(image_size=8, hidden=(200,), discriminator=(200, 200)),
        "base": AAEConfig(),
        "conv": AAEConfig(network="conv", hidden=(32, 64)),
    }
    players: ClassVar[tuple[str, ...]] = ("autoencoder", "discriminator")
    measures: ClassVar[tuple[str, ...]] = ("mmd_excess", "discriminator_accuracy", "cost")
    config: AAEConfig

    def __init__(self, config: AAEConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.channels, config.image_size, config.image_size)
        self.encoder, self.decoder = autoencoder(
            config.network, shape, config.hidden, config.latent, config.latent
        )
        widths = (config.latent, *config.discriminator)
        self.discriminator = nn.Sequential(*dense(widths), nn.Linear(widths[-1], 1))

    @property
    def capabilities(self) -> Capabilities:
        """Return what every config can do: draw pictures, without a likelihood."""
        return Capabilities()

    def player_parameters(self, player: str) -> list[nn.Parameter]:
        """Return the discriminator's parameters, or the encoder's and the decoder's."""
        if player == "discriminator":
            return list(self.discriminator.parameters())
        return [*self.encoder.parameters(), *self.decoder.parameters()]

    def forward(self, batch: Batch, player: str = "autoencoder") -> Losses:
        """Return the player's loss; `accuracy` of the discriminator is 1/2 where codes and prior look the same."""
        x_BCHW = batch["pixels"]
        if player == "discriminator":
            with torch.no_grad():
                z_BZ = self.latents(x_BCHW)
            return self._judge(z_BZ)
        z_BZ = self.latents(x_BCHW)
        cost = (self.decode(z_BZ) - x_BCHW).square().flatten(1).sum(1).mean()
        fooling = F.softplus(-self.prior_logit(z_BZ)).mean()  # -log D(z)
        return Losses(
            cost + self.config.adversary * fooling,
            len(z_BZ),
            {"cost": cost.detach(), "fooling": fooling.detach()},
        )

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Decode draws from the prior; returns (B, C, H, W) in [0, 1]."""
        self.check(request)
        device = next(self.parameters()).device
        return self.decode(normals(request.seeds, (self.config.latent,), device))

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return how far the codes are from the prior, what the discriminator has right, and the cost a picture.

        `discriminator_accuracy` (B,) is the mean of its share of right answers on many draws from the prior, the same
        ones each time, and of whether it is right on a code. A discriminator that has learned nothing is right half of
        the time as well, hence `mmd_excess` (`models.parts.mmd.excess`), which asks nobody.
        """
        x_BCHW = batch["pixels"]
        z_BZ = self.latents(x_BCHW)
        prior_NZ = normals(range(DRAWS), (self.config.latent,), z_BZ.device)
        prior_N, code_B = self.prior_logit(prior_NZ) > 0, self.prior_logit(z_BZ) <= 0
        cost_B = (self.decode(z_BZ) - x_BCHW).square().flatten(1).sum(1)
        return {
            "mmd_excess": excess(z_BZ),
            "discriminator_accuracy": (prior_N.float().mean() + code_B.float()) / 2,
            "cost": cost_B,
        }

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the pictures' codes (B, Z)."""
        z_BZ: Tensor = self.encoder(pixels * 2 - 1).float()
        return z_BZ

    def decode(self, z_BZ: Tensor) -> Tensor:
        """Return the codes' pictures (B, C, H, W) in [0, 1]."""
        x_BCHW: Tensor = self.decoder(z_BZ).float().sigmoid()
        return x_BCHW

    def prior_logit(self, z_BZ: Tensor) -> Tensor:
        """Return the discriminator's log odds (B,) that each z is a draw from the prior."""
        logit_B: Tensor = self.discriminator(z_BZ).float()[:, 0]
        return logit_B

    def _judge(self, z_BZ: Tensor) -> Losses:
        """Return the mean of -log D(prior) - log(1 - D(z)) over pairs; the prior is what is real."""
        prior_BZ = torch.randn_like(z_BZ)
        prior_B, code_B = self.prior_logit(torch.cat([prior_BZ, z_BZ])).chunk(2)
        loss = F.softplus(-prior_B) + F.softplus(code_B)
        right = (prior_B > 0).float().mean() + (code_B <= 0).float().mean()
        return Losses(loss.mean(), len(loss), {"accuracy": right / 2})
