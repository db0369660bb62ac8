"""How far phones are from one another, by how they are spoken: ARPABET's, as in any textbook of English phonetics."""

from functools import cache
from typing import Final

VOWELS: Final = """IY 3 0, IH 2.6 .2, EY 2.2 0, EH 1.4 .2, AE .6 .2, AA 0 .8, AO 1 1, OW 1.8 1, UH 2.6 .8, UW 3 1,
AH 1 .6, ER 1.4 .5, AY .4 .5, AW .4 .7, OY 1.2 1"""
"""Height (0 to 3) and how far back the tongue is (0 to 1), where a vowel glides on average."""
CONSONANTS: Final = """P stop 0 0, B stop 0 1, T stop 3 0, D stop 3 1, K stop 6 0, G stop 6 1, CH affricate 4 0,
JH affricate 4 1, F fricative 1 0, V fricative 1 1, TH fricative 2 0, DH fricative 2 1, S fricative 3 0,
Z fricative 3 1, SH fricative 4 0, ZH fricative 4 1, HH fricative 7 0, M nasal 0 1, N nasal 3 1, NG nasal 6 1,
L liquid 3 1, R liquid 4 1, W glide 0 1, Y glide 5 1"""
"""Manner, place from the lips (0) to the glottis (7), voice."""


@cache
def _spoken() -> dict[str, tuple[str, tuple[float, ...]]]:
    """Return each phone's manner, and where and how it is spoken."""
    lines = [[name, "vowel", *values] for name, *values in map(str.split, VOWELS.split(","))]
    lines += map(str.split, CONSONANTS.split(","))
    return {name: (manner, tuple(map(float, rest))) for name, manner, *rest in lines}


def distance(one: str, other: str) -> float:
    """Return 0 for the same phone up to 1 for those that have nothing in common; what is no phone is 1 from all.

    Example:
        >>> distance("S", "Z") < distance("S", "M") < distance("S", "IY")
        True
    """
    if one == other:
        return 0.0
    spoken = _spoken()
    if one not in spoken or other not in spoken:
        return 1.0
    (manner, (a, b)), (manner2, (a2, b2)) = spoken[one], spoken[other]
    if manner == manner2 == "vowel":
        return 0.1 + 0.2 * abs(a - a2) + 0.25 * abs(b - b2)
    if "vowel" in {manner, manner2}:
        return 1.0
    return 0.1 + 0.3 * (manner != manner2) + 0.04 * abs(a - a2) + 0.2 * abs(b - b2)
