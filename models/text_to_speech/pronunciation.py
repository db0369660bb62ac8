"""A word's phones: those of CMU's dictionary, which comes with pocketsphinx, or by analogy with words in it.

A word that is not there is read letter by letter: each as most often where the longest context that it shares with a
dictionary's word stands (Dedina and Nusbaum 1991, pronunciation by analogy). Letters are laid to phones by dynamic
programming over which phones a letter may stand for (Black, Lenzo and Pagel 1998).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Final

import numpy as np
import numpy.typing as npt

DICTIONARY: Final = "20b5c293e1f311fb"
PHONES: Final = (
    *("AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G"),
    *("HH", "IH", "IY", "JH", "K", "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH"),
    *("T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH"),
)
"""ARPABET without stress."""
LETTERS: Final[Mapping[str, str]] = {
    "a": "EY",
    "b": "B IY",
    "c": "S IY",
    "d": "D IY",
    "e": "IY",
    "f": "EH F",
    "g": "JH IY",
    "h": "EY CH",
    "i": "AY",
    "j": "JH EY",
    "k": "K EY",
    "l": "EH L",
    "m": "EH M",
    "n": "EH N",
    "o": "OW",
    "p": "P IY",
    "q": "K Y UW",
    "r": "AA R",
    "s": "EH S",
    "t": "T IY",
    "u": "Y UW",
    "v": "V IY",
    "w": "D AH B AH L Y UW",
    "x": "EH K S",
    "y": "W AY",
    "z": "Z IY",
}
"""What letters are called; "a" and "i" alone are words."""
MAY_BE: Final[Mapping[str, frozenset[tuple[str, ...]]]] = {
    letter: frozenset(tuple(phones.split("_")) for phones in row.split())
    for letter, row in {
        "a": "AE EY AA AO AH EH IH AY AW ER IY OW",
        "b": "B",
        "c": "K S CH SH",
        "d": "D JH T",
        "e": "EH IY AH IH EY AY ER UW OW AE Y",
        "f": "F V",
        "g": "G JH ZH F NG",
        "h": "HH",
        "i": "IH AY IY AH EY Y ER AE",
        "j": "JH Y HH ZH",
        "k": "K",
        "l": "L AH_L",
        "m": "M AH_M",
        "n": "N NG",
        "o": "OW AA AO AH UW UH AW W_AH ER OY IH W",
        "p": "P F",
        "q": "K K_W",
        "r": "R ER",
        "s": "S Z SH ZH",
        "t": "T CH SH TH DH D",
        "u": "AH UW UH Y_UW Y_UH W ER IH EH Y_AH Y_ER Y_AO AW",
        "v": "V F",
        "w": "W V UW HH",
        "x": "K_S G_Z Z K S K_SH G_ZH",
        "y": "Y IY AY IH AH",
        "z": "Z S T_S ZH",
    }.items()
}
"""The phones that a letter may stand for."""
CONTEXTS: Final = ((3, 4), (2, 3), (2, 2), (1, 2), (2, 1), (1, 1), (0, 1), (1, 0), (0, 0))
"""Letters before and behind, from the longest context to none."""
ALIKE: Final = 40  # places that are asked how a letter is read
SILENT, STRANGE = 1.0, 4.0  # what it costs to leave a letter unread, or to read it as it never is
EDGE: Final = "\n"  # before and behind a word


class DictionaryError(ValueError):
    """Not the dictionary that the front end was made with."""


@lru_cache(maxsize=1)
def dictionary() -> Mapping[str, tuple[str, ...]]:
    """Return the phones of 126,000 words, the first where a word has several.

    Raises:
        DictionaryError: pocketsphinx brings another dictionary than it did.
    """
    content = files("pocketsphinx").joinpath("model/en-us/cmudict-en-us.dict").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(DICTIONARY):
        raise DictionaryError(
            f"pocketsphinx has a dictionary of sha256 {found[:16]}, and speech was learned by {DICTIONARY}:"
            " install pocketsphinx==5.1.1"
        )
    rows = (line.split() for line in content.decode().splitlines())
    return {row[0]: tuple(row[1:]) for row in rows if not row[0].endswith(")")}


@lru_cache(maxsize=65_536)
def phones_of(word: str) -> tuple[str, ...]:
    """Return a word's phones; of letters a to z and inner apostrophes.

    Example:
        >>> phones_of("seven")
        ('S', 'EH', 'V', 'AH', 'N')
    """
    known = dictionary()
    if word in known:
        return known[word]
    if len(word) == 1:
        return tuple(LETTERS[word].split())
    stem, mark, ending = word.rpartition("'")
    if mark and ending in {"s", ""}:
        phones = phones_of(stem)
        return phones + _plural(phones) if ending else phones
    if mark:
        return phones_of(stem.replace("'", "")) + phones_of(ending)
    return by_analogy(word) or tuple(phone for one in word for phone in LETTERS[one].split())


def _plural(phones: Sequence[str]) -> tuple[str, ...]:
    """Return the s of a possessive or a plural."""
    if phones[-1] in {"S", "Z", "SH", "ZH", "CH", "JH"}:
        return ("IH", "Z")
    return ("S",) if phones[-1] in {"P", "T", "K", "F", "TH"} else ("Z",)


def by_analogy(word: str) -> tuple[str, ...]:
    """Return the phones of a word of letters a to z as they are read in others like it.

    Example:
        >>> by_analogy("flimbering")
        ('F', 'L', 'IH', 'M', 'B', 'ER', 'IH', 'NG')
    """
    phones = list[str]()
    for place in range(len(word)):
        phones += _read(word, place)
    return tuple(phones)


def _read(word: str, place: int) -> tuple[str, ...]:
    """Return how a letter is read most often in the longest context that a word of the dictionary has, too."""
    text, padded = _spellings(), f"{EDGE}{word}{EDGE}"
    for before, behind in CONTEXTS:
        first = max(0, place + 1 - before)
        votes = Counter[tuple[str, ...]]()
        for begin in _places(padded[first : place + 2 + behind]):
            at = begin + place + 1 - first
            start = text.rfind(EDGE, 0, at) + 1
            other = text[start : text.index(EDGE, at)]
            if other != word and (laid := aligned(other)):
                votes[laid[at - start]] += 1
            if votes.total() == ALIKE:
                break
        if votes:
            return max(sorted(votes), key=votes.__getitem__)
    return ()


@lru_cache(maxsize=1)
def _spellings() -> str:
    """Return the dictionary's words of letters alone, an edge before and behind each."""
    words = sorted(word for word in dictionary() if re.fullmatch("[a-z]{2,}", word))
    return EDGE + EDGE.join(words) + EDGE


