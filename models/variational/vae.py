"""Variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114), with importance-weighted evaluation.

Bernoulli pixels, redrawn from the grey levels at every step (Salakhutdinov & Murray 2008), or Gaussian pixels of one
learned variance (Rybkin et al. 2020, arXiv:2006.13202) on uniformly dequantised levels (Theis et al. 2016,
arXiv:1511.01844). IWAE bound: Burda et al. 2016 (arXiv:1509.00519).

Shape letters: B pictures, C channels, H and W pixels, Z latent width. Pixels are in [0, 1]; likelihoods and losses are
sums over a picture's pixels, in nats a picture.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses, mixed
from models.parts import bounds, levels
from models.parts.autoencoder import Network, autoencoder, check_halving
from models.parts.noise import normals
from models.request import Request

IMPORTANCE: Final = 100  # codes a picture that `measure` draws for the IWAE bound
LEVELS: Final = 256  # of a dequantised pixel


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig:
    """What is learned and the network's sizes."""

    image_size: int = 28  # pixels a side
    channels: int = 1
    network: Network = "mlp"
    hidden: tuple[int, ...] = (400, 400)  # mlp: widths; conv: channels, each halving the side
    latent: int = 40
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    binarize: Literal["dynamic", "threshold", "none"] = (
        "dynamic"  # grey levels are probabilities; threshold: 1 from one half up
    )
    kl_weight: float = 1.0  # beta; 0 is the broken control: nothing draws the codes to the prior

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(
            self, dict.fromkeys(("image_size", "channels", "hidden", "latent"), bounds.SIZE)
        )
        if self.network == "conv":
            check_halving(self.image_size, self.hidden)
        if self.likelihood == "gaussian" and self.binarize != "none":
            raise ValueError("likelihood 'gaussian' needs binarize 'none': it models grey levels")
        bounds.within("kl_weight", self.kl_weight, bounds.WEIGHT)


