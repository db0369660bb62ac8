"""Rows of tokens, cut from columns that may lie on disk when they are asked for.

Shape letters: B rows of a batch, N texts, R records, T tokens or places.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from models.family import Batch, Columns, Examples
from models.parts.tokens import ASSISTANT, EOS, PAD, Tokenizer

Array: TypeAlias = npt.NDArray[Any]
NOTHING: Final = -1  # after a row's end, where <pad> could be a token


def named(kind: str, words: Tokenizer) -> str:
    """Return what names the tokens of records of a kind; another number where the same ones are kept otherwise."""
    return f"{kind}-1-{words.sha256}"


def columns(records: Sequence[Sequence[Sequence[int]]], words: Tokenizer) -> Columns:
    """Return records, each some texts of tokens, as arrays; see `models.family.Columns`."""
    texts = list(chain.from_iterable(records))
    kind = np.uint16 if words.size <= 1 << 16 else np.uint32
    return {
        "tokens": np.fromiter(chain.from_iterable(texts), kind, sum(map(len, texts))),
        "texts": _places(map(len, texts)),
        "records": _places(map(len, records)),
    }


def _places(lengths: Iterable[int] | Array) -> Array:
    """Return where each of these lengths begins, and where the last one ends."""
    known = lengths if isinstance(lengths, np.ndarray) else np.fromiter(lengths, np.int64)
    return np.concatenate([[0], np.cumsum(known, dtype=np.int64)])


def laid(tokens: Any, begins_B: Array, ends_B: Array, width: int, fill: int) -> Array:
    """Return the tokens of each row, from its beginning to before its end, as (B, width) int64, `fill` after them."""
    place_BT = begins_B[:, None] + np.arange(width)
    if len(begins_B) and (begins_B.min() < 0 or begins_B.max() + width > len(tokens)):
        token_BT = tokens.take(place_BT.clip(0, max(0, len(tokens) - 1)))
    else:
        token_BT = tokens.take(place_BT)
    if (ends_B - begins_B == width).all():
        whole_BT: Array = token_BT.astype(np.int64)
        return whole_BT
    return np.where(place_BT < ends_B[:, None], token_BT, np.int64(fill))


class Windows(Examples):
    """`tokens` (B, context + 1) of documents as one stream, `<eos>` before, between and after them.

    A window begins `stride` tokens after the one before it; the last one is filled up with -1. Where windows overlap,
    `fresh` (B, context) says which targets stand in none before.
    """

    def __init__(self, found: Columns, context: int, stride: int) -> None:
        self._tokens = found["tokens"]  # each document's <eos> behind it
        self._context, self._stride = context, stride

    def __len__(self) -> int:
        """Return how many windows the stream has."""
        return 1 - (-max(0, len(self._tokens) - self._context) // self._stride)

    def take(self, index_B: Array) -> Batch:
        """Return windows."""
        begins_B, width = index_B * self._stride - 1, self._context + 1
        ends_B = np.minimum(begins_B + width, len(self._tokens))
        tokens_BT = laid(self._tokens, begins_B, ends_B, width, NOTHING)
        tokens_BT[begins_B < 0, 0] = EOS  # which the stream begins with
        found = {"tokens": torch.from_numpy(tokens_BT)}
        if self._stride < self._context:
            fresh = torch.ones(len(index_B), self._context, dtype=torch.bool)
            fresh[torch.from_numpy(index_B > 0), : self._context - self._stride] = False
            found["fresh"] = fresh
        return found


class Dialogues(Examples):
    """`tokens` (B, T + 1) of a dialogue a row, -1 after its end, and `answer` (B, T) bool.

    `answer` is true where the next token is the assistant's: its text and the `<eos>` after it. A dialogue that is
    longer than the context loses its oldest exchanges and keeps what the system says: an answer that is learned then
    has its question in sight.

    Raises:
        ValueError: a dialogue whose last exchange alone is longer than the context.
    """

    def __init__(self, found: Columns, context: int) -> None:
        self._tokens, self._texts, self._records = found["tokens"], found["texts"], found["records"]
        self._most = context + 1
        places = self._texts[:][self._records[:]]
        lengths = places[1:] - places[:-1]
        long = np.flatnonzero(lengths > self._most)
        self.shortened = len(long)
        kept = [self._length(record) for record in long.tolist()]
        self._width = max([int(lengths[lengths <= self._most].max(initial=0)), *kept])

    def __len__(self) -> int:
        """Return how many dialogues there are."""
        return len(self._records) - 1

    def take(self, index_B: Array) -> Batch:
        """Return dialogues."""
        place_B2 = self._texts.take(self._records.take(index_B[:, None] + np.arange(2)))
        begins_B, ends_B = place_B2.T
        tokens_BT = laid(self._tokens, begins_B, ends_B, self._width, NOTHING)
        for row in np.flatnonzero(ends_B - begins_B > self._most).tolist():
            head, rest, end = self._spans(int(index_B[row]))
            kept = np.concatenate([self._tokens[head], self._tokens[rest:end]])
            tokens_BT[row, : len(kept)], tokens_BT[row, len(kept) :] = kept, NOTHING
        said_BT = (tokens_BT == ASSISTANT).astype(np.int8) - (tokens_BT == EOS)
        answer_BT = said_BT.cumsum(1, np.int8)[:, :-1] > 0  # the sign was read, the end not yet
        return {"tokens": torch.from_numpy(tokens_BT), "answer": torch.from_numpy(answer_BT)}

    def _spans(self, record: int) -> tuple[slice, int, int]:
        """Return which tokens are <bos> and what the system says, from where on exchanges are kept, and their end."""
        first, last = self._records[record : record + 2].tolist()
        places = self._texts[first : last + 1].tolist()  # of <bos>, and of turns
        head = 1 + len(places) % 2  # exchanges have two turns each
        rest, room = head, self._most - (places[head] - places[0])
        while places[-1] - places[rest] > room and rest + 4 < len(places):
            rest += 2
        return slice(places[0], places[head]), places[rest], places[-1]

    def _length(self, record: int) -> int:
        head, rest, end = self._spans(record)
        length: int = head.stop - head.start + end - rest
        if length > self._most:
            raise ValueError(
                f"the last exchange of record {record} has {length} tokens, but a context of {self._most - 1}"
                f" has room for {self._most}: set a longer context or leave the record out"
            )
        return length


class Pairs(Examples):
    """`source` (B, S), ending in <eos>, and `target` (B, T + 1), from <bos> to <eos>; <pad> after them.

    Pairs that have more tokens than these are left out.

    Raises:
        ValueError: every pair is too long.
    """

    def __init__(self, found: Columns, max_source: int, max_target: int) -> None:
        self._tokens, self._texts = found["tokens"], found["texts"]
        lengths = np.diff(self._texts[:])
        source, target = lengths[::2], lengths[1::2]
        fits = (source <= max_source) & (target <= max_target + 1)
        self.pairs, self._count = len(source), int(fits.sum())
        self._kept = None if fits.all() else np.flatnonzero(fits)
        if not self._count:
            raise ValueError(
                f"none of {self.pairs} pairs has less than {max_source} and {max_target} tokens:"
                " raise max_source and max_target"
            )
        self._widths = int(source[fits].max()), int(target[fits].max())

    def __len__(self) -> int:
        """Return how many pairs are short enough."""
        return self._count

    def take(self, index_B: Array) -> Batch:
        """Return pairs."""
        pair_B = index_B if self._kept is None else self._kept[index_B]
        a_B, b_B, c_B = self._texts.take(2 * pair_B + np.arange(3)[:, None])
        return {
            "source": torch.from_numpy(laid(self._tokens, a_B, b_B, self._widths[0], PAD)),
            "target": torch.from_numpy(laid(self._tokens, b_B, c_B, self._widths[1], PAD)),
        }


class Neighbours(Examples):
    """Every two neighbouring sentences: `first` (B, P), `second` (B, Q) and the number of their `document` (B,).

    Of each so many tokens are kept.

    Raises:
        ValueError: no document has two.
    """

    def __init__(self, found: Columns, most: int) -> None:
        self._tokens, self._texts, self._most = found["tokens"], found["texts"], most
        self._records = found["records"]
        records, lengths = self._records[:], np.diff(self._texts[:])
        self.sentences, self.cut = len(lengths), int((lengths > most).sum())
        self._before = _places(np.maximum(np.diff(records) - 1, 0))  # pairs before each document
        if not len(self):
            raise ValueError(
                f"none of {len(records) - 1} documents has two lines: a sentence is a line, and bert learns from"
                " neighbours"
            )
        some = np.diff(records) > 0
        widths = []
        for places in (records[1:][some] - 1, records[:-1][some]):  # last are no first, and so on
            others = np.ones(len(lengths), bool)
            others[places] = False
            widths.append(min(most, int(lengths[others].max())))
        self._widths = widths

    def __len__(self) -> int:
        """Return how many pairs of neighbours there are."""
        return int(self._before[-1])

    def take(self, index_B: Array) -> Batch:
        """Return neighbours."""
        document_B = np.searchsorted(self._before, index_B, side="right") - 1
        first_B = self._records.take(document_B) + index_B - self._before[document_B]
        a_B, b_B, c_B = self._texts.take(first_B + np.arange(3)[:, None])
        most, (first, second) = self._most, self._widths
        first_BT = laid(self._tokens, a_B, np.minimum(b_B, a_B + most), first, PAD)
        second_BT = laid(self._tokens, b_B, np.minimum(c_B, b_B + most), second, PAD)
        return {
            "first": torch.from_numpy(first_BT),
            "second": torch.from_numpy(second_BT),
            "document": torch.from_numpy(document_B),
        }
