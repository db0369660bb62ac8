"""Rows that have a caption: pictures, clips and sounds, a tensor row a sample or several.

Shape letters: N rows of a split, U different captions of the dataset, T words, A attributes.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data.reading.mapped import Array, Column
from data.reading.outputs import Outputs
from data.reading.sources import Options
from data.reading.splits import Split


class Captioned:
    """Rows of a modality's arrays, `tokens` of their captions and `attributes`."""

    def __init__(self, split: Split, options: Options) -> None:
        kind = split.modality
        self._kind, self._split, self._options = kind, split, options
        self.facts: Mapping[str, Any] = split.facts(options.image_size)
        self._each = kind.rows_a_sample(split.header)
        self.sizes: Sequence[int] = [self._each * shard["rows"] for shard in split.shards]
        self.captions: list[str] = split.header["captions"]
        self._beside = {
            name: Outputs(
                folder,
                split.name,
                tuple(shard["rows"] for shard in split.shards),
                self._each,
                tuple(split.numbers),
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
        if self._tokens is not None:
            found["tokens"] = self._tokens[rows["codes"]]
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
    def _tokens(self) -> Tensor | None:
        """Tokens (U, T) of the split's own captions, encoded at the first batch; other captions' rows are 0."""
        encode = self._options.encode
        if encode is None or not any(self.captions):
            return None
        codes = np.unique(self._columns["codes"][:])
        tokens = encode([self.captions[code] for code in codes])
        if tokens is None:
            return None
        found = torch.zeros(len(self.captions), *tokens.shape[1:], dtype=torch.int64)
        found[torch.from_numpy(codes).long()] = tokens.to(torch.int64)
        return found

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
