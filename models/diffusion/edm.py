"""Diffusion as Karras et al. 2022 lay it out, "EDM" (arXiv:2206.00364), and its exact likelihood.

A denoiser D(x; sigma) gives the mean clean picture of x = picture + sigma noise. It is a preconditioned network
(section 5), trained at log-normal sigma, and sampled by Heun's method on dx / dsigma = (x - D) / sigma (algorithm 1,
deterministic, without the churn of algorithm 2). Guidance: Ho & Salimans 2022 (arXiv:2207.12598). Likelihood: that
ODE read backwards is a change of variables (likelihood.py).

Pictures have `levels` grey levels, which are uniformly dequantised in training and measuring (Theis et al. 2016,
arXiv:1511.01844): level k of K becomes (k + u) / K. The likelihood of what comes out is exact up to the ODE solver's
steps; as a likelihood of the levels it is a lower bound, by Jensen's inequality over u.

Where training changes pictures in ways that a sample must not have (appendix F.2), the network is told of them, and
sampling and likelihood are of pictures of which it is told nothing.

Shape letters: B rows, C channels, H and W pixels, D = C H W numbers of a picture, T words, E embedding width, A numbers
of a change.
Pixels are [0, 1] outside and [-1, 1] inside.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion import heun, likelihood, samplers, schedules
from models.diffusion.unet import TextEncoder, UNet, check_norms, check_sizes, sinusoids
from models.family import (
    Batch,
    Capabilities,
    Family,
    Losses,
    Rows,
    mixed,
)
from models.parts import bounds
from models.parts.noise import normals
from models.parts.rows import drawn
from models.parts.words import GUIDANCE, Led
from models.request import DiffusionOptions, Request

BOUNDS: Final[Mapping[str, bounds.Range]] = {
    **dict.fromkeys(("image_size", "channels", "max_words", "patch", "blocks", "heads"), (1, 4096)),
    **dict.fromkeys(("data_std", "sigma_min", "sigma_max", "p_std", "rho"), (1e-4, 1e4)),
    **dict.fromkeys(("steps", "likelihood_steps"), (1, 1000)),
    **{"p_mean": (-10, 10), "guidance": GUIDANCE, "caption_drop": (0, 1), "text_layers": (0, 64)},
    "dropout": (0, 0.9),
    "levels": (2, 65536),
}
TIME_SCALE: Final = 250  # of c_noise, about -1.5 to 1.1: the U-Net's sinusoids are made for 1000
CHUNK: Final = 256  # pictures measured at a time
CHANGES: Final = 9  # numbers that say how a picture was changed; zeros: not at all


@dataclass(frozen=True, kw_only=True, slots=True)
class EDMConfig(Led):
    """What is learned and how, how it is sampled, and the sizes of the network; table 1 of the paper."""

    image_size: int = 32  # pixels a side
    channels: int = 3
    levels: int = 256  # of a pixel's number
    vocabulary: tuple[str, ...] = ()  # lower-case words; empty: unconditional
    max_words: int = 8
    text: Literal["caption", "none"] = "caption"  # none: the vocabulary is not used
    augmented: bool = False  # the network is told how a picture was changed; training says so

    data_std: float = 0.5  # deviation of pixels in [-1, 1]
    p_mean: float = -1.2  # of ln sigma in training
    p_std: float = 1.2
    precondition: Literal["edm", "none"] = (
        "edm"  # none is the broken control: the network is given x as it is and tells the picture
    )
    caption_drop: float = 0.1

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0  # of the sampler's sigmas: larger spends more steps near sigma_min
    sampler: Literal["heun", "euler"] = "heun"
    steps: int = 18  # 35 evaluations of the network by Heun's method
    guidance: float = 1.0  # 1: none, one pass; 0: no caption, one pass
    likelihood_steps: int = 12  # of the likelihood's ODE, four evaluations each
    trace: Literal["hutchinson", "exact"] = "hutchinson"  # exact costs D times as much

    patch: int = 2  # the network sees patch x patch pixels as channels
    widths: tuple[int, ...] = (64, 96)  # by resolution, halving from image_size / patch
    blocks: int = 1  # residual blocks a resolution, on the way down and on the way up
    attention: int = 1  # resolutions with attention, counted from the lowest
    heads: int = 4
    dropout: float = 0.0  # of the residual blocks; the paper: .13 for CIFAR-10 (table 7)
    text_width: int = 64
    text_layers: int = 0

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, BOUNDS)
        check_sizes(
            "image_size",
            self.image_size,
            patch=self.patch,
            widths=self.widths,
            attention=self.attention,
            heads=self.heads,
            context=self.text_width,
        )
        check_norms(self.image_size, patch=self.patch, widths=self.widths)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min must be below sigma_max {self.sigma_max}, got {self.sigma_min}"
            )


def precondition(sigma: Tensor, data_std: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return c_skip, c_out, c_in and c_noise of eq. 7, from table 1's last column."""
    variance = sigma.square() + data_std**2
    return (
        data_std**2 / variance,
        sigma * data_std * variance.rsqrt(),
        variance.rsqrt(),
        sigma.log() / 4,
    )


