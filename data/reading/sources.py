"""What a reader of a split is asked, and what it gives: tensors a chosen row.

Shape letters: N rows of a split, T places, R records.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from data.modalities.text import Record
from data.reading.mapped import Array

Encode: TypeAlias = Callable[[Sequence[str]], Tensor | None]


class Rows(Protocol):
    """Rows that a family learns, made when they are asked for."""

    def __len__(self) -> int:
        """Return how many there are."""

    def take(self, index: Array) -> Mapping[str, Tensor]:
        """Return chosen ones."""


class Learner(Protocol):
    """What a family of text makes of records; `models.family.Trainable` says more."""

    @property
    def reads(self) -> str:
        """Return what names the tokens: others have another name."""

    def tokenized(self, records: Sequence[Record]) -> Mapping[str, Array]:
        """Return `tokens` (T,), the places `texts` (N + 1,) in them, and the places `records` (R + 1,) in these."""

    def examples_of(self, columns: Mapping[str, Any]) -> Rows:
        """Return the rows of such columns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a split is read; see `Loader`."""

    image_size: int | None = None
    encode: Encode | None = None
    learner: Learner | None = None
    beside: Mapping[str, Path] = field(default_factory=dict)
    shuffle_seed: int | None = None
    stills: bool = False
    size: str | None = None  # of pictures of several sizes: which are read


class Source(Protocol):
    """What a loader draws its rows from; they are numbered shard by shard."""

    facts: Mapping[str, Any]
    sizes: Sequence[int]  # rows of each shard

    @property
    def lengths(self) -> Array | None:
        """How long every row is, (N,), where similar ones belong into a batch; None where all are as good."""

    def bytes_of(self, shard: int) -> int:
        """Return what a shard's rows take where they are read from."""

    def batch(self, index: Array) -> dict[str, Tensor]:
        """Return chosen rows as they are learned from."""
