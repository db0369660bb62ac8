"""Moving MNIST by its published rule (Srivastava et al. 2015, arXiv:1502.04681): two digits in 64x64, 20 frames.

A digit starts at a random place with a random direction, moves a tenth of the free way a frame and bounces off the
edges; where digits overlap the lighter pixel counts. Training and validation clips have digits of MNIST's training
split, test clips of its test split, so the test is of the published kind, though not the published file of 10,000.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data.makers import ClipEntry, Made, MakerError, Sample, Split, clips_made
from data.makers.mnist import SIDE, digits_of
from data.modalities.clip import Found, clip_bytes

DIGITS: Final = 2
STEP: Final = 0.1  # of the free way, a frame
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
KEPT: Final = 5000  # of MNIST's training digits, for validation

Bytes = npt.NDArray[np.uint8]


class Config(ClipEntry):
    """The entry of params.yaml."""

    maker: Literal["moving-mnist"]
    image_size: Literal[64] = 64
    frames: Annotated[int, Field(ge=2, le=64)] = 20
    frame_rate: Annotated[float, Field(gt=0, le=120)] = 10
    count: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000  # of the training split
    validation: Annotated[int, Field(ge=1)] = 500
    test: Annotated[int, Field(ge=1, le=100_000)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0


def made(config: Config, project: Path) -> Made:
    """Return the clips of the digits in the folder `config.path`.

    Raises:
        MakerError: a file of MNIST is missing (named, with its folder) or is not what its name says.
    """
    files = digits_of(project / config.path)

    def samples() -> Iterator[Sample]:
        train, test = (files[split]() for split in ("train", "test"))
        for digits_NHW, least in ((train, KEPT + 1), (test, 1)):
            if len(digits_NHW) < least or digits_NHW.shape[1:] != (SIDE, SIDE):
                least_NHW, folder = (least, SIDE, SIDE), project / config.path
                raise MakerError(
                    f"{folder} has {digits_NHW.shape} digits, at least {least_NHW} are needed"
                )
        digits = {"train": train[:-KEPT], "validation": train[-KEPT:], "test": test}
        counts = (config.count, config.validation, config.test)
        for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
            for index in range(count):
                generator = np.random.default_rng((config.seed, number, index))
                frames = draw(digits[split], generator, config.frames, config.image_size)
                found = Found(frames, config.image_size, config.image_size, config.frame_rate)
                yield Sample(f"{split}/{index:06d}", clip_bytes(found), "", split)

    return clips_made(samples(), config, channels=1, captioned=False)


def draw(
    digits_NHW: Bytes, generator: np.random.Generator, frames: int = 20, side: int = 64
) -> Bytes:
    """Return the frames (F, H, W, 1) of two digits on their ways."""
    drawn = np.zeros((frames, side, side, 1), np.uint8)
    for _ in range(DIGITS):
        digit = digits_NHW[generator.integers(len(digits_NHW))]
        for frame, (top, left) in enumerate(way(generator, frames, side - SIDE)):
            under = drawn[frame, top : top + SIDE, left : left + SIDE, 0]
            np.maximum(under, digit, out=under)
    return drawn


def way(generator: np.random.Generator, frames: int, free: int) -> npt.NDArray[np.int64]:
    """Return the corner (F, 2) of a digit in every frame, in pixels from 0 to `free`."""
    place_2, angle = generator.random(2), generator.random() * 2 * np.pi
    pace_2 = STEP * np.array([np.sin(angle), np.cos(angle)])
    places = np.zeros((frames, 2))
    for frame in range(frames):
        place_2 = place_2 + pace_2
        pace_2 = np.where((place_2 <= 0) | (place_2 >= 1), -pace_2, pace_2)
        place_2 = place_2.clip(0, 1)
        places[frame] = place_2
    return (places * free).astype(np.int64)
