"""How likely a text is by what follows what in real ones: interpolated n-grams, counted and not learned.

It knows nothing of a network, so it tells of a sampler what the network's own likelihood cannot.

Shape letters: T tokens of all texts in a row, V tokens of the vocabulary. Tokens are int64; likelihoods in nats.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]
NOTHING: Final = 0  # what stands before a text


@dataclass(frozen=True, slots=True)
class _Counted:
    """What came how often: n-grams as one number each, in order, and what stands before their last tokens."""

    grams: Array
    times: Array
    befores: Array
    seen: Array  # how often each stood before a token
    kinds: Array  # and before how many different ones


class NGrams:
    """Witten & Bell's (1991) estimate: p(w | h) = (c(h w) + k(h) p(w | h')) / (c(h) + k(h)).

    h are the tokens before w, order - 1 at most, h' one less; k(h) is how many different tokens followed h. Without any
    before it, and never seen, every token is as likely.

    Example:
        >>> counted = NGrams([[1, 2, 1, 2, 1, 2]], size=3)
        >>> counted.nats([1, 2]) < counted.nats([2, 2])
        True
    """

    def __init__(self, texts: Iterable[Sequence[int]], size: int, order: int = 3) -> None:
        """Count texts, whose tokens are in 0..size - 1."""
        self._size, self._order = size, order
        stream_T, inside_T = self._joined(texts)
        self._tables = [
            _counted(code_T[inside_T], size) for code_T in _codes(stream_T, size, order)
        ]

    def nats(self, text: Sequence[int], before: Sequence[int] = ()) -> float:
        """Return -log p a token of a text, one token at least, that stands after others."""
        stream_T, inside_T = self._joined([[*before, *text]])
        own_T = np.flatnonzero(inside_T)[-len(text) :]
        p_T = np.full(len(text), 1 / self._size)
        for code_T, table in zip(
            _codes(stream_T, self._size, self._order), self._tables, strict=True
        ):
            code_T = code_T[own_T]
            count_T = _looked_up(table.grams, table.times, code_T)
            seen_T = _looked_up(table.befores, table.seen, code_T // self._size)
            kinds_T = _looked_up(table.befores, table.kinds, code_T // self._size)
            known_T = seen_T > 0
            mixed_T = (count_T + kinds_T * p_T) / np.maximum(1, seen_T + kinds_T)
            p_T = np.where(known_T, mixed_T, p_T)
        return float(-np.log(p_T).mean())

    def _joined(self, texts: Iterable[Sequence[int]]) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return texts as one stream, room before each, and which tokens are theirs."""
        room = [NOTHING] * (self._order - 1)
        parts = [np.array([*room, *text], dtype=np.int64) for text in texts]
        inside = [np.arange(len(part)) >= len(room) for part in parts]
        return np.concatenate(parts), np.concatenate(inside)


def _codes(stream_T: Array, size: int, order: int) -> list[Array]:
    """Return what ends at each place as one number, by its length 1..order."""
    found = [stream_T]
    for _ in range(order - 1):
        found.append(np.concatenate([[0], found[-1][:-1]]) * size + stream_T)
    return found


def _counted(code_T: Array, size: int) -> _Counted:
    grams, times = np.unique(code_T, return_counts=True)
    befores, first, kinds = np.unique(grams // size, return_index=True, return_counts=True)
    return _Counted(grams, times, befores, np.add.reduceat(times, first), kinds)


def _looked_up(keys: Array, values: Array, wanted: Array) -> Array:
    """Return the values of keys that stand in order; 0 where there is no such key."""
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    found: Array = np.where(keys[place] == wanted, values[place], 0)
    return found
