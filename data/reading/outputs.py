"""What a trained stage made of every row of a prepared dataset, once, beside the shards: codes, latents, embeddings.

`.outputs/KEY` is a sealed folder with an array a shard, in the shard's order: SPLIT-00000.safetensors. KEY names the
data, the weights and what was asked of them, so nothing in it is ever out of date.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

from data.reading.mapped import Array, Column, DatasetError, mapped
from infra.storage import IntegrityError, verify

FORMAT: Final = 1


def folder_of(prepared: Path, data_identity: str, digest: str, entry: str) -> Path:
    """Return where the outputs lie of an entry of the version with this digest."""
    named = json.dumps([FORMAT, data_identity, digest, entry])
    key = hashlib.sha256(named.encode()).hexdigest()[:32]
    return prepared.parent / ".outputs" / key


def shard_of(folder: Path, split: str, number: int) -> Path:
    """Return the file of one shard's outputs."""
    return folder / f"{split}-{number:05d}.safetensors"


def finished(folder: Path) -> bool:
    """Return whether the outputs are all there, as they were written."""
    try:
        verify(folder)
    except (IntegrityError, OSError):
        return False
    return True


@dataclass(frozen=True)
class Outputs:
    """The outputs for one split.

    Raises:
        DatasetError: they were not made, or of another dataset.
        IntegrityError: they are not what was written.
    """

    folder: Path
    split: str
    sizes: tuple[int, ...]  # samples of each shard
    each: int = 1  # rows that a sample is learned as: of clips perhaps one a frame
    numbers: tuple[int, ...] | None = None  # of these shards; None: from the first one on

    def take(self, index: Array) -> Array:
        """Return the outputs of chosen rows.

        A clip has those of all of its frames (B, F, ...) where they were made of frames; a frame has its clip's.
        """
        made = max(1, len(self._rows) // max(1, sum(self.sizes)))  # a sample
        if made == self.each:
            return self._rows.take(index)
        samples = index // self.each
        if made == 1:
            return self._rows.take(samples)
        return self._rows.take(samples[:, None] * made + np.arange(made))

    @cached_property
    def _rows(self) -> Column:
        """The outputs, as many a sample as the stage that made them has of it, in the split's order."""
        facts = {"dataset": self._facts["dataset"]}
        numbers = self._numbers
        later = f"-{numbers[0]}" if numbers[0] else ""  # of one size, behind those of others
        key = f"{self.folder.name}-{self.split}{later}"
        return mapped(key, facts, self._parts).columns["outputs"]

    @property
    def _numbers(self) -> tuple[int, ...]:
        return self.numbers or tuple(range(len(self.sizes)))

    @property
    def of_captions(self) -> bool:
        """Whether they were made of the captions, so that a row given another one's caption has that one's."""
        return bool(self._facts["of_captions"])

    @cached_property
    def _facts(self) -> Mapping[str, Any]:
        try:
            return verify(self.folder)
        except IntegrityError as error:
            raise DatasetError(f"{error}: train again, they are made anew") from None

    def _parts(self) -> Iterator[Mapping[str, Array]]:
        for number, size in zip(self._numbers, self.sizes, strict=True):
            path = shard_of(self.folder, self.split, number)
            found = load_file(path)["outputs"]
            if len(found) % size:
                raise DatasetError(f"{path} has {len(found)} rows, the shard has {size}")
            yield {"outputs": found}