def _places(context: str) -> Iterator[int]:
    """Yield where a context begins in the spellings, from the first on."""
    text = _spellings()
    if len(context) < 3:  # which is everywhere
        begin = text.find(context)
        while begin >= 0:
            yield begin
            begin = text.find(context, begin + 1)
        return
    places = map(int, _threes().get(context[:3], ()))
    yield from (begin for begin in places if text.startswith(context, begin))


@lru_cache(maxsize=1)
def _threes() -> Mapping[str, npt.NDArray[np.int32]]:
    """Return where three letters, or two and an edge, begin in the spellings, by what they are."""
    text = _spellings()
    letters = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    threes = letters[:-2] << 16 | letters[1:-1] << 8 | letters[2:]
    order = np.argsort(threes, kind="stable").astype(np.int32)
    parts = np.split(order, np.flatnonzero(np.diff(threes[order])) + 1)
    return {text[part[0] : part[0] + 3]: part for part in parts}


@lru_cache(maxsize=65_536)
def aligned(word: str) -> tuple[tuple[str, ...], ...]:
    """Return, letter by letter, none, one or two phones of a word of the dictionary; empty where they do not fit."""
    phones = dictionary()[word]
    ends: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for letter in word:
        reached: dict[int, tuple[float, tuple[int, ...]]] = {}
        for end, (cost, taken) in ends.items():
            for many in range(min(2, len(phones) - end) + 1):
                total = cost + _cost(letter, phones[end : end + many])
                if total < reached.get(end + many, (float("inf"), ()))[0]:
                    reached[end + many] = (total, (*taken, many))
        ends = reached
    if len(phones) not in ends:
        return ()
    found, place = [], 0
    for many in ends[len(phones)][1]:
        found.append(phones[place : place + many])
        place += many
    return tuple(found)


def _cost(letter: str, phones: tuple[str, ...]) -> float:
    if not phones:
        return SILENT
    many = len(phones)
    return (many - 1) / 2 if phones in MAY_BE[letter] else STRANGE * many + many - 1
