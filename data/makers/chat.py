"""Dialogues from templates, of two turns, with answers that are right or wrong to the letter.

The second question is about what was said in the first turn, so it takes the whole dialogue to answer it: a sum of
digits and its successor, the last of three things, a colour or a name that was told before. Every dialogue is
another one, but what it takes to answer those that are tested (100 sums, 14 names, 10 things, 6 colours) is learned.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field

from data.makers import Made, Sample, TextEntry, text_made
from data.makers.scenes import COLOURS, NAMES
from data.modalities.text import Record, record_bytes
from data.tokenizing import TokenizerSettings

THINGS: Final = ("ball", "bell", "cup", "door", "fish", "hat", "key", "lamp", "pear", "ring")
DRAWS: Final = 50  # tries for a dialogue that there is not yet, before the templates are used up


class Config(TextEntry):
    """The entry of params.yaml."""

    maker: Literal["chat"]
    path: Path = Path("data/makers/chat.py")
    count: Annotated[int, Field(ge=30, le=3500)] = 3000
    seed: Annotated[int, Field(ge=0)] = 0
    tokenizer: TokenizerSettings = TokenizerSettings(kind="words", size=128)


def made(config: Config, project: Path) -> Made:  # noqa: ARG001 - written, not read
    """Return the dialogues."""
    return text_made(_samples(config), config)


def _samples(config: Config) -> Iterator[Sample]:
    for index, dialogue in enumerate(make(config.count, config.seed)):
        yield Sample(f"{index:06d}", record_bytes(dialogue))


def make(count: int, seed: int) -> Iterator[Record]:
    """Yield `count` different dialogues."""
    generator = np.random.default_rng(seed)
    known: set[Record] = set()
    while len(known) < count:
        template = TEMPLATES[int(generator.integers(len(TEMPLATES)))]
        for _ in range(DRAWS):
            user, assistant, again, answer = template(generator)
            dialogue = (
                ("user", user),
                ("assistant", assistant),
                ("user", again),
                ("assistant", answer),
            )
            if dialogue not in known:
                known.add(dialogue)
                yield dialogue
                break


Turns = tuple[str, str, str, str]


def _sum(generator: np.random.Generator) -> Turns:
    first, second = (int(value) for value in generator.integers(0, 10, 2))
    name = NAMES[int(generator.integers(len(NAMES)))]
    total = first + second
    return (
        f"i am {name} . what is {first} plus {second} ?",
        f"{first} plus {second} is {total} , {name} .",
        "and one more ?",
        f"that is {total + 1} , {name} .",
    )


def _order(generator: np.random.Generator) -> Turns:
    first, second, third = (THINGS[place] for place in generator.permutation(len(THINGS))[:3])
    return (
        f"i have a {first} , a {second} and a {third} .",
        "you have 3 things .",
        "what comes last ?",
        f"the {third} comes last .",
    )


def _owner(generator: np.random.Generator) -> Turns:
    name = NAMES[int(generator.integers(len(NAMES)))]
    colour = COLOURS[int(generator.integers(len(COLOURS)))]
    thing = THINGS[int(generator.integers(len(THINGS)))]
    asked = int(generator.integers(2))
    return (
        f"my name is {name} and i have a {colour} {thing} .",
        f"hello {name} .",
        (f"what colour is my {thing} ?", f"who has a {thing} ?")[asked],
        (f"your {thing} is {colour} .", f"{name} has a {thing} .")[asked],
    )


TEMPLATES: Final[tuple[Callable[[np.random.Generator], Turns], ...]] = (_sum, _order, _owner)
