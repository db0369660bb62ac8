"""BERT (Devlin et al. 2019, arXiv:1810.04805): masked tokens from both sides, and whether a sentence follows another.

A row is <cls> first <sep> second <sep>, as sums of embeddings of tokens, places and segments, through post-norm layers
with GELU. At every step 15 % of the tokens are selected anew; of these 80 % become <mask>, 10 % a random token, 10 %
stay (appendix A.1), and the masked LM's loss is of the selected ones alone. For next-sentence prediction half of the
second sentences are exchanged for one of another document.

A sentence is a line of a document. Shape letters: B rows, P tokens of a first and Q of a second sentence, T places of
both with their control tokens, M selected tokens of a row at most, K tokens of the vocabulary, E width. After a
sentence there may be <pad>, which is not seen and not counted as a place.
"""

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import ClassVar, Final, Literal, NamedTuple

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
)
from models.language import examples
from models.language.texts import check_roles
from models.parts import bounds
from models.parts.attention import EncoderLayer
from models.parts.draws import drawn, sampling_rules
from models.parts.dropout import Dropout
from models.parts.noise import uniforms
from models.parts.tokens import (
    CLS,
    CONTROL,
    MASK,
    PAD,
    SEP,
    UNK,
    Tokenizer,
    of_signs,
    padded,
    tokenizer,
)
from models.request import Prompt, Record, Request, TextOptions

SIGNS: Final = of_signs(" ." + string.ascii_lowercase + string.digits)
BLANK: Final = "[MASK]"
"""What stands in a prompt for a token that is wanted; text that spells a control token is only text."""
PAPER_WIDTH: Final = 768


@dataclass(frozen=True, kw_only=True, slots=True)
class BERTConfig:
    """What is learned and the network's sizes."""

    tokenizer: str = SIGNS  # a JSON document
    max_tokens: int = 512  # of a row
    width: int = 768
    layers: int = 12
    heads: int = 12
    feedforward: int = 3072
    dropout: float = 0.1
    masked: float = 0.15  # of the tokens
    embedding_std: float = 0.02  # of all embeddings at first
    negatives: Literal["other", "same"] = "other"  # document of an exchanged second; "same" is the
    # broken control: what does not follow then cannot be told from what does

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.within("max_tokens", self.max_tokens, (5, math.inf))
        bounds.check(self, dict.fromkeys(("layers", "heads", "feedforward"), bounds.SIZE))
        if self.width < 1 or self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads {self.heads}, got {self.width}")
        bounds.within("dropout", self.dropout, bounds.SHARE)
        if not 0 < self.masked < 1:
            raise ValueError(f"masked must be in (0, 1), got {self.masked}")
        if self.embedding_std <= 0:
            raise ValueError(f"embedding_std must be above 0, got {self.embedding_std}")

    @property
    def max_sentence(self) -> int:
        """How many tokens of each sentence are kept, so that any two fit into a row."""
        return (self.max_tokens - 3) // 2


class MaskedBatch(NamedTuple):
    """What the network is shown of a batch, and what it has to tell."""

    tokens_BT: Tensor  # with <mask> and random tokens
    segment_BT: Tensor  # 0 of the first sentence, 1 of the second
    label_BT: Tensor  # the tokens themselves
    selected_BT: Tensor  # bool: those that are predicted
    position_BM: Tensor  # the places of the selected tokens
    valid_BM: Tensor  # bool; a row may have fewer than M
    is_random_B: Tensor  # 1 where the second sentence is one of another document


