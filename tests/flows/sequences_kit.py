"""Two toy families: a bigram model of text, and a linear predictor of sound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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
from models.language.examples import columns, laid, named
from models.parts.tokens import BOS, PAD, of_signs, tokenizer
from models.request import Record, Request, SoundOptions, TextOptions

BIGRAM = "tests.flows.sequences_kit:Bigram"
LINEAR = "tests.flows.sequences_kit:Linear"


@dataclass(frozen=True, kw_only=True)
class BigramConfig:
    tokenizer: str = of_signs("ab")
    context: int = 8


class Pieces(Examples):
    """Tokens one after the other, cut into equal rows; what is left is not learned."""

    def __init__(self, columns: Columns, size: int) -> None:
        self.tokens, self.size = columns["tokens"], size

    def __len__(self) -> int:
        return len(self.tokens) // self.size

    def take(self, index_B: Any) -> Batch:
        begins_B = self.size * index_B
        rows = laid(self.tokens, begins_B, begins_B + self.size, self.size, PAD)
        return {"tokens": torch.from_numpy(rows)}


class Bigram(Family):
    """The next token given the last one, learned from windows of the records."""

    Config = BigramConfig
    Options = TextOptions
    presets: ClassVar[Mapping[str, BigramConfig]] = {"tiny": BigramConfig()}

    def __init__(self, config: BigramConfig) -> None:
        super().__init__()
        self.config = config
        self.text = tokenizer(config.tokenizer)
        self.table = nn.Embedding(self.text.size, self.text.size)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(modality="text")

    @property
    def reads(self) -> str:
        return named("bigrams", self.text)

    def tokenized(self, records: Sequence[Record]) -> Columns:
        told = [[[BOS, *self.text.encode(said)] for _, said in record] for record in records]
        return columns(told, self.text)

    def examples_of(self, columns: Columns) -> Examples:
        return Pieces(columns, self.config.context)

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002
        tokens_BT = batch["tokens"]
        logits_BTV = self.table(tokens_BT[:, :-1])
        nats = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
        return Losses(nats, len(tokens_BT))

    def sample(self, request: Request) -> Tensor:
        return torch.full((len(request.seeds), 1), BOS)

    def text_of(self, tokens_T: Tensor, prompt: str = "") -> str:  # noqa: ARG002 - a text of its own
        return self.text.decode(tokens_T.tolist())


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    sample_rate: int = 8000
    clip_samples: int = 100
    taps: int = 4


class Linear(Family):
    """A sample from the few before it, silence behind the sound left out."""

    Config = LinearConfig
    Options = SoundOptions
    presets: ClassVar[Mapping[str, LinearConfig]] = {"tiny": LinearConfig()}

    def __init__(self, config: LinearConfig) -> None:
        super().__init__()
        self.config = config
        self.filter = nn.Conv1d(1, 1, config.taps, bias=False)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(modality="audio")

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002
        x_BT, taps = batch["sound"], self.config.taps
        guess_BT = self.filter(x_BT[:, None, :-1]).squeeze(1)
        places = torch.arange(taps, x_BT.shape[1])
        heard_BT = (places < batch["length"][:, None]).float()
        error_BT = (guess_BT - x_BT[:, taps:]).square() * heard_BT
        return Losses(error_BT.sum() / heard_BT.sum(), heard_BT.sum())

    def sample(self, request: Request) -> Tensor:
        return torch.zeros(len(request.seeds), self.config.clip_samples)
