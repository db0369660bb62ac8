"""Pipelines of Hugging Face's diffusers as one family: Stable Diffusion 1 and 2, XL and 3, and Flux.

Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023, arXiv:2307.01952; Esser et al. 2024, arXiv:2403.03206; Black
Forest Labs 2024. The networks are diffusers' and transformers' own, built from the checkpoint's configs, and named as a
pipeline names its parts: `text_encoder`, `unet` or `transformer`, `vae`. What a pipeline's `__call__` does with them is
done here row by row, so that rows at different steps, of different requests, share a call: reading a prompt
(`embedded`), one step of the sampler (`step`, by `solvers`), and decoding (`finish`). Only what denoises learns, as it
was trained (`forward`). A distilled Flux is told the guidance as a number, at one prediction a step.

One class is a whole checkpoint or one of its three parts, as its config has networks: the text encoders (entry `read`),
what denoises (latents of what is known of prompts), and the autoencoder (entries `encode` and `decode`).

Shape letters: B rows, C channels of the latent, H and W its places, T prompt tokens, D embedding width, S calls.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from threading import Lock
from typing import Any, ClassVar, Final, Self

import torch
from cachetools import LRUCache, cachedmethod
from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion import samplers, schedules
from models.family import Batch, Capabilities, Entry, Family, Losses, Rows
from models.parts import bounds
from models.parts.noise import normals
from models.parts.rows import drawn
from models.ports import Port
from models.request import Request
from models.text_to_image import checkpoint_denoisers as denoisers
from models.text_to_image import checkpoint_texts, solvers
from models.text_to_image.checkpoint_config import BOUNDS, DiffusersConfig, DiffusersOptions
from models.text_to_image.checkpoint_parts import DENOISERS, network

KEPT_BYTES: Final = 64 * 2**20
"""Of the embeddings of prompts that a model keeps: some 280 of Stable Diffusion 1, 30 of 3."""
KEEPING: Final = Lock()  # of all models: a model is copied, and a lock is not


class Diffusers(Family):
    """Pictures from prompts, by another's checkpoint."""

    Config: ClassVar[type[Any]] = DiffusersConfig
    Options = DiffusersOptions
    presets: ClassVar[Mapping[str, DiffusersConfig]] = {
        "tiny": DiffusersConfig(steps=4, guidance=3.0),
        "base": DiffusersConfig(),  # of a version that training starts from, which brings its own
    }
    brought: ClassVar[tuple[str, ...]] = (
        "pipeline",
        "networks",
        "readers",
        "scheduler",
        "zeros_unprompted",
    )
    adapts: ClassVar[tuple[str, ...]] = (
        # of a U-Net: attention among its places, and to the prompt
        "attn1.to_q",
        "attn1.to_k",
        "attn1.to_v",
        "attn1.to_out.0",
        "attn2.to_q",
        "attn2.to_k",
        "attn2.to_v",
        "attn2.to_out.0",
        # of a transformer
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        # and, of one that has them apart, among the prompt's tokens
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    )
    call_sizes: tuple[int, ...] | None = ()
    channels_last: ClassVar[bool] = True  # filters, and so features, of all parts; see `ready`
    config: DiffusersConfig
    vae: Any

    def __init__(self, config: DiffusersConfig) -> None:
        super().__init__()
        self.config = config
        if config.part in {"text", "autoencoder"}:
            self.call_sizes = None  # it takes no steps
        for name, kind in config.kinds[config.pipeline].items():
            if name in config.networks:
                self.add_module(name, network(kind, config.networks[name]))
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name.startswith(DENOISERS) and self.learns(name)
        with torch.device("cpu"):
            self._readers = [checkpoint_texts.Reader(**config.readers[name]) for name in self.texts]
            solver = solvers.scheduler(json.loads(config.scheduler))
            levels_N3 = solvers.trained(solver)
        like = next(self.parameters())
        self.nothing_T: Tensor
        self.nothing_TD: Tensor
        self.levels_N3: Tensor
        # made from the config, so no version has to hold them
        self.register_buffer("levels_N3", levels_N3.to(like.device), persistent=False)
        if self._readers:
            nothing_T = self.tokens([""])[0].to(like.device)
            self.register_buffer("nothing_T", nothing_T, persistent=False)
        elif config.part == "denoiser":  # what is known of no text, which it cannot read
            self.register_buffer("nothing_TD", like.new_zeros(config.prompt_shape or ()))
        self._predicts = solvers.predicts(solver)
        self._kept: LRUCache[Any, Tensor] = LRUCache(KEPT_BYTES, getsizeof=_bytes)
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]
        self.train()  # what does not learn comes out of its constructor as if it did

    def learns(self, name: str) -> bool:  # noqa: ARG002 - all of it
        """Return whether a parameter of what denoises learns."""
        return True

    def train(self, mode: bool = True) -> Self:
        """Set the mode of what denoises: what does not learn, as T5, drops nothing out either."""
        super().train(mode=False)
        self.training = mode
        if not self.config.part or self.config.part == "denoiser":
            self.denoiser.train(mode)
        return self

    @property
    def denoiser(self) -> Any:
        """Return what denoises: a U-Net, or a transformer."""
        return next(part for name, part in self.named_children() if name in DENOISERS)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Return the names of the text encoders."""
        return tuple(
            name for name in self.config.kinds[self.config.pipeline] if name in self.config.readers
        )

    @property
    def capabilities(self) -> Capabilities:
        """Return what it can do."""
        reads = self.config.part in {"", "text"}
        steps = self.config.part in {"", "denoiser"}
        return Capabilities(condition="text" if reads else "none", unprompted=reads, stepwise=steps)

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what it draws from: a text; what denoises alone, what is known of one, and of another to lead away."""
        if self.config.part != "denoiser":
            return super().inputs
        known = self._known_port(optional=True)
        away = {} if denoisers.tells(self.config.networks) else {"without": known}
        return {"embedding": known, **away}

    @property
    def outputs(self) -> Mapping[str, Port]:
        """Return what it gives: pictures, or what its part does."""
        if self.config.part == "text":
            return {"embedding": self._known_port()}
        return (
            {"latent": self._latent_port()} if self.config.part == "denoiser" else super().outputs
        )

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Return of the text encoders `read`, of the autoencoder `encode` and `decode`; of the others nothing."""
        c = self.config
        if c.part == "text":
            facts: dict[str, Any] = {"prompt_shape": c.prompt_shape, "texts": c.texts}
            return {"read": Entry({"text": Port("text", optional=True)}, self.outputs, facts)}
        if c.part != "autoencoder":
            return {}
        latent, pixels = {"latent": self._latent_port()}, {"pixels": self.outputs["pixels"]}
        names = ("latent_shape", "autoencoder", "image_size")
        facts = {name: getattr(c, name) for name in names}
        return {"encode": Entry(pixels, latent, facts), "decode": Entry(latent, pixels)}

    def _known_port(self, *, optional: bool = False) -> Port:
        return Port("embedding", self.config.prompt_shape or (), self.config.texts, optional)

    def _latent_port(self) -> Port:
        return Port("latent", self.config.latent_shape or (), self.config.autoencoder)

    @torch.no_grad()
    def enter(self, entry: str, given: Mapping[str, Tensor]) -> Tensor:
        """Return what is known of prompts (B, T, D), latents (B, C, h, w) of pictures, or pictures of latents."""
        if entry == "read" and self.config.part == "text":
            rows = [tuple(tokens) for tokens in given["tokens"].tolist()]
            return torch.cat([self._known(row, given["tokens"].device) for row in rows])
        if entry == "encode" and self.config.part == "autoencoder":
            return self._scaled(self.vae.encode(2 * given["pixels"] - 1).latent_dist.mode())
        if entry == "decode" and self.config.part == "autoencoder":
            return self._decoded(given["latent"])
        return super().enter(entry, given)

    def given_of(self, batch: Batch) -> dict[str, Tensor]:
        """Return what stands for real samples: of what denoises alone, what is known of their captions."""
        return {name: batch[name] for name in ("embedding",) if name in self.inputs}

    @property
    def takes(self) -> tuple[str, ...]:
        """Return the names of its options; nothing leads a distilled network away from a text."""
        if self.config.part in {"text", "autoencoder"}:
            return ()
        useless = {"negative_prompt"} if denoisers.tells(self.config.networks) else set()
        return tuple(name for name in super().takes if name not in useless)

    def encode(self, captions: Sequence[str]) -> Tensor | None:
        """Return (B, T) int64, the tokens of every text encoder one after the other; None without any.

        Raises:
            ValueError: a caption is longer than an encoder reads.
        """
        return self.tokens(captions) if self._readers else None

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Return what `encode` does."""
        return torch.cat([reader.encode(prompts) for reader in self._readers], 1)

    def embedded(self, tokens_BT: Tensor) -> Tensor:
        """Return what is known of prompts (B, T, D), as `checkpoint_texts.embedded`."""
        parts = torch.split(tokens_BT, [reader.length for reader in self._readers], 1)
        encoders: list[Any] = [self.get_submodule(name) for name in self.texts]
        shape = self.config.prompt_shape
        width = shape[1] if shape else int(self.denoiser.config.get("joint_attention_dim") or 0)
        return checkpoint_texts.embedded(self.config.pipeline, encoders, parts, width)

    def _prediction(
        self, x: Tensor, time_B: Tensor, context_BTD: Tensor, told_B: Tensor | None
    ) -> Tensor:
        """Return what the network says of noisy latents at their times, given what is known of their prompts."""
        c = self.config
        known = (c.pipeline, self.denoiser, x, time_B, context_BTD)
        return denoisers.predicted(*known, side=c.image_size, told_B=told_B)

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean squared error of the network's prediction at random times, as it was trained."""
        if self.config.part in {"text", "autoencoder"}:
            raise ValueError(
                f"the {self.config.part} of a checkpoint stays as it is: nothing learns"
            )
        with torch.no_grad():
            x0 = batch["latent"] if self.config.part else self._latents(batch)
            count, device = len(x0), x0.device
            dropped_B = torch.rand(count, device=device) < self.config.prompt_drop
            context_BTD = self._learned(batch, dropped_B)
        index_B = (schedules.spread(count, device) * len(self.levels_N3)).long()
        time_B, alpha_B, sigma_B = self.levels_N3[index_B].unbind(1)
        alpha, sigma = (one[:, None, None, None] for one in (alpha_B, sigma_B))
        eps = torch.randn_like(x0)
        told_B = self._told(self.config.guidance, count)
        found = self._prediction(alpha * x0 + sigma * eps, time_B, context_BTD, told_B)
        targets = {
            **{"epsilon": eps, "v_prediction": alpha * eps - sigma * x0},
            **{"sample": x0, "flow": eps - x0},
        }
        return Losses(F.mse_loss(found, targets[self._predicts]), count)

    def _learned(self, batch: Batch, dropped_B: Tensor) -> Tensor:
        """Return what is known of a batch's captions (B, T, D), of those that are dropped as of none."""
        if self.config.part:
            return torch.where(dropped_B[:, None, None], self.nothing_TD, batch["embedding"])
        tokens_BT = self.tokens_of(batch)
        assert tokens_BT is not None
        context_BTD = self.embedded(torch.where(dropped_B[:, None], self.nothing_T, tokens_BT))
        if self.config.zeros_unprompted:
            context_BTD = torch.where(dropped_B[:, None, None], 0, context_BTD)
        return context_BTD

    def player_parameters(self, player: str) -> list[nn.Parameter]:  # noqa: ARG002 - one player
        """Return what learns: what denoises, or an adapter in it."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Return samples (B, C, H, W) in [0, 1]; a seed gives its picture alone or in a batch.

        The text encoders alone give what is known of prompts, the autoencoder what it makes of noise.
        """
        if self.config.part in {"text", "autoencoder"}:
            self.check(request)
            device = next(self.parameters()).device
            if self.config.part == "autoencoder":
                return self._decoded(normals(request.seeds, self._shape(), device))
            return self._read(request.prompts or ("",) * len(request.seeds), device)
        return drawn(self, request)

    @torch.no_grad()
    def begin(self, request: Request) -> Rows:
        """Return rows of noise, each with its sampler's table and what is known of its prompt.

        Raises:
            ValueError: steps, guidance or a prompt out of range; begins with its name where that is not the prompt.
        """
        self.check(request)
        c, count = self.config, len(request.seeds)
        asked = bool(request.prompts) or "embedding" in request.given
        guidance = request.options.get("guidance", c.guidance) if asked else 1.0
        bounds.within("guidance", guidance, BOUNDS["guidance"])
        told_B = self._told(guidance, count)
        guidance = guidance if told_B is None else 1.0
        table_SK, first = self._table(request)
        device, shape = next(self.parameters()).device, self._shape()
        x = first * normals(request.seeds, shape, device)
        away = self._away(request)
        if away is not None and not (asked and guidance > 1):
            raise ValueError(
                "negative_prompt: guidance leads away from it, and there is none; leave it out or give a"
                " prompt and a guidance above 1"
            )
        without_BTD = self._without(away, count, device)
        context_BTD = without_BTD
        if asked and guidance:
            context_BTD = self._context(request, device)
        return {
            "x": x,
            "x0": torch.zeros_like(x),
            "past": x.new_zeros(count, 2 * solvers.BEFORE, *shape),
            "table": table_SK.expand(count, -1, -1),
            "index": torch.zeros(count, dtype=torch.long),
            "count": torch.full((count,), len(table_SK)),
            "guidance": torch.full(
                (count,), float(guidance or 1)
            ),  # 0 is no prompt, at no second pass
            "context": context_BTD,
            "without": without_BTD,
            **({} if told_B is None else {"told": told_B}),
        }

    def _told(self, guidance: float, count: int) -> Tensor | None:
        """Return the guidance (B,) as a distilled network is told it; None where two predictions guide."""
        if not denoisers.tells(self.config.networks):
            return None
        return torch.full((count,), float(guidance), device=self.levels_N3.device)

    def _table(self, request: Request) -> tuple[Tensor, float]:
        steps = request.options.get("steps", self.config.steps)
        bounds.within("steps", steps, BOUNDS["steps"])
        even = self.config.pipeline == "FluxPipeline"
        return solvers.table(self.config.scheduler, steps, self._places(), even=even)

    def _places(self) -> int:
        """Return how many places a transformer attends to."""
        c = self.config
        return int((c.image_size // c.shrink // c.patch) ** 2)

    def _shape(self) -> tuple[int, int, int]:
        """Return the sizes of one row's latent."""
        if self.config.latent_shape is not None:
            return self.config.latent_shape
        side = self.config.image_size // self.config.shrink
        return denoisers.channels_of(self.config.pipeline, self.denoiser), side, side

    def _read(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Return what is known of prompts, each read alone, so that its bits do not depend on the others."""
        rows = [tuple(tokens) for tokens in self.tokens(prompts).tolist()]
        return torch.cat([self._known(tokens, device) for tokens in rows])

    @cachedmethod(attrgetter("_kept"), key=lambda _, *asked: asked, lock=lambda _: KEEPING)
    def _known(self, tokens: tuple[int, ...], device: torch.device) -> Tensor:
        """Return what is known of one prompt (1, T, D); what reads it never learns, so it is read once."""
        return self.embedded(torch.tensor([tokens], device=device))

    def _context(self, request: Request, device: torch.device) -> Tensor:
        if not self.config.part:
            return self._read(request.prompts, device)
        return request.given["embedding"].to(device)

    def _away(self, request: Request) -> str | Tensor | None:
        """Return what guidance is to lead away from in place of no text, or what is known of that."""
        if self.config.part:
            return request.given.get("without")
        away: str | None = request.options.get("negative_prompt")
        return away

    def _without(self, away: str | Tensor | None, count: int, device: torch.device) -> Tensor:
        """Return what is known of that, or of no text (B, T, D)."""
        if isinstance(away, Tensor):
            return away.to(device)
        if self.config.part:
            return self.nothing_TD.expand(count, -1, -1)
        found = self._read([away or ""], device)
        if self.config.zeros_unprompted and away is None:
            found = torch.zeros_like(found)
        return found.expand(count, -1, -1)

    def steps_of(self, request: Request) -> int:
        """Return how often the network is called; some samplers take more than one call a step."""
        return len(self._table(request)[0])

    def done(self, rows: Rows) -> Tensor:
        """Return (B,) bool: the rows that have taken all their steps."""
        return rows["index"] >= rows["count"]

    @torch.no_grad()
    def step(self, rows: Rows) -> Rows:
        """Return the rows one call of the network further, each by its own table; finished rows stay."""
        x, live_B = rows["x"], ~self.done(rows)
        index_B = rows["index"].clamp(max=rows["table"].shape[1] - 1)
        step_BK = rows["table"][torch.arange(len(x)), index_B].to(x.device, non_blocking=True)
        time_B = step_BK[:, 0]
        seen = step_BK[:, 1, None, None, None] * x

        def predict(row_N: Tensor, context: Tensor | None) -> Tensor:
            assert context is not None
            told_N = rows["told"][row_N] if "told" in rows else None
            return self._prediction(seen[row_N], time_B[row_N], context, told_N)

        e = samplers.guided(self, predict, rows, live_B)
        x0 = step_BK[:, 2, None, None, None] * seen + step_BK[:, 3, None, None, None] * e
        moved, past = solvers.advance(step_BK, x, e, rows["past"])
        if not all(live_B.tolist()):
            live = live_B.to(x.device, non_blocking=True)[:, None, None, None]
            moved, x0 = torch.where(live, moved, x), torch.where(live, x0, rows["x0"])
        return {**rows, "x": moved, "x0": x0, "past": past, "index": rows["index"] + live_B}

    def preview(self, rows: Rows) -> Tensor:
        """Return the current estimate of the pictures (B, C, H, W) in [0, 1], or of their latents."""
        return rows["x0"] if self.config.part else self._decoded(rows["x0"])

    def finish(self, rows: Rows) -> Tensor:
        """Return the samples (B, C, H, W) in [0, 1] of rows that are done, or their latents."""
        return rows["x"] if self.config.part else self._decoded(rows["x"])

    @torch.no_grad()
    def _decoded(self, latents: Tensor) -> Tensor:
        scale, shift = self._scale()
        pixels: Tensor = self.vae.decode(latents / scale + shift).sample
        return (pixels / 2 + 0.5).clamp(0, 1)

    def _latents(self, batch: Batch) -> Tensor:
        return self._scaled(self.vae.encode(2 * batch["pixels"] - 1).latent_dist.sample())

    def _scaled(self, latents: Tensor) -> Tensor:
        scale, shift = self._scale()
        return (latents - shift) * scale

    def _scale(self) -> tuple[float, float]:
        return self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0


def _bytes(tensor: Tensor) -> int:
    return tensor.nbytes


def _forget(model: nn.Module, _: object) -> None:
    """Drop what other weights knew of prompts."""
    assert isinstance(model, Diffusers)
    model._kept.clear()
