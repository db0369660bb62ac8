"""The encoder-decoder Transformer (Vaswani et al. 2017, arXiv:1706.03762): a text given another.

Embeddings times sqrt(E) plus sinusoids (sections 3.4, 3.5), post-norm layers (5.4), one matrix for both embeddings and
the softmax, label smoothing (5.4), beam search (6.1, `beams.py`).

Shape letters: N rows, S places of the source, T places of the target, L decoder layers, K tokens of the
vocabulary, E width, R rows of a beam search. Places after a text's <eos> hold <pad>. Likelihoods are exact sums over a
target's tokens, its <eos> included, in nats.
"""

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import (
    Batch,
    Capabilities,
    Columns,
    Examples,
    Family,
    Losses,
    Rows,
)
from models.language import examples
from models.language.beams import search as beams_search
from models.language.texts import check_roles
from models.parts import bounds
from models.parts.attention import Attention, EncoderLayer, FeedForward
from models.parts.draws import drawn, logprobs, no_logprobs, sampling_rules
from models.parts.dropout import Dropout
from models.parts.noise import uniforms
from models.parts.rows import to_end
from models.parts.tokens import BOS, CONTROL, EOS, PAD, Tokenizer, of_signs, padded, tokenizer
from models.request import Prompt, Record, Request, TextOptions

SIGNS: Final = of_signs(" " + string.ascii_lowercase + string.digits)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """What is learned, the network's sizes, and how it writes where nothing is asked."""

    tokenizer: str = SIGNS  # a JSON document
    max_source: int = 256  # tokens, <eos> included
    max_target: int = 256
    width: int = 512
    layers: int = 6  # of the encoder, and of the decoder
    heads: int = 8
    feedforward: int = 2048
    dropout: float = 0.1
    smoothing: float = 0.1  # of the labels
    beams: int = 1  # 1 is greedy; more cannot go step by step
    length_penalty: float = 0.6  # alpha
    causal: bool = True  # False is the broken control: in training a token sees those that follow

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(
            self,
            dict.fromkeys(
                ("max_source", "max_target", "layers", "heads", "feedforward", "beams"), bounds.SIZE
            ),
        )
        if self.width < 2 or self.width % 2 or self.width % self.heads:
            raise ValueError(
                f"width must be even and a multiple of heads {self.heads}, got {self.width}"
            )
        bounds.check(self, dict.fromkeys(("dropout", "smoothing"), bounds.SHARE))
        bounds.within("length_penalty", self.length_penalty, bounds.WEIGHT)


def sinusoids(places: int, width: int) -> Tensor:
    """Return (places, width): sines at even and cosines at odd columns, section 3.5."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angle = torch.arange(places)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)


class DecoderLayer(nn.Module):
    """Self-attention, attention to the source, feed-forward; each LayerNorm(x + dropout(sublayer(x)))."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.source = Attention(width, heads, dropout)
        self.feedforward = FeedForward(width, feedforward, "relu")
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm3, self.dropout = nn.LayerNorm(width), Dropout(dropout)

    def forward(
        self, x_NTE: Tensor, kv: Tensor, mask: Tensor, source_kv: Tensor, source_mask: Tensor
    ) -> Tensor:
        """Return (N, T, E) from x, and the keys and values of the target and the source, each with its mask."""
        x_NTE = self.norm1(x_NTE + self.dropout(self.attention.attend(x_NTE, kv, mask)))
        x_NTE = self.norm2(x_NTE + self.dropout(self.source.attend(x_NTE, source_kv, source_mask)))
        out: Tensor = self.norm3(x_NTE + self.dropout(self.feedforward(x_NTE)))
        return out


