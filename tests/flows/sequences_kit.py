"""Two toy families: a bigram model of text, and a linear predictor of sound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses, Record, Request
from models.parts.tokens import BOS, of_signs, tokenizer

BIGRAM = "tests.flows.sequences_kit:Bigram"
LINEAR = "tests.flows.sequences_kit:Linear"


@dataclass(frozen=True, kw_only=True)
class BigramConfig:
    tokenizer: str = of_signs("ab")
    context: int = 8


class Bigram(Family):
    """The next token given the last one, learned from windows of the records."""

    Config = BigramConfig
    presets: ClassVar[Mapping[str, BigramConfig]] = {"tiny": BigramConfig()}

    def __init__(self, config: BigramConfig) -> None:
        super().__init__()
        self.config = config
        self.text = tokenizer(config.tokenizer)
        self.table = nn.Embedding(self.text.size, self.text.size)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(modality="text")

    def examples(self, records: Sequence[Record]) -> Batch:
        stream = [
            token
            for record in records
            for _, said in record
            for token in [BOS, *self.text.encode(said)]
        ]
        size = self.config.context
        rows = len(stream) // size
        return {"tokens": torch.tensor(stream[: rows * size]).view(rows, size)}

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
