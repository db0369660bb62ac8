"""Numbers from words to digits: "three hundred and forty two" -> "342", different ones from 0 to 99,999.

The splits go by the hash of the pair, so what is tested was never learned.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field

from data.makers import DIGITS, Made, Sample, TextEntry, text_made
from data.modalities.text import record_bytes
from data.tokenizing import TokenizerSettings

LIMIT: Final = 100_000
TEENS: Final = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


class Config(TextEntry):
    """The entry of params.yaml."""

    maker: Literal["numbers"]
    path: Path = Path("data/makers/numbers.py")
    count: Annotated[int, Field(ge=30, le=LIMIT)] = 15_000
    seed: Annotated[int, Field(ge=0)] = 0
    tokenizer: TokenizerSettings = TokenizerSettings(kind="words", size=64)


def made(config: Config, project: Path) -> Made:  # noqa: ARG001 - written, not read
    """Return the pairs."""
    return text_made(_samples(config), config)


def _samples(config: Config) -> Iterator[Sample]:
    for index, number in enumerate(make(config.count, config.seed)):
        pair = [("source", words(number)), ("target", str(number))]
        yield Sample(f"{index:06d}", record_bytes(pair))


def make(count: int, seed: int) -> list[int]:
    """Return `count` different numbers from 0 to 99,999, in random order."""
    found: list[int] = np.random.default_rng(seed).permutation(LIMIT)[:count].tolist()
    return found


def words(number: int) -> str:
    """Return a number from 0 to 99,999 in English words, with "and" after the hundreds as in Britain."""
    thousands, rest = divmod(number, 1000)
    hundreds, small = divmod(rest, 100)
    parts = []
    if thousands:
        parts += [_below_hundred(thousands), "thousand"]
    if hundreds:
        parts += [DIGITS[hundreds], "hundred"]
    if small or not parts:
        parts += ["and"] * bool(parts) + [_below_hundred(small)]
    return " ".join(parts)


def _below_hundred(number: int) -> str:
    if number < 10:
        return DIGITS[number]
    if number < 20:
        return TEENS[number - 10]
    tens, ones = divmod(number, 10)
    return " ".join([TENS[tens - 2], *([DIGITS[ones]] if ones else [])])
