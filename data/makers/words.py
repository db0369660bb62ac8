"""Captions as they are learned: the one place where this package cuts words out of text, and pieces out of words.

A vocabulary of whole words knows no other word. One of pieces (Wu et al. 2016, arXiv:1609.08144, section 4.1) has
`[UNK]` among them, and "##" before what goes on with a word: a word is cut into the longest pieces there are, from its
beginning, and is `[UNK]` where it has a letter that is in none.

`models/parts/words.py` reads requests by the same rules, and tests hold the two equal, since neither package may
import the other.
"""

import unicodedata
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final

import regex
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE, WordPiece

WORD: Final = regex.compile(
    r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*(?:['\-\u200c\u200d][\p{L}\p{N}][\p{L}\p{M}\p{N}]*)*"
)
"""Letters, digits and their combining marks, with inner apostrophes, hyphens and joiners of letters."""
UNKNOWN: Final = "[UNK]"
"""The piece that no other piece is of; a vocabulary without it is of whole words."""
BEGIN: Final = "\u2581"  # before a word while pieces are found
DOTTED: Final = regex.compile("i\u0307+")
"""What İ is in lower case: a small i has its dot already."""


def normal(caption: str) -> str:
    """Return a caption as it is learned: NFC, lower case, words with one space between."""
    lower = unicodedata.normalize("NFC", caption).lower()
    return " ".join(WORD.findall(unicodedata.normalize("NFC", DOTTED.sub("i", lower))))


def pieces(captions: Iterable[str], size: int) -> list[str]:
    """Return a vocabulary of at most `size` pieces, from captions as `normal` gives them; equal ones give an equal one.

    All letters there are have two pieces of their own, whatever `size` says. The rest are the merges of byte-pair
    encoding: a trainer of word pieces breaks ties in the order of a hash map, another one at each run.
    """
    texts = sorted(captions)
    letters = sorted({letter for text in texts for letter in text} - {" "})
    known = dict.fromkeys([UNKNOWN, *letters, *(f"##{letter}" for letter in letters)])
    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BEGIN)
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) + 1 + max(0, size - len(known)),
        initial_alphabet=[*letters, BEGIN],
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    for token in sorted(made.get_vocab()):
        begins = token.startswith(BEGIN)
        if token != BEGIN:
            known[token.removeprefix(BEGIN) if begins else f"##{token}"] = None
    return sorted(known)


def cut(caption: str, vocabulary: Collection[str]) -> list[str]:
    """Return the words of a caption as `normal` gives it, or its pieces where the vocabulary is of pieces."""
    if UNKNOWN not in vocabulary:
        return caption.split()
    tokens: list[str] = _cutter(tuple(vocabulary)).encode(caption, add_special_tokens=False).tokens
    return tokens


@lru_cache(maxsize=4)
def _cutter(vocabulary: tuple[str, ...]) -> Tokenizer:
    places = {piece: place for place, piece in enumerate(vocabulary)}
    made = Tokenizer(WordPiece(places, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made
