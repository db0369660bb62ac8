"""Denoising diffusion (Ho et al. 2020, arXiv:2006.11239) in pixels, with captions and guidance.

`DDPM.forward` is the paper's Algorithm 1 (training), `begin` and `step` are its Algorithm 2 (sampling). Beside it stand
what the network predicts (objectives.py), when (schedules.py; flow.py: rectified flow, the default), from what else
(super_resolution.py), other samplers than Ho's (samplers.py) and the network: a U-Net (unet.py) or a transformer
(dit.py). Guidance: Ho & Salimans 2022 (arXiv:2207.12598). Of latents in place of pixels: text_to_image/latent.py.

Shape letters: B rows, C channels, H and W pixels, T words, D text width, E embedding width, S
sampler steps. Pixels are [0, 1] outside and [-1, 1] inside; networks are told times 0..1000.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion import flow, objectives, samplers, schedules, super_resolution
from models.diffusion.dit import Block, DiT
from models.diffusion.super_resolution import Low
from models.diffusion.unet import TextEncoder, UNet, check_norms, check_sizes, sinusoids
from models.family import Batch, Capabilities, Family, Losses, Rows
from models.parts import bounds
from models.parts.noise import normals
from models.parts.rows import drawn
from models.parts.sizes import around, chosen, sides
from models.parts.words import GUIDANCE, Led
from models.ports import Port
from models.request import DiffusionOptions, Request

BOUNDS: Final[Mapping[str, bounds.Range]] = {
    **dict.fromkeys(("image_size", "channels", "max_words", "patch", "blocks", "heads"), (1, 4096)),
    **dict.fromkeys(("low_noise", "low_noise_sampling", "low_blur", "caption_drop", "eta"), (0, 1)),
    **dict.fromkeys(("low_gain", "data_std", "shift"), (0.01, 100)),
    "text_layers": (0, 64),
    "dropout": (0, 0.9),
    "steps": (1, schedules.TIMES),
    "guidance": GUIDANCE,
    "t_mean": (-3, 6),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DDPMOptions(DiffusionOptions):
    """What a caller may say of how it draws."""

    strength: float | None = None
    """Of a change to a picture: the share of the steps that are taken, from the picture with as much noise as belongs
    there (SDEdit, Meng et al. 2022, arXiv:2108.01073). 1, from noise alone, is what happens where it is not said."""
    negative_prompt: str | None = None
    """What guidance leads away from, in place of what is drawn without a prompt."""
    size: str | None = None  # one of the model's, like 40x24; None: its first


@dataclass(frozen=True, kw_only=True, slots=True)
class DDPMConfig(Led):
    """What is learned and how, how it is sampled, and the sizes of the network."""

    ranges: ClassVar[Mapping[str, bounds.Range]] = BOUNDS
    image_size: int = 16  # pixels a side
    sizes: tuple[str, ...] = ()  # that pictures have, like 40x24; empty: squares alone
    channels: int = 3
    vocabulary: tuple[str, ...] = ()  # lower-case words; empty: unconditional
    max_words: int = 8
    text: Literal["caption", "none"] = "caption"  # none: the vocabulary is not used
    low_size: int | None = None  # side of the low-resolution picture that is upscaled
    low_noise: float = 0.05  # strongest noise in the low picture, in training
    low_blur: float = 0.0  # share of the low pictures that are blurred, in training
    low_noise_sampling: float = 0.0  # noise to expect, and remove, in the low picture
    low_gain: float = 8.0  # the picture less the enlarged low one is learned, times this

    objective: Literal["eps", "v", "flow"] = "flow"
    schedule: Literal["cosine", "linear"] = "cosine"  # of eps and v
    zero_terminal_snr: bool = False
    data_std: float = 0.5  # deviation of what is learned
    shift: float = 1.0  # of flow's sampling times; above 1 for large pictures
    t_mean: float = 0.0  # of the logit of flow's training times; above 0 is nearer to noise
    caption_drop: float = 0.1

    sampler: Literal["ddpm", "ddim", "euler", "dpmpp"] = "euler"
    eta: float = 0.0  # of ddim
    variance: Literal["small", "large"] = "small"  # of ddpm
    steps: int = 12
    guidance: float = 3.0

    backbone: Literal["unet", "dit"] = "unet"  # dit: a transformer, of one width
    patch: int = 2  # the network sees patch x patch pixels as channels
    widths: tuple[int, ...] = (64, 96)  # by resolution, halving from image_size / patch
    blocks: int = 1  # unet: residual blocks a resolution, down and up again; dit: in all
    attention: int = 1  # resolutions with attention, counted from the lowest
    heads: int = 4
    dropout: float = 0.0  # of the residual blocks; the paper: .1 for CIFAR-10 (appendix B)
    text_width: int = 64
    text_layers: int = 0  # of attention among the words; 0 composes best where captions are short

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, self.ranges)
        for what, side in self._sides():
            check_sizes(
                what,
                side,
                patch=self.patch,
                widths=self.widths,
                attention=self.attention,
                heads=self.heads,
                context=self.text_width,
            )
        if self.backbone == "unet":
            check_norms(self.shape[1], patch=self.patch, widths=self.widths)
        elif (len(self.widths), self.attention) != (1, 1):
            raise ValueError(
                "backbone 'dit' has one width, with attention, got"
                f" widths {self.widths} and attention {self.attention}"
            )
        if self.low_size is not None:
            super_resolution.check(self.low_size, self.image_size, self.patch, self.sizes)
        _check_sampling(self)

    @property
    def context_width(self) -> int:
        """The width of what is read beside the picture; 0 where nothing is."""
        return self.text_width if self.reads_text else 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """What is drawn, (C, H, W), where all are squares."""
        return self.channels, self.image_size, self.image_size

    def shape_of(self, size: str | None) -> tuple[int, int, int]:
        """Return what is drawn of a size, (C, H, W); None: of a square."""
        planes, side, _ = self.shape
        high, wide = sides(size) if size else (self.image_size, self.image_size)
        return planes, high * side // self.image_size, wide * side // self.image_size

    def _sides(self) -> Iterator[tuple[str, int]]:
        """Yield the sides of what is drawn, each behind what an error calls it."""
        yield "image_size", self.shape[1]
        for size in self.sizes:
            yield from ((f"a side of size {size}", side) for side in self.shape_of(size)[1:])

    @property
    def planes(self) -> int:
        """Channels of a picture that the network sees at once."""
        return self.shape[0]

    @property
    def low_shape(self) -> tuple[int, int] | None:
        """Channels and side of the picture that is seen beside the noisy one; None where there is none."""
        return (self.channels, self.low_size) if self.low_size else None


def _check_sampling(c: DDPMConfig) -> None:
    allowed = ("euler", "dpmpp") if c.objective == "flow" else ("ddpm", "ddim", "dpmpp")
    if c.sampler not in allowed:
        raise ValueError(
            f"objective {c.objective!r} cannot use sampler {c.sampler!r};"
            f" choose one of {', '.join(allowed)}"
        )
    if c.zero_terminal_snr and c.objective != "v":
        raise ValueError(
            f"zero_terminal_snr needs objective 'v', got {c.objective!r}:"
            " eps says nothing about pure noise, and flow starts from it anyway"
        )
    if c.eta and c.sampler != "ddim":
        raise ValueError(f"eta belongs to sampler 'ddim', got eta {c.eta} with {c.sampler!r}")
    if c.low_noise_sampling > c.low_noise:
        raise ValueError(f"low_noise_sampling {c.low_noise_sampling} exceeds {c.low_noise=}")


class Denoiser(nn.Module):
    """The network: noisy picture, time, text and low-resolution picture to eps, v or flow."""

    backbone: ClassVar[type[UNet]] = UNet
    transformer: ClassVar[type[DiT]] = DiT

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__()
        self.config, embedding = config, 2 * config.widths[0]
        pixels = config.planes * config.patch**2
        planes, side = config.low_shape or (0, 0)
        self.low_patch = super_resolution.folded(side, config.shape[1], config.patch)
        low = planes * self.low_patch**2
        context = config.context_width
        self.time1, self.time2 = nn.Linear(64, embedding), nn.Linear(embedding, embedding)
        self.level = nn.Linear(64, embedding) if low else None
        self.caption = nn.Linear(context, embedding) if context else None
        sizes = {"inputs": pixels + low, "outputs": pixels, "blocks": config.blocks}
        sizes |= {"heads": config.heads, "embedding": embedding, "context": context}
        self.unet: UNet | DiT
        if config.backbone == "unet":
            layers = {"attention": config.attention, **sizes}
            self.unet = self.backbone(widths=config.widths, dropout=config.dropout, **layers)
        else:
            shapes = [config.shape_of(size) for size in (None, *config.sizes)]
            grids = [(high // config.patch, wide // config.patch) for _, high, wide in shapes]
            self.unet = self.transformer(
                grids=grids,
                width=config.widths[0],
                dropout=config.dropout,
                block=self.block,
                **sizes,
            )

    @property
    def block(self) -> type[Block]:
        """Return what a transformer is made of."""
        return Block

    def forward(
        self,
        x_BCHW: Tensor,
        times_B3: Tensor,
        context_BTD: Tensor | None,
        low: Low | None,
        of_times_BK: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction (B, C, H, W) for noisy x and its (time 0..1000, alpha, sigma).

        A sampler, which knows its times beforehand, gives what `of_times` makes of them.
        """
        of_times_BK = self.of_times(times_B3) if of_times_BK is None else of_times_BK
        scale, keep, gain = _columns(of_times_BK[:, :3])
        embedding_BE = of_times_BK[:, 3:]
        if self.caption is not None and context_BTD is not None:
            embedding_BE = embedding_BE + self.caption(context_BTD.mean(1))
        if self.level is not None and low is not None:
            embedding_BE = embedding_BE + self.level(sinusoids(low[1] * schedules.TIMES))
        h = self.predict(scale * x_BCHW, None if low is None else low[0], embedding_BE, context_BTD)
        return keep * x_BCHW + gain * h

    def predict(
        self,
        x_BCHW: Tensor,
        low_BChw: Tensor | None,
        embedding_BE: Tensor,
        context_BTD: Tensor | None,
    ) -> Tensor:
        """Return what the backbone makes of pictures (B, C, H, W), float32."""
        h = self.unet(self.seen(x_BCHW, low_BChw), F.silu(embedding_BE), context_BTD)
        return F.pixel_shuffle(h.float(), self.config.patch)

    def seen(self, x_BCHW: Tensor, low_BChw: Tensor | None) -> Tensor:
        """Return what the backbone sees, (B, inputs, h, w): pixels folded into channels."""
        h = F.pixel_unshuffle(x_BCHW, self.config.patch)
        if low_BChw is None:
            return h
        folded = F.pixel_unshuffle(low_BChw, self.low_patch)
        return torch.cat([h, F.interpolate(folded, h.shape[2:])], 1)

    def of_times(self, times_B3: Tensor) -> Tensor:
        """Return what a call takes from its times (B, 3 + E): scale, keep and gain, and their embedding."""
        time_B, alpha_B, sigma_B = times_B3.unbind(1)
        gains = objectives.precondition(
            self.config.objective, alpha_B, sigma_B, self.config.data_std
        )
        embedding_BE = self.time2(F.silu(self.time1(sinusoids(time_B))))
        return torch.cat([torch.stack(gains, 1), embedding_BE], 1)


