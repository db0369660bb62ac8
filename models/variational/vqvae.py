"""Vector-quantised autoencoder, VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937), codebook by moving averages.

A picture becomes a grid of codes, each the nearest of K vectors. Gradients pass the choice straight through (section
3.2); the codebook is no parameter but the moving mean of what chose each vector (appendix A.1), of all parts and
workers of a step, so that every one keeps the same. A vector that hardly anything chooses starts anew at an encoding of
the batch (Dhariwal et al. 2020, arXiv:2005.00341, section 3.1): without that, most of a codebook is never used.

Sampling needs a prior over the codes. This one counts how often each place of the grid has each code and draws every
place by itself: right for one place, too loose for a grid. A prior that knows the neighbours is another stage's work.

Shape letters: B pictures, C channels, H and W pixels, P places of the grid, K codes, D width of a code, N = B P, X
parts and workers that share a step. Pixels are in [0, 1]; costs are sums over a picture's pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from models.family import Batch, Capabilities, Losses
from models.parts import bounds
from models.parts.autoencoder import check_halving, grid_decoder, grid_encoder
from models.parts.codes import (
    Coding,
    perplexity,
    perplexity_by_picture,
    recount,
    relative_cost,
    uses,
)
from models.parts.noise import places, uniforms
from models.request import Request

SMOOTHING: Final = 1e-5  # Laplace's, of the counts that divide


@dataclass(frozen=True, kw_only=True, slots=True)
class VQVAEConfig:
    """The network's sizes, the codebook's, and how it moves."""

    image_size: int = 32  # pixels a side
    channels: int = 3
    hidden: tuple[int, ...] = (64, 128)  # channels; each convolution halves the side
    codes: int = 512  # K
    width: int = 64  # D
    commitment: float = 0.25  # beta of eq. 3
    decay: float = 0.99  # of the moving averages, a step
    revive_below: float = 0.1  # share of the mean use at which a code starts anew; 0: never

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(
            self, dict.fromkeys(("image_size", "channels", "hidden", "width"), bounds.SIZE)
        )
        check_halving(self.image_size, self.hidden)
        if self.codes < 2:
            raise ValueError(f"codes must be at least 2, got {self.codes}")
        bounds.check(self, dict.fromkeys(("commitment", "decay", "revive_below"), bounds.SHARE))

    @property
    def side(self) -> int:
        """Places a side of the grid of codes."""
        return self.image_size >> len(self.hidden)


class Codebook(nn.Module):
    """K vectors of width D that follow what chooses them, and how often each place chooses each."""

    vectors_KD: Tensor
    sums_KD: Tensor
    counts_K: Tensor
    places_PK: Tensor
    steps: Tensor

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        vectors_KD = torch.randn(config.codes, config.width)
        self.register_buffer("vectors_KD", vectors_KD)
        self.register_buffer("sums_KD", vectors_KD.clone())
        self.register_buffer("counts_K", torch.ones(config.codes))
        self.register_buffer("places_PK", torch.ones(config.side**2, config.codes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def nearest(self, z_BPD: Tensor) -> Tensor:
        """Return the nearest vector's index (B, P) int64; in float32, whose ties are rare, under autocast too."""
        with torch.autocast(z_BPD.device.type, enabled=False):
            z_ND, vectors_KD = z_BPD.flatten(0, 1).float(), self.vectors_KD.float()
            size_K = vectors_KD.square().sum(1)
            distance_NK = torch.addmm(size_K, z_ND, vectors_KD.T, alpha=-2)
        return distance_NK.argmin(1).view(z_BPD.shape[:2])

    @torch.no_grad()
    def seen(self, z_BPD: Tensor, index_BP: Tensor) -> dict[str, Tensor]:
        """Return what `follow` must know of a part: its codes, each code's sum of encodings, and some encodings."""
        z_ND = z_BPD.flatten(0, 1).float()
        sums_KD = torch.zeros_like(self.sums_KD).index_add_(0, index_BP.flatten(), z_ND)
        found = {"codes": index_BP.int(), "sums": sums_KD[None]}
        if self.config.revive_below:
            order = torch.randperm(max(len(z_ND), self.config.codes), device=z_ND.device)
            found["fresh"] = z_ND[order[: self.config.codes] % len(z_ND)][None]
        return found

    @torch.no_grad()
    def follow(self, seen: Mapping[str, Tensor], taken: Tensor) -> None:
        """Move the averages by one step of all parts' encodings, and start unused codes anew."""
        pace = (1 - self.config.decay) * taken
        recount(self.places_PK, seen["codes"], pace)
        self.sums_KD.lerp_(seen["sums"].sum(0), pace)
        self.counts_K.lerp_(uses(seen["codes"], self.config.codes), pace)
        if self.config.revive_below:
            self._revive(seen["fresh"], taken)
        total = self.counts_K.sum()
        smooth_K = (self.counts_K + SMOOTHING) / (total + self.config.codes * SMOOTHING) * total
        self.vectors_KD.lerp_(self.sums_KD / smooth_K[:, None], taken)
        self.steps += taken.long()

    def _revive(self, fresh_XKD: Tensor, taken: Tensor) -> None:
        """Put codes of little use, and all of them at the first step, on encodings of this step.

        Every worker has the same counts and is given the same encodings; a code takes the k-th one of a part.
        """
        mean = self.counts_K.mean()
        dead_K = (self.counts_K < self.config.revive_below * mean) | (self.steps == 0)
        dead_K &= taken > 0
        number_K = torch.arange(self.config.codes, device=dead_K.device)
        fresh_KD = fresh_XKD[number_K % len(fresh_XKD), number_K]
        self.counts_K.copy_(torch.where(dead_K, mean, self.counts_K))
        self.sums_KD.copy_(torch.where(dead_K[:, None], fresh_KD * mean, self.sums_KD))


