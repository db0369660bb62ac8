"""The front end of speech: text to symbols, phones between word boundaries and marks, and these to tokens.

It is pinned with a model: `FRONT_END` is raised with whatever changes the symbols of a text. A model keeps the places
of its symbols, so one of a version whose symbols lie where they lay is read on (`READ_ON`), and any other is refused.
The dictionary is compared with its digest when it is read (`pronunciation.py`).

Shape letters: B texts, S symbols.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from models.text_to_speech.normalisation import MARKS, normalised
from models.text_to_speech.pronunciation import PHONES, phones_of
from models.text_to_speech.voices import Voiced

__all__ = ["BEGIN", "FRONT_END", "MARKS", "SYMBOLS", "WORD", "Spoken", "normalised", "phonemes"]

FRONT_END: Final = "english-arpabet 2"
READ_ON: Final = frozenset({"english-arpabet 1"})
"""Versions with these symbols, whose models are read by this one: 1 said fewer amounts, dates and signs as they are."""
BEGIN: Final = "^"  # before the first word
WORD: Final = "|"  # between two words
SYMBOLS: Final = ("", BEGIN, WORD, *MARKS, *PHONES)
"""A token is a symbol's place; 0 is nothing. Models keep it: new symbols go behind, under a new version."""
_PLACES: Final = {symbol: place for place, symbol in enumerate(SYMBOLS)}


# without slots, so that a Config may have another base beside it
@dataclass(frozen=True, kw_only=True)
class Spoken(Voiced):
    """A Config whose model says texts, in the voices of speakers; these are a dataset's names, sorted."""

    front_end: str = FRONT_END  # with which the texts were made tokens

    def check_spoken(self) -> None:
        """Refuse what would fail late; for `__post_init__`.

        Raises:
            ValueError: it was made with another front end, or has a speaker twice.
        """
        if self.front_end != FRONT_END and self.front_end not in READ_ON:
            raise ValueError(
                f"front_end: this model reads text by {self.front_end!r}, installed is {FRONT_END!r}:"
                " train it anew, or serve it by the Atelier that trained it"
            )
        self.check_voices()

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Return texts as tokens (B, S) int64, S those of the longest, 0 behind the last of each.

        Raises:
            ValueError: a text has nothing to say.
        """
        rows = [torch.tensor(_tokens(text)) for text in captions]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def phonemes(text: str) -> tuple[str, ...]:
    """Return a text's symbols: `^`, phones, `|` between words, a mark where there is one, and one at the end.

    Raises:
        ValueError: nothing in it can be said.

    Example:
        >>> " ".join(phonemes("Seven, 8"))
        '^ S EH V AH N , EY T .'
    """
    return tuple(SYMBOLS[token] for token in _tokens(text))


@lru_cache(maxsize=4096)
def _tokens(text: str) -> tuple[int, ...]:
    said = normalised(text)
    found = [BEGIN]
    for part in re.findall(r"[a-z']+|[,.?!]", said):
        if part in MARKS:
            found.append(part)
            continue
        if found[-1] not in {BEGIN, *MARKS}:
            found.append(WORD)
        found += phones_of(part)
    if found[-1] not in MARKS[1:]:
        found = [*found[: len(found) - (found[-1] == ",")], "."]
    return tuple(_PLACES[symbol] for symbol in found)
