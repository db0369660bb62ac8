"""Captions to tokens, words or pieces of words: one rule for all, training and requests, that of data.makers.words.

A vocabulary with `[UNK]` is of pieces: any caption can be read by it.
"""

import difflib
import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Final, Literal

import regex
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordPiece
from torch import Tensor

from models.parts import bounds

WORD: Final = regex.compile(
    r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*(?:['\-\u200c\u200d][\p{L}\p{N}][\p{L}\p{M}\p{N}]*)*"
)
"""Letters, digits and their combining marks, with inner apostrophes, hyphens and joiners of letters."""
DOTTED: Final = regex.compile("i\u0307+")
"""What İ is in lower case: a small i has its dot already."""

UNKNOWN: Final = "[UNK]"
"""The piece that no other piece is of; a vocabulary without it is of whole words."""
NEAREST: Final = 5  # words that are named where none is spelled alike
LENGTHS: Final = 4  # letters that a word spelled alike has more or less
GUIDANCE: Final[bounds.Range] = (0, 50)
MANY: Final = 5000  # words of a vocabulary, of which the nearest would take seconds to find


class Captioned:
    """A Config with a vocabulary, whose captions condition what is made unless `text` is "none"."""

    __slots__ = ()
    vocabulary: tuple[str, ...]  # lower-case words; empty: unconditional
    max_words: int
    text: Literal["caption", "none"]

    @property
    def reads_text(self) -> bool:
        """Whether captions are learned."""
        return self.text == "caption" and bool(self.vocabulary)

    def encode(self, captions: Sequence[str]) -> Tensor | None:
        """Return tokens as `encode` does, or None where no captions are learned.

        Raises:
            ValueError: a caption is empty, longer than max_words or has a word never learned.
        """
        return encode(captions, self.vocabulary, self.max_words) if self.reads_text else None


class Led(Captioned):
    """The same of what may be led away from samples of no caption, by classifier-free guidance."""

    __slots__ = ()
    caption_drop: float  # share of the captions that are left out in training
    guidance: float

    def kept(self) -> str:
        """The name of what is never left out in training, so that nothing is learned without it; empty: all is."""
        return "caption_drop" if self.reads_text and not self.caption_drop else ""

    def check_guidance(self, guidance: float) -> None:
        """Refuse guidance out of its range, and other than 1 where nothing is learned that it could lead away from.

        Of what is asked for, not of a Config's default: a version that is always asked for 1 draws rightly.

        Raises:
            ValueError: says which.
        """
        bounds.within("guidance", guidance, GUIDANCE)
        if self.kept() and guidance != 1:
            raise ValueError(
                f"guidance must be 1 where {self.kept()} is 0, for nothing is learned that it could"
                f" lead away from, got {guidance}"
            )


def split(caption: str) -> list[str]:
    """Return a caption's words in lower case, accents composed (NFC)."""
    lower = unicodedata.normalize("NFC", caption).lower()
    return list(WORD.findall(unicodedata.normalize("NFC", DOTTED.sub("i", lower))))


def cut(caption: str, vocabulary: Collection[str]) -> list[str]:
    """Return a caption's words in lower case, or its pieces where the vocabulary is of pieces.

    Example:
        >>> cut("A redder dot", ["[UNK]", "a", "red", "##d", "##er", "dot"])
        ['a', 'red', '##d', '##er', 'dot']
    """
    if UNKNOWN not in vocabulary:
        return split(caption)
    text = " ".join(split(caption))
    tokens: list[str] = _cutter(tuple(vocabulary)).encode(text, add_special_tokens=False).tokens
    return tokens


@lru_cache(maxsize=4)
def _cutter(vocabulary: tuple[str, ...]) -> Tokenizer:
    places = {piece: place for place, piece in enumerate(vocabulary)}
    made = Tokenizer(WordPiece(places, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def unknown(caption: str, vocabulary: Sequence[str]) -> list[str]:
    """Return the words of a caption that are not in the vocabulary, each once; none where it is of pieces."""
    if UNKNOWN in vocabulary:
        return []
    known = frozenset(vocabulary)
    return [word for word in dict.fromkeys(split(caption)) if word not in known]


def encode(captions: Sequence[str], vocabulary: Sequence[str], max_words: int) -> Tensor:
    """Return tokens (B, max_words) int64: 1 + the place of a word or piece in the vocabulary, 0 after the last.

    Raises:
        ValueError: a caption is empty, longer than max_words or has a word never learned.

    Example:
        >>> encode(["A red dot."], ("a", "dot", "red"), max_words=4).tolist()
        [[1, 3, 2, 0]]
    """
    places = {word: index for index, word in enumerate(vocabulary, start=1)}
    tokens_BT = torch.zeros(len(captions), max_words, dtype=torch.long)
    for row, caption in enumerate(captions):
        words = cut(caption, places)
        if not words:
            raise ValueError(f"the caption {caption!r} has no words")
        if len(words) > max_words:
            what = "pieces of words" if UNKNOWN in places else "words"
            raise ValueError(f"the caption has {len(words)} {what}, the model reads {max_words}")
        if unknown := [word for word in words if word not in places]:
            raise ValueError(f"unknown word {unknown[0]!r}{hint(unknown[0], vocabulary)}")
        tokens_BT[row, : len(words)] = torch.tensor([places[word] for word in words])
    return tokens_BT


def hint(word: str, vocabulary: Sequence[str]) -> str:
    """Return what an unknown word could have meant: those that are spelled alike, else the nearest to them."""
    near = [one for one in vocabulary if abs(len(one) - len(word)) <= LENGTHS]
    if alike := difflib.get_close_matches(word, near, n=3):
        return f"; did you mean {' or '.join(repr(match) for match in alike)}?"
    if len(vocabulary) > MANY:
        return ""
    nearest = difflib.get_close_matches(word, vocabulary, n=NEAREST, cutoff=0)
    return f"; the nearest that the model knows: {', '.join(nearest)}" if nearest else ""
