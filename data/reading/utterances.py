"""Rows of speech, of unequal lengths: kept one behind the other, and filled up in a batch to the longest of it.

Shape letters: B rows of a batch, N rows of a split, T samples, S symbols of a text.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.modalities.audio import FULL_SCALE
from data.reading.captioned import Captioned
from data.reading.mapped import Array, Column


class Utterances(Captioned):
    """A split of speech; its rows' lengths are known, so that a loader can put similar ones together."""

    @property
    def lengths(self) -> Array:
        """Samples of every row, (N,)."""
        found: Array = self._columns["places"][:][:, 1]
        return found

    def rows(self, index: Array) -> dict[str, Tensor]:
        """Return chosen rows: `sound` (B, T) int16, `length` (B,), `codes` (B,), `attributes` (B, A).

        Where texts are exchanged, the speaker stays: a row's other attributes are those of its text.
        """
        columns, told = self._columns, self._told(index)
        places = columns["places"].take(index)
        sound = np.zeros((len(index), places[:, 1].max()), np.int16)
        for row, (start, length) in enumerate(places.tolist()):
            sound[row, :length] = columns["samples"][start : start + length]
        attributes = columns["attributes"].take(told).astype(np.int64)
        speaker = self._speaker
        attributes[:, speaker] = columns["attributes"].take(index)[:, speaker]
        return {
            "sound": torch.from_numpy(sound),
            "length": torch.from_numpy(places[:, 1].copy()),
            "codes": torch.from_numpy(columns["codes"].take(told)).long(),
            "attributes": torch.from_numpy(attributes),
        }

    def learned(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `sound` (B, T) float32 in [-1, 1], `length`, `speaker`, `attributes`; `tokens` (B, S), `token_length`.

        T and S are those of the longest row.
        """
        found = {
            "sound": rows["sound"].float().div_(FULL_SCALE),
            "length": rows["length"],
            "speaker": rows["attributes"][:, self._speaker],
            "attributes": rows["attributes"],
        }
        if self._tokens is not None:
            tokens_BS = self._tokens[rows["codes"]]
            found["token_length"] = (tokens_BS != 0).sum(1)
            found["tokens"] = tokens_BS[:, : int(found["token_length"].max())]
        return found

    @property
    def _speaker(self) -> int:
        """Which attribute says who speaks."""
        return [name for name, _ in self.facts["attributes"]].index("speaker")

    @cached_property
    def _columns(self) -> Mapping[str, Column]:
        return self._split.rows_as(make=self._parts).columns

    def _parts(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of one shard after the other, their places counted from the first of all."""
        start = 0
        for table in self._split.tables():
            found = self._arrays(table)
            found["places"][:, 0] += start
            start += len(found["samples"])
            yield found
