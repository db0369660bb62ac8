"""DALL-E 2, or unCLIP (Ramesh et al. 2022, arXiv:2204.06125): a caption to a CLIP embedding, and that to a picture.

`Prior` draws the embedding that CLIP might give a picture with this caption (section 2.2, the diffusion prior):
a Transformer reads the caption, CLIP's embedding of it, the time, the noisy embedding and a query, and what it makes of
the query is the clean embedding. `Decoder` paints a picture with this embedding (section 2.1): the U-Net of GLIDE, here
that of ddpm.py, which reads the embedding beside the caption. Upsamplers are ddpm.py's.

A regression would be as near to the embeddings' mean, and have no spread: one caption, one picture. So `measure`
compares the spread of drawn embeddings with that of real ones.

Shape letters: B rows, E numbers of a CLIP embedding, T words, K candidates or tokens of an embedding, N = B K, W width,
L tokens of the prior, D width of the decoder's context, C captions. Embeddings have the length 1 outside and sqrt(E)
inside, a deviation of 1 a number.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion import objectives, samplers, schedules
from models.diffusion.ddpm import DDPM, DDPMConfig
from models.diffusion.unet import sinusoids
from models.family import Batch, Capabilities, Entry, Family, Losses
from models.parts import bounds
from models.parts.attention import EncoderLayer
from models.parts.influence import influence
from models.parts.noise import normals
from models.parts.tables import Table
from models.parts.words import GUIDANCE, Led
from models.ports import Port
from models.request import DiffusionOptions, Request

BOUNDS: Final[Mapping[str, bounds.Range]] = {
    **dict.fromkeys(("embedding", "max_words", "width", "heads", "layers"), (1, 4096)),
    "caption_drop": (0, 1),
    "spread": (0.01, 10),
    "dropout": bounds.SHARE,
    "steps": (1, schedules.TIMES),
    "candidates": (1, 64),
    "guidance": GUIDANCE,
}
BOUNDS_OF_DECODER: Final[Mapping[str, bounds.Range]] = {
    **dict.fromkeys(("embedding", "embedding_tokens"), (1, 4096)),
    "embedding_drop": (0, 1),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig(Led):
    """What is learned, how it is drawn, and the sizes of the network."""

    embedding: int = 64  # numbers of an embedding
    clip: str = ""  # whose embeddings: the fingerprint of that CLIP's weights
    vocabulary: tuple[
        str, ...
    ] = ()  # lower-case words; empty: CLIP's embedding of the text says it all
    max_words: int = 8
    text: Literal["caption", "none"] = "caption"  # none: the vocabulary is not used
    caption_drop: float = 0.1
    spread: float = 0.25  # deviation of a picture's embedding around that of its caption, a number

    sampler: Literal["ddpm", "ddim"] = "ddpm"
    steps: int = 12
    guidance: float = 1.0
    candidates: int = 2  # drawn; the one that CLIP finds nearest to the caption is kept

    width: int = 64
    layers: int = 2
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, BOUNDS)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be divisible by heads, got {self.heads}")

    def kept(self) -> str:
        """As of captions, which CLIP's embedding of them is left out with."""
        return "" if self.caption_drop else "caption_drop"


class Said(NamedTuple):
    """What a caption tells of an embedding before it is drawn."""

    tokens: Tensor  # (B, T + 1, W): its words, and CLIP's embedding of it
    centre: Tensor  # (B, E): about where the embedding lies
    spread: Tensor  # (B, 1): the deviation of a number around that


