"""What a sample is: MODALITIES is the table, a file each.

A modality says which facts one sample has, which expectations hold for them, what of it a shard keeps, and how the
shard is read. Everything else (makers, stages, splits, report, batches) is the same for all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, ClassVar, Final

import numpy.typing as npt
import pyarrow as pa

from data.rules import Rule

MODALITIES: Final[Mapping[str, str]] = {
    "image": "data.modalities.image:Image",
    "text": "data.modalities.text:Text",
    "audio": "data.modalities.audio:Audio",
    "clip": "data.modalities.clip:Clip",
    "speech": "data.modalities.speech:Speech",
}


class SampleError(ValueError):
    """A sample that cannot be used; the message is the reason, in a few words."""


class Modality(ABC):
    """What is particular to pictures, to text, to sound, to clips or to speech.

    `made` is what a maker said of the dataset (made.json) and `header` what dataset.json says; both hold the
    modality's settings.
    """

    name: ClassVar[str]
    noun: ClassVar[str]  # what people call a sample
    column: ClassVar[str]  # of a shard, with the sample's bytes
    kind: ClassVar[pa.DataType] = pa.binary()  # of that column
    facts: ClassVar[Sequence[pa.Field]]  # what `look` finds, beside what every sample has
    settings: ClassVar[Sequence[str]]  # of made.json, which dataset.json repeats
    ordered: ClassVar[bool] = False  # rows keep the source's order; else that of their hashes
    repeats: ClassVar[float] = 0.0  # the share of repeated samples that is left out, not refused
    view: ClassVar[tuple[str, ...]] = ()  # of the samples, where they are read in another way

    @abstractmethod
    def look(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return the facts of one sample, decoded to its last byte; `digest` names what it shows.

        Raises:
            SampleError: it cannot be decoded.
        """

    def groups(
        self,
        column: Callable[[str], list[Any]],  # noqa: ARG002 - none in most
        made: Mapping[str, Any],  # noqa: ARG002
    ) -> list[str] | None:
        """Return a name a sample, where of every name some sample must be learned from; arguments as of `relate`."""
        return None

    def relate(
        self,
        rows: pa.Table,  # noqa: ARG002 - nothing in most
        column: Callable[[str], list[Any]],  # noqa: ARG002
        made: Mapping[str, Any],  # noqa: ARG002
    ) -> dict[str, list[Any]]:
        """Return the facts that need all samples, by column, once the rows' splits are known.

        Args:
            rows: the facts so far.
            column: gives a column of the samples as they were made: `content`, `attributes`.
            made: what their maker said.
        """
        return {}

    @abstractmethod
    def rules(self, made: Mapping[str, Any]) -> list[Rule]:
        """Return the expectations on these facts."""

    @abstractmethod
    def pack(self, content: bytes, made: Mapping[str, Any]) -> bytes:
        """Return what a shard keeps of an accepted sample."""

    @abstractmethod
    def summary(self, rows: pa.Table, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return what dataset.json says of the training split's rows."""

    @abstractmethod
    def example(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return a sample for the report: {"picture": PNG}, {"strip": PNG}, {"text"} or {"sound": WAV}.

        Raises:
            SampleError: it cannot be decoded.
        """

    @abstractmethod
    def network_facts(self, header: Mapping[str, Any], size: int | None) -> dict[str, Any]:
        """Return what a network must know of the dataset, learned at `size` pixels a side if it has pixels.

        Raises:
            ValueError: the dataset cannot be learned at that size.
        """

    def stills(self) -> "Modality":
        """Return how a family of pictures reads the samples: clips by their single frames."""
        return self

    def rows_a_sample(self, header: Mapping[str, Any]) -> int:  # noqa: ARG002 - one in most
        """Return as how many rows a sample is learned."""
        return 1

    def row_bytes(self, header: Mapping[str, Any], size: int | None) -> int:
        """Return how many bytes a row takes in memory."""
        raise NotImplementedError

    def read(
        self, header: Mapping[str, Any], rows: pa.Table, size: int | None
    ) -> dict[str, npt.NDArray[Any]]:
        """Return a shard's rows as arrays of one row a sample, as they are held in memory."""
        raise NotImplementedError

    def batch(
        self, header: Mapping[str, Any], rows: Mapping[str, Any], size: int | None
    ) -> dict[str, Any]:
        """Return chosen rows of `read`, as tensors, in the units that are learned from."""
        raise NotImplementedError


@lru_cache(maxsize=8)
def modality(name: str) -> Modality:
    """Return a modality by its name.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in MODALITIES:
        raise ValueError(f"unknown modality {name!r}; choose one of {', '.join(MODALITIES)}")
    module, _, attribute = MODALITIES[name].partition(":")
    found: Modality = getattr(import_module(module), attribute)()
    return found
