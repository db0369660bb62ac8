"""The rows of a source in a seeded order for every epoch, laid end to end, as any place of it is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from torch import Tensor

from data.reading.mapped import Array
from data.reading.sources import Source

POOL: Final = 16  # batches whose rows are shared out by their lengths


@dataclass(frozen=True, slots=True)
class Window:
    """Shards whose rows are shuffled together: what of a large split is read often at a time."""

    shards: tuple[int, ...]
    rows: int
    state: Mapping[str, Any]  # of the generator that draws their order


class Order:
    """The endless order of a source's rows.

    Args:
        source: whose.
        size: rows of a batch, of all ranks.
        seed: fixes the order of every epoch.
        window_bytes: bytes of rows shuffled together; where there are more, some shards come after the other.
    """

    def __init__(self, source: Source, size: int, seed: int, window_bytes: int) -> None:
        self.source, self.rows = source, sum(source.sizes)
        self._size, self._seed, self._limit = size, seed, window_bytes
        # the one before may end in this batch
        self._windows = lru_cache(maxsize=2)(self._windows_of)
        self._order = lru_cache(maxsize=2)(self._order_of)

    def batch(self, first: int, last: int) -> dict[str, Tensor]:
        """Return the rows at the places first to last - 1."""
        found = []
        while first < last:
            epoch, place = divmod(first, self.rows)
            window = 0
            while place >= self._windows(epoch)[window].rows:
                place -= self._windows(epoch)[window].rows
                window += 1
            found.append(self._order(epoch, window)[place : place + last - first].astype(np.int64))
            first += len(found[-1])
        return self.source.batch(np.concatenate(found))

    def _windows_of(self, epoch: int) -> list[Window]:
        """Return the epoch's shards in random order, as many together as there is room for.

        One generator draws that order, and then the order of every window's rows. Only its states are kept.
        """
        sizes, generator = self.source.sizes, np.random.default_rng((self._seed, epoch))
        windows: list[list[int]] = []
        space = 0
        for shard in generator.permutation(len(sizes)).tolist():
            size = self.source.bytes_of(shard)
            if not windows or size > space:
                windows.append([])
                space = self._limit
            windows[-1].append(shard)
            space -= size
        found = list[Window]()
        for shards in windows:
            if found:
                generator.permutation(found[-1].rows)  # the next window's begins after it
            rows = sum(sizes[shard] for shard in shards)
            found.append(Window(tuple(sorted(shards)), rows, generator.bit_generator.state))
        return found

    def _order_of(self, epoch: int, window: int) -> Array:
        """Return a window's rows in the epoch's order, by their numbers in the split."""
        found, generator = self._windows(epoch)[window], np.random.default_rng()
        generator.bit_generator.state = found.state
        ends = np.cumsum(self.source.sizes)
        kind = np.min_scalar_type(ends[-1])  # a large split has many
        rows = [
            np.arange(ends[shard] - self.source.sizes[shard], ends[shard], dtype=kind)
            for shard in found.shards
        ]
        order = np.concatenate(rows)[generator.permutation(found.rows)]
        if (lengths := self.source.lengths) is None:
            return order
        before = sum(one.rows for one in self._windows(epoch)[:window])
        return bucketed(order, lengths[order], self._size, epoch * self.rows + before, generator)


def bucketed(
    order: Array, lengths: Array, size: int, first: int, generator: np.random.Generator
) -> Array:
    """Return rows in an order in which those of a batch are of similar lengths.

    Of so many rows as POOL batches have, drawn at random, the shortest make a batch, the next ones another, and so on;
    the batches come in random order. Rows that share a batch with another epoch's or window's stay as they are.

    Args:
        order: the rows, at random.
        lengths: of these.
        size: rows of a batch, of all ranks.
        first: the place of the first row in the order of all epochs, in which batches begin at multiples of `size`.
        generator: draws the order of the batches.
    """
    head = min(-first % size, len(order))
    whole = (len(order) - head) // size
    pools = [
        range(head + start * size, head + min(start + POOL, whole) * size)
        for start in range(0, whole, POOL)
    ]
    places = [pool.start + lengths[pool.start : pool.stop].argsort(kind="stable") for pool in pools]
    batches = [part.reshape(-1, size) for part in places]
    if batches:
        inner = np.concatenate(batches)[generator.permutation(whole)].reshape(-1)
        order[head : head + whole * size] = order[inner]
    return order