class Denoiser(nn.Module):
    """D(x; sigma): the noisy picture, its noise and its caption to the mean clean picture."""

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        self.config, embedding = config, 2 * config.widths[0]
        context = config.text_width if config.reads_text else 0
        self.time1, self.time2 = nn.Linear(64, embedding), nn.Linear(embedding, embedding)
        self.change = nn.Linear(CHANGES, embedding, bias=False) if config.augmented else None
        self.caption = nn.Linear(context, embedding) if context else None
        self.unet = UNet(
            inputs=config.channels * config.patch**2,
            outputs=config.channels * config.patch**2,
            widths=config.widths,
            blocks=config.blocks,
            attention=config.attention,
            heads=config.heads,
            embedding=embedding,
            context=context,
            dropout=config.dropout,
        )

    def forward(
        self,
        x_BCHW: Tensor,
        sigma_B: Tensor,
        context_BTD: Tensor | None,
        change_BA: Tensor | None = None,
    ) -> Tensor:
        """Return the denoised pictures (B, C, H, W), eq. 7, of which it may be told how they were changed."""
        sigma = sigma_B[:, None, None, None]
        c_skip, c_out, c_in, c_noise = precondition(sigma, self.config.data_std)
        if self.config.precondition == "none":
            c_skip, c_out, c_in = torch.zeros_like(sigma), *[torch.ones_like(sigma)] * 2
        embedding_BE = self.time1(sinusoids(TIME_SCALE * c_noise[:, 0, 0, 0]))
        if self.change is not None and change_BA is not None:
            embedding_BE = embedding_BE + self.change(change_BA)
        embedding_BE = self.time2(F.silu(embedding_BE))
        if self.caption is not None and context_BTD is not None:
            embedding_BE = embedding_BE + self.caption(context_BTD.mean(1))
        h = F.pixel_unshuffle(c_in * x_BCHW, self.config.patch)
        h = self.unet(h, F.silu(embedding_BE), context_BTD).float()
        return c_skip * x_BCHW + c_out * F.pixel_shuffle(h, self.config.patch)