class PriorNetwork(nn.Module):
    """A causal Transformer over caption, its embedding, time, noisy embedding and query, to the clean embedding."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        c, self.config = config, config
        words = c.max_words if c.reads_text else 0
        self.words = nn.Embedding(len(c.vocabulary) + 1, c.width) if words else None
        self.text, self.noisy = nn.Linear(c.embedding, c.width), nn.Linear(c.embedding, c.width)
        self.time = nn.Sequential(nn.Linear(64, c.width), nn.SiLU(), nn.Linear(c.width, c.width))
        # "no caption", in the places of the words and of the embedding
        self.null_1LW = Table(nn.init.normal_(torch.empty(1, words + 1, c.width)))
        self.places_LW = Table(nn.init.normal_(torch.empty(words + 4, c.width), std=0.1))
        sizes = (c.width, c.heads, 4 * c.width, c.dropout)
        self.layers = nn.ModuleList(EncoderLayer(*sizes, "gelu") for _ in range(c.layers))
        self.out = nn.Linear(c.width, c.embedding)
        nn.init.zeros_(self.out.weight)
        self.seen_LL: Tensor
        causal_LL = torch.ones(words + 4, words + 4, dtype=torch.bool).tril()
        self.register_buffer("seen_LL", causal_LL, persistent=False)

    def said(self, tokens_BT: Tensor | None, text_BE: Tensor, dropped_B: Tensor) -> Said:
        """Return what captions tell, and where they are dropped what is known of all embeddings."""
        said_BLW = self.text(text_BE)[:, None]
        if self.words is not None and tokens_BT is not None:
            said_BLW = torch.cat([self.words(tokens_BT), said_BLW], 1)
        dropped_B1 = dropped_B[:, None]
        return Said(
            torch.where(dropped_B1[:, None], self.null_1LW.to(said_BLW.dtype), said_BLW),
            text_BE.masked_fill(dropped_B1, 0.0),
            torch.where(dropped_B1, 1.0, self.config.spread),
        )

    def forward(self, z_BE: Tensor, times_B3: Tensor, said: Said) -> Tensor:
        """Return the clean embedding (B, E) that a noisy one at its (time 0..1000, alpha, sigma) stands for.

        The query gives what the best linear guess around the caption's own embedding leaves over.
        """
        alpha_B1, sigma_B1 = torch.split(times_B3[:, 1:], 1, dim=1)
        scale, keep, gain = objectives.precondition("x0", alpha_B1, sigma_B1, said.spread)
        off_BE = z_BE - alpha_B1 * said.centre
        time_BW, noisy_BW = self.time(sinusoids(times_B3[:, 0])), self.noisy(scale * off_BE)
        last_B3W = torch.stack([time_BW, noisy_BW, torch.zeros_like(noisy_BW)], 1)
        h_BLW = torch.cat([said.tokens, last_B3W], 1) + self.places_LW
        for layer in self.layers:
            h_BLW = layer(h_BLW, self.seen_LL)
        clean_BE: Tensor = said.centre + keep * off_BE + gain * self.out(h_BLW[:, -1]).float()
        return clean_BE


class Prior(Family):
    """CLIP embeddings of pictures, drawn for a caption."""

    Config = PriorConfig
    Options = DiffusionOptions
    adapts: ClassVar[tuple[str, ...]] = ("query", "key", "value", "out", "hidden")
    presets: ClassVar[Mapping[str, PriorConfig]] = {
        "tiny": PriorConfig(embedding=8, width=16, layers=1, heads=2, steps=4),
        "base": PriorConfig(),
    }
    measures: ClassVar[tuple[str, ...]] = ("variance_ratio", "squared_error")
    needs: ClassVar[tuple[str, ...]] = ("embedding", "text_embedding")
    config: PriorConfig

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.network = PriorNetwork(config)
        self.alpha_T: Tensor
        # made from the config, so no version has to hold it
        alpha_T = schedules.alphas(schedules.betas("cosine"))
        self.register_buffer("alpha_T", alpha_T, persistent=False)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(condition="text" if self.config.reads_text else "none")

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what it draws from: CLIP's embedding of the caption, and perhaps the caption."""
        return {**super().inputs, "text_embedding": self._port}

    @property
    def outputs(self) -> Mapping[str, Port]:
        """Return what it gives: an embedding as CLIP gives of pictures."""
        return {"embedding": self._port}

    @property
    def _port(self) -> Port:
        return Port("embedding", (self.config.embedding,), self.config.clip)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Return `blend`: from one embedding to another, by a weight 0..1."""
        ends = {"embedding": self._port, "other": self._port}
        facts = {"embedding": self.config.embedding, "clip": self.config.clip}
        return {"blend": Entry({**ends, "weight": Port("number")}, self.outputs, facts)}

    def enter(self, entry: str, given: Mapping[str, Tensor]) -> Tensor:
        """Return the embeddings (B, E) on the way from one to the other (section 3.2 of the paper)."""
        if entry != "blend":
            return super().enter(entry, given)
        return slerp(given["embedding"], given["other"], given["weight"])

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return eq. 2 of the paper, the mean squared error of the clean embedding at random times."""
        z0_BE = self._inside(batch["embedding"])
        index_B = (schedules.spread(len(z0_BE), z0_BE.device) * schedules.TIMES).long()
        alpha_B = self.alpha_T[index_B].float()
        times_B3 = torch.stack([index_B.float(), alpha_B, (1 - alpha_B.square()).sqrt()], 1)
        alpha_B1, sigma_B1 = torch.split(times_B3[:, 1:], 1, dim=1)
        z_BE = alpha_B1 * z0_BE + sigma_B1 * torch.randn_like(z0_BE)
        dropped_B = torch.rand(len(z_BE), device=z_BE.device) < self.config.caption_drop
        text_BE = self._inside(batch["text_embedding"])
        said = self.network.said(self.tokens_of(batch), text_BE, dropped_B)
        clean_BE = self.network(z_BE, times_B3, said)
        return Losses(F.mse_loss(clean_BE, z0_BE), len(z_BE))

    def _inside(self, embedding_BE: Tensor) -> Tensor:
        """Return embeddings of length 1 with a deviation of 1 a number, as the noise has."""
        return embedding_BE.float() * math.sqrt(self.config.embedding)

    def steps_of(self, request: Request) -> int:
        """Return the steps of the sampler."""
        steps: int = request.options.get("steps", self.config.steps)
        return steps

    def sample(self, request: Request) -> Tensor:
        """Return embeddings (B, E) of length 1: of each row's candidates, the nearest to its caption's."""
        *_, drawn_BE = self.drawing(request)
        assert drawn_BE is not None
        return drawn_BE

    def drawing(self, request: Request) -> Iterator[Tensor | None]:
        """Yield None after each step but the last; then the embeddings."""
        self.check(request)
        guidance = request.options.get("guidance", self.config.guidance)
        bounds.within("steps", self.steps_of(request), BOUNDS["steps"])
        self.config.check_guidance(guidance)
        tokens_BT = self.encode(request.prompts)
        given = (tokens_BT, request.given["text_embedding"])
        return self._drawn(request.seeds, *given, self.steps_of(request), guidance)

    @torch.no_grad()
    def _drawn(
        self,
        seeds: Sequence[int],
        tokens_BT: Tensor | None,
        text_BE: Tensor,
        steps: int,
        guidance: float,
    ) -> Iterator[Tensor | None]:
        """Yield None after each step but the last; then the embeddings (B, E).

        Nothing brings them back to their length on the way, which would cost half of their spread.
        """
        c, device = self.config, next(self.parameters()).device
        text_BE = text_BE.to(device)
        # with the caption, without one
        kinds = {1.0: [False], 0.0: [True]}.get(guidance, [False, True])
        said = self._said(tokens_BT, text_BE, kinds)
        table_S7 = samplers.table(c.sampler, self.alpha_T.cpu(), schedules.trailing(steps))
        shape = (c.candidates, c.embedding)
        z_NE = normals(seeds, shape, device).flatten(0, 1)
        for number, row_7 in enumerate(table_S7.to(device), start=1):
            clean_NE = self._guided(z_NE, row_7[:3], said, guidance)
            noise_NE = normals(seeds, shape, device, draws=number).flatten(0, 1)
            z_NE = samplers.advance(row_7[3:].expand(len(z_NE), -1), z_NE, clean_NE, None, noise_NE)
            if number < steps:
                yield None
        yield self._nearest(F.normalize(z_NE, dim=1), text_BE)

    def _said(self, tokens_BT: Tensor | None, text_BE: Tensor, kinds: Sequence[bool]) -> Said:
        """Return what the captions of all candidates tell, once a kind: dropped or not."""
        times, device = len(kinds), text_BE.device
        dropped_B = torch.tensor(kinds, device=device).repeat_interleave(len(text_BE))
        tokens = None if tokens_BT is None else tokens_BT.to(device).repeat(times, 1)
        found = self.network.said(tokens, self._inside(text_BE).repeat(times, 1), dropped_B)
        return Said(*(one.repeat_interleave(self.config.candidates, 0) for one in found))

    def _guided(self, z_NE: Tensor, times_3: Tensor, said: Said, scale: float) -> Tensor:
        """Return the clean embeddings (N, E), guided away from those of no caption."""
        times = len(said.tokens) // len(z_NE)
        z_XE, times_X3 = z_NE.repeat(times, 1), times_3.expand(times * len(z_NE), -1)
        given_NE, *without = torch.split(self.network(z_XE, times_X3, said), len(z_NE))
        if not without:
            return given_NE
        guided: Tensor = without[0] + scale * (given_NE - without[0])
        return guided

    def _nearest(self, drawn_NE: Tensor, text_BE: Tensor) -> Tensor:
        """Return of each row's candidates the one with the highest dot product with its text (B, E)."""
        drawn_BKE = drawn_NE.reshape(len(text_BE), -1, text_BE.shape[1])
        best_B = (drawn_BKE @ text_BE.float()[:, :, None]).squeeze(2).argmax(1)
        return drawn_BKE[torch.arange(len(best_B), device=best_B.device), best_B]

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return how drawn embeddings are spread and where they lie, against those of real pictures of their captions.

        `variance_ratio` is the variance within captions, of drawn over of real ones: 0 where each caption has one
        embedding. `squared_error` is the squared distance of the captions' means, less what so few rows of each leave
        to chance, so that it may be below 0. Both are what each caption of two rows or more contributes (C,), by
        `influence`; without any caption they are nan.
        """
        c, real_BE, text_BE = self.config, batch["embedding"].float(), batch["text_embedding"]
        tokens_BT = self.tokens_of(batch)
        *_, drawn_BE = self._drawn(range(len(text_BE)), tokens_BT, text_BE, c.steps, c.guidance)
        assert drawn_BE is not None
        said = text_BE if tokens_BT is None else tokens_BT
        caption_B = torch.unique(said, dim=0, return_inverse=True)[1]
        rows_C = caption_B.bincount().float()
        drawn_CE, drawn_C = _moments(drawn_BE, caption_B, rows_C)
        real_CE, real_C = _moments(real_BE, caption_B, rows_C)
        apart_C = (drawn_CE - real_CE).square().sum(1) - (drawn_C + real_C) / rows_C
        told_C = rows_C > 1  # one row tells nothing of a spread
        rows_C, free_C = rows_C[told_C], rows_C[told_C] - 1
        return {
            "variance_ratio": _ratio(free_C * drawn_C[told_C], free_C * real_C[told_C]),
            "squared_error": _ratio(rows_C * apart_C[told_C], rows_C),
        }


def _ratio(above_C: Tensor, below_C: Tensor) -> Tensor:
    """Return the ratio of two sums as what each of its terms contributes to it (C,)."""
    others = (above_C.sum() - above_C) / (below_C.sum() - below_C)
    return influence(above_C.sum() / below_C.sum(), others)


def slerp(start_BE: Tensor, end_BE: Tensor, weight_B: Tensor) -> Tensor:
    """Return where a walk along the sphere is that has done so much of its way; at 0 and 1 the ends, bit by bit."""
    weight_B1 = weight_B.float()[:, None]
    angle_B1 = (start_BE * end_BE).sum(1, keepdim=True).clamp(-1, 1).acos()
    whole_B1 = angle_B1.sin()
    near_B1 = whole_B1 < 1e-4  # a straight line is as good, and has no 0 / 0
    first_B1 = torch.where(near_B1, 1 - weight_B1, ((1 - weight_B1) * angle_B1).sin() / whole_B1)
    second_B1 = torch.where(near_B1, weight_B1, (weight_B1 * angle_B1).sin() / whole_B1)
    return first_B1 * start_BE + second_B1 * end_BE


def _moments(rows_BE: Tensor, group_B: Tensor, rows_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return each group's mean (C, E), and its rows' variance summed over the E numbers (C,), 0 of a single row."""
    sums_CE = rows_BE.new_zeros(len(rows_C), rows_BE.shape[1]).index_add_(0, group_B, rows_BE)
    mean_CE = sums_CE / rows_C[:, None]
    squares_B = (rows_BE - mean_CE[group_B]).square().sum(1)
    squares_C = rows_BE.new_zeros(len(rows_C)).index_add_(0, group_B, squares_B)
    return mean_CE, squares_C / (rows_C - 1).clamp(min=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig(DDPMConfig):
    """As of a DDPM, and whose embeddings are decoded."""

    embedding: int = 64  # numbers of an embedding
    clip: str = ""  # whose embeddings: the fingerprint of that CLIP's weights
    embedding_tokens: int = 4  # that an embedding becomes in the context
    embedding_drop: float = 0.1
    caption_drop: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        DDPMConfig.__post_init__(self)
        bounds.check(self, BOUNDS_OF_DECODER)
        if self.sizes:
            raise ValueError(f"sizes: CLIP embeds squares, got {self.sizes}")

    def kept(self) -> str:
        """As of captions and embeddings."""
        return DDPMConfig.kept(self) if self.embedding_drop else "embedding_drop"

    @property
    def context_width(self) -> int:
        """The width of what is read beside the picture."""
        return self.text_width


class Decoder(DDPM):
    """Pictures that have a CLIP embedding, and perhaps a caption."""

    Config = DecoderConfig
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    presets: ClassVar[Mapping[str, DecoderConfig]] = {
        "tiny": DecoderConfig(
            image_size=8, widths=(16, 24), text_width=16, heads=2, steps=4, embedding=8
        ),
        "base": DecoderConfig(),
    }
    config: DecoderConfig

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        c = config
        self.embedding = nn.Linear(c.embedding, c.embedding_tokens * c.text_width)
        empty = torch.empty(1, c.embedding_tokens, c.text_width)
        self.null_1KD = Table(nn.init.normal_(empty))  # "no embedding"

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what it draws from: an embedding, and what a DDPM does."""
        c = self.config
        return {**super().inputs, "embedding": Port("embedding", (c.embedding,), c.clip)}

    @property
    def null(self) -> Tensor:
        """The context (1, T + K, D) of pictures of all captions and embeddings."""
        null_1TD = super().null
        return self.null_1KD if null_1TD is None else torch.cat([null_1TD, self.null_1KD], 1)

    def _training_context(self, batch: Batch) -> Tensor:
        shown_BKD = self._shown(batch["embedding"])
        dropped_B = torch.rand(len(shown_BKD), device=shown_BKD.device) < self.config.embedding_drop
        shown_BKD = torch.where(dropped_B[:, None, None], self.null_1KD, shown_BKD)
        said_BTD = super()._training_context(batch)
        return shown_BKD if said_BTD is None else torch.cat([said_BTD, shown_BKD], 1)

    def _sampling_context(self, request: Request, guidance: float) -> tuple[Tensor, Tensor]:
        count = len(request.seeds)
        if guidance == 0:
            return self.null.expand(count, -1, -1), torch.ones(count)
        embedding_BE = request.given["embedding"].to(self.null_1KD.device)
        # each row alone, so that no bit of it depends on the others
        context_BTD = torch.cat([self._shown(row_1E) for row_1E in torch.split(embedding_BE, 1)])
        if self.text is not None:
            said_BTD, _ = super()._sampling_context(request, 1.0)
            context_BTD = torch.cat([said_BTD, context_BTD], 1)
        return context_BTD, torch.full((count,), float(guidance))

    def _shown(self, embedding_BE: Tensor) -> Tensor:
        """Return embeddings as tokens (B, K, D) of the context.

        Their mean, which the U-Net's blocks are scaled by beside the time, is a projection of the embedding, too.
        """
        inside_BE = embedding_BE.float() * math.sqrt(self.config.embedding)
        shown: Tensor = self.embedding(inside_BE).unflatten(1, (self.config.embedding_tokens, -1))
        return shown