class Transformer(Family):
    """p(target | source), token after token."""

    Config = TransformerConfig
    Options = TextOptions
    adapts: ClassVar[tuple[str, ...]] = ("query", "key", "value", "out", "hidden")
    presets: ClassVar[Mapping[str, TransformerConfig]] = {
        "tiny": TransformerConfig(
            max_source=16, max_target=16, width=16, layers=1, heads=2, feedforward=32, dropout=0.0
        ),
        "small": TransformerConfig(
            max_source=64, max_target=16, width=96, layers=2, heads=4, feedforward=384, dropout=0.0
        ),
        "base": TransformerConfig(beams=4),
    }
    measures: ClassVar[tuple[str, ...]] = ("exact_match", "nats_per_token")
    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        sizes = (config.width, config.heads, config.feedforward, config.dropout)
        self.embedding = nn.Embedding(self._tokenizer.size, config.width)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes, "relu") for _ in range(config.layers))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(config.layers))
        self.dropout = Dropout(config.dropout)
        places_TE = sinusoids(max(config.max_source, config.max_target), config.width)
        self.places_TE: Tensor
        self.register_buffer("places_TE", places_TE, persistent=False)  # to compute, not to save
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # times sqrt(E), as it is read, of unit variance; as the softmax's matrix, of logits near 1
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(
            modality="text", condition="text", likelihood=True, stepwise=self.config.beams == 1
        )

    @property
    def _tokenizer(self) -> Tokenizer:
        return tokenizer(self.config.tokenizer)

    @property
    def reads(self) -> str:
        """Return what names the tokens of its records."""
        return examples.named("pairs", self._tokenizer)

    def tokenized(self, records: Sequence[Record]) -> Columns:
        """Return the tokens of pairs: sources end in `<eos>`, targets go from `<bos>` to `<eos>`.

        Raises:
            ValueError: a record is no pair of a source and a target.
        """
        check_roles(records, ("source", "target"), "take a dataset of pairs")
        sources = self._tokenizer.encode_all([record[0][1] for record in records])
        targets = self._tokenizer.encode_all([record[1][1] for record in records])
        pairs = zip(sources, targets, strict=True)
        framed = [[[*source, EOS], [BOS, *target, EOS]] for source, target in pairs]
        return examples.columns(framed, self._tokenizer)

    def examples_of(self, columns: Columns) -> Examples:
        """Return pairs; those that are too long for the network are left out, and counted in `left_out`.

        Raises:
            ValueError: every pair is too long.
        """
        most, most_target = self.config.max_source, self.config.max_target
        found = examples.Pairs(columns, most, most_target)
        gone = found.pairs - len(found)
        why = (
            f"they have more than {most - 1} (max_source) or {most_target - 1} (max_target) tokens"
        )
        self.left_out = f"{gone} of {found.pairs} pairs are left out: {why}" if gone else ""
        return found

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the cross-entropy a token with smoothed labels: (1 - s) of the token's, s of the mean over all."""
        target_NT, smoothing = batch["target"], self.config.smoothing
        nll_NTK = -self.logits(batch["source"], target_NT[:, :-1]).float().log_softmax(2)
        written_NT = target_NT[:, 1:] != PAD
        count = written_NT.sum()
        nll_NT = nll_NTK.gather(2, target_NT[:, 1:, None])[:, :, 0]
        nll, uniform = (
            (nats_NT * written_NT).sum() / count.clamp(min=1)
            for nats_NT in (nll_NT, nll_NTK.mean(2))
        )
        total = (1 - smoothing) * nll + smoothing * uniform
        return Losses(total, count, {"nats_per_token": nll.detach()})

    @torch.no_grad()
    def log_prob(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,  # noqa: ARG002 - draws nothing
    ) -> Tensor:
        """Return log p(target | source) in nats (N,); exact where the network is causal."""
        logits_NTK = self.logits(batch["source"], batch["target"][:, :-1]).float()
        label_NT = batch["target"][:, 1:]
        nll_NT = F.cross_entropy(
            logits_NTK.transpose(1, 2), label_NT, ignore_index=PAD, reduction="none"
        )
        return -nll_NT.sum(1)

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return `exact_match`, true where what is written is the target, and `nats_per_token`, both (N,)."""
        source, label_NT = batch["source"], batch["target"][:, 1:]
        length_N = (label_NT != PAD).sum(1)
        wanted = label_NT.masked_fill((label_NT == PAD) | (label_NT == EOS), -1)
        written = self._written(source)
        width = max(wanted.shape[1], written.shape[1])
        wanted, written = (F.pad(x, (0, width - x.shape[1]), value=-1) for x in (wanted, written))
        return {
            "exact_match": (wanted == written).all(1),
            "nats_per_token": -self.log_prob(batch) / length_N,
        }

    def _written(self, source_NS: Tensor) -> Tensor:
        """Return the likeliest targets that this config's search finds."""
        if self.config.beams > 1:
            return self.beam_search(source_NS, self.config.beams)[0]
        request = Request(seeds=(0,) * len(source_NS))
        return to_end(self, self._rows(request, self._source_kv(source_NS), source_NS != PAD))

    def logits(self, source_NS: Tensor, target_NT: Tensor) -> Tensor:
        """Return (N, T, K): at each place of the target, which starts with <bos>, the logits of what follows."""
        memory_NSE = self.memory(source_NS)
        source_mask = (source_NS != PAD)[:, None, None]
        mask = (target_NT != PAD)[:, None, None]
        if self.config.causal:
            places = target_NT.shape[1]
            mask = mask & torch.ones(places, places, dtype=torch.bool, device=mask.device).tril()
        x_NTE = self._embedded(target_NT)
        for layer in self.decoder:
            assert isinstance(layer, DecoderLayer)
            kv, source_kv = layer.attention.keys_values(x_NTE), layer.source.keys_values(memory_NSE)
            x_NTE = layer(x_NTE, kv, mask, source_kv, source_mask)
        return F.linear(x_NTE, self.embedding.weight)

    def memory(self, source_NS: Tensor) -> Tensor:
        """Return what the encoder makes of the sources, (N, S, E)."""
        mask = (source_NS != PAD)[:, None, None]
        x_NSE = self._embedded(source_NS)
        for layer in self.encoder:
            x_NSE = layer(x_NSE, mask)
        return x_NSE

    def _embedded(self, tokens_NT: Tensor) -> Tensor:
        scaled = self.embedding(tokens_NT) * self.config.width**0.5
        out: Tensor = self.dropout(scaled + self.places_TE[: tokens_NT.shape[1]])
        return out

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Write a target a prompt; returns tokens (N, T), -1 from the end on.

        Greedy, or by beam search with config.beams, unless the request's temperature is above 0.

        Raises:
            ValueError: prompts are missing or too long, or a number of the request is out of range.
        """
        if self.config.beams > 1 and not request.options.get("temperature"):
            source_NS = self._sources(request)
            sampling_rules(request, 0.0, source_NS.device)  # refused here as they are step by step
            most = request.options.get("max_tokens")
            return self.beam_search(source_NS, self.config.beams, most)[0]
        return to_end(self, self.begin(request))

    @torch.no_grad()
    def begin(self, request: Request) -> Rows:
        """Return rows that have read their sources and written nothing.

        Tables always have the whole context's length. Book-keeping (index, limit, ended) stays on the CPU.

        Raises:
            ValueError: prompts are missing or too long, or a number of the request is out of range.
        """
        source_NS = self._sources(request)
        return self._rows(request, self._source_kv(source_NS), source_NS != PAD)

    def _source_kv(self, source_NS: Tensor) -> Tensor:
        """Return every decoder layer's keys and values of the sources, (N, S, L, 2, E)."""
        memory_NSE = self.memory(source_NS)
        return torch.stack([layer.source.keys_values(memory_NSE) for layer in self._layers()], 2)

    def _sources(self, request: Request) -> Tensor:
        """Return the prompts' tokens (N, max_source)."""
        self.check(request)
        most = self.config.max_source
        sources = [[*one, EOS] for one in self._tokenizer.encode_all(request.texts)]
        for prompt, source in zip(request.texts, sources, strict=True):
            if len(source) > most:
                raise ValueError(
                    f"the prompt {str(prompt)[:40]!r} has {len(source) - 1} tokens, at most {most - 1} fit"
                )
        return padded(sources, most).to(self.embedding.weight.device)

    def _rows(self, request: Request, source_kv_NSL2E: Tensor, source_mask_NS: Tensor) -> Rows:
        config, count, device = self.config, len(source_kv_NSL2E), source_kv_NSL2E.device
        temperature, top_k, top_p = sampling_rules(request, 0.0, device)
        limit = request.options.get("max_tokens", config.max_target)
        return {
            "tokens": torch.full((count, config.max_target), -1, device=device),
            "kv": source_kv_NSL2E.new_zeros(count, config.max_target, *source_kv_NSL2E.shape[2:]),
            "source_kv": source_kv_NSL2E,
            "source_mask": source_mask_NS,
            "u": uniforms(request.seeds, (config.max_target,), device),
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "index": torch.zeros(count, dtype=torch.long),
            "limit": torch.full((count,), min(limit, config.max_target)),
            "ended": torch.zeros(count, dtype=torch.bool),
            "logprobs": torch.full((count,), "logprobs" in request.options),
            **no_logprobs(count, self.embedding.num_embeddings),
        }

    def _layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]

    @torch.no_grad()
    def step(self, rows: Rows) -> Rows:
        """Return the rows with one more token written, or at their end; finished rows stay."""
        tokens_NT, live_N = rows["tokens"], ~self.done(rows)
        index_N = rows["index"].clamp(max=self.config.max_target - 1).to(tokens_NT.device)
        logits_NK = self.next_logits(rows)
        u_N = rows["u"].gather(1, index_N[:, None])[:, 0]
        rules = (rows["temperature"], rows["top_k"], rows["top_p"])
        token_N = drawn(_writable(logits_NK.float()), u_N, *rules)
        live = live_N.to(tokens_NT.device)
        ends_N = token_N == EOS
        written = tokens_NT.scatter(1, index_N[:, None], token_N[:, None])
        return {
            **rows,
            "tokens": torch.where((live & ~ends_N)[:, None], written, tokens_NT),
            "index": rows["index"] + live_N,
            "ended": rows["ended"] | (live_N & ends_N.cpu()),
            **logprobs(rows, logits_NK, token_N),
        }

    def next_logits(self, rows: Rows) -> Tensor:
        """Return (N, K): the logits of each row's next token; the last token's keys and values are kept.

        In place: a place from a row's index on holds nothing, so rows that were kept aside mean what they meant.
        """
        tokens_NT, source_kv = rows["tokens"], rows["source_kv"]
        index_N = rows["index"].clamp(max=self.config.max_target - 1).to(tokens_NT.device)
        last_N = tokens_NT.gather(1, (index_N - 1).clamp(min=0)[:, None])[:, 0].clamp(min=0)
        token_N = torch.where(index_N > 0, last_N, BOS)
        place_NE = self.places_TE[index_N]
        x_NTE = (self.embedding(token_N) * self.config.width**0.5 + place_NE)[:, None]
        row_N, kv = torch.arange(len(index_N), device=index_N.device), rows["kv"]
        places = torch.arange(kv.shape[1], device=index_N.device)
        mask = (places <= index_N[:, None])[:, None, None]
        source_mask = rows["source_mask"][:, None, None]
        for depth, layer in enumerate(self._layers()):
            kv[row_N, index_N, depth] = layer.attention.keys_values(x_NTE)[:, 0]
            x_NTE = layer(x_NTE, kv[:, :, depth], mask, source_kv[:, :, depth], source_mask)
        return F.linear(x_NTE[:, 0], self.embedding.weight)

    def done(self, rows: Rows) -> Tensor:
        """Return (N,) bool: the rows that wrote their end or as many tokens as they may."""
        return rows["ended"] | (rows["index"] >= rows["limit"])

    def preview(self, rows: Rows) -> Tensor:
        """Return the tokens written so far, (N, T), -1 after them."""
        return rows["tokens"]

    def finish(self, rows: Rows) -> Tensor:
        """Return the tokens (N, T) of rows that are done, -1 from the end on."""
        return rows["tokens"]

    def text_of(self, tokens_T: Tensor, prompt: Prompt = "") -> str:  # noqa: ARG002 - a text of its own
        """Return the text of a sample's tokens."""
        return self._tokenizer.decode(tokens_T.tolist())

    @torch.no_grad()
    def beam_search(
        self, source_NS: Tensor, beams: int, max_tokens: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the best target a source, tokens (N, T), that `beams` candidates find, and its score (N,)."""
        again_R = torch.arange(len(source_NS), device=source_NS.device).repeat_interleave(beams)
        request = Request(seeds=(0,) * len(again_R), max_tokens=max_tokens)
        source_mask_RS = (source_NS != PAD)[again_R]
        rows = self._rows(request, self._source_kv(source_NS)[again_R], source_mask_RS)
        return beams_search(rows, self._next_nats, beams, self.config.length_penalty)

    def _next_nats(self, rows: Rows) -> Tensor:
        return _writable(self.next_logits(rows).float().log_softmax(1))


def _writable(values_NK: Tensor) -> Tensor:
    """Return the values with -inf for control tokens, <eos> left out."""
    control = torch.arange(values_NK.shape[-1], device=values_NK.device) < len(CONTROL)
    control[EOS] = False
    return values_NK.masked_fill(control, -math.inf)
