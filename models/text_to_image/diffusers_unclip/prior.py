"""Captions to CLIP's embeddings of pictures, by the prior pipeline of another's unCLIP: Kandinsky 2.2, Karlo.

Ramesh et al. 2022, arXiv:2204.06125, section 2.2; Razzhigaev et al. 2023, arXiv:2310.03502. The networks are diffusers'
and transformers' own, built from the checkpoint's configs, and a stage each: CLIP's text tower (entry `read`), the
prior, which draws an embedding, and CLIP's picture tower (entry `embed`). One class is any of the three, as its config
has a network, and the prior alone learns.

What a decoder is given are two embeddings: the one to draw, and the one that guidance leads away from: that of a
negative prompt, drawn beside the other; without one that of a blank picture (Kandinsky) or a learned one (Karlo).

Shape letters: B rows, S steps, K columns, T prompt tokens, L = T + 1 rows of what is known of a prompt, D their width,
E numbers of an embedding, R = B or 2 B drawn embeddings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion import schedules
from models.family import Batch, Capabilities, Entry, Family, Losses
from models.parts import bounds
from models.parts.noise import normals
from models.ports import Port
from models.request import DiffusionOptions, Request
from models.text_to_image.checkpoint_parts import agreed, network
from models.text_to_image.checkpoint_texts import Reader, packed
from models.text_to_image.diffusers_unclip import ancestral, tiny

BOUNDS: Final[Mapping[str, bounds.Range]] = {
    "steps": (2, 1000),
    "guidance": (0, 50),
    "prompt_drop": (0, 1),
    "embedding": (1, 65536),
}
KINDS: Final[Mapping[str, str]] = {
    "text_encoder": "CLIPTextModelWithProjection",
    "prior": "PriorTransformer",
    "image_encoder": "CLIPVisionModelWithProjection",
}
ENDED: Final = -1  # the token behind a prompt's end


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusersPriorConfig:
    """The settings of one of the three networks, and what it must know of the others."""

    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=tiny.prior)
    """config.json of the one that it is, by its part of the pipeline."""
    reader: Mapping[str, Any] = field(default_factory=dict)
    """Of the text tower: its tokenizer's JSON `document`, and the `length` of a prompt in tokens."""
    scheduler: str = tiny.SCHEDULER  # scheduler_config.json
    prompt_shape: tuple[int, int] = tiny.KNOWN  # L and D of what is known of a prompt
    texts: str = ""  # the fingerprint of the text tower
    embedding: int = tiny.KNOWN[1]  # numbers of an embedding
    clip: str = ""  # the fingerprint of the picture tower, or of what stands for it
    image_size: int = 16  # pixels a side of the pictures that are embedded
    channels: int = 3
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's pixels
    deviation: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    steps: int = 25
    guidance: float = 4.0
    prompt_drop: float = 0.1  # share of captions that training leaves out

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, BOUNDS)
        if len(self.networks) != 1 or not self.networks.keys() <= KINDS.keys():
            raise ValueError(
                f"networks: one of {', '.join(KINDS)} is needed, got {', '.join(self.networks)}"
            )
        if bool(self.reader) != (self.part == "text_encoder"):
            got = f"one of the {self.part}" if self.reader else "none"
            raise ValueError(f"reader: the text_encoder has one, got {got}")

    @property
    def part(self) -> str:
        """Which of the networks it is."""
        return next(iter(self.networks))


