"""Small prepared datasets of text and sound as the data contract says, and the plainest families that model them."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from data.modalities.text import record_bytes
from models.family import (
    Batch,
    Capabilities,
    Columns,
    Examples,
    Family,
    Losses,
)
from models.language.examples import columns, named
from models.parts.noise import normals
from models.parts.tokens import of_signs, tokenizer
from models.request import Record, Request, SoundOptions, TextOptions
from tests.flows.sequences_kit import Pieces

SIGNS = of_signs("abcdefghijklmnopqrstuvwxyz .")
RATE = 2000  # Hz


@dataclass(frozen=True, kw_only=True)
class UnigramConfig:
    tokenizer: str = SIGNS
    context: int = 16
    reads: bool = False


class Unigram(Family):
    """Every token by itself: log p(x) = sum of log softmax(logits)[x_t] over the tokens of a window."""

    Config = UnigramConfig
    Options = TextOptions
    presets: ClassVar[Mapping[str, UnigramConfig]] = {"tiny": UnigramConfig()}

    def __init__(self, config: UnigramConfig) -> None:
        super().__init__()
        self.config = config
        self.logits = nn.Parameter(torch.zeros(tokenizer(config.tokenizer).size))

    @property
    def capabilities(self) -> Capabilities:
        condition = "text" if self.config.reads else "none"
        return Capabilities(modality="text", condition=condition, likelihood=True)

    @property
    def reads(self) -> str:
        return named("unigrams", tokenizer(self.config.tokenizer))

    def tokenized(self, records: Sequence[Record]) -> Columns:
        words = tokenizer(self.config.tokenizer)
        return columns([[words.encode(text) for _, text in record] for record in records], words)

    def examples_of(self, columns: Columns) -> Examples:
        return Pieces(columns, self.config.context)

    def log_prob(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002
        return self.logits.log_softmax(0)[batch["tokens"]].sum(1)

    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"nats_per_token": -self.log_prob(batch) / batch["tokens"].shape[1]}

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002
        return Losses(-self.log_prob(batch).mean(), len(batch["tokens"]))

    def sample(self, request: Request) -> Tensor:
        if self.config.reads and not request.prompts:
            raise ValueError("give one prompt a seed")
        rows = []
        for seed in request.seeds:
            generator = torch.Generator().manual_seed(seed)
            share = self.logits[10:].softmax(0)  # no control tokens
            drawn = torch.multinomial(
                share, request.options.get("max_tokens", 20), replacement=True, generator=generator
            )
            rows.append(drawn + 10)
        return torch.stack(rows)

    def text_of(self, tokens_T: Tensor, prompt: str = "") -> str:  # noqa: ARG002 - a text of its own
        return tokenizer(self.config.tokenizer).decode(tokens_T.tolist())


@dataclass(frozen=True, kw_only=True)
class HissConfig:
    sample_rate: int = RATE
    clip_samples: int = 400
    vocabulary: tuple[str, ...] = ()


class Hiss(Family):
    """Sound as independent Gaussian samples of one loudness."""

    Config = HissConfig
    Options = SoundOptions
    presets: ClassVar[Mapping[str, HissConfig]] = {"tiny": HissConfig()}

    def __init__(self, config: HissConfig) -> None:
        super().__init__()
        self.config = config
        self.log_std = nn.Parameter(torch.tensor(0.0))

    @property
    def capabilities(self) -> Capabilities:
        condition = "text" if self.config.vocabulary else "none"
        return Capabilities(modality="audio", condition=condition, likelihood=True)

    def encode(self, captions: Sequence[str]) -> Tensor | None:
        known = self.config.vocabulary
        return torch.tensor([[known.index(one)] for one in captions]) if known else None

    def log_prob(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002
        if self.config.vocabulary:
            assert batch["tokens"].shape == (len(batch["sound"]), 1)
        std, inside = self.log_std.exp(), torch.arange(batch["sound"].shape[1])
        each = -0.5 * (batch["sound"] / std).square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return (each * (inside < batch["length"][:, None])).sum(1)

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002
        return Losses(-self.log_prob(batch).mean(), len(batch["sound"]))

    def sample(self, request: Request) -> Tensor:
        count = int(request.options.get("seconds", 0.2) * self.config.sample_rate)
        noise = normals(request.seeds, (count,), self.log_std.device)
        return (noise * self.log_std.exp()).clamp(-1, 1)


def text_folder(folder: Path, splits: Mapping[str, Sequence[Record]]) -> Path:
    """Write a prepared dataset of text."""
    rows = {
        name: [{"id": str(number), "record": record_bytes(record).decode()} for number, record in enumerate(records)]
        for name, records in splits.items()
    }  # fmt: skip
    return _written(folder, rows, {"modality": "text", "tokenizer": SIGNS})


def sound_folder(folder: Path, splits: Mapping[str, Sequence[tuple[str, Tensor]]]) -> Path:
    """Write a prepared dataset of captioned sounds (T,) in [-1, 1]."""

    def row(caption: str, x_T: Tensor) -> dict[str, Any]:
        levels = (x_T * 32767).to(torch.int16).numpy().astype("<i2")
        return {"sound": levels.tobytes(), "caption": caption, "attributes": []}

    rows = {name: [row(*sound) for sound in sounds] for name, sounds in splits.items()}
    captions = sorted({caption for sounds in splits.values() for caption, _ in sounds})
    longest = max(len(x_T) for sounds in splits.values() for _, x_T in sounds)
    facts = {
        "modality": "audio", "sample_rate": RATE, "clip_samples": longest, "captions": captions,
        "vocabulary": captions, "max_words": 1, "attributes": {}, "held_out": [],
    }  # fmt: skip
    return _written(folder, rows, facts)


def _written(folder: Path, splits: Mapping[str, list[dict[str, Any]]], facts: dict[str, Any]) -> Path:  # fmt: skip
    folder.mkdir(parents=True)
    header: dict[str, Any] = {"format": 1, "name": folder.name, "maker": "toy", **facts}
    header["splits"] = {}
    for name, rows in splits.items():
        path = folder / f"{name}-00000.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shard = {"file": path.name, "rows": len(rows), "sha256": digest}
        header["splits"][name] = {"rows": len(rows), "shards": [shard]}
    (folder / "dataset.json").write_text(json.dumps(header))
    return folder


def tone(hertz: float, seconds: float = 0.2, loud: float = 0.5) -> Tensor:
    """Return a tone (T,)."""
    at = torch.arange(int(seconds * RATE)) / RATE
    return loud * (2 * torch.pi * hertz * at).sin()


def prose(seed: int, count: int) -> list[Record]:
    """Return documents of words by lot."""
    words = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "hill", "and", "so", "then", "we"]
    generator = np.random.default_rng(seed)
    return [(("text", " ".join(generator.choice(words, 60)) + "."),) for _ in range(count)]


def fit(model: Family, batch: Batch, steps: int = 60) -> Family:
    """Train a family for a moment."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch).total.backward()
        optimizer.step()
    return model.eval()
