"""Batches of a prepared dataset for one rank: a pure function of the arguments and the step, so resumable anywhere.

Shape letters: N rows of a split, B rows of a batch, C channels, H and W pixels, T words, A attributes.
A seeded order of every epoch is laid end to end; step s of a global batch G takes the places s*G to (s+1)*G - 1, and
rank r the r-th B of them. So ranks are disjoint, an epoch holds every row once, and the union is any world's.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from infra.storage import IntegrityError

Encode: TypeAlias = Callable[[Sequence[str]], Tensor | None]
Array: TypeAlias = npt.NDArray[Any]
FORMAT: Final = 1
WINDOW_BYTES: Final = 1 << 30  # pixels held at once; a larger split is read window by window


class DatasetError(ValueError):
    """A prepared dataset that cannot be read as asked, in one line with the way out."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Some shards' rows: pixel sums over the downsampled area, caption numbers, attributes."""

    sums: Tensor  # (N, C, H, W) uint8, or int16 or int32 where an area is summed
    codes: Tensor  # (N,) int64, the caption's place in dataset.json's `captions`
    attributes: Tensor  # (N, A) int64


class Loader:
    """This rank's batches of one split.

    Args:
        prepared: the folder with dataset.json.
        split: train, validation or test.
        batch_size: this rank's rows a step.
        rank: which of `world` this is.
        world: how many ranks share a step's rows.
        seed: fixes the order of every epoch.
        image_size: pixels a side, by the mean over areas; None for the dataset's own.
        encode: gives `tokens` for captions; None or a None result for no tokens.
        shuffle_captions: give every picture another picture's caption and attributes (a broken control).
        window_bytes: pixels held at once; whole shards are shuffled where a split is larger.

    Raises:
        DatasetError: no such folder, split or size, or nothing in the split.
        IntegrityError: a shard is not the one that was prepared.
    """

    def __init__(
        self,
        prepared: Path,
        split: str,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        image_size: int | None = None,
        encode: Encode | None = None,
        shuffle_captions: bool = False,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise DatasetError(f"no rows for batch size {batch_size}, rank {rank} of {world}")
        self._source = _Source(prepared, split, image_size, seed if shuffle_captions else None)
        self._batch_size, self._rank, self._world, self._seed = batch_size, rank, world, seed
        self._limit = window_bytes
        self._held: OrderedDict[tuple[int, ...], Rows] = OrderedDict()
        self._order = lru_cache(maxsize=2)(self._order_of)
        captions = self._source.header["captions"]
        tokens = encode(captions) if encode and any(captions) else None
        self._tokens_UT = None if tokens is None else tokens.to(torch.int64)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a network must know: image_size, channels, vocabulary, max_words, attributes."""
        return self._source.facts

    @property
    def rows(self) -> int:
        """How many rows the split has."""
        return self._source.rows

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return step's batch.

        `pixels` (B, C, H, W) float32 in [0, 1]; `tokens` (B, T) int64 where `encode` gave some; `attributes` (B, A)
        int64 where the dataset has any.
        """
        first = (step * self._world + self._rank) * self._batch_size
        return self._rows(first, first + self._batch_size)

    def once(self) -> Iterator[dict[str, Tensor]]:
        """Yield this rank's share of the first epoch, batch by batch: all ranks together see every row exactly once.

        The last batches may be smaller, and a rank may have one batch less than another.
        """
        stride = self._world * self._batch_size
        for first in range(self._rank * self._batch_size, self.rows, stride):
            yield self._rows(first, min(first + self._batch_size, self.rows))

    def _rows(self, first: int, last: int) -> dict[str, Tensor]:
        parts = [self._take(*place) for place in self._places(first, last)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _places(self, first: int, last: int) -> list[tuple[tuple[int, ...], Array]]:
        """Return the rows at the places first to last - 1: (shards of a window, rows in it), in order."""
        found = []
        while first < last:
            epoch, place = divmod(first, self.rows)
            window = 0
            windows = self._order(epoch)
            while place >= len(windows[window][1]):
                place -= len(windows[window][1])
                window += 1
            shards, order = windows[window]
            found.append((shards, order[place : place + last - first]))
            first += len(found[-1][1])
        return found

    def _order_of(self, epoch: int) -> list[tuple[tuple[int, ...], Array]]:
        """Return the epoch's windows: shards in random order, and a random order of their rows."""
        generator = np.random.default_rng((self._seed, epoch))
        windows: list[list[int]] = []
        space = 0
        for shard in generator.permutation(len(self._source.shards)).tolist():
            size = self._source.bytes_of(shard)
            if not windows or size > space:
                windows.append([])
                space = self._limit
            windows[-1].append(shard)
            space -= size
        found = []
        for window in windows:
            rows = sum(self._source.shards[shard]["rows"] for shard in window)
            found.append((tuple(sorted(window)), generator.permutation(rows)))
        return found

    def _take(self, shards: tuple[int, ...], places: Array) -> dict[str, Tensor]:
        rows = self._window(shards)
        index = torch.from_numpy(places)
        batch = {"pixels": self._source.pixels(rows.sums[index])}
        if self._tokens_UT is not None:
            batch["tokens"] = self._tokens_UT[rows.codes[index]]
        if rows.attributes.shape[1]:
            batch["attributes"] = rows.attributes[index]
        return batch

    def _window(self, shards: tuple[int, ...]) -> Rows:
        if shards not in self._held:
            while len(self._held) > 1:  # the one before may still lend the head of a batch
                self._held.popitem(last=False)
            self._held[shards] = self._source.read(shards)
        return self._held[shards]


def facts_of(prepared: Path, image_size: int | None = None) -> dict[str, Any]:
    """Return what a network that learns the dataset at a size must know, as `Loader.facts`.

    Raises:
        DatasetError: no such folder or size.
    """
    return _Source(prepared, "train", image_size, None).facts


def everything(
    prepared: Path, split: str, image_size: int | None = None
) -> tuple[Tensor, list[str], Tensor]:
    """Return a whole split in its stored order: pixels (N, C, H, W) float32 in [0, 1], N captions, attributes (N, A).

    Raises:
        DatasetError: no such folder, split or size.
        IntegrityError: a shard is not the one that was prepared.
    """
    source = _Source(prepared, split, image_size, None)
    rows = source.read(tuple(range(len(source.shards))))
    captions = source.header["captions"]
    return (
        source.pixels(rows.sums),
        [captions[code] for code in rows.codes.tolist()],
        rows.attributes,
    )


class _Source:
    """One split's shards on disk, read whole, verified and downsampled."""

    def __init__(
        self, prepared: Path, split: str, image_size: int | None, shuffle_seed: int | None
    ) -> None:
        self.folder, self.header, self.shuffle_seed = prepared, read_header(prepared), shuffle_seed
        splits = self.header["splits"]
        if split not in splits:
            raise DatasetError(
                f"{prepared} has no split {split!r}; choose one of {', '.join(splits)}"
            )
        self.rows: int = splits[split]["rows"]
        self.shards: list[dict[str, Any]] = splits[split]["shards"]
        if not self.rows:
            raise DatasetError(f"the {split} split of {prepared} is empty: prepare more pictures")
        side: int = self.header["image_size"]
        self.size = image_size or side
        self.area, rest = divmod(side, self.size)
        if rest:
            raise DatasetError(
                f"image_size {self.size} does not divide the dataset's {side} pixels a side"
            )

        largest = 255 * self.area**2
        self.dtype = np.dtype(np.uint8 if self.area == 1 else np.min_scalar_type(-largest))

    @property
    def facts(self) -> dict[str, Any]:
        attributes = self.header["attributes"].items()
        return {
            "image_size": self.size,
            "channels": self.header["channels"],
            "vocabulary": tuple(self.header["vocabulary"]),
            "max_words": self.header["max_words"],
            "attributes": tuple((name, tuple(values)) for name, values in attributes),
        }

    def bytes_of(self, shard: int) -> int:
        picture: int = self.header["channels"] * self.size * self.size * self.dtype.itemsize
        rows: int = self.shards[shard]["rows"]
        return rows * picture

    def pixels(self, sums: Tensor) -> Tensor:
        return sums.to(torch.float32).div_(255 * self.area * self.area)

    def read(self, shards: Sequence[int]) -> Rows:
        parts = [self._read(shard) for shard in shards]
        return Rows(
            torch.cat([part.sums for part in parts]),
            torch.cat([part.codes for part in parts]),
            torch.cat([part.attributes for part in parts]),
        )

    def _read(self, shard: int) -> Rows:
        table = self._table(shard)
        codes = pc.index_in(table["caption"], pa.array(self.header["captions"], pa.string()))
        attributes = np.zeros((len(table), len(self.header["attributes"])), np.int64)
        if attributes.size:
            attributes[:] = pc.list_flatten(table["attributes"]).to_numpy().reshape(len(table), -1)
        rows = torch.arange(len(table))
        if self.shuffle_seed is not None:
            generator = np.random.default_rng((self.shuffle_seed, shard, 1))
            rows = torch.from_numpy(generator.permutation(len(table)))
        codes_N = torch.from_numpy(codes.to_numpy().astype(np.int64))
        return Rows(self._sums(table), codes_N[rows], torch.from_numpy(attributes)[rows])

    def _table(self, shard: int) -> pa.Table:
        facts = self.shards[shard]
        path = self.folder / facts["file"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise IntegrityError(f"cannot read {path}: {error.strerror}; prepare again") from None
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise IntegrityError(f"{path} was altered: its sha256 is not dataset.json's")
        return pq.read_table(pa.BufferReader(content))

    def _sums(self, table: pa.Table) -> Tensor:
        side, channels, area = self.header["image_size"], self.header["channels"], self.area
        x_NHWC = np.frombuffer(b"".join(table["pixels"].to_pylist()), np.uint8).reshape(
            len(table), side, side, channels
        )
        if area > 1:
            split = (len(table), self.size, area, self.size, area, channels)
            x_NHWC = x_NHWC.reshape(split).sum(axis=(2, 4), dtype=self.dtype)
        return torch.from_numpy(np.array(x_NHWC.transpose(0, 3, 1, 2), order="C"))


def read_header(prepared: Path) -> dict[str, Any]:
    """Return dataset.json of a prepared folder.

    Raises:
        DatasetError: never prepared, or written by a newer version.
    """
    path = prepared / "dataset.json"
    try:
        header: dict[str, Any] = json.loads(path.read_bytes())
    except OSError:
        raise DatasetError(
            f"{prepared} holds no prepared dataset: run `atelier data prepare {prepared.name}`"
        ) from None
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error}): prepare again") from None
    if header.get("format") != FORMAT:
        raise DatasetError(f"{path} has format {header.get('format')}, this version reads {FORMAT}")
    return header