class BERT(Family):
    """An encoder that fills in masked tokens, judges neighbours and embeds texts."""

    Config = BERTConfig
    Options = TextOptions
    adapts: ClassVar[tuple[str, ...]] = ("query", "key", "value", "out", "hidden")
    presets: ClassVar[Mapping[str, BERTConfig]] = {
        "tiny": BERTConfig(max_tokens=32, width=16, layers=1, heads=2, feedforward=32, dropout=0.0),
        "small": BERTConfig(
            max_tokens=64, width=64, layers=2, heads=4, feedforward=256, dropout=0.0
        ),
        "base": BERTConfig(),
    }
    measures: ClassVar[tuple[str, ...]] = ("mlm_accuracy", "nsp_accuracy")
    config: BERTConfig

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        width, size = config.width, tokenizer(config.tokenizer).size
        self.token = nn.Embedding(size, width)
        self.place = nn.Embedding(config.max_tokens, width)
        self.segment = nn.Embedding(2, width)
        self.norm, self.dropout = nn.LayerNorm(width), Dropout(config.dropout)
        sizes = (width, config.heads, config.feedforward, config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes, "gelu") for _ in range(config.layers))
        self.transform, self.transform_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.token_bias = nn.Parameter(torch.zeros(size))
        self.pooler, self.follows = nn.Linear(width, width), nn.Linear(width, 2)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=config.embedding_std)
            elif isinstance(module, nn.Linear):  # .02 at the paper's width; as loud at others
                nn.init.normal_(module.weight, std=0.02 * (PAPER_WIDTH / module.in_features) ** 0.5)
                nn.init.zeros_(module.bias)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(modality="text", condition="text", embeds=True)

    @property
    def _tokenizer(self) -> Tokenizer:
        return tokenizer(self.config.tokenizer)

    @property
    def reads(self) -> str:
        """Return what names the tokens of its records."""
        return examples.named("lines", self._tokenizer)

    def tokenized(self, records: Sequence[Record]) -> Columns:
        """Return the tokens of documents, a text a line; empty lines are no sentences.

        Raises:
            ValueError: a record is no document.
        """
        check_roles(records, ("text",), "take a dataset of documents")
        lines = [[line for line in record[0][1].splitlines() if line.strip()] for record in records]
        found = iter(self._tokenizer.encode_all([*chain.from_iterable(lines)]))
        return examples.columns(
            [[*islice(found, len(sentences))] for sentences in lines], self._tokenizer
        )

    def examples_of(self, columns: Columns) -> Examples:
        """Return every two neighbouring lines, the longer ones cut to `config.max_sentence` and counted in `left_out`.

        Raises:
            ValueError: no document has two lines.
        """
        most = self.config.max_sentence
        found = examples.Neighbours(columns, most)
        cut = f"{found.cut} of {found.sentences} sentences are cut: they have more than {most} tokens (max_sentence)"
        self.left_out = cut if found.cut else ""
        return found

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the cross-entropy of the selected tokens plus that of whether the second sentence follows the first.

        Both are means over selected tokens: a row's second counts as often as the row has some. Rows of equal length,
        as in the paper, thereby have the paper's sum of two means.
        """
        masked = self.masked(batch, negatives=self.config.negatives)
        mlm_BMK, nsp_B2 = self.logits(masked)
        label_BM, selected_B = masked.label_BT.gather(1, masked.position_BM), masked.valid_BM.sum(1)
        nll_BM = F.cross_entropy(
            mlm_BMK.float().flatten(0, 1), label_BM.flatten(), reduction="none"
        ).view_as(label_BM)
        nll_B = F.cross_entropy(nsp_B2.float(), masked.is_random_B, reduction="none")
        count = selected_B.sum()
        mlm = (nll_BM * masked.valid_BM).sum() / count.clamp(min=1)
        nsp = (nll_B * selected_B).sum() / count.clamp(min=1)
        return Losses(mlm + nsp, count, {"mlm": mlm.detach(), "nsp": nsp.detach()})

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return `mlm_accuracy`, a row's share of selected tokens found, and `nsp_accuracy`, true or false; both (N,).

        Masks and exchanged sentences are always the same for the same batch.
        """
        masked = self.masked(batch, torch.Generator().manual_seed(0))
        mlm_BMK, nsp_B2 = self.logits(masked)
        right_BM = mlm_BMK.argmax(2) == masked.label_BT.gather(1, masked.position_BM)
        selected_B = masked.valid_BM.sum(1)
        return {
            "mlm_accuracy": (right_BM & masked.valid_BM).sum(1) / selected_B.clamp(min=1),
            "nsp_accuracy": nsp_B2.argmax(1) == masked.is_random_B,
        }

    def masked(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        negatives: Literal["other", "same"] = "other",
    ) -> MaskedBatch:
        """Return the batch with exchanged seconds and masks, from a CPU generator or torch's global one.

        As many tokens of a row are selected as are `config.masked` of them, one at least, and never a control token.
        """
        first, second = batch["first"], batch["second"]
        device = first.device

        def rand(*shape: int) -> Tensor:
            where = device if generator is None else torch.device("cpu")
            return torch.rand(*shape, generator=generator, device=where).to(device)

        other_BB = batch["document"][:, None] != batch["document"]
        allowed_BB = other_BB if negatives == "other" else ~other_BB
        is_random_B = allowed_BB.any(1) & (rand(len(first)) < 0.5)
        from_B = rand(*allowed_BB.shape).masked_fill(~allowed_BB, -1).argmax(1)
        second = torch.where(is_random_B[:, None], second[from_B], second)
        label_BT, segment_BT = _joined(first, second)
        maskable_BT = label_BT >= len(CONTROL)
        share_B1 = (maskable_BT.sum(1, keepdim=True) * self.config.masked).round().clamp(min=1)
        most = max(1, round(label_BT.shape[1] * self.config.masked))
        order_BT = rand(*label_BT.shape).masked_fill(~maskable_BT, 2).argsort(1)
        position_BM = order_BT[:, :most]
        valid_BM = torch.arange(most, device=device) < share_B1
        valid_BM = valid_BM & maskable_BT.gather(1, position_BM)
        selected_BT = torch.zeros_like(maskable_BT).scatter(1, position_BM, valid_BM)
        u_BT, size = rand(*label_BT.shape), self.token.num_embeddings - len(CONTROL)
        random_BT = len(CONTROL) + (rand(*label_BT.shape) * size).long().clamp(max=size - 1)
        tokens_BT = torch.where(selected_BT & (u_BT < 0.8), MASK, label_BT)
        tokens_BT = torch.where(selected_BT & (u_BT >= 0.9), random_BT, tokens_BT)
        masked = (tokens_BT, segment_BT, label_BT, selected_BT, position_BM, valid_BM)
        return MaskedBatch(*masked, is_random_B.long())

    def logits(self, masked: MaskedBatch) -> tuple[Tensor, Tensor]:
        """Return the selected places' logits (B, M, K), and those of (follows, is of another document), (B, 2)."""
        hidden_BTE = self.hidden(masked.tokens_BT, masked.segment_BT)
        pooled_BE = self.pooler(hidden_BTE[:, 0]).tanh()
        rows, places = hidden_BTE.shape[:2]
        row_B1 = torch.arange(rows, device=masked.position_BM.device)[:, None]
        flat = (masked.position_BM + row_B1 * places).flatten()
        selected = hidden_BTE.flatten(0, 1).index_select(0, flat).view(rows, -1, pooled_BE.shape[1])
        return self.token_logits(selected), self.follows(pooled_BE)

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Return (..., K) from hidden states (..., E), through the embeddings of the tokens."""
        transformed = self.transform_norm(F.gelu(self.transform(hidden)))
        logits: Tensor = F.linear(transformed, self.token.weight, self.token_bias)
        return logits

    def hidden(self, tokens_BT: Tensor, segment_BT: Tensor) -> Tensor:
        """Return the last layer's states (B, T, E)."""
        real_BT = tokens_BT != PAD
        place_BT = (real_BT.cumsum(1) - 1).clamp(min=0)
        x_BTE = self.token(tokens_BT) + self.place(place_BT) + self.segment(segment_BT)
        x_BTE = self.dropout(self.norm(x_BTE))
        for layer in self.encoder:
            x_BTE = layer(x_BTE, real_BT[:, None, None])
        out: Tensor = x_BTE
        return out

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Fill in every `[MASK]` of the prompts; returns the whole texts' tokens (B, T), -1 from the end on.

        The surest blank is filled first, and the others are then looked at anew. The likeliest token is taken unless
        the request's temperature is above 0; `max_tokens` does not count, for the length is the prompt's. A prompt of
        two lines is read as a pair of sentences.

        Raises:
            ValueError: prompts are missing, too long, of more than two lines or without a blank.
        """
        self.check(request)
        device, count = self.token.weight.device, len(request.texts)
        inputs = self._inputs(request.texts)
        if not (inputs[0] == MASK).any(1).all():
            raise ValueError(f"every prompt needs a blank, written {BLANK}")
        tokens_BT, segment_BT = (x.to(device) for x in inputs)
        u_BT = uniforms(request.seeds, (self.config.max_tokens,), device)
        rules = sampling_rules(request, 0.0, device)
        row_B = torch.arange(count, device=device)
        while (blank_BT := tokens_BT == MASK).any():
            logits_BTK = self.token_logits(self.hidden(tokens_BT, segment_BT)).float()
            logits_BTK[..., : len(CONTROL)] = -torch.inf
            confidence_BT = logits_BTK.softmax(2).amax(2).masked_fill(~blank_BT, -1)
            at_B = confidence_BT.argmax(1)
            token_B = drawn(logits_BTK[row_B, at_B], u_BT[row_B, at_B], *rules)
            old_B = tokens_BT[row_B, at_B]
            tokens_BT[row_B, at_B] = torch.where(old_B == MASK, token_B, old_B)
        return self._between(tokens_BT)

    def _between(self, tokens_BT: Tensor) -> Tensor:
        """Return the tokens between <cls> and the last <sep>, -1 after them."""
        length_B1 = (tokens_BT != PAD).sum(1, keepdim=True) - 2
        after_BT = torch.arange(tokens_BT.shape[1] - 1, device=tokens_BT.device) >= length_B1
        return tokens_BT[:, 1:].masked_fill(after_BT, -1)

    def _inputs(self, texts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Return tokens and segments (B, max_tokens) of texts of one line or two, a <mask> for every blank.

        Tokens are one line, without blanks.
        """
        rows, segments, most = [], [], self.config.max_tokens
        for text in texts:
            found = self._lines(text)
            if not 1 <= len(found) <= 2:
                raise ValueError(
                    f"bert reads one line or two, got {len(found)} in {str(text)[:40]!r}"
                )
            row, segment = [CLS], [0]
            for number, line in enumerate(found):
                row += [*line, SEP]
                segment += [number] * (len(row) - len(segment))
            if len(row) > most:
                raise ValueError(
                    f"the text {str(text)[:40]!r} has {len(row)} tokens with its control tokens, at most {most} fit"
                )
            rows.append(row)
            segments.append(segment)
        return padded(rows, most), padded(segments, most)

    def unknown(self, text: str) -> list[str]:
        """Return what it never learned: of each line, blanks and the spaces around them apart."""
        parts = (part.strip() for line in text.splitlines() for part in line.split(BLANK))
        return list(
            dict.fromkeys(word for part in parts for word in super(BERT, self).unknown(part))
        )

    def _lines(self, text: Prompt) -> list[list[int]]:
        """Return the tokens of each line."""
        if isinstance(text, str):
            return [self._with_masks(line) for line in text.splitlines() if line.strip()]
        return [self._tokenizer.encode(text)] if text else []

    def _with_masks(self, line: str) -> list[int]:
        """Return a line's tokens, <mask> for every blank, which takes a space before it along where a word does."""
        tokens, parts = [], line.split(BLANK)
        for number, text in enumerate(parts):
            encode = partial(self._tokenizer.encode, continued=number > 0)
            piece = encode(text)
            if number < len(parts) - 1 and text[-1:].isspace():
                word = encode(text.rstrip())
                space = piece[len(word) :]
                followed = [encode(text + letter) for letter in "aeiost"]
                stays = all(one[len(word) : len(piece)] == space for one in followed)
                piece = piece if stays and UNK not in space else word
            tokens += [MASK, *piece] if number else piece
        return tokens

    def text_of(self, tokens_T: Tensor, prompt: Prompt = "") -> str:  # noqa: ARG002 - it has the prompt
        """Return the text of a sample's tokens, a line a sentence."""
        lines: list[list[int]] = [[]]
        for token in tokens_T.tolist():
            if token == SEP:
                lines.append([])
            else:
                lines[-1].append(token)
        return "\n".join(self._tokenizer.decode(line) for line in lines)

    @torch.no_grad()
    def embed(self, texts: Sequence[Prompt]) -> Tensor:
        """Return (B, E) of length 1: the mean of the last states of a text's tokens, control tokens left out.

        Not the pooler's: that was learned to tell whether a sentence follows, and knows little else.

        Raises:
            ValueError: a text is empty, too long or of more than two lines.
        """
        tokens_BT, segment_BT = (x.to(self.token.weight.device) for x in self._inputs(texts))
        hidden_BTE = self.hidden(tokens_BT, segment_BT).float()
        control = torch.tensor((PAD, CLS, SEP), device=tokens_BT.device)
        word_BT1 = ~torch.isin(tokens_BT, control)[:, :, None]
        return F.normalize((hidden_BTE * word_BT1).sum(1), dim=1)


def _joined(first_BP: Tensor, second_BQ: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens and segments (B, T) of <cls> first <sep> second <sep>."""
    cls_B1, sep_B1 = (torch.full_like(first_BP[:, :1], one) for one in (CLS, SEP))
    tokens_BT = torch.cat([cls_B1, first_BP, sep_B1, second_BQ, sep_B1], 1)
    segment_BT = torch.zeros_like(tokens_BT)
    segment_BT[:, first_BP.shape[1] + 2 :] = 1
    return tokens_BT, segment_BT
