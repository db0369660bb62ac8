"""Rows that a family makes of the records of a text, whose tokens are written once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from torch import Tensor

from data.modalities.text import Record, record_of
from data.reading.mapped import Array, DatasetError
from data.reading.sources import Learner, Options, Rows
from data.reading.splits import Split

AT_ONCE: Final = 1 << 20  # characters that are made tokens together


class Examples:
    """Rows that a family makes of the split's records, whose tokens are written once.

    Raises:
        DatasetError: the family makes no rows, or the texts have no parts to shuffle.
    """

    def __init__(self, split: Split, options: Options) -> None:
        self._column, self._split, self._options = split.modality.column, split, options
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