class VQVAE(Coding):
    """A picture as a grid of codes."""

    Config = VQVAEConfig
    presets: ClassVar[Mapping[str, VQVAEConfig]] = {
        "tiny": VQVAEConfig(image_size=8, channels=1, hidden=(16,), codes=16, width=4),
        "digits": VQVAEConfig(image_size=8, channels=1, hidden=(32, 64), codes=64, width=16),
        "shapes": VQVAEConfig(image_size=16, codes=64),
        "base": VQVAEConfig(),
    }
    measures: ClassVar[tuple[str, ...]] = ("perplexity", "relative_cost")
    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = grid_encoder(config.channels, config.hidden, config.width)
        self.decoder = grid_decoder(config.width, config.hidden, config.channels)
        self.codebook = Codebook(config)

    @property
    def capabilities(self) -> Capabilities:
        """Return what every config can do: draw pictures, without a likelihood."""
        return Capabilities(tokenizes=True)

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the cost and beta times the commitment, eq. 3 of the paper."""
        x_BCHW = batch["pixels"]
        z_BPD = self.encodings(x_BCHW)
        index_BP = self.codebook.nearest(z_BPD)
        chosen_BPD = self.codebook.vectors_KD[index_BP]
        commitment = (z_BPD - chosen_BPD).square().sum((1, 2)).mean()
        # the codes' vectors forward, the encoder's gradient backward: an argmin has none of its own
        through_BPD = z_BPD + (chosen_BPD - z_BPD).detach()
        cost = (self.decode(through_BPD) - x_BCHW).square().flatten(1).sum(1).mean()
        parts = {
            "cost": cost.detach(),
            "commitment": commitment.detach(),
            "perplexity": perplexity(index_BP, self.config.codes),
        }
        seen = self.codebook.seen(z_BPD, index_BP) if self.training else {}
        return Losses(cost + self.config.commitment * commitment, len(z_BPD), parts, seen)

    def follow(self, seen: Mapping[str, Tensor], taken: Tensor) -> None:
        """Move the codebook."""
        self.codebook.follow(seen, taken)

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Decode codes that each place draws by itself; returns (B, C, H, W) in [0, 1]."""
        self.check(request)
        prior_PK = self.codebook.places_PK
        u_BP = uniforms(request.seeds, (len(prior_PK),), prior_PK.device)
        return self.painted(places(u_BP, prior_PK))

    @torch.no_grad()
    def codes(self, pixels: Tensor) -> Tensor:
        """Return the pictures' codes (B, P) int64, 0..K - 1, in raster order."""
        return self.codebook.nearest(self.encodings(pixels))

    def painted(self, index_BP: Tensor) -> Tensor:
        """Return the pictures (B, C, H, W) in [0, 1] of codes."""
        return self.decode(self.codebook.vectors_KD[index_BP])

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return how many codes are in use, and the cost a picture as a share of the mean picture's."""
        x_BCHW = batch["pixels"]
        index_BP = self.codes(x_BCHW)
        return {
            "perplexity": perplexity_by_picture(index_BP, self.config.codes),
            "relative_cost": relative_cost(self.painted(index_BP), x_BCHW),
        }

    def encodings(self, pixels: Tensor) -> Tensor:
        """Return the encoder's vectors (B, P, D), before a code is chosen."""
        z_BDhw: Tensor = self.encoder(pixels * 2 - 1).float()
        return z_BDhw.flatten(2).transpose(1, 2)

    def decode(self, chosen_BPD: Tensor) -> Tensor:
        """Return the pictures (B, C, H, W) in [0, 1] of codes' vectors."""
        side = self.config.side
        grid = chosen_BPD.transpose(1, 2).reshape(len(chosen_BPD), -1, side, side)
        x_BCHW: Tensor = self.decoder(grid).float().sigmoid()
        return x_BCHW
