"""One split of a prepared dataset, read shard by shard, each verified before it is parsed.

Shape letters: N rows of a split, U different captions, T places, A attributes.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from data.modalities import Modality, modality
from data.modalities.text import Record, record_of
from infra.documents import MOST_OF_OURS, read_json
from infra.storage import IntegrityError

Encode: TypeAlias = Callable[[Sequence[str]], Tensor | None]
MakeExamples: TypeAlias = Callable[[Sequence[Record]], Mapping[str, Tensor]]
FORMAT: Final = 1


class DatasetError(ValueError):
    """A prepared dataset that cannot be read as asked, in one line with the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a split is read; see `Loader`."""

    image_size: int | None = None
    encode: Encode | None = None
    examples: MakeExamples | None = None
    shuffle_seed: int | None = None


class Source(Protocol):
    """What a loader draws its rows from; a window is some of the shards, read together."""

    facts: Mapping[str, Any]
    sizes: Sequence[int]  # rows of each shard

    def bytes_of(self, shard: int) -> int:
        """Return what a shard takes in memory."""

    def read(self, shards: Sequence[int]) -> dict[str, Tensor]:
        """Return the shards' rows, one after the other."""

    def batch(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return chosen rows of `read` as they are learned from."""


class Split:
    """A split's shards on disk.

    Raises:
        DatasetError: no such folder or split, or nothing in the split.
    """

    def __init__(self, prepared: Path, name: str) -> None:
        self.folder, self.name, self.header = prepared, name, read_header(prepared)
        splits = self.header["splits"]
        if name not in splits:
            raise DatasetError(
                f"{prepared} has no split {name!r}; choose one of {', '.join(splits)}"
            )
        self.rows: int = splits[name]["rows"]
        self.shards: list[dict[str, Any]] = splits[name]["shards"]
        self.modality = modality(self.header.get("modality", "image"))
        if not self.rows:
            raise DatasetError(
                f"the {name} split of {prepared} is empty: prepare more {self.modality.noun}s"
            )

    def facts(self, image_size: int | None) -> dict[str, Any]:
        """Return what a network must know.

        Raises:
            DatasetError: the dataset cannot be learned at that size.
        """
        try:
            return self.modality.network_facts(self.header, image_size)
        except ValueError as error:
            raise DatasetError(str(error)) from None

    def table(self, shard: int) -> pa.Table:
        """Return a shard's rows.

        Raises:
            IntegrityError: it is not the one that was prepared.
        """
        facts = self.shards[shard]
        path = self.folder / facts["file"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise IntegrityError(f"cannot read {path}: {error.strerror}; prepare again") from None
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise IntegrityError(f"{path} was altered: its sha256 is not dataset.json's")
        return pq.read_table(pa.BufferReader(content))


class Captioned:
    """Rows of a modality's arrays, `tokens` of their captions and `attributes`."""

    def __init__(self, kind: Modality, split: Split, options: Options) -> None:
        self._kind, self._split, self._options = kind, split, options
        self.facts: Mapping[str, Any] = split.facts(options.image_size)
        self.sizes: Sequence[int] = [shard["rows"] for shard in split.shards]
        self.captions: list[str] = split.header["captions"]
        encode = options.encode
        tokens = encode(self.captions) if encode and any(self.captions) else None
        self._tokens_UT = None if tokens is None else tokens.to(torch.int64)

    def bytes_of(self, shard: int) -> int:
        """Return what a shard takes in memory."""
        row = self._kind.row_bytes(self._split.header, self._options.image_size)
        return self.sizes[shard] * row

    def read(self, shards: Sequence[int]) -> dict[str, Tensor]:
        """Return the modality's rows with `codes` (N,), captions by number, and `attributes` (N, A)."""
        parts = [self._read(shard) for shard in shards]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _read(self, shard: int) -> dict[str, Tensor]:
        header, table = self._split.header, self._split.table(shard)
        codes = pc.index_in(table["caption"], pa.array(self.captions, pa.string()))
        attributes = np.zeros((len(table), len(header["attributes"])), np.int64)
        if attributes.size:
            attributes[:] = pc.list_flatten(table["attributes"]).to_numpy().reshape(len(table), -1)
        rows = torch.arange(len(table))
        if self._options.shuffle_seed is not None:
            generator = np.random.default_rng((self._options.shuffle_seed, shard, 1))
            rows = torch.from_numpy(generator.permutation(len(table)))
        arrays = self._kind.read(header, table, self._options.image_size)
        codes_N = torch.from_numpy(codes.to_numpy().astype(np.int64))
        return {
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
            "codes": codes_N[rows],
            "attributes": torch.from_numpy(attributes)[rows],
        }

    def batch(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return chosen rows as they are learned from."""
        found = self._kind.batch(self._split.header, rows, self._options.image_size)
        if self._tokens_UT is not None:
            found["tokens"] = self._tokens_UT[rows["codes"]]
        if rows["attributes"].shape[1]:
            found["attributes"] = rows["attributes"]
        return found


class Examples:
    """Rows of the tensors that a family made of the split's records, all in memory.

    Raises:
        DatasetError: the family's tensors are not of one length, or the texts have no parts to shuffle.
    """

    def __init__(self, kind: Modality, split: Split, options: Options) -> None:
        self._column, self._split = kind.column, split
        self.facts: Mapping[str, Any] = split.facts(options.image_size)
        self._tensors: Mapping[str, Tensor] | None = None
        self.sizes: Sequence[int] = [split.rows]
        if options.examples is None:
            return
        found = self.records()
        if options.shuffle_seed is not None:
            found = _shuffled(found, options.shuffle_seed, split)
        self._tensors = options.examples(found)
        lengths = {name: len(tensor) for name, tensor in self._tensors.items()}
        if len(set(lengths.values())) != 1 or not min(lengths.values()):
            raise DatasetError(
                f"no examples in the {split.name} split of {split.folder}: {lengths or 'no tensors'}"
            )
        self.sizes = [max(lengths.values())]

    def records(self) -> list[Record]:
        """Return the split's records in the order of their source."""
        tables = [self._split.table(shard) for shard in range(len(self._split.shards))]
        return [
            record_of(text.encode()) for table in tables for text in table[self._column].to_pylist()
        ]

    def bytes_of(self, shard: int) -> int:  # noqa: ARG002 - there is one
        """Return nothing: they are in memory already."""
        return 0

    def read(self, shards: Sequence[int]) -> dict[str, Tensor]:  # noqa: ARG002 - there is one
        """Return all tensors."""
        if self._tensors is None:
            raise DatasetError(
                f"{self._split.folder} is text: give a loader the family's `examples`"
            )
        return dict(self._tensors)

    def batch(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return chosen rows as they are."""
        return dict(rows)


def open_split(prepared: Path, split: str, options: Options) -> Source:
    """Return the reader of a split.

    Raises:
        DatasetError: no such folder, split or size, or nothing in the split.
        IntegrityError: a shard is not the one that was prepared.
    """
    found = Split(prepared, split)
    return found.modality.source(found, options)


def read_header(prepared: Path) -> dict[str, Any]:
    """Return dataset.json of a prepared folder.

    Raises:
        DatasetError: never prepared, or written by a newer version.
    """
    path = prepared / "dataset.json"
    try:
        header: dict[str, Any] = read_json(path, most=MOST_OF_OURS)
    except OSError:
        raise DatasetError(
            f"{prepared} holds no prepared dataset: run `atelier data prepare {prepared.name}`"
        ) from None
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error}): prepare again") from None
    if header.get("format") != FORMAT:
        raise DatasetError(f"{path} has format {header.get('format')}, this version reads {FORMAT}")
    return header


def _shuffled(records: Sequence[Record], seed: int, split: Split) -> list[Record]:
    """Return the records, each with the last text of another: the target of a pair, the last answer of a dialogue."""
    if any(len(record) < 2 for record in records):
        raise DatasetError(
            f"{split.folder} is plain text: it has no captions, targets or answers to shuffle"
        )
    places = np.random.default_rng((seed, 1)).permutation(len(records)).tolist()
    return [
        (*record[:-1], records[place][-1]) for record, place in zip(records, places, strict=True)
    ]
