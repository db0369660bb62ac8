"""One split of a prepared dataset: shards, each verified before it is parsed, and the rows that are made of them once.

Shape letters: N rows of a split, U different captions, T places, A attributes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data.mapped import Array, Column, DatasetError, Mapped, mapped
from data.modalities import Modality, modality
from data.modalities.text import Record, record_of
from data.outputs import Outputs
from infra.documents import MOST_OF_OURS, read_json
from infra.storage import IntegrityError, sha256_of

Encode: TypeAlias = Callable[[Sequence[str]], Tensor | None]
FORMAT: Final = 1
LAYOUT: Final = 1  # of the rows that are made of shards; another one is made anew
AT_ONCE: Final = 1 << 20  # characters that are made tokens together


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


class Split:
    """A split's shards on disk; of clips as clips or, where `stills` are asked for, as pictures, a row a frame.

    Raises:
        DatasetError: no such folder or split, or nothing in the split.
    """

    def __init__(self, prepared: Path, name: str, *, stills: bool = False) -> None:
        self.folder, self.name, self.header = prepared, name, read_header(prepared)
        splits = self.header["splits"]
        if name not in splits:
            raise DatasetError(
                f"{prepared} has no split {name!r}; choose one of {', '.join(splits)}"
            )
        self.rows: int = splits[name]["rows"]
        self.shards: list[dict[str, Any]] = splits[name]["shards"]
        kind = modality(self.header.get("modality", "image"))
        self.modality = kind.stills() if stills else kind
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

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows of one shard after the other.

        Raises:
            IntegrityError: a shard is not the one that was prepared.
        """
        import pyarrow.parquet as pq

        for shard in self.shards:
            with self._reading(shard) as path:
                content = path.read_bytes()
            self._compare(path, hashlib.sha256(content).hexdigest(), shard)
            yield pq.read_table(pa.BufferReader(content))

    def rows_as(self, *what: Any, make: Callable[[], Iterator[Mapping[str, Array]]]) -> Mapped:
        """Return the split's rows, which `make` made of its tables, by this process or another one before.

        Args:
            what: JSON values; equal ones get equal rows.
            make: yields parts of the columns.

        Raises:
            DatasetError: there is no room for the rows, or their folder cannot be written.
            IntegrityError: a shard is not the one that was prepared, or the rows are not what was written.
        """
        digest = sha256_of(self.folder / "dataset.json")
        named = json.dumps([LAYOUT, digest, self.name, *what])
        stamps = [self._stamp(shard) for shard in self.shards]
        key = hashlib.sha256(named.encode()).hexdigest()[:32]
        found = mapped(key, {"dataset": digest, "shards": stamps}, make)
        if found.facts["shards"] != stamps:  # not the files that the rows were made of
            for shard in self.shards:
                with self._reading(shard) as path:
                    sha256 = sha256_of(path)
                self._compare(path, sha256, shard)
        return found

    def _stamp(self, shard: Mapping[str, Any]) -> list[int]:
        """Return a shard's size and time of change, which tell whether it must be compared again."""
        with self._reading(shard) as path:
            found = path.stat()
        return [found.st_size, found.st_mtime_ns]

    @contextmanager
    def _reading(self, shard: Mapping[str, Any]) -> Iterator[Path]:
        path = self.folder / shard["file"]
        try:
            yield path
        except OSError as error:
            raise IntegrityError(f"cannot read {path}: {error.strerror}; prepare again") from None

    def _compare(self, path: Path, sha256: str, shard: Mapping[str, Any]) -> None:
        if sha256 != shard["sha256"]:
            raise IntegrityError(f"{path} was altered: its sha256 is not dataset.json's")


