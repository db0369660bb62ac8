"""How many words of what was said were not understood, and how sure that is."""

import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from models.text_to_speech.front_end import normalised

DRAWS: Final = 2000  # of the bootstrap


def words(text: str) -> list[str]:
    """Return a text's words as they are counted: in small letters, figures and titles spelt alike.

    Example:
        >>> words("Mister Darcy's 2 dogs.") == words("mr. darcys two dogs")
        True
    """
    try:
        spelt = normalised(text)
    except ValueError:  # nothing was understood
        return []
    found = re.findall(r"[a-z]+", spelt.replace("'", ""))
    return ["missus" if one == "missis" else one for one in found]


def errors(text: str, heard: str) -> tuple[int, int]:
    """Return how many words were added, dropped or exchanged, at least, and how many there are."""
    said = words(text)
    return distance(said, words(heard)), len(said)


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many items must be put in, left out or exchanged, at least (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for number, first in enumerate(one, 1):
        before, row[0] = row[0], number
        for place, second in enumerate(other, 1):
            before, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, before + (first != second)),
            )
    return row[-1]


def interval(pairs: Any, scale: float, unit: str) -> str:
    """Return the ratio of sums over sentences (N, 2), and its 95 % interval by the bootstrap."""
    generator = np.random.default_rng(0)
    some = pairs[generator.integers(len(pairs), size=(DRAWS, len(pairs)))].sum(1)
    low, high = np.percentile(scale * some[:, 0] / some[:, 1], [2.5, 97.5])
    value = scale * pairs[:, 0].sum() / pairs[:, 1].sum()
    digits = 1 if scale > 1 else 2
    return f"{value:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"
