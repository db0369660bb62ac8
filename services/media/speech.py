"""Long texts as sound: sentences to be said one after the other, and how their sounds are put together."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from services.media.codecs import Sound
from services.media.encoders import stretched

PAUSE_S: Final = 0.2  # between two sentences
FADE_S: Final = 0.005  # from and to silence where sounds meet: a step there is heard as a click
SHORT: Final = 16  # characters: a shorter sentence is said with the next one
LONG: Final = 240  # characters: a longer one is parted where it breathes
MOST_AT_ONCE: Final = 8  # parts that are made together while others are heard
ENDS: Final = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"')\]])\s+")
BREATHS: Final = re.compile(r"(?<=[,;:])\s+")
ABBREVIATED: Final = re.compile(r"\b(mr|mrs|ms|dr|st|prof|no|vs|e\.g|i\.e|[a-z])\.$", re.IGNORECASE)


def sentences(text: str) -> tuple[str, ...]:
    """Return what to say one after the other: sentences, short ones joined and long ones parted.

    Example:
        >>> sentences("It rains. Dr. Who stays at home today! Why would anybody go out?")
        ('It rains. Dr. Who stays at home today!', 'Why would anybody go out?')
    """
    found: list[str] = []
    for piece in ENDS.split(text):
        open_end = found and (len(found[-1]) < SHORT or ABBREVIATED.search(found[-1]))
        if open_end and len(found[-1]) + len(piece) < LONG:
            found[-1] = f"{found[-1]} {piece}".strip()
        elif piece.strip():
            found.append(piece.strip())
    return tuple(part for sentence in found for part in _breaths(sentence))


def _breaths(sentence: str) -> list[str]:
    """Return a sentence in parts of at most LONG characters: at commas, else between words, else anywhere."""
    parts = [""]
    for words in BREATHS.split(sentence):
        for word in words.split(" ") if len(words) > LONG else [words]:
            for start in range(0, len(word), LONG):
                piece = word[start : start + LONG]
                if len(parts[-1]) + len(piece) < LONG:
                    parts[-1] = f"{parts[-1]} {piece}".strip()
                else:
                    parts.append(piece)
    return [part for part in parts if part]


def growing(count: int) -> list[tuple[int, int]]:
    """Return which parts are made together, as (first, end): one, one, two, four and so on.

    Example:
        >>> growing(5)
        [(0, 1), (1, 2), (2, 4), (4, 5)]
    """
    groups, size = [(0, min(1, count))], 1
    while (first := groups[-1][1]) < count:
        groups.append((first, min(count, first + size)))
        size = min(2 * size, MOST_AT_ONCE)
    return groups


def parted(sound: Sound, number: int, count: int) -> Sound:
    """Return part `number` of `count` as it is heard: it fades where others follow, and a pause is behind it."""
    levels = sound.levels.astype(np.float64)
    size = min(len(levels), round(FADE_S * sound.sample_rate))
    slope = (1 - np.cos(np.pi * (np.arange(size) + 0.5) / max(1, size))) / 2
    if number > 0:
        levels[:size] *= slope
    if number + 1 < count:
        levels[len(levels) - size :] *= slope[::-1]
        levels = np.concatenate([levels, np.zeros(round(PAUSE_S * sound.sample_rate))])
    return replace(sound, levels=levels.round().astype(np.int16))


def joined(sounds: Sequence[Sound]) -> Sound:
    """Return all parts as one sound."""
    parts = [parted(one, number, len(sounds)).levels for number, one in enumerate(sounds)]
    return replace(sounds[0], levels=np.concatenate(parts))


def at_speed(sound: Sound, speed: float | None) -> Sound:
    """Return a sound at a multiple of its speed, its pitch kept."""
    return replace(sound, levels=stretched(sound.levels, sound.sample_rate, speed or 1))