class EDM(Family):
    """Pictures from noise, and from captions where these are learned; with the likelihood of a given picture."""

    Config = EDMConfig
    Options = DiffusionOptions
    adapts: ClassVar[tuple[str, ...]] = ("qkv", "context", "out", "caption", "film")
    presets: ClassVar[Mapping[str, EDMConfig]] = {
        "tiny": EDMConfig(
            image_size=8, widths=(16, 24), text_width=16, heads=2, steps=4, likelihood_steps=2
        ),
        "digits": EDMConfig(image_size=8, channels=1, levels=17, patch=1, widths=(32, 48)),
        "base": EDMConfig(),
        "large": EDMConfig(widths=(128, 256, 256), patch=1, blocks=3, attention=2),
    }
    measures: ClassVar[tuple[str, ...]] = ("bits_per_dim",)
    call_sizes = ()
    config: EDMConfig

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        self.config = config
        self.text: TextEncoder | None = None
        if config.reads_text:
            sizes = (config.max_words, config.text_width, config.text_layers, config.heads)
            self.text = TextEncoder(len(config.vocabulary), *sizes)
        self.network = Denoiser(config)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(
            condition="text" if self.config.reads_text else "none",
            unprompted=self.config.reads_text and self.config.caption_drop > 0,
            likelihood=True,
            stepwise=True,
        )

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean of lambda(sigma) (D - picture)^2, eq. 8, at log-normal sigma.

        lambda = 1 / c_out^2, so that the network's own error weighs the same at every sigma. A share of the sigmas is
        log-uniform from sigma_min to sigma_max (`schedules.training_draws`): the sampler and the likelihood begin at
        80, where a log-normal draw comes once in 600,000.
        """
        c, x0 = self.config, self._dequantised(batch["pixels"], None)
        count, device = len(x0), x0.device
        uniform_B, normal_B, ends_B = schedules.training_draws(count, device)
        widest_B = math.log(c.sigma_min) + uniform_B * math.log(c.sigma_max / c.sigma_min)
        sigma_B = torch.where(ends_B, widest_B, c.p_mean + c.p_std * normal_B).exp()
        x = x0 + sigma_B[:, None, None, None] * torch.randn_like(x0)
        context, tokens_BT = None, self.tokens_of(batch)
        if self.text is not None and tokens_BT is not None:
            context = self.text.training_context(tokens_BT, c.caption_drop)
        found = self.network(x, sigma_B, context, batch.get("augmentation"))
        error_B = (found - x0).square().flatten(1).mean(1)
        if c.precondition == "edm":
            error_B = error_B / precondition(sigma_B, c.data_std)[1].square()
        return Losses(error_B.mean(), count)

    def _dequantised(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return (level + u) / levels in [-1, 1] for pixels in [0, 1], u uniform in [0, 1)."""
        shape, device, kind = pixels.shape, pixels.device, pixels.dtype
        u = torch.rand(shape, generator=generator, device=device, dtype=kind)
        return 2 * ((pixels * (self.config.levels - 1)).round() + u) / self.config.levels - 1

    def _pictures(self, x: Tensor) -> Tensor:
        """Return the pixels in [0, 1] that dequantised x in [-1, 1] stands for: a level's middle is its level."""
        levels = self.config.levels
        return (((x + 1) / 2 * levels - 0.5) / (levels - 1)).clamp(0, 1)

    def sample(self, request: Request) -> Tensor:
        """Return samples (B, C, H, W) in [0, 1]; a seed gives its picture alone or in a batch."""
        return drawn(self, request)

    @torch.no_grad()
    def begin(self, request: Request) -> Rows:
        """Return rows of pure noise, each with its own table; book-keeping stays on the CPU.

        Raises:
            ValueError: steps, guidance or a caption is out of range.
        """
        self.check(request)
        c, count = self.config, len(request.seeds)
        steps = request.options.get("steps", c.steps)
        guidance = request.options.get("guidance", c.guidance)
        bounds.within("steps", steps, BOUNDS["steps"])
        c.check_guidance(guidance)
        device = next(self.parameters()).device
        blank = torch.zeros(count, c.channels, c.image_size, c.image_size, device=device)
        lines = heun.table(c.sampler, heun.sigmas(steps, c.sigma_min, c.sigma_max, c.rho))
        rows: Rows = {
            "x": c.sigma_max * normals(request.seeds, blank.shape[1:], device),
            "x0": blank,
            "start": blank,
            "slope": blank,
            "table": lines.expand(count, -1, -1),
            "index": torch.zeros(count, dtype=torch.long),
            "count": torch.full((count,), len(lines)),
            "guidance": torch.ones(count),
        }
        if self.text is not None:
            tokens_BT = self.encode(request.prompts) if request.prompts else None
            rows["context"], rows["guidance"] = self.text.sampling_context(
                tokens_BT, count, guidance
            )
            rows["without"] = self.text.null_1TD.expand(count, -1, -1)
        return rows

    def steps_of(self, request: Request) -> int:
        """Return the evaluations: Heun looks twice at every step but the last."""
        steps: int = request.options.get("steps", self.config.steps)
        return 2 * steps - 1 if self.config.sampler == "heun" else steps

    def done(self, rows: Rows) -> Tensor:
        """Return (B,) bool: the rows that have had all their evaluations."""
        return rows["index"] >= rows["count"]

    @torch.no_grad()
    def step(self, rows: Rows) -> Rows:
        """Return the rows one evaluation of the network further, each by its own table; finished rows stay."""
        x, live_B = rows["x"], ~self.done(rows)
        index_B = rows["index"].minimum(rows["count"] - 1)
        line_B3 = rows["table"][torch.arange(len(x)), index_B].to(x.device, non_blocking=True)
        x0 = self._guided(rows, line_B3[:, 0], live_B)
        found = (*heun.advance(line_B3, x, x0, rows["start"], rows["slope"]), x0)
        live = live_B.to(x.device, non_blocking=True)[:, None, None, None]
        moved = {
            name: torch.where(live, value, rows[name])
            for name, value in zip(("x", "start", "slope", "x0"), found, strict=True)
        }
        return {**rows, **moved, "index": rows["index"] + live_B}

    def _guided(self, rows: Rows, sigma_B: Tensor, live_B: Tensor) -> Tensor:
        """Return D, guided where rows ask for it."""

        def predict(row_N: Tensor, context: Tensor | None) -> Tensor:
            found: Tensor = self.network(rows["x"][row_N], sigma_B[row_N], context)
            return found

        return samplers.guided(self, predict, rows, live_B)

    def preview(self, rows: Rows) -> Tensor:
        """Return the current estimate of the clean pictures (B, C, H, W) in [0, 1]."""
        return self._pictures(rows["x0"])

    def finish(self, rows: Rows) -> Tensor:
        """Return the samples (B, C, H, W) in [0, 1] of rows that are done."""
        return self._pictures(rows["x"])

    @torch.no_grad()
    def log_prob(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return a lower bound of log p(levels), or of log p(levels | caption), in nats (B,).

        The unguided model's: a guided sampler draws from no density that is known. Draws come from `generator`, on the
        model's device, or from torch's global one.

        Raises:
            ValueError: the model learned captions and the batch has no `tokens`.
        """
        context, tokens_BT = None, self.tokens_of(batch)
        if self.text is not None and tokens_BT is not None:
            context = self.text.apart(tokens_BT)
        return self._log_prob(batch["pixels"], context, generator)

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return `bits_per_dim` (B,): -log p / (D ln 2); given captions only where nothing else was learned."""
        pixels, context = batch["pixels"], None
        if self.text is not None and self.capabilities.unprompted:
            context = self.text.null_1TD.expand(len(pixels), -1, -1)
        elif self.text is not None and (tokens_BT := self.tokens_of(batch)) is not None:
            context = self.text.apart(tokens_BT)
        generator = torch.Generator(pixels.device).manual_seed(mixed(0))
        nats_B = -self._log_prob(pixels, context, generator)
        return {"bits_per_dim": nats_B / (pixels[0].numel() * math.log(2))}

    def _log_prob(
        self, pixels: Tensor, context: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        x = self._dequantised(pixels, generator)
        coin = torch.rand(x.shape, generator=generator, device=x.device)
        probe = (coin < 0.5).to(x.dtype) * 2 - 1
        parts = []
        for start in range(0, len(x), CHUNK):
            some = slice(start, start + CHUNK)
            parts.append(
                self.density(x[some], None if context is None else context[some], probe[some])
            )
        # a level is 2 / levels wide inside, where the density is
        return torch.cat(parts) + pixels[0].numel() * math.log(2 / self.config.levels)

    def density(self, x: Tensor, context: Tensor | None, probe: Tensor) -> Tensor:
        """Return log p(x) of dequantised x in [-1, 1], (B,), as `likelihood.log_density`."""
        c = self.config
        path = likelihood.Path(
            sigma_min=c.sigma_min,
            sigma_max=c.sigma_max,
            rho=c.rho,
            data_std=c.data_std,
            steps=c.likelihood_steps,
            exact_trace=c.trace == "exact",
        )
        return likelihood.log_density(
            lambda noisy, sigma_B: self.network(noisy, sigma_B, context), x, probe, path
        )
