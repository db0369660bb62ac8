"""Captions to word tokens: one rule for training, evaluation and requests."""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

WORD: Final = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
"""A word: letters and digits with inner apostrophes and hyphens; other signs are dropped."""


def split(caption: str) -> list[str]:
    """Return a caption's words in lower case, accents composed (NFC)."""
    return WORD.findall(unicodedata.normalize("NFC", caption).lower())


def encode(captions: Sequence[str], vocabulary: Sequence[str], max_words: int) -> Tensor:
    """Return tokens (B, max_words) int64: 1 + the word's place in the vocabulary, 0 after the last.

    Raises:
        ValueError: a caption is empty, longer than max_words or has a word never learned.
    """
    places = {word: index for index, word in enumerate(vocabulary, start=1)}
    tokens_BT = torch.zeros(len(captions), max_words, dtype=torch.long)
    for row, caption in enumerate(captions):
        words = split(caption)
        if not words:
            raise ValueError(f"the caption {caption!r} has no words")
        if len(words) > max_words:
            raise ValueError(f"the caption has {len(words)} words, the model reads {max_words}")
        if unknown := [word for word in words if word not in places]:
            raise ValueError(f"unknown word {unknown[0]!r}{_hint(unknown[0], vocabulary)}")
        tokens_BT[row, : len(words)] = torch.tensor([places[word] for word in words])
    return tokens_BT


def _hint(word: str, vocabulary: Sequence[str]) -> str:
    if near := difflib.get_close_matches(word, vocabulary, n=3):
        return f"; did you mean {' or '.join(repr(match) for match in near)}?"
    some = ", ".join(vocabulary[:30])
    return f"; the model knows {some}{', ...' if len(vocabulary) > 30 else ''}"