class Captioned:
    """Rows of a modality's arrays, `tokens` of their captions and `attributes`."""

    def __init__(self, kind: Modality, split: Split, options: Options) -> None:
        self._kind, self._split, self._options = kind, split, options
        self.facts: Mapping[str, Any] = split.facts(options.image_size)
        self._each = kind.rows_a_sample(split.header)
        self.sizes: Sequence[int] = [self._each * shard["rows"] for shard in split.shards]
        self.captions: list[str] = split.header["captions"]
        encode = options.encode
        tokens = encode(self.captions) if encode and any(self.captions) else None
        self._tokens_UT = None if tokens is None else tokens.to(torch.int64)
        self._beside = {
            name: Outputs(
                folder, split.name, tuple(shard["rows"] for shard in split.shards), self._each
            )
            for name, folder in options.beside.items()
        }

    @property
    def lengths(self) -> Array | None:
        """None: rows are of one size."""
        return None

    def bytes_of(self, shard: int) -> int:
        """Return what a shard's rows take where they are read from."""
        row = self._kind.row_bytes(self._split.header, self._options.image_size)
        return self.sizes[shard] * row

    def batch(self, index: Array) -> dict[str, Tensor]:
        """Return chosen rows as they are learned from."""
        found = self.learned(self.rows(index))
        for name, outputs in self._beside.items():
            chosen = self._told(index) if outputs.of_captions else index
            found[name] = torch.from_numpy(outputs.take(chosen))
        return found

    def learned(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what `rows` gave as it is learned from."""
        found = self._kind.batch(self._split.header, rows, self._options.image_size)
        if self._tokens_UT is not None:
            found["tokens"] = self._tokens_UT[rows["codes"]]
        if rows["attributes"].shape[1]:
            found["attributes"] = rows["attributes"]
        return found

    def rows(self, index: Array) -> dict[str, Tensor]:
        """Return chosen rows as they are kept, with `codes` (N,), captions by number, and `attributes` (N, A)."""
        told = self._told(index)
        return {
            name: torch.from_numpy(column.take(told)).long()
            if name in {"codes", "attributes"}
            else torch.from_numpy(column.take(index))
            for name, column in self._columns.items()
        }

    def _told(self, index: Array) -> Array:
        """Return the rows whose captions chosen rows are given."""
        return index if self._others is None else self._others[index]

    @cached_property
    def _columns(self) -> Mapping[str, Column]:
        """The split's rows, opened at first use: facts are asked for more often."""
        size = self._options.image_size
        return self._split.rows_as(
            *(size, *self._kind.view), make=lambda: map(self._arrays, self._split.tables())
        ).columns

    @cached_property
    def _others(self) -> Array | None:
        """The row whose caption each row is given, one of its own shard; None where that is its own."""
        seed, first, found = self._options.shuffle_seed, 0, []
        if seed is None:
            return None
        for shard, size in enumerate(self.sizes):
            found.append(first + np.random.default_rng((seed, shard, 1)).permutation(size))
            first += size
        return np.concatenate(found)

    def _arrays(self, table: pa.Table) -> dict[str, Array]:
        import pyarrow.compute as pc

        header = self._split.header
        codes = pc.index_in(table["caption"], pa.array(self.captions, pa.string()))
        attributes = np.zeros((len(table), len(header["attributes"])), np.int16)
        if attributes.size:
            attributes[:] = pc.list_flatten(table["attributes"]).to_numpy().reshape(len(table), -1)
        known = [name for name, _ in self.facts["attributes"]]
        attributes = attributes[:, [name in known for name in header["attributes"]]]
        return {
            **self._kind.read(header, table, self._options.image_size),
            "codes": codes.to_numpy().astype(np.int32).repeat(self._each),
            "attributes": attributes.repeat(self._each, 0),
        }


class Examples:
    """Rows that a family makes of the split's records, whose tokens are written once.

    Raises:
        DatasetError: the family makes no rows, or the texts have no parts to shuffle.
    """

    def __init__(self, kind: Modality, split: Split, options: Options) -> None:
        self._column, self._split, self._options = kind.column, split, options
        self.facts: Mapping[str, Any] = split.facts(options.image_size)
        self.sizes: Sequence[int] = [split.rows]
        self._rows: Rows | None = None
        if (learner := options.learner) is None:
            return
        tokens = split.rows_as(
            learner.reads, options.shuffle_seed, make=lambda: self._tokens(learner)
        )
        self._rows = learner.examples_of(tokens.columns)
        if not (count := len(self._rows)):
            raise DatasetError(f"no examples in the {split.name} split of {split.folder}")
        self.sizes = [count]

    def records(self) -> Iterator[Record]:
        """Yield the split's records in the order of their source."""
        for table in self._split.tables():
            for text in table[self._column]:
                yield record_of(text.as_py().encode())

    @property
    def lengths(self) -> Array | None:
        """None: the family says how long its rows are."""
        return None

    def bytes_of(self, shard: int) -> int:  # noqa: ARG002 - there is one
        """Return nothing: all rows are shuffled together."""
        return 0

    def batch(self, index: Array) -> dict[str, Tensor]:
        """Return chosen rows."""
        if self._rows is None:
            raise DatasetError(
                f"{self._split.folder} is text: give a loader the family that learns"
            )
        return dict(self._rows.take(index))

    def _tokens(self, learner: Learner) -> Iterator[dict[str, Array]]:
        """Yield the columns of some records after the other, counted from the first of all."""
        records: Iterable[Record] = self.records()
        if (seed := self._options.shuffle_seed) is not None:
            records = _shuffled(list(records), seed, self._split)
        tokens = texts = 0
        for number, part in enumerate(_parts(records)):
            found = dict(learner.tokenized(part))
            head = min(number, 1)  # every part's places begin with 0
            found["texts"] = found["texts"][head:] + tokens
            found["records"] = found["records"][head:] + texts
            tokens, texts = int(found["texts"][-1]), int(found["records"][-1])
            yield found


def open_split(prepared: Path, split: str, options: Options) -> Source:
    """Return the reader of a split.

    Raises:
        DatasetError: no such folder, split or size, or nothing in the split.
        IntegrityError: a shard is not the one that was prepared.
    """
    found = Split(prepared, split, stills=options.stills)
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


def _parts(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield the records, as many together as have a million characters."""
    part, size = list[Record](), 0
    for record in records:
        part.append(record)
        size += sum(len(text) for _, text in record)
        if size >= AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


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