class VAE(Family):
    """A Gaussian code for a picture; the ELBO bounds the picture's log-likelihood from below."""

    Config = VAEConfig
    presets: ClassVar[Mapping[str, VAEConfig]] = {
        "tiny": VAEConfig(image_size=8, hidden=(32,), latent=4),
        "digits": VAEConfig(image_size=8, hidden=(200,), latent=16, binarize="threshold"),
        "base": VAEConfig(),
        "conv": VAEConfig(network="conv", hidden=(32, 64), latent=32),
        "large": VAEConfig(
            image_size=64,
            channels=3,
            network="conv",
            hidden=(128, 256, 512, 512),
            latent=256,
            likelihood="gaussian",
            binarize="none",
        ),
    }
    measures: ClassVar[tuple[str, ...]] = ("kl", "iwae_nats")
    config: VAEConfig

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.channels, config.image_size, config.image_size)
        self.encoder, self.decoder = autoencoder(
            config.network, shape, config.hidden, 2 * config.latent, config.latent
        )
        self.log_sigma = (
            nn.Parameter(torch.tensor(-2.0)) if config.likelihood == "gaussian" else None
        )

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do; Bernoulli pixels that are not drawn have no sure likelihood."""
        return Capabilities(likelihood=self.log_sigma is not None or self.config.binarize != "none")

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean negative ELBO, eq. 10 of the paper with one code a picture, and its two parts.

        With a `kl_weight` beta other than 1 the KL is weighed by it (Higgins et al. 2017, beta-VAE, eq. 4).
        """
        nll_B, kl_B = self._bound(self._observed(batch["pixels"]), None)
        nll, kl = nll_B.mean(), kl_B.mean()
        parts = {"nll": nll.detach(), "kl": kl.detach()}
        return Losses(nll + self.config.kl_weight * kl, len(nll_B), parts)

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Decode draws from the prior; returns the pixels' means (B, C, H, W) in [0, 1]."""
        self.check(request)
        device = next(self.parameters()).device
        out_BCHW = self.decoder(normals(request.seeds, (self.config.latent,), device)).float()
        mean: Tensor = out_BCHW.clamp(0, 1) if self.log_sigma is not None else out_BCHW.sigmoid()
        return mean

    @torch.no_grad()
    def log_prob(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return a lower bound of log p(x) in nats (B,): the ELBO; `iwae` is a closer one.

        Grey levels are binarised or dequantised first, as in training; binary pixels stay as they are. Draws come from
        `generator`, on the model's device, or from torch's global one.

        Raises:
            ValueError: pixels neither 0 nor 1 with binarize "none": a Bernoulli gives them no likelihood.
        """
        nll_B, kl_B = self._bound(self._observed(batch["pixels"], generator, True), generator)
        return -(nll_B + kl_B)

    @torch.no_grad()
    def iwae(self, batch: Batch, k: int, generator: torch.Generator | None = None) -> Tensor:
        """Return the importance-weighted bound (B,) in nats, log mean_k p(x, z_k) / q(z_k | x), eq. 8 of IWAE.

        Raises:
            ValueError: k below 1, or pixels as in `log_prob`.
        """
        if k < 1:
            raise ValueError(f"importance samples must be at least 1, got {k}")
        x_BCHW = self._observed(batch["pixels"], generator, True)
        mean_BZ, log_var_BZ = self.posterior(x_BCHW)
        total_B = torch.full_like(mean_BZ[:, 0], -math.inf)
        for _ in range(k):
            noise_BZ = _noise(mean_BZ, generator)
            z_BZ = mean_BZ + (log_var_BZ / 2).exp() * noise_BZ
            log_ratio_B = (noise_BZ.square() + log_var_BZ - z_BZ.square()).sum(1) / 2
            total_B = torch.logaddexp(total_B, log_ratio_B - self._nll(z_BZ, x_BCHW))
        return total_B - math.log(k)

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return `kl` (B,) of the codes from the prior and `iwae_nats` (B,), the negative IWAE bound of 100 codes.

        Both in nats, of the same draws each time. Bernoulli pixels that are not drawn have a `kl` alone.
        """
        generator = torch.Generator(batch["pixels"].device).manual_seed(mixed(0))
        x_BCHW = self._observed(batch["pixels"], generator)
        _, kl_B = self._bound(x_BCHW, generator)
        if not self.capabilities.likelihood:
            return {"kl": kl_B}
        return {"kl": kl_B, "iwae_nats": -self.iwae(batch, IMPORTANCE, generator)}

    @property
    def measured(self) -> tuple[str, ...]:
        """Return the names that `measure` gives with this config."""
        return self.measures if self.capabilities.likelihood else ("kl",)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(z | x), (B, Z) each."""
        mean_BZ, log_var_BZ = self.encoder(pixels * 2 - 1).float().chunk(2, dim=1)
        return mean_BZ, log_var_BZ

    def _bound(self, x_BCHW: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return -log p(x | z) for one z of q(z | x), and KL(q(z | x) || N(0, I)) in closed form, (B,) each."""
        mean_BZ, log_var_BZ = self.posterior(x_BCHW)
        z_BZ = mean_BZ + (log_var_BZ / 2).exp() * _noise(mean_BZ, generator)
        kl_B = (mean_BZ.square() + log_var_BZ.exp() - 1 - log_var_BZ).sum(1) / 2
        return self._nll(z_BZ, x_BCHW), kl_B

    def _nll(self, z_BZ: Tensor, x_BCHW: Tensor) -> Tensor:
        """Return -log p(x | z), (B,)."""
        out_BCHW = self.decoder(z_BZ).float()
        if self.log_sigma is None:
            nll = F.binary_cross_entropy_with_logits(out_BCHW, x_BCHW, reduction="none")
        else:
            distance = ((x_BCHW - out_BCHW) / self.log_sigma.exp()).square()
            constant = math.log(2 * math.pi) / 2 + math.log(LEVELS)  # a level is 1 / LEVELS wide
            nll = distance / 2 + self.log_sigma + constant
        return nll.flatten(1).sum(1)

    def _observed(
        self, pixels: Tensor, generator: torch.Generator | None = None, measured: bool = False
    ) -> Tensor:
        """Return what the likelihood is of: redrawn bits, or dequantised levels."""
        if self.config.binarize != "none":
            return levels.observed(pixels, 2, self.config.binarize, generator)
        if self.log_sigma is not None:
            noise = torch.rand(
                pixels.shape, generator=generator, device=pixels.device, dtype=pixels.dtype
            )
            return ((pixels * (LEVELS - 1)).round() + noise) / LEVELS
        if measured and bool((pixels * (1 - pixels)).any()):
            raise ValueError(
                "Bernoulli pixels must be 0 or 1 to have a likelihood, got grey levels: "
                "binarize them or configure binarize 'dynamic'"
            )
        return pixels


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
