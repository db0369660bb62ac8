"""Discrete variational autoencoder, the dVAE of DALL-E (Ramesh et al. 2021, arXiv:2102.12092, section 2.1, appendix A).

A picture becomes a grid of P places, each a categorical over K codes. In training a place is a Gumbel-softmax draw
(Jang et al. 2017, arXiv:1611.01144), a mixture of the codes' vectors whose temperature falls from 1 to 1/16; measured
and served, it is the one likeliest code. Costs are nats a picture:

    -log p(x | z)  +  beta KL(q(z | x) || uniform)  +  gamma (ln K - H(mean q))

The last term is not the paper's, which has 8192 codes and 250 million pictures: on small data the KL leaves most codes
unused for ever, while the entropy of the codes' use over a step's whole batch keeps them alive.

The likelihood is Gaussian pixels of one learned variance (sigma-VAE, Rybkin et al. 2020, arXiv:2006.13202), or the
paper's logit-Laplace (appendix A.3). Both are densities of grey levels in [0, 1] taken as they are.

Shape letters: B pictures, C channels, H and W pixels, P places of the grid, K codes, D width of a code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Losses
from models.parts import bounds
from models.parts.autoencoder import check_halving, grid_decoder, grid_encoder
from models.parts.codes import Coding, perplexity, perplexity_by_picture, recount, relative_cost
from models.parts.noise import places, uniforms
from models.request import Request

EDGE: Final = 0.1  # epsilon of appendix A.3: pixels are put into [EDGE, 1 - EDGE]
FOLLOWING: Final = 0.99  # decay of how often each place has each code, a step
TINIEST: Final = 1e-20  # of the uniform draw under a Gumbel


@dataclass(frozen=True, kw_only=True, slots=True)
class DVAEConfig:
    """The network's sizes, the codebook's, and what training is weighed and annealed by."""

    image_size: int = 32  # pixels a side
    channels: int = 3
    hidden: tuple[int, ...] = (64, 128)  # channels; each convolution halves the side
    codes: int = 512  # K
    width: int = 64  # D
    likelihood: Literal["gaussian", "logit-laplace"] = "gaussian"
    sigma: float | None = None  # of gaussian pixels; None: learned; 1 is the broken control
    warm: float = 1.0  # the temperature at first
    cold: float = 1 / 16  # and from anneal_steps on, by a cosine
    anneal_steps: int = 3000  # training steps
    kl_weight: float = 1.0  # beta, from kl_steps on; the paper: 6.6
    kl_steps: int = 500  # training steps in which it rises from 0, by a cosine
    usage_bonus: float = 100.0  # gamma; 0 is the broken control: most codes are never used

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(
            self, dict.fromkeys(("image_size", "channels", "hidden", "width"), bounds.SIZE)
        )
        check_halving(self.image_size, self.hidden)
        if self.codes < 2:
            raise ValueError(f"codes must be at least 2, got {self.codes}")
        if not 0 < self.cold <= self.warm:
            raise ValueError(
                f"temperatures must fall and be above 0, got warm {self.warm}, cold {self.cold}"
            )
        if self.sigma is not None and (self.likelihood != "gaussian" or self.sigma <= 0):
            raise ValueError(
                f"sigma must be above 0 and belongs to likelihood 'gaussian', got {self.sigma}"
                f" with {self.likelihood!r}"
            )
        weights = ("anneal_steps", "kl_steps", "kl_weight", "usage_bonus")
        bounds.check(self, dict.fromkeys(weights, bounds.WEIGHT))

    @property
    def side(self) -> int:
        """Places a side of the grid of codes."""
        return self.image_size >> len(self.hidden)


class DVAE(Coding):
    """A picture as a grid of codes, learned through soft ones."""

    Config = DVAEConfig
    presets: ClassVar[Mapping[str, DVAEConfig]] = {
        "tiny": DVAEConfig(
            image_size=8, channels=1, hidden=(16,), codes=16, width=8, anneal_steps=200
        ),
        "shapes": DVAEConfig(image_size=16, codes=64, anneal_steps=1400),
        "base": DVAEConfig(),
        "large": DVAEConfig(  # DALL-E's grid of codes and its weights
            image_size=256,
            hidden=(256, 512, 1024),
            codes=8192,
            width=128,
            likelihood="logit-laplace",
            anneal_steps=150_000,
            kl_weight=6.6,
            kl_steps=5000,
        ),
    }
    measures: ClassVar[tuple[str, ...]] = ("perplexity", "relative_cost", "certainty")
    config: DVAEConfig
    steps: Tensor
    places_PK: Tensor

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = grid_encoder(config.channels, config.hidden, config.codes)
        self.vectors = nn.Embedding(config.codes, config.width)
        outputs = config.channels * (2 if config.likelihood == "logit-laplace" else 1)
        self.decoder = grid_decoder(config.width, config.hidden, outputs)
        learned = config.likelihood == "gaussian" and config.sigma is None
        self.log_sigma = nn.Parameter(torch.tensor(-1.0)) if learned else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of training, taken
        self.register_buffer("places_PK", torch.ones(config.side**2, config.codes))

    @property
    def capabilities(self) -> Capabilities:
        """Return what every config can do: draw pictures, without a likelihood of the picture alone."""
        return Capabilities(tokenizes=True)

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean cost of the module's docstring and its parts; outside of training, of the likeliest codes."""
        c, x_BCHW = self.config, batch["pixels"]
        log_q_BPK = self.log_posterior(x_BCHW)
        q_BPK = log_q_BPK.exp()
        index_BP = log_q_BPK.argmax(2)
        if self.training:
            chosen_BPK = F.softmax((log_q_BPK + gumbel(log_q_BPK)) / self.temperature, 2)
        else:
            chosen_BPK = F.one_hot(index_BP, c.codes).to(q_BPK.dtype)
        nll_B = self._nll(chosen_BPK @ self.vectors.weight, x_BCHW)
        nll = nll_B.mean()
        kl = math.log(c.codes) * c.side**2 + (q_BPK * log_q_BPK).sum((1, 2)).mean()
        usage = usage_entropy(q_BPK, batch.get("use"))
        unused = math.log(c.codes) - usage
        total = nll + self.kl_weight * kl + c.usage_bonus * unused
        parts = {
            "nll": nll.detach(),
            "kl": kl.detach(),
            "usage": usage.detach(),
            "perplexity": perplexity(index_BP, c.codes),
            "temperature": self.temperature,
        }
        return Losses(total, len(nll_B), parts, {"codes": index_BP.int()})

    @torch.no_grad()
    def survey(self, batch: Batch, player: str = "model") -> Batch:  # noqa: ARG002 - one player
        """Return these pictures' mean `use` of the codes, (1, K)."""
        return {"use": self.log_posterior(batch["pixels"]).exp().mean((0, 1))[None]}

    @torch.no_grad()
    def follow(self, seen: Mapping[str, Tensor], taken: Tensor) -> None:
        """Take a training step into account: its number, and which codes each place had."""
        recount(self.places_PK, seen["codes"], (1 - FOLLOWING) * taken)
        self.steps += taken.long()

    @property
    def temperature(self) -> Tensor:
        """The Gumbel-softmax's, after the training steps taken so far."""
        return self._eased(self.config.warm, self.config.cold, self.config.anneal_steps)

    @property
    def kl_weight(self) -> Tensor:
        """Beta, after the training steps taken so far."""
        return self._eased(0.0, self.config.kl_weight, self.config.kl_steps)

    def _eased(self, first: float, last: float, steps: int) -> Tensor:
        """Return the value on a cosine from first to last, which it keeps from `steps` on."""
        share = (self.steps / steps).clamp(max=1) if steps else torch.ones_like(self.steps.float())
        return last + (first - last) * (1 + (math.pi * share).cos()) / 2

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Decode codes that each place draws by itself, as often as it had each; returns (B, C, H, W) in [0, 1].

        A prior that knows the neighbours is another stage's work.
        """
        self.check(request)
        prior_PK = self.places_PK
        u_BP = uniforms(request.seeds, (len(prior_PK),), prior_PK.device)
        return self.painted(places(u_BP, prior_PK))

    @torch.no_grad()
    def codes(self, pixels: Tensor) -> Tensor:
        """Return the pictures' likeliest codes (B, P) int64, 0..K - 1, in raster order."""
        return self.log_posterior(pixels).argmax(2)

    def painted(self, index_BP: Tensor) -> Tensor:
        """Return the pictures (B, C, H, W) in [0, 1] of codes."""
        return self.decode(self.vectors(index_BP))

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return what hard codes are worth.

        `perplexity` says how many are in use, `relative_cost` is the squared error of their pictures as a share of the
        mean picture's, and `certainty` (B,) is the likeliest code's probability: hard codes cost what is missing to 1.
        """
        x_BCHW = batch["pixels"]
        best_BP, index_BP = self.log_posterior(x_BCHW).max(2)
        return {
            "perplexity": perplexity_by_picture(index_BP, self.config.codes),
            "relative_cost": relative_cost(self.painted(index_BP), x_BCHW),
            "certainty": best_BP.exp().mean(1),
        }

    def log_posterior(self, pixels: Tensor) -> Tensor:
        """Return log q(z | x) of each place, (B, P, K)."""
        logits_BKhw: Tensor = self.encoder(pixels * 2 - 1).float()
        return logits_BKhw.flatten(2).transpose(1, 2).log_softmax(2)

    def decode(self, chosen_BPD: Tensor) -> Tensor:
        """Return the pictures (B, C, H, W) in [0, 1] of codes' vectors: the pixels' means, or the Laplace's centre."""
        out_BCHW = self._decoded(chosen_BPD)
        if self.config.likelihood == "gaussian":
            return out_BCHW.sigmoid()
        centre_BCHW = out_BCHW.chunk(2, 1)[0].sigmoid()
        return ((centre_BCHW - EDGE) / (1 - 2 * EDGE)).clamp(0, 1)

    def _decoded(self, chosen_BPD: Tensor) -> Tensor:
        side = self.config.side
        grid = chosen_BPD.transpose(1, 2).reshape(len(chosen_BPD), -1, side, side)
        out: Tensor = self.decoder(grid).float()
        return out

    def _nll(self, chosen_BPD: Tensor, x_BCHW: Tensor) -> Tensor:
        """Return -log p(x | z), (B,)."""
        out = self._decoded(chosen_BPD)
        if self.config.likelihood == "gaussian":
            learned, fixed = self.log_sigma, self.config.sigma
            log_sigma = out.new_full((), fixed or 1.0).log() if learned is None else learned
            squares = ((x_BCHW - out.sigmoid()) / log_sigma.exp()).square()
            nll = squares / 2 + log_sigma + math.log(2 * math.pi) / 2
        else:  # eq. 2 of appendix A.3, for pixels put into [EDGE, 1 - EDGE]
            centre, log_b = out.chunk(2, 1)
            inner = EDGE + (1 - 2 * EDGE) * x_BCHW
            distance = (inner.logit() - centre).abs() * (-log_b).exp()
            nll = distance + log_b + math.log(2) + (inner * (1 - inner)).log()
            nll = nll - math.log(1 - 2 * EDGE)  # of x and not of `inner`
        return nll.flatten(1).sum(1)


def gumbel(like: Tensor) -> Tensor:
    """Return draws of the standard Gumbel distribution: the argmax of logits plus these is a categorical draw."""
    return -(-torch.rand_like(like).clamp(min=TINIEST).log()).clamp(min=TINIEST).log()


def usage_entropy(q_BPK: Tensor, use_XK: Tensor | None = None) -> Tensor:
    """Return the entropy of the mean of q over all places, in nats; at most ln K.

    Where q is of one of X equal parts, which used the codes so: the part's share. The mean over parts is the whole, and
    so is its gradient: H(q) = - sum q ln q, whose inner derivative is a constant, which probabilities do not feel.
    """
    mine_K = q_BPK.mean((0, 1))
    mean_K = mine_K.detach() if use_XK is None else use_XK.mean(0)
    return -(mine_K * mean_K.clamp(min=TINIEST).log()).sum()
