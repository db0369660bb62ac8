"""The KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752, section 3.1 and appendix G).

A picture becomes a grid of Z numbers a place, so that a diffusion that learns to draw such grids has few places to work
on. Costs are sums over a picture, its pixels in [0, 1]:

    |x - D(z)|  +  beta KL(q(z | x) || N(0, I))  +  lambda (-critic(D(z)))

beta is tiny: the latents are drawn together, not to the prior. The critic looks at patches (Isola et al. 2017,
arXiv:1611.07004) and learns by the hinge loss, against the blur of absolute errors; at lambda 0 there is none. The
paper's perceptual loss is left out: it needs the features of a network that was trained on millions of photographs.

The latents' deviation is whatever it comes to be, while a diffusion's noise schedule is made for data of deviation 1.
So training follows it, and latents leave divided by it and come back multiplied: `scale`, of the paper's appendix G.

Shape letters: B pictures, C channels, H and W pixels, Z channels and h and w places of the latents, n of patches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Entry, Family, Losses
from models.parts import bounds
from models.parts.autoencoder import check_halving, grid_decoder, grid_encoder, halving
from models.parts.influence import influence
from models.parts.noise import normals
from models.parts.sizes import around, sides
from models.parts.spaces import fingerprint
from models.ports import Port
from models.request import Request

FOLLOWING: Final = 0.99  # decay of the latents' moments, a step
LOG_VARIANCE: Final = (-30.0, 20.0)  # where a posterior's is held, as in the authors' code
TINIEST: Final = 1e-10  # squared error of a picture that has no other: 100 dB


@dataclass(frozen=True, kw_only=True, slots=True)
class KLAutoencoderConfig:
    """The networks' sizes, and what the costs are weighed by."""

    image_size: int = 32  # pixels a side
    sizes: tuple[str, ...] = ()  # that pictures have, like 40x24; empty: squares alone
    channels: int = 3
    hidden: tuple[int, ...] = (32, 64)  # channels; each convolution halves the side
    latent: int = 4  # Z, numbers a place
    kl_weight: float = 1e-3  # beta
    adversary: float = 0.0  # lambda; 0: no critic
    critic: tuple[int, ...] = (32, 64)  # its channels; each convolution halves the side

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        sizes = ("image_size", "channels", "hidden", "latent", "critic")
        bounds.check(self, dict.fromkeys(sizes, bounds.SIZE))
        bounds.check(self, dict.fromkeys(("kl_weight", "adversary"), bounds.WEIGHT))
        told = [(f"a side of size {size}", side) for size in self.sizes for side in sides(size)]
        for what, side in [("image_size", self.image_size), *told]:
            check_halving(side, self.hidden, what)
            if self.adversary:
                check_halving(side, self.critic, what)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Z, h and w."""
        side = self.image_size >> len(self.hidden)
        return self.latent, side, side


class KLAutoencoder(Family):
    """A picture as a small grid of numbers of deviation 1, and back."""

    Config = KLAutoencoderConfig
    presets: ClassVar[Mapping[str, KLAutoencoderConfig]] = {
        "tiny": KLAutoencoderConfig(
            image_size=8, channels=1, hidden=(16, 16), adversary=0.1, critic=(8,)
        ),
        "base": KLAutoencoderConfig(),
        "large": KLAutoencoderConfig(  # KL-f8 of the paper
            image_size=256,
            hidden=(128, 256, 512),
            kl_weight=1e-6,
            adversary=0.5,
            critic=(64, 128, 256),
        ),
    }
    players: ClassVar[tuple[str, ...]] = ("autoencoder", "critic")
    measures: ClassVar[tuple[str, ...]] = ("psnr", "deviation")
    config: KLAutoencoderConfig
    scale: Tensor
    moments: Tensor
    steps: Tensor

    def __init__(self, config: KLAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = grid_encoder(config.channels, config.hidden, 2 * config.latent)
        self.decoder = grid_decoder(config.latent, config.hidden, config.channels)
        self.critic: nn.Sequential | None = None
        if config.adversary:
            layers = halving((config.channels, *config.critic))
            self.critic = nn.Sequential(*layers, nn.Conv2d(config.critic[-1], 1, 1))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("moments", torch.zeros(2))  # means of z and of its square
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @property
    def capabilities(self) -> Capabilities:
        """Return what every config can do: draw pictures, without a likelihood."""
        return Capabilities()

    def player_parameters(self, player: str) -> list[nn.Parameter]:
        """Return the critic's parameters, or the encoder's and the decoder's."""
        if player == "critic":
            return [] if self.critic is None else list(self.critic.parameters())
        return [*self.encoder.parameters(), *self.decoder.parameters()]

    def turns(self, player: str) -> int:
        """Return 1, or 0 of a critic that there is not."""
        return int(player == "autoencoder" or self.critic is not None)

    def forward(self, batch: Batch, player: str = "autoencoder") -> Losses:
        """Return the player's mean loss: the module's docstring has the autoencoder's."""
        x_BCHW = batch["pixels"]
        mean, log_variance = self.posterior(x_BCHW)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        if player == "critic":
            return self._critic_losses(x_BCHW, self._drawn(z).detach())
        drawn = self._drawn(z)
        distance = (drawn - x_BCHW).abs().flatten(1).sum(1).mean()
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean() / 2
        total = distance + self.config.kl_weight * kl
        parts = {"distance": distance.detach(), "kl": kl.detach()}
        if self.critic is not None:
            score = self.critic(2 * drawn - 1).float().mean()
            total = total - self.config.adversary * score
            parts["score"] = score.detach()
        powers_B2 = torch.stack([mean, mean.square()], 1).flatten(2).mean(2)
        return Losses(total, len(z), parts, {"powers": powers_B2.detach()})

    def _critic_losses(self, real_BCHW: Tensor, fake_BCHW: Tensor) -> Losses:
        """Return the hinge loss: real patches are to score above 1, painted ones below -1."""
        assert self.critic is not None
        real, fake = (self.critic(2 * one - 1).float() for one in (real_BCHW, fake_BCHW))
        loss = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        scores = {"real": real.mean().detach(), "fake": fake.mean().detach()}
        return Losses(loss, len(real), scores)

    @torch.no_grad()
    def follow(self, seen: Mapping[str, Tensor], taken: Tensor) -> None:
        """Move the scale along with the deviation of the latents; the first steps count as much as one another."""
        pace = (1 / (self.steps + 1)).clamp(min=1 - FOLLOWING) * taken
        self.moments.lerp_(seen["powers"].mean(0), pace)
        mean, power = self.moments
        variance = (power - mean.square()).clamp(min=TINIEST)
        self.scale.copy_(torch.where(taken > 0, variance.rsqrt(), self.scale))
        self.steps += taken.long()

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Decode latents that each place draws by itself; returns (B, C, H, W) in [0, 1].

        What the places have to do with one another is another stage's work, so this shows little but textures.
        """
        self.check(request)
        return self.decode(normals(request.seeds, self.config.latent_shape, self.scale.device))

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Return `encode`, pixels to latents, and `decode`, latents to pixels; latents are of these weights alone.

        With a picture and a mask `decode` keeps that picture, bit by bit, where the mask is not 1. `encode_frames` and
        `decode_frames` are the same of clips, frame by frame.
        """
        c = self.config
        weights = *self.encoder.parameters(), *self.decoder.parameters(), self.scale
        space = fingerprint(*weights)
        pixels = Port("pixels", (c.channels, *around(c.image_size, c.sizes)))
        kept = {
            "image": replace(pixels, optional=True),
            "mask": Port("mask", (1, *around(c.image_size, c.sizes)), optional=True),
        }
        latent = {"latent": Port("latent", (c.latent, *around(c.latent_shape[1], c.sizes)), space)}
        facts = {
            "latent_shape": c.latent_shape,
            "autoencoder": space,
            "image_size": c.image_size,
            **({"sizes": c.sizes} if c.sizes else {}),
        }
        frames = {"frames": Port("clip", (None, *pixels.shape))}
        of_frames = {"latent": Port("latent", (None, *latent["latent"].shape), space)}
        return {
            "encode": Entry({"pixels": pixels}, latent, facts),
            "decode": Entry({**latent, **kept}, {"pixels": pixels}),
            "encode_frames": Entry(frames, of_frames, facts),
            "decode_frames": Entry(of_frames, frames),
        }

    def enter(self, entry: str, given: Mapping[str, Tensor]) -> Tensor:
        """Return the latents (B, Z, h, w) of pixels, or pictures (B, C, H, W) of latents; of clips each frame's."""
        if entry == "encode":
            return self.latents(given["pixels"])
        if entry in {"encode_frames", "decode_frames"}:
            of, make = ("frames", self.latents) if entry[0] == "e" else ("latent", self.decode)
            made = make(given[of].flatten(0, 1))
            return made.reshape(*given[of].shape[:2], *made.shape[1:])
        if entry != "decode":
            return super().enter(entry, given)
        drawn = self.decode(given["latent"])
        if not given.keys() >= {"image", "mask"}:
            return drawn
        return torch.where(given["mask"] > 0, drawn, given["image"])

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Return the mode of the pictures' latents (B, Z, h, w), of deviation 1."""
        return self.posterior(pixels)[0] * self.scale

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Return the pictures (B, C, H, W) in [0, 1] of latents of deviation 1."""
        return self._drawn(latent / self.scale)

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the `psnr` (B,) in dB of pictures that went there and back, and the `deviation` of leaving latents.

        The mean of `deviation` (B,) is that of all their numbers together.
        """
        latent = self.latents(batch["pixels"])
        error_B = (self.decode(latent) - batch["pixels"]).square().flatten(1).mean(1)
        return {
            "psnr": -10 * error_B.clamp(min=TINIEST).log10(),
            "deviation": _deviation(latent.flatten(1)),
        }

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(z | x), (B, Z, h, w) each, before the scale."""
        mean, log_variance = self.encoder(2 * pixels - 1).float().chunk(2, 1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def _drawn(self, z: Tensor) -> Tensor:
        x_BCHW: Tensor = self.decoder(z).float().sigmoid()
        return x_BCHW


def _deviation(rows_BD: Tensor) -> Tensor:
    """Return the standard deviation of all numbers as what each row contributes to it (B,)."""
    rows_BD = rows_BD.double()
    rows_BD = rows_BD - rows_BD.mean()  # squares of small numbers lose few digits
    each, sum_B, square_B = rows_BD.shape[1], rows_BD.sum(1), rows_BD.square().sum(1)

    def of(sums: Tensor, squares: Tensor, rows: int) -> Tensor:
        count = rows * each
        return ((squares - sums.square() / count) / (count - 1)).clamp(min=0).sqrt()

    others = (sum_B.sum() - sum_B, square_B.sum() - square_B, max(1, len(rows_BD) - 1))
    return influence(of(sum_B.sum(), square_B.sum(), len(rows_BD)), of(*others))
