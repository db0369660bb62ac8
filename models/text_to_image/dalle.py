"""DALL-E: one Transformer over a caption and a picture's codes (Ramesh et al. 2021, arXiv:2102.12092, section 2.2).

A row is `<bos>`, the T words of a caption and the P codes of a picture in raster order, each predicted from those
before it; the codes are those of a dVAE or VQ-VAE that was trained before and stays as it is, `codebook` names it.
Words and codes have vocabularies and outputs of their own, so that nothing but a code can come where a picture is.
Behind a caption's last word each place has a padding token of its own (section 2.2), and a code's place is the sum of
its row's and its column's vector (axial positions, appendix B). The loss is 1/8 the caption's and 7/8 the picture's
cross-entropy in nats a token, each the mean over its kind. Attention is full: the paper's row, column and
convolutional masks are for 1024 codes.

Some rows learn with an empty caption, so that the same network draws without any, and guided (Ho and Salimans 2022,
arXiv:2207.12598): logits without the caption, moved `guidance` times as far as the caption moves them.

Shape letters: B rows, T words, P places of the grid, K codes, E width, L layers, S tokens read (1 + T + P - 1 at most),
H heads, D features of a head, G predictions of a row (given the caption and, where it is guided, without), N of a call,
M guided rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses, Rows
from models.parts import adapter_rows, bounds, decoder
from models.parts.decoder import KVCache
from models.parts.draws import drawn, sampling_rules
from models.parts.dropout import Dropout
from models.parts.noise import uniforms
from models.parts.rows import filled, to_end
from models.parts.tables import Table
from models.parts.words import GUIDANCE, Led
from models.ports import Port
from models.request import Options, Request

BOS: Final = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DALLEOptions(Options):
    """What a caller may say of how codes are drawn."""

    guidance: float | None = None  # classifier-free guidance scale; 1 is none
    temperature: float | None = None  # of a code's draw; 0: the likeliest
    top_k: int | None = None  # only the k likeliest codes; None: all
    top_p: float | None = None  # only the likeliest that together are so probable; None: all


@dataclass(frozen=True, kw_only=True, slots=True)
class DALLEConfig(Led):
    """Whose codes are learned, given what, and the network's sizes."""

    codes: int = 64  # K, of the stage that made them, as are places and codebook
    places: int = 16  # P, of a square grid
    codebook: str = ""  # names what the codes stand for
    vocabulary: tuple[str, ...] = ()  # lower-case words; empty: unconditional
    max_words: int = 8  # T
    text: Literal["caption", "none"] = "caption"  # none: the vocabulary is not used
    width: int = 128
    layers: int = 4
    heads: int = 4
    dropout: float = 0.0
    text_share: float = 1 / 8  # of the loss; the rest is the picture's
    caption_drop: float = 0.1  # share of the rows that learn with an empty caption
    guidance: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        sizes = ("places", "max_words", "width", "layers", "heads")
        bounds.check(self, dict.fromkeys(sizes, bounds.SIZE))
        if self.side**2 != self.places:
            raise ValueError(f"places must be a square, as of a grid of 4 x 4, got {self.places}")
        bounds.within("codes", self.codes, (2, math.inf))
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be divisible by heads, got {self.heads}")
        bounds.check(self, dict.fromkeys(("dropout", "text_share"), bounds.SHARE))
        bounds.within("caption_drop", self.caption_drop, (0, 1))
        bounds.within("guidance", self.guidance, GUIDANCE)

    @property
    def side(self) -> int:
        """Places a side of the grid."""
        return math.isqrt(self.places)

    @property
    def words(self) -> int:
        """T: places of a caption."""
        return self.max_words if self.reads_text else 0


