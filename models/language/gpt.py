"""GPT: a decoder-only Transformer that writes text and answers (Radford et al. 2018 and 2019; nanoGPT's variant).

The blocks are those of `parts/decoder.py`; positions are learned, and the embedding is tied to the output
(arXiv:1608.05859). Documents are one stream, `<eos>` before, between and after them. A dialogue is `<bos> <system>
text <user> text <assistant> text <eos> <user> ...`, learned where the assistant speaks (its `<eos>` included). What is
written is drawn by inversion of one uniform number a token, which the row's seed and the token's place alone decide.

Shape letters: N and B rows, T places, S slots of a cache, E width, H heads, D features of a head, L layers, V tokens of
the vocabulary. Tokens are int64, -1 where a row has ended; likelihoods are in nats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

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
from models.language import examples, generation, texts
from models.parts import bounds, decoder
from models.parts.decoder import KVCache
from models.parts.draws import token_logprobs
from models.parts.dropout import Dropout
from models.parts.rows import to_end
from models.parts.tokens import ASSISTANT, EOS, of_signs, tokenizer
from models.request import Prompt, Record, Request, TextOptions

LOGITS: Final = 2**25  # at once, where nothing is learned
ANSWERS: Final = 64  # written at once, where they are measured
SIGNS: Final = "abcdefghijklmnopqrstuvwxyz0123456789 .,;:?!'-\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """What is learned and the network's sizes."""

    tokenizer: str = of_signs(SIGNS)  # its JSON document; a fact of the dataset
    learns: Literal["documents", "dialogues"] = "documents"
    loss_on: Literal["answers", "everything"] = "answers"  # of dialogues
    context: int = 64  # tokens that are seen at most
    stride: int | None = None  # tokens from one window of the documents to the next; None: context
    width: int = 128
    layers: int = 4
    heads: int = 4
    dropout: float = 0.0
    causal: bool = True  # False is the broken control: a token sees those after it

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, dict.fromkeys(("context", "width", "layers", "heads"), bounds.SIZE))
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be divisible by heads, got {self.heads}")
        bounds.within("dropout", self.dropout, bounds.SHARE)
        if self.stride is not None and not 1 <= self.stride <= self.context:
            raise ValueError(f"stride must be in 1..{self.context} (context), got {self.stride}")
        tokenizer(self.tokenizer)  # is one