class DDPM(Family):
    """Pictures from noise, captions and, where `low_size` is set, their low-resolution copies."""

    Config = DDPMConfig
    Options: ClassVar[type[DiffusionOptions]] = DDPMOptions
    adapts: ClassVar[tuple[str, ...]] = ("qkv", "context", "out", "caption", "film")
    presets: ClassVar[Mapping[str, DDPMConfig]] = {
        "tiny": DDPMConfig(image_size=8, widths=(16, 24), text_width=16, heads=2, steps=4),
        "base": DDPMConfig(),
        "upsampler": DDPMConfig(
            image_size=32, low_size=16, text="none", widths=(32, 48), attention=0, t_mean=1, steps=4
        ),
        "large": DDPMConfig(
            image_size=64, widths=(192, 384, 512), blocks=3, heads=8, text_width=512, text_layers=4
        ),
    }
    learns: ClassVar[str] = "pixels"  # what of a batch
    call_sizes: tuple[int, ...] | None = ()
    config: DDPMConfig

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__()
        self.config = config
        self.text: TextEncoder | None = None
        if config.reads_text:
            sizes = (config.max_words, config.text_width, config.text_layers, config.heads)
            self.text = TextEncoder(len(config.vocabulary), *sizes)
        self.network = self._network()
        beta_T = schedules.betas(config.schedule, zero_terminal_snr=config.zero_terminal_snr)
        self.alpha_T: Tensor
        # made from the config, so no version has to hold it
        self.register_buffer("alpha_T", schedules.alphas(beta_T), persistent=False)

    def _network(self) -> Denoiser:
        return Denoiser(self.config)

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what it draws from: perhaps a text, and the low-resolution picture that it upscales.

        Of a picture with a mask only that is drawn where the mask is 1; the rest stays, bit by bit.
        """
        c = self.config
        low = {"low": Port("pixels", (c.channels, c.low_size, c.low_size))} if c.low_size else {}
        return {
            **super().inputs,
            **low,
            "image": Port("pixels", (c.channels, *around(c.image_size, c.sizes)), optional=True),
            "mask": Port("mask", (1, *around(c.image_size, c.sizes)), optional=True),
        }

    @property
    def outputs(self) -> Mapping[str, Port]:
        """Return what it gives: pictures of the size that is asked for."""
        pixels = Port("pixels", (self.config.channels, None, None))
        return {"pixels": pixels} if self.config.sizes else super().outputs

    def given_of(self, batch: Batch) -> dict[str, Tensor]:
        """Return what was made of real pictures, and the small copies that it upscales."""
        found, side = super().given_of(batch), self.config.low_size
        if side:
            found["low"] = F.interpolate(batch["pixels"], (side, side), mode="area")
        return found

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(
            condition="text" if self.config.reads_text else "none",
            unprompted=self.config.reads_text and self.config.caption_drop > 0,
            upscales=self.config.low_size is not None,
            stepwise=True,
        )

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the loss of Algorithm 1, the mean squared error of the prediction at random times.

        With `objective` "eps" the target is the noise, as in the paper. The loop around it, and the gradient step of
        line 5, are the trainer's.
        """
        x0, low = self._training_pair(self._inside(batch[self.learns]))  # line 2: x0 ~ q(x0)
        times_B3 = self._training_times(len(x0), x0.device)  # line 3: t ~ Uniform({1, ..., T})
        alpha, sigma = _columns(times_B3[:, 1:])
        eps = torch.randn_like(x0)  # line 4: eps ~ N(0, I)
        x = alpha * x0 + sigma * eps
        of_times_BK = self._of_times(times_B3, batch)
        prediction = self.network(x, times_B3, self._training_context(batch), low, of_times_BK)
        target = objectives.target(self.config.objective, x0, eps, alpha, sigma)
        return Losses(F.mse_loss(prediction, target), len(x0))  # line 5

    def _training_pair(self, picture: Tensor) -> tuple[Tensor, Low | None]:
        """Return what is learned, and the noisy low-resolution picture it is learned from."""
        c = self.config
        if c.low_size is None:
            return picture, None
        return super_resolution.training_pair(
            picture, c.low_size, c.low_noise, c.low_gain, c.low_blur
        )

    def _training_times(self, count: int, device: torch.device) -> Tensor:
        """Return (B, 3) random times 0..1000 with their alpha and sigma."""
        if self.config.objective == "flow":
            return flow.training_times(count, self.config.t_mean, device)
        index_B = (schedules.spread(count, device) * schedules.TIMES).long()
        alpha_B = self.alpha_T[index_B].float()
        return torch.stack([index_B.float(), alpha_B, (1 - alpha_B.square()).sqrt()], 1)

    def _of_times(self, times_B3: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002 - of times alone
        """Return what a call of the network takes from its times."""
        return self.network.of_times(times_B3)

    @property
    def null(self) -> Tensor | None:
        """The context (1, T, D) of pictures of all captions; None where nothing is read."""
        return None if self.text is None else self.text.null_1TD

    def _training_context(self, batch: Batch) -> Tensor | None:
        tokens_BT = self.tokens_of(batch)
        if self.text is None or tokens_BT is None:
            return None
        return self.text.training_context(tokens_BT, self.config.caption_drop)

    def _sampling_context(self, request: Request, guidance: float) -> tuple[Tensor, Tensor]:
        """Return the context (B, T, D) and the guidance scale (B,) of a request."""
        assert self.text is not None
        tokens_BT = self.encode(request.prompts) if request.prompts else None
        return self.text.sampling_context(tokens_BT, len(request.seeds), guidance)

    def _without(self, request: Request, guidance: float) -> Tensor:
        """Return the context (B, T, D) that guidance leads away from: the negative prompt's, or of all captions."""
        assert self.null is not None
        count, negative = len(request.seeds), request.options.get("negative_prompt")
        if negative is None:
            return self.null.expand(count, -1, -1)
        led = request.prompts or "embedding" in request.given
        if not led or guidance in {0, 1}:
            raise ValueError(
                "negative_prompt: guidance leads away from it, and there is none;"
                f" leave it out or give a prompt and a guidance above 1, got {negative[:40]!r}"
            )
        try:
            return self._sampling_context(replace(request, prompts=(negative,) * count), 1)[0]
        except ValueError as error:
            raise ValueError(f"negative_prompt: {error}") from None

    def sample(self, request: Request) -> Tensor:
        """Return samples (B, C, H, W) in [0, 1]; a seed gives its picture alone or in a batch."""
        return drawn(self, request)

    @torch.no_grad()
    def begin(self, request: Request) -> Rows:
        """Return rows of pure noise, x_T ~ N(0, I) of Algorithm 2, each with its own table of sampler steps.

        Book-keeping (table, index, count, seed, guidance) stays on the CPU, so that a step waits
        for no device.

        Raises:
            ValueError: steps, guidance, the size, a caption or the low picture is missing or out of range.
        """
        self.check(request)
        config, count = self.config, len(request.seeds)
        steps = request.options.get("steps", config.steps)
        guidance = request.options.get("guidance", config.guidance)
        bounds.within("steps", steps, BOUNDS["steps"])
        bounds.within("guidance", guidance, GUIDANCE)
        if request.options.get("negative_prompt") is None:  # else it leads away from that
            config.check_guidance(guidance)
        device = next(self.parameters()).device
        shape = config.shape_of(chosen(request.options.get("size"), config.sizes))
        table_S7 = self._table(steps)
        of_times_SK = self.network.of_times(table_S7[:, :3].to(device))
        rows: Rows = {
            "x": self._noise(request.seeds, [0] * count, shape, device),
            "x0": torch.zeros(count, *shape, device=device),
            "table": table_S7.expand(count, -1, -1),
            "of_times": of_times_SK.expand(count, -1, -1),
            "index": torch.zeros(count, dtype=torch.long),
            "count": torch.full((count,), steps),
            "seed": torch.tensor(request.seeds, dtype=torch.long),
            "guidance": torch.ones(count),
        }
        if self.null is not None:
            rows["context"], rows["guidance"] = self._sampling_context(request, guidance)
            rows["without"] = self._without(request, guidance)
        return self._beside(request, {**rows, **self._low_rows(request, device)})

    def _low_rows(self, request: Request, device: torch.device) -> Rows:
        """Return the low picture of a request, and enlarged; what is drawn is what it is without."""
        if self.config.low_size is None:
            return {}
        low = self._inside(request.given["low"].to(device))
        return {"low": low, "enlarged": super_resolution.enlarged(low, self.config.image_size)}

    def _beside(self, request: Request, rows: Rows) -> Rows:
        """Return the rows with what is known of their pictures, and begun there where a strength is asked for."""
        strength = request.options.get("strength")
        if not request.given.keys() & {"image", "mask"}:
            if strength is not None:
                raise ValueError("strength: it is of a change to a picture, and there is none")
            return rows
        if not request.given.keys() >= {"image", "mask"}:
            raise ValueError("image: a picture is changed where a mask says so: give both")
        device = rows["x"].device
        rows["known"] = self._inside(request.given["image"].to(device))
        rows["kept"] = 1 - self._open(request.given["mask"].to(device))
        for name, value in (("image", rows["known"]), ("mask", rows["kept"])):
            found, drawn = (f"{w}x{h}" for *_, h, w in (value.shape, rows["x"].shape))
            if found != drawn:
                raise ValueError(f"{name}: it has {found} places, what is drawn has {drawn}")
        if strength is not None:
            bounds.within("strength", strength, (0, 1))
            first = int(rows["count"][0]) - self.steps_of(request)
            _, alpha, sigma = rows["table"][0, first, :3].tolist()
            if first:
                rows["x"] = alpha * self._learned(rows["known"], rows) + sigma * rows["x"]
                rows["table"] = samplers.begun_at(rows["table"], first)
            rows["index"] += first
        return rows

    def _noise(
        self, seeds: Sequence[int], draws: Sequence[int], shape: Sequence[int], device: torch.device
    ) -> Tensor:
        """Return noise (B, C, H, W); stages of a cascade share a request's seeds, but no noise."""
        return normals(seeds, shape, device, stage=self.config.low_size or 0, draws=draws)

    def _table(self, steps: int) -> Tensor:
        c = self.config
        if c.objective == "flow":
            return flow.table(c.sampler, flow.sampling_times(steps, c.shift))
        return samplers.table(
            c.sampler, self.alpha_T.cpu(), schedules.trailing(steps), c.eta, c.variance
        )

    def steps_of(self, request: Request) -> int:
        """Return the steps of the sampler, of a change to a picture the last ones."""
        steps: int = request.options.get("steps", self.config.steps)
        strength = request.options.get("strength")
        return steps if strength is None else max(1, round(steps * strength))

    def done(self, rows: Rows) -> Tensor:
        """Return (B,) bool: the rows that have taken all their steps."""
        return rows["index"] >= rows["count"]

    @torch.no_grad()
    def step(self, rows: Rows) -> Rows:
        """Return the rows one turn of Algorithm 2's loop further, each by its own table; finished rows stay.

        x_{t-1} is the mean of eq. 7, keep x_t + new x0, and noise; x0 is what the prediction stands for, clipped to
        what pictures can be. Other samplers are other coefficients of the same line, and may look back one x0.
        """
        x, before, live_B = rows["x"], rows["x0"], ~self.done(rows)
        index_B = rows["index"].clamp(max=rows["table"].shape[1] - 1)
        now = torch.arange(len(x)), index_B
        step_B7 = rows["table"][now]
        kinds = step_B7.tolist()  # on the CPU: what no row asks for is left out, at the same bits
        noise = None
        if any(row[6] for row in kinds):  # line 3: z ~ N(0, I), of the row's seed and this step
            seeds, draws = rows["seed"].tolist(), (index_B + 1).tolist()
            noise = self._noise(seeds, draws, x.shape[1:], x.device)
        on_device = step_B7.to(x.device, non_blocking=True)
        of_times_BK = rows["of_times"][tuple(one.to(x.device, non_blocking=True) for one in now)]
        prediction = self._guided(rows, on_device[:, :3], of_times_BK, live_B)
        x0 = objectives.clean(self.config.objective, prediction, x, *_columns(on_device[:, 1:3]))
        x0 = self._learned(self._picture(x0, rows), rows)
        old = before if any(row[5] for row in kinds) else None
        moved = samplers.advance(on_device[:, 3:], x, x0, old, noise)  # line 4
        if not all(live_B.tolist()):
            live = live_B.to(x.device, non_blocking=True)[:, None, None, None]
            moved, x0 = torch.where(live, moved, x), torch.where(live, x0, before)
        return {**rows, "x": moved, "x0": x0, "index": rows["index"] + live_B}

    def _guided(self, rows: Rows, times_B3: Tensor, of_times_BK: Tensor, live_B: Tensor) -> Tensor:
        """Return eps, v or flow, guided where rows ask for it."""
        x, low = rows["x"], rows.get("low")

        def predict(row_N: Tensor, context: Tensor | None) -> Tensor:
            known = None
            if low is not None:
                level = self.config.low_noise_sampling
                known = low[row_N], low.new_full((len(row_N),), level)
            x_now, times, of_times = (one[row_N] for one in (x, times_B3, of_times_BK))
            found: Tensor = self.network(x_now, times, context, known, of_times)
            return found

        return samplers.guided(self, predict, rows, live_B)

    def preview(self, rows: Rows) -> Tensor:
        """Return the current estimate of the clean pictures (B, C, H, W) in [0, 1]."""
        return self._outside(self._picture(rows["x0"], rows))

    def finish(self, rows: Rows) -> Tensor:
        """Return the samples (B, C, H, W) in [0, 1] of rows that are done."""
        return self._outside(self._picture(rows["x"], rows))

    def _picture(self, x: Tensor, rows: Rows) -> Tensor:
        """Return the pictures in [-1, 1] that x stands for, clipped; what is known of them replaces it.

        That, at every step, makes of any diffusion model one that fills in (Wang et al. 2022, arXiv:2212.00490, eq. 13
        for the mask as its linear operator).
        """
        if "enlarged" in rows:
            x = super_resolution.restored(x, rows["enlarged"], self._gain(rows))
        x = self._clipped(x)
        if "kept" in rows:  # of rows in the same batch that know nothing it is 0
            x = rows["kept"] * rows["known"] + (1 - rows["kept"]) * x
        return x

    def _learned(self, picture: Tensor, rows: Rows) -> Tensor:
        """Return what is learned of pictures in [-1, 1]: themselves, or what they have over the low ones."""
        if "enlarged" in rows:
            return super_resolution.residual(picture, rows["enlarged"], self._gain(rows))
        return picture

    def _gain(self, rows: Rows) -> float | Tensor:  # noqa: ARG002 - one for all
        """Return by what the residual is multiplied."""
        return self.config.low_gain

    def _inside(self, picture: Tensor) -> Tensor:
        """Return pictures of [0, 1] in [-1, 1]."""
        return 2 * picture - 1

    def _outside(self, picture: Tensor) -> Tensor:
        """Return pictures of [-1, 1] in [0, 1]."""
        return (picture + 1) / 2

    def _clipped(self, picture: Tensor) -> Tensor:
        """Return what of a picture can be."""
        return picture.clamp(-1, 1)

    def _open(self, mask: Tensor) -> Tensor:
        """Return where a mask leaves x open."""
        return mask


def _columns(values_BK: Tensor) -> tuple[Tensor, ...]:
    """Return K tensors (B, 1, 1, 1), one a column."""
    return values_BK[:, :, None, None, None].unbind(1)
