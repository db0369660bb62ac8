"""Captions as they are learned: the one place where this package cuts words out of text.

`models/parts/words.py` reads requests by the same rule, and a test holds the two equal, since neither package may
import the other.
"""

import unicodedata
from typing import Final

import regex

WORD: Final = regex.compile(
    r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*(?:['\-\u200c\u200d][\p{L}\p{N}][\p{L}\p{M}\p{N}]*)*"
)
"""Letters, digits and their combining marks, with inner apostrophes, hyphens and joiners of letters."""
DOTTED: Final = regex.compile("i\u0307+")
"""What İ is in lower case: a small i has its dot already."""


def normal(caption: str) -> str:
    """Return a caption as it is learned: NFC, lower case, words with one space between."""
    lower = unicodedata.normalize("NFC", caption).lower()
    return " ".join(WORD.findall(unicodedata.normalize("NFC", DOTTED.sub("i", lower))))
