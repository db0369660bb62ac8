"""Scenes in words: two-sentence documents, the second of which follows from the first.

"fay drew a small red circle on the left .", "the circle is red and small says fay .": whoever has learned the first
can tell which second sentence belongs to it, so next-sentence prediction can be learned; 44 words. Every document is
another one: 14 names, 2 verbs, 2 sizes, 6 colours, 4 shapes, 5 positions, 4 ways to say the second.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field

from data.makers import Made, Sample, TextEntry, text_made
from data.modalities.text import record_bytes
from data.tokenizing import TokenizerSettings

NAMES: Final = (
    *("ada", "ben", "cleo", "dan", "eve", "fay", "gus"),
    *("hal", "ida", "jon", "kim", "leo", "mia", "ned"),
)
VERBS: Final = ("drew", "made")
SIZES: Final = ("small", "large")
COLOURS: Final = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES: Final = ("circle", "square", "triangle", "cross")
POSITIONS: Final = ("left", "right", "top", "bottom", "center")
SECONDS: Final = (
    "the {shape} is {colour} and {size} says {name} .",
    "the {shape} is {size} and {colour} says {name} .",
    "{name} says the {colour} {shape} is on the {position} .",
    "on the {position} is the {size} {shape} of {name} .",
)
ALL: Final = tuple(itertools.product(NAMES, VERBS, SIZES, COLOURS, SHAPES, POSITIONS, SECONDS))


class Config(TextEntry):
    """The entry of params.yaml."""

    maker: Literal["scenes"]
    path: Path = Path("data/makers/scenes.py")
    count: Annotated[int, Field(ge=30, le=len(ALL))] = 6000
    seed: Annotated[int, Field(ge=0)] = 0
    tokenizer: TokenizerSettings = TokenizerSettings(kind="words", size=64)


def made(config: Config, project: Path) -> Made:  # noqa: ARG001 - written, not read
    """Return the documents, a line a sentence."""
    return text_made(_samples(config), config)


def _samples(config: Config) -> Iterator[Sample]:
    for index, document in enumerate(make(config.count, config.seed)):
        yield Sample(f"{index:06d}.txt", record_bytes([("text", document)]))


def make(count: int, seed: int) -> Iterator[str]:
    """Yield `count` different documents of two lines, drawn without replacement."""
    places = np.random.default_rng(seed).permutation(len(ALL))[:count]
    for place in places.tolist():
        name, verb, size, colour, shape, position, second = ALL[place]
        first = f"{name} {verb} a {size} {colour} {shape} on the {position} ."
        said = second.format(name=name, size=size, colour=colour, shape=shape, position=position)
        yield f"{first}\n{said}"