class DALLE(Family):
    """Words and codes in order, each a softmax over its own vocabulary given all before it."""

    Config = DALLEConfig
    Options = DALLEOptions
    adapts: ClassVar[tuple[str, ...]] = ("qkv", "out", "hidden")
    presets: ClassVar[Mapping[str, DALLEConfig]] = {
        "tiny": DALLEConfig(codes=16, width=32, layers=2, heads=2),
        "base": DALLEConfig(),
        "large": DALLEConfig(
            codes=8192, places=1024, max_words=64, width=1024, layers=24, heads=16
        ),
    }
    measures: ClassVar[tuple[str, ...]] = ("relative_nats", "caption_nats")
    needs: ClassVar[tuple[str, ...]] = ("codes",)
    call_sizes = ()
    config: DALLEConfig

    def __init__(self, config: DALLEConfig) -> None:
        super().__init__()
        self.config = c = config
        known = len(c.vocabulary) if c.words else 0
        # <bos>, codes, paddings, words: words that a fine-tuning brings stand behind all that is known
        self.first_code, self.first_padding = 1, 1 + c.codes
        self.first_word = self.first_padding + c.words
        self.tokens = nn.Embedding(self.first_word + known, c.width)
        self.begin_SE = Table(torch.empty(1 + c.words, c.width))  # places of <bos> and the words
        self.rows_RE = Table(torch.empty(c.side, c.width))
        self.columns_CE = Table(torch.empty(c.side, c.width))
        self.dropout = Dropout(c.dropout)
        self.blocks = decoder.blocks(c)
        self.norm = nn.LayerNorm(c.width, bias=False)
        self.code_logits = nn.Linear(c.width, c.codes, bias=False)
        decoder.initialise(self, c.layers)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        reads = self.config.reads_text
        return Capabilities(
            condition="text" if reads else "none",
            unprompted=reads and self.config.caption_drop > 0,
            stepwise=True,
        )

    @property
    def outputs(self) -> Mapping[str, Port]:
        """Return the codes, which only their own codebook paints."""
        return {"codes": Port("codes", (self.config.places,), self.config.codebook)}

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean cross-entropy of words and codes in nats a token, weighed by `text_share`."""
        words_BT = self.tokens_of(batch)
        if self.training and words_BT is not None:
            dropped_B = torch.rand(len(words_BT), device=words_BT.device) < self.config.caption_drop
            words_BT = words_BT.masked_fill(dropped_B[:, None], 0)
        text_B, image_B = self._nats(words_BT, batch["codes"])
        text, image = text_B.mean(), image_B.mean()
        share = self.config.text_share if words_BT is not None else 0.0
        parts = {"image_nats": image.detach()}
        if words_BT is not None:
            parts["text_nats"] = text.detach()
        return Losses(share * text + (1 - share) * image, len(image_B), parts)

    def logits(self, words_BT: Tensor | None, codes_BP: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the logits of every word, its padding's first (B, T, 1 + words), and of every code (B, P, K)."""
        begin_BS = self._begin(codes_BP[:, :0].long() if words_BT is None else words_BT)
        x_BSE = self.hidden(torch.cat([begin_BS, self.first_code + codes_BP[:, :-1].long()], 1))
        ends = self.config.words
        words = F.linear(x_BSE[:, :ends], self._word_vectors()) if ends else None
        return words, self.code_logits(x_BSE[:, ends:])

    def _word_vectors(self) -> Tensor:
        """Return the vectors of the first padding and of every word, (1 + words, E): their logits are tied to them."""
        words_W = torch.arange(
            self.first_word - 1, self.tokens.num_embeddings, device=self.tokens.weight.device
        )
        words_W[0] = self.first_padding
        found: Tensor = self.tokens(words_W)  # as a module: an adapter's words are added to it
        return found

    def _nats(self, words_BT: Tensor | None, codes_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's mean cross-entropy of a word, the padding included, and of a code, (B,) both."""
        of_words, of_codes = self.logits(words_BT, codes_BP)
        image_B = _cross_entropy(of_codes, codes_BP)
        if of_words is None or words_BT is None:
            return torch.zeros_like(image_B), image_B
        return _cross_entropy(of_words, words_BT), image_B

    def _begin(self, words_BT: Tensor) -> Tensor:
        """Return `<bos>` and the caption (B, 1 + T), padded at each place by the padding of that place."""
        place_T = torch.arange(words_BT.shape[1], device=words_BT.device)
        said_BT = self.first_word - 1 + words_BT
        padded_BT = torch.where(words_BT > 0, said_BT, self.first_padding + place_T)
        return torch.cat([words_BT.new_full((len(words_BT), 1), BOS), padded_BT], 1)

    def hidden(self, tokens_BS: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the last states (B, S, E) of tokens that begin a row, or that follow on what a cache has read."""
        grid_PE = (self.rows_RE[:, None] + self.columns_CE).flatten(0, 1)
        places_SE = torch.cat([self.begin_SE, grid_PE])
        of_BSE = places_SE[: tokens_BS.shape[1]] if cache is None else places_SE[cache.place_BT]
        x_BSE = self.dropout(self.tokens(tokens_BS) + of_BSE)
        for block in self.blocks:
            x_BSE = block(x_BSE, cache)
        out_BSE: Tensor = self.norm(x_BSE)
        return out_BSE

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return a code's cross-entropy as a share of ln K, and how many nats of a picture its caption tells (N,)."""
        words_BT, codes_BP = self.tokens_of(batch), batch["codes"]
        nats_B = self._nats(words_BT, codes_BP)[1]
        found = {"relative_nats": nats_B / math.log(self.config.codes)}
        if words_BT is not None and self.capabilities.unprompted:
            without_B = self._nats(torch.zeros_like(words_BT), codes_BP)[1]
            found["caption_nats"] = self.config.places * (without_B - nats_B)
        return found

    @property
    def measured(self) -> tuple[str, ...]:
        """Return the names that `measure` gives with this config."""
        return self.measures if self.capabilities.unprompted else self.measures[:1]

    def sample(self, request: Request) -> Tensor:
        """Return the codes of pictures (B, P) int64, 0..K - 1, in raster order.

        Raises:
            ValueError: see `begin`.
        """
        return to_end(self, self.begin(request))

    def steps_of(self, request: Request) -> int:  # noqa: ARG002 - a grid is a grid
        """Return the codes of a picture."""
        return self.config.places

    @torch.no_grad()
    def begin(self, request: Request) -> Rows:
        """Return rows that have read all of their caption but its last token, equal captions once.

        How many codes each has, and how it is guided, stays on the CPU, so that a step waits for no device.

        Raises:
            ValueError: a caption is missing or not understood, or guidance, temperature, top_k or top_p is out of its
                range.
        """
        self.check(request)
        c, weight, count = self.config, self.tokens.weight, len(request.seeds)
        guidance = request.options.get("guidance", c.guidance)
        c.check_guidance(guidance)
        rules = sampling_rules(request, 1.0, weight.device)
        captions, guidance = self._captions(request, guidance)
        empty_SLHD = weight.new_zeros(c.words + c.places, c.layers, c.heads, c.width // c.heads)
        read = [decoder.prefill(self.hidden, empty_SLHD, some, causal=True) for some in captions]
        keys, values = (torch.stack(tensors, 1) for tensors in zip(*read, strict=True))
        last = [[caption[-1] for caption in row] for row in zip(*captions, strict=True)]
        return {
            "keys": keys,  # (B, G, S, L, H, D), as are the values
            "values": values,
            "token": torch.tensor(last, device=weight.device),  # (B, G), the next one to be read
            "codes": torch.zeros(count, c.places, dtype=torch.long, device=weight.device),
            "count": torch.zeros(count, dtype=torch.long),
            "guidance": torch.full((count,), float(guidance)),
            "u": uniforms(request.seeds, (c.places,), weight.device),
            **dict(zip(("temperature", "top_k", "top_p"), rules, strict=True)),
        }

    def _captions(
        self, request: Request, guidance: float
    ) -> tuple[list[Sequence[Sequence[int]]], float]:
        """Return what each of the G predictions of every row begins with, and their scale.

        Without a prompt, and at scale 0, that is the empty caption alone.
        """
        words_BT = self.encode(request.prompts) if request.prompts else None
        empty_BT = torch.zeros(len(request.seeds), self.config.words, dtype=torch.long)
        if words_BT is None or guidance == 0:
            words_BT, guidance = empty_BT, 1.0
        kinds = [words_BT] if guidance == 1 else [words_BT, empty_BT]
        return [self._begin(one).tolist() for one in kinds], guidance

    def done(self, rows: Rows) -> Tensor:
        """Return (B,) bool: the rows that have all their codes."""
        return rows["count"] >= self.config.places

    @torch.no_grad()
    def step(self, rows: Rows) -> Rows:
        """Return the rows one code further, in one call of the network; rows that are done stay.

        Guided rows take part in it twice, given their caption and without.
        """
        guided = (rows["guidance"] != 1).tolist()
        kinds = rows["keys"].shape[1]
        asked = [kinds * row + kind for row, two in enumerate(guided) for kind in range(1 + two)]
        logits_NK = self._read(rows, asked)
        row_N = torch.tensor(asked) // kinds
        first_B = torch.searchsorted(row_N, torch.arange(len(guided))).to(logits_NK.device)
        logits_BK = logits_NK[first_B]
        if any(guided):
            which_M = torch.tensor([row for row, two in enumerate(guided) if two])
            scale_M1 = rows["guidance"][which_M].to(logits_BK.device)[:, None]
            which_M = which_M.to(logits_BK.device)
            without_MK = logits_NK[first_B[which_M] + 1]
            moved_MK = without_MK + scale_M1 * (logits_BK[which_M] - without_MK)
            logits_BK = logits_BK.index_copy(0, which_M, moved_MK)
        return self._written(rows, logits_BK)

    def _read(self, rows: Rows, asked: Sequence[int]) -> Tensor:
        """Return the logits (N, K) of some predictions, counted through all rows; the caches grow in place."""
        device, kinds = rows["codes"].device, rows["keys"].shape[1]
        call = filled(asked, self.call_sizes)
        at_N = torch.tensor(call).to(device, non_blocking=True)
        index_B = rows["count"].clamp(max=self.config.places - 1)
        place_N = (self.config.words + index_B)[torch.tensor(call) // kinds].to(device)
        kept = [rows[key].view(-1, *rows[key].shape[2:]) for key in ("keys", "values")]
        alone = call == list(range(len(kept[0])))
        keys, values = kept if alone else (kept[0][at_N], kept[1][at_N])
        token_N = rows["token"].flatten()[at_N]
        with adapter_rows.placed(self, [one // kinds for one in call]):
            cache = KVCache.at(keys, values, place_N[:, None])
            x_NE = self.hidden(token_N[:, None], cache)[:, 0]
        if not alone:
            every_N = torch.arange(len(call), device=device)
            for whole, some in zip(kept, (keys, values), strict=True):
                whole[at_N, place_N] = some[every_N, place_N]
        logits_NK: Tensor = self.code_logits(x_NE).float()[: len(asked)]
        return logits_NK

    def _written(self, rows: Rows, logits_BK: Tensor) -> Rows:
        """Return the rows with a code that is drawn from these logits."""
        live_B, codes = ~self.done(rows), rows["codes"]
        index_B = rows["count"].clamp(max=self.config.places - 1).to(codes.device)
        u_B = rows["u"].gather(1, index_B[:, None])[:, 0].double()
        code_B = drawn(logits_BK, u_B, *(rows[name] for name in ("temperature", "top_k", "top_p")))
        here_BP = torch.arange(codes.shape[1], device=codes.device) == index_B[:, None]
        here_BP &= live_B.to(codes.device)[:, None]
        return {
            **rows,
            "codes": torch.where(here_BP, code_B[:, None], codes),
            "token": (self.first_code + code_B)[:, None].repeat(1, rows["token"].shape[1]),
            "count": rows["count"] + live_B,
        }

    def preview(self, rows: Rows) -> Tensor:
        """Return the codes so far (B, P) int64, 0 where there is none yet."""
        return rows["codes"]

    def finish(self, rows: Rows) -> Tensor:
        """Return the codes (B, P) int64 of rows that are done."""
        return rows["codes"]


def _cross_entropy(logits_BSV: Tensor, target_BS: Tensor) -> Tensor:
    """Return the mean cross-entropy of each row (B,) in nats, in float32."""
    found = F.cross_entropy(
        logits_BSV.float().flatten(0, 1), target_BS.long().flatten(), reduction="none"
    )
    return found.view_as(target_BS).mean(1)