class GPT(Family):
    """Tokens in order, each a softmax over the vocabulary given those before it."""

    Config = GPTConfig
    Options = TextOptions
    adapts: ClassVar[tuple[str, ...]] = ("qkv", "out", "hidden")
    presets: ClassVar[Mapping[str, GPTConfig]] = {
        "tiny": GPTConfig(context=32, width=32, layers=2, heads=2),
        "nano": GPTConfig(),  # nanoGPT on a CPU
        "chat": GPTConfig(learns="dialogues"),
        "small": GPTConfig(context=256, width=384, layers=6, heads=6, dropout=0.2),  # on one GPU
        "base": GPTConfig(context=1024, width=768, layers=12, heads=12),  # GPT-2's smallest
    }
    measures: ClassVar[tuple[str, ...]] = ("nats_per_token", "exact_match")
    config: GPTConfig

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(tokenizer(config.tokenizer).size, config.width)
        self.places = nn.Embedding(config.context, config.width)
        self.dropout = Dropout(config.dropout)
        self.blocks = decoder.blocks(config, causal=config.causal)
        self.norm = nn.LayerNorm(config.width, bias=False)
        decoder.initialise(self, config.layers)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        chats = self.config.learns == "dialogues"
        return Capabilities(
            modality="text",
            condition="text",
            unprompted=not chats,
            likelihood=True,
            stepwise=True,
            chats=chats,
            recalls=not chats,
        )

    @property
    def size(self) -> int:
        """Return V."""
        return tokenizer(self.config.tokenizer).size

    @property
    def kept(self) -> tuple[int, int, int]:
        """Return L, H and D of the keys and values that a token leaves."""
        c = self.config
        return c.layers, c.heads, c.width // c.heads

    @property
    def reads(self) -> str:
        """Return what names the tokens of its records."""
        return examples.named(self.config.learns, tokenizer(self.config.tokenizer))

    def tokenized(self, records: Sequence[Record]) -> Columns:
        """Return the tokens of documents or dialogues; see `texts`.

        Raises:
            ValueError: no records, or other roles.
        """
        learned = texts.dialogues if self.config.learns == "dialogues" else texts.documents
        return learned(records, tokenizer(self.config.tokenizer))

    def examples_of(self, columns: Columns) -> Examples:
        """Return windows of the documents, or a row a dialogue; see `examples`.

        Raises:
            ValueError: a last exchange alone that is longer than the context.
        """
        context = self.config.context
        if self.config.learns == "documents":
            return examples.Windows(columns, context, self.config.stride or context)
        found = examples.Dialogues(columns, context)
        why = f"they have more than {context + 1} tokens (context + 1)"
        shortened = (
            f"{found.shortened} of {len(found)} dialogues lose their oldest exchanges: {why}"
        )
        self.left_out = shortened if found.shortened else ""
        return found

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean cross-entropy in nats a token, and how often the likeliest token was the right one."""
        learned_BT = self._targets(batch, learned=True)
        # -1 after a row's end is no token: any other may stand there, for nothing behind it counts
        logits_BTV = self.logits(batch["tokens"][:, :-1].clamp(min=0)).float()
        target_BT = batch["tokens"][:, 1:].masked_fill(~learned_BT, -1)
        nats_BT = F.cross_entropy(
            logits_BTV.flatten(0, 1), target_BT.flatten(), ignore_index=-1, reduction="none"
        ).view_as(target_BT)
        right_BT = (logits_BTV.detach().argmax(2) == target_BT).float()
        count = learned_BT.sum()
        total, right = (value.sum() / count.clamp(min=1) for value in (nats_BT, right_BT))
        return Losses(total, count, {"accuracy": right})

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Return the next token's logits (B, T, V) at every place; T <= context."""
        return self.scored(self.hidden(tokens_BT))

    def scored(self, hidden_BTE: Tensor) -> Tensor:
        """Return the logits (..., V) of the token behind each of these states."""
        return F.linear(hidden_BTE, self.tokens.weight)

    def hidden(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the last states (B, T, E) of tokens that begin a row, or that follow on what a cache has read."""
        from_0_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        place = from_0_T if cache is None else cache.place_BT
        x_BTE = self.dropout(self.tokens(tokens_BT) + self.places(place))
        for block in self.blocks:
            x_BTE = block(x_BTE, cache)
        out_BTE: Tensor = self.norm(x_BTE)
        return out_BTE

    def _targets(self, batch: Batch, *, learned: bool = False) -> Tensor:
        """Return which targets count, (B, T) bool: measured ones once, `learned` ones in every window."""
        there_BT = batch["tokens"][:, 1:] >= 0
        if self.config.learns == "documents":
            return there_BT if learned else there_BT & batch.get("fresh", there_BT)
        everything = learned and self.config.loss_on == "everything"
        return there_BT if everything else there_BT & batch["answer"]

    @torch.no_grad()
    def log_prob(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,  # noqa: ARG002 - draws nothing
    ) -> Tensor:
        """Return log p of each row's tokens given its first, in nats (B,); exact. Of a dialogue: of its answers.

        Of windows that overlap: of what is new in each, so that the rows of a text add up to the text.
        """
        tokens = batch["tokens"]
        pieces = min(len(tokens), 1 + tokens.numel() * self.size // LOGITS)
        found, targets = [], self._targets(batch).chunk(pieces)
        for part, wanted in zip(tokens.chunk(pieces), targets, strict=True):
            log_p_BTV = self.logits(part[:, :-1].clamp(min=0)).float().log_softmax(2)
            log_p_BT = log_p_BTV.gather(2, part[:, 1:, None].clamp(min=0))[:, :, 0]
            found.append(log_p_BT.masked_fill(~wanted, 0).sum(1))
        return torch.cat(found)

    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return `nats_per_token` (N,); of dialogues, of the answers' tokens, and `exact_match` (N,).

        True where the last answer, written token by token by the likeliest, is the reference with its end. It is really
        written: a model that sees the future would guess each token of a reference that it is shown.
        """
        nats = -self.log_prob(batch) / self._targets(batch).sum(1).clamp(min=1)
        if self.config.learns == "documents":
            return {"nats_per_token": nats}
        right: list[bool] = []
        for start in range(0, len(nats), ANSWERS):
            some = batch["tokens"][start : start + ANSWERS].tolist()
            rows = [[t for t in row if t >= 0] for row in some]
            ends = [len(row) - row[::-1].index(ASSISTANT) for row in rows]
            prompts = [row[:end] for row, end in zip(rows, ends, strict=True)]
            longest = max(len(row) - end for row, end in zip(rows, ends, strict=True))
            request = Request(seeds=(0,) * len(rows), temperature=0, max_tokens=longest)
            answers = to_end(self, self._begun(prompts, request)).tolist()
            for row, end, answer in zip(rows, ends, answers, strict=True):
                right.append([*(t for t in answer if t >= 0), EOS] == row[end:])
        return {"nats_per_token": nats, "exact_match": torch.tensor(right, device=nats.device)}

    @property
    def measured(self) -> tuple[str, ...]:
        """Return the names that `measure` gives with this config."""
        return self.measures if self.config.learns == "dialogues" else ("nats_per_token",)

    def text_of(self, tokens_T: Tensor, prompt: Prompt = "") -> str:
        """Return the text that tokens stand for, control tokens left out; a document goes on from its prompt."""
        goes_on = prompt not in {"", (EOS,)} and self.config.learns == "documents"
        return tokenizer(self.config.tokenizer).decode(tokens_T.tolist(), continued=goes_on)

    def sample(self, request: Request) -> Tensor:
        """Return the continuations or answers (B, T) int64, -1 after the end; `<eos>` is none of their tokens.

        T is the most tokens that a row may have: a row alone ended by itself if it has a -1, else it came to
        `max_tokens` or to the end of the context.

        Raises:
            ValueError: see `begin`.
        """
        return to_end(self, self.begin(request))

    def begin(self, request: Request) -> Rows:
        """Return rows that have read their prompt but its last token, each prompt alone and equal ones once.

        Book-keeping (all but keys and values) stays on the CPU. A prompt is the start of a document, or one question of
        a dialogue.

        Raises:
            ValueError: nothing to answer, dialogues for a model of documents, a prompt as long as the context, or
                temperature, top_k, top_p or max_tokens out of range.
        """
        self.check(request)
        return self._begun(self._prompts(request), request)

    def _prompts(self, request: Request) -> list[list[int]]:
        if self.config.learns == "documents":
            return self._document_starts(request.texts or ("",) * len(request.seeds))
        dialogues = request.dialogues or tuple((("user", prompt),) for prompt in request.prompts)
        words = tokenizer(self.config.tokenizer)
        return [texts.question(turns, f"dialogue {n}", words) for n, turns in enumerate(dialogues)]

    def _document_starts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the tokens of the prompts after the <eos> before every document, which tokens may have already."""
        has = [not isinstance(one, str) and one[:1] == (EOS,) for one in prompts]
        rest = [one[begun:] for one, begun in zip(prompts, has, strict=True)]
        return [[EOS, *tokens] for tokens in tokenizer(self.config.tokenizer).encode_all(rest)]

    def _check_length(self, prompts: Sequence[Sequence[int]]) -> None:
        if (longest := max(map(len, prompts))) > self.config.context:
            raise ValueError(
                f"a prompt has {longest} tokens, but this model sees {self.config.context}: shorten it"
            )

    @torch.no_grad()
    def recalled(self, prompt: Prompt) -> Rows:
        """Return how likely the tokens of a document's beginning are; see `Family.recalled`."""
        if self.config.learns != "documents":
            return super().recalled(prompt)
        [tokens] = self._document_starts([prompt])
        self._check_length([tokens])
        tokens_T = torch.tensor(tokens, device=next(self.parameters()).device)
        logits_TV = self.logits(tokens_T[None, :-1])[0]
        return {"tokens": tokens_T[1:].cpu(), **token_logprobs(logits_TV, tokens_T[1:])}

    @torch.no_grad()
    def _begun(self, prompts: Sequence[Sequence[int]], request: Request) -> Rows:
        c = self.config
        self._check_length(prompts)
        rows = generation.begun(prompts, request, c.context, self.size)
        empty_SLHD = next(self.parameters()).new_zeros(generation.slots(rows), *self.kept)
        keys, values = decoder.prefill(self.hidden, empty_SLHD, prompts, causal=c.causal)
        return {"keys": keys, "values": values, **rows}

    def done(self, rows: Rows) -> Tensor:
        """Return (B,) bool: the rows that ended by themselves or may write no more."""
        return generation.done(rows)

    @torch.no_grad()
    def step(self, rows: Rows) -> Rows:
        """Return the rows one token further; rows that are done stay."""
        keys, values = rows["keys"], rows["values"]
        last = min(keys.shape[1], self.config.context) - 1  # where rows that are done may scribble
        place_B1 = rows["position"].clamp(max=last)[:, None].to(keys.device)
        cache = KVCache.at(keys, values, place_B1)
        hidden_BE = self.hidden(rows["token"][:, None].to(keys.device), cache)[:, 0]
        return self._appended(rows, self.scored(hidden_BE))

    def _appended(self, rows: Rows, logits_BV: Tensor) -> Rows:
        return generation.appended(rows, logits_BV)

    def preview(self, rows: Rows) -> Tensor:
        """Return what is written so far (B, T) int64, -1 after it."""
        return generation.written(rows)

    def finish(self, rows: Rows) -> Tensor:
        """Return the continuations or answers (B, T) int64 of rows that are done, -1 after the end."""
        return generation.written(rows)