class DiffusersPrior(Family):
    """Embeddings of pictures from what is known of prompts; or one of CLIP's towers beside it."""

    Config = DiffusersPriorConfig
    Options = DiffusionOptions
    presets: ClassVar[Mapping[str, DiffusersPriorConfig]] = {
        "tiny": DiffusersPriorConfig(steps=4),
        "base": DiffusersPriorConfig(),  # of a version that training starts from, which brings its own
    }
    brought: ClassVar[tuple[str, ...]] = (
        *("networks", "reader", "scheduler", "mean", "deviation", "embedding"),
    )
    adapts: ClassVar[tuple[str, ...]] = (
        "attn1.to_q",
        "attn1.to_k",
        "attn1.to_v",
        "attn1.to_out.0",
    )
    needs: ClassVar[tuple[str, ...]] = ("embedding", "text_embedding")
    config: DiffusersPriorConfig

    def __init__(self, config: DiffusersPriorConfig) -> None:
        super().__init__()
        self.config, part = config, config.part
        self.add_module(part, network(KINDS[part], config.networks[part]))
        like = next(self.parameters())
        self.blank_E: Tensor
        self.nothing_LD: Tensor
        if part == "text_encoder":
            document, length = config.reader["document"], config.reader["length"]
            self._reader = Reader(document, length, ENDED)
        else:
            self.register_buffer("blank_E", like.new_zeros(config.embedding))
        if part == "prior":
            self.register_buffer("nothing_LD", like.new_zeros(config.prompt_shape))
            prior = self.get_submodule("prior")
            settings = {
                "num_embeddings": config.prompt_shape[0] - 1,
                "embedding_dim": config.embedding,
            }
            agreed({"prior": prior}, {"prior": settings})
            self._ready(prior)
        else:
            self.requires_grad_(requires_grad=False)
        levels_N2 = ancestral.trained(config.scheduler).to(like.device)
        self.levels_N2: Tensor
        self.register_buffer("levels_N2", levels_N2, persistent=False)

    def _ready(self, prior: Any) -> None:
        """Have a prior that was not trained yet take embeddings as they are; how they are scaled is not learned."""
        nn.init.ones_(prior.clip_std)
        for scale in (prior.clip_mean, prior.clip_std):
            scale.requires_grad = False

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the prior: what does not learn drops nothing out either."""
        return super().train(mode and self.config.part == "prior")

    @property
    def capabilities(self) -> Capabilities:
        """Return what its part can do."""
        reads = self.config.part == "text_encoder"
        return Capabilities(condition="text" if reads else "none", unprompted=reads)

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what the prior draws from: what is known of a prompt, and of another to lead away from."""
        if self.config.part != "prior":
            return super().inputs
        known = self._known(optional=True)
        return {"text_embedding": known, "without": known}

    @property
    def outputs(self) -> Mapping[str, Port]:
        """Return what it gives: two embeddings, or what is known of a prompt."""
        if self.config.part == "text_encoder":
            return {"text_embedding": self._known()}
        return {"embedding": self._drawn}

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Return of the text tower `read`, of the picture tower `embed`, of the prior `blend`."""
        c, outputs = self.config, self.outputs
        if c.part == "text_encoder":
            facts: dict[str, Any] = {"prompt_shape": c.prompt_shape, "texts": c.texts}
            return {"read": Entry({"text": Port("text", optional=True)}, outputs, facts)}
        facts = {"embedding": c.embedding, "clip": c.clip}
        if c.part == "image_encoder":
            pixels = Port("pixels", (c.channels, c.image_size, c.image_size))
            return {"embed": Entry({"pixels": pixels}, outputs, facts)}
        ends = {"embedding": self._drawn, "other": self._drawn, "weight": Port("number")}
        return {"blend": Entry(ends, outputs, facts)}

    def _known(self, *, optional: bool = False) -> Port:
        return Port("embedding", self.config.prompt_shape, self.config.texts, optional)

    @property
    def _drawn(self) -> Port:
        return Port("embedding", (2, self.config.embedding), self.config.clip)

    @torch.no_grad()
    def enter(self, entry: str, given: Mapping[str, Tensor]) -> Tensor:
        """Return what is known of prompts (B, L, D), embeddings (B, 2, E) of pictures, or between two others."""
        if entry == "read" and self.config.part == "text_encoder":
            return self._read(given["tokens"])
        if entry == "embed" and self.config.part == "image_encoder":
            return self._embedded(given["pixels"])
        if entry == "blend" and self.config.part == "prior":
            weight = given["weight"].float()[:, None, None]
            return (1 - weight) * given["embedding"] + weight * given["other"]
        return super().enter(entry, given)

    def encode(self, captions: Sequence[str]) -> Tensor | None:
        """Return (B, T) int64 tokens, -1 behind a caption's end; None but of the text tower.

        Raises:
            ValueError: a caption is longer than it reads.
        """
        return self._reader.encode(captions) if self.config.part == "text_encoder" else None

    def _read(self, tokens_BT: Tensor) -> Tensor:
        """Return what is known of prompts (B, L, D): a row a token, zeros behind its end, and that of it whole."""
        tower: Any = self.get_submodule("text_encoder")
        found = tower(tokens_BT.clamp(min=0))  # none of what is read depends on what follows
        rows_BTD = found.last_hidden_state.masked_fill((tokens_BT == ENDED)[..., None], 0)
        return packed([rows_BTD], found.text_embeds)

    def _embedded(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, 2, E) of pictures, each beside that of a blank one."""
        c, tower = self.config, self.get_submodule("image_encoder")
        side = int(c.networks["image_encoder"].get("image_size", 224))
        if pixels.shape[-1] != side:
            pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
            pixels = pixels.clamp(0, 1)
        mean, deviation = (pixels.new_tensor(one)[:, None, None] for one in (c.mean, c.deviation))
        found_BE: Tensor = tower((pixels - mean) / deviation).image_embeds
        return torch.stack([found_BE, self.blank_E.expand_as(found_BE)], 1)

    def _said(self, z_BE: Tensor, time_B: Tensor, known_BLD: Tensor) -> Tensor:
        """Return what the prior says of noisy embeddings (B, E), given what is known of their prompts."""
        prior: Any = self.get_submodule("prior")
        width = prior.config.embedding_proj_dim or prior.config.embedding_dim
        rows_BTD, whole_BD = known_BLD[:, :-1], known_BLD[:, -1, :width]
        found: Tensor = prior(
            z_BE,
            timestep=time_B,
            proj_embedding=whole_BD,
            encoder_hidden_states=rows_BTD[..., : prior.config.embedding_dim],
            attention_mask=rows_BTD.any(-1),  # zeros are no token's
        ).predicted_image_embedding
        return found.float()

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean squared error of what the prior says at random times, as it was trained."""
        if self.config.part != "prior":
            raise ValueError(
                f"the {self.config.part} of a checkpoint stays as it is: nothing learns"
            )
        prior: Any = self.get_submodule("prior")
        known_BLD = batch["text_embedding"]
        with torch.no_grad():
            z0_BE = (batch["embedding"][:, 0] - prior.clip_mean) / prior.clip_std
            count, device = len(z0_BE), z0_BE.device
            dropped_B = torch.rand(count, device=device) < self.config.prompt_drop
            known_BLD = torch.where(dropped_B[:, None, None], self.nothing_LD, known_BLD)
            index_B = (schedules.spread(count, device) * len(self.levels_N2)).long()
            alpha_B1, sigma_B1 = self.levels_N2[index_B].chunk(2, 1)
            eps_BE = torch.randn_like(z0_BE)
        found_BE = self._said(alpha_B1 * z0_BE + sigma_B1 * eps_BE, index_B.float(), known_BLD)
        noise = ancestral.predicts(self.config.scheduler) == "epsilon"
        return Losses(F.mse_loss(found_BE, eps_BE if noise else z0_BE), count)

    def player_parameters(self, player: str) -> list[nn.Parameter]:  # noqa: ARG002 - one player
        """Return what learns: the prior, or an adapter in it."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def steps_of(self, request: Request) -> int:
        """Return the steps of the sampler."""
        steps: int = request.options.get("steps", self.config.steps)
        return steps if self.config.part == "prior" else 1

    @property
    def takes(self) -> tuple[str, ...]:
        """Return the names of its options: the prior's."""
        return super().takes if self.config.part == "prior" else ()

    def sample(self, request: Request) -> Tensor:
        """Return embeddings (B, 2, E), or of the text tower what is known of prompts; a seed gives its own."""
        *_, found = self.drawing(request)
        assert found is not None
        return found

    def drawing(self, request: Request) -> Iterator[Tensor | None]:
        """Yield None after each step but the last; then what `sample` returns.

        Raises:
            ValueError: steps, guidance or a prompt out of range; begins with its name where that is not the prompt.
        """
        self.check(request)
        c, count, device = self.config, len(request.seeds), next(self.parameters()).device
        if c.part == "text_encoder":
            texts = request.prompts or ("",) * count
            return iter([self.enter("read", {"tokens": self._reader.encode(texts).to(device)})])
        if c.part == "image_encoder":
            pixels = normals(request.seeds, (c.channels, c.image_size, c.image_size), device)
            return iter([self.enter("embed", {"pixels": pixels.clamp(0, 1)})])
        guidance = request.options.get("guidance", c.guidance)
        bounds.within("steps", self.steps_of(request), BOUNDS["steps"])
        bounds.within("guidance", guidance, BOUNDS["guidance"])
        return self._steps(request, float(guidance), device)

    @torch.no_grad()
    def _steps(
        self, request: Request, guidance: float, device: torch.device
    ) -> Iterator[Tensor | None]:
        """Yield None after each step but the last; then embeddings (B, 2, E)."""
        c, seeds = self.config, request.seeds
        nothing_BLD = self.nothing_LD.expand(len(seeds), -1, -1)
        known, away = (
            request.given[name].to(device) if name in request.given else None
            for name in ("text_embedding", "without")
        )
        lead_BLD = nothing_BLD if known is None else known
        asked = [lead_BLD] if away is None else [lead_BLD, away]
        without = nothing_BLD if away is None else away
        known_RLD = torch.cat(asked)
        without_RLD = without.repeat(len(asked), 1, 1)
        guides = {1.0: [known_RLD], 0.0: [without_RLD]}.get(guidance, [known_RLD, without_RLD])
        table_SK = ancestral.table(c.scheduler, self.steps_of(request)).to(device)
        z_RE = self._noise(seeds, len(asked), 0, device)
        for number, row_K in enumerate(table_SK, start=1):
            found = self._guided(z_RE, row_K[0], guides, guidance)
            noise_RE = self._noise(seeds, len(asked), number, device)
            step_RK = row_K.expand(len(z_RE), -1)
            z_RE, _ = ancestral.advance(step_RK, z_RE, found, None, noise_RE, c.scheduler)
            if number < len(table_SK):
                yield None
        prior: Any = self.get_submodule("prior")
        drawn_RE = prior.post_process_latents(z_RE)
        blank_BE = self.blank_E.expand(len(seeds), -1)
        pair = drawn_RE.chunk(2) if away is not None else (drawn_RE, blank_BE)
        yield torch.stack(pair, 1)

    def _noise(self, seeds: Sequence[int], kinds: int, draw: int, device: torch.device) -> Tensor:
        """Return noise (R, E): what a negative prompt draws does not move the other."""
        shape = (self.config.embedding,)
        return torch.cat(
            [normals(seeds, shape, device, stage=kind, draws=draw) for kind in range(kinds)]
        )

    def _guided(
        self, z_RE: Tensor, time: Tensor, known: Sequence[Tensor], guidance: float
    ) -> Tensor:
        """Return what the prior says of noisy embeddings (R, E), guided by the second of what is known."""
        z, time_B = z_RE.repeat(len(known), 1), time.expand(len(known) * len(z_RE))
        given, *without = self._said(z, time_B, torch.cat([*known])).chunk(len(known))
        if not without:
            return given
        guided: Tensor = without[0] + guidance * (given - without[0])
        return guided
