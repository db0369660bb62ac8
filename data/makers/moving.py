"""Moving shapes: "a small red circle moving left", a shape of captioned shapes that crosses the clip at an even pace.

192 captions = 2 sizes x 6 colours x 4 shapes x 4 directions; 19 of them never reach the training split. Place, pace,
size, angle, colour and background vary from clip to clip and stay as they are within one.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydantic import Field

from data.makers import ClipEntry, Made, Sample, clips_made
from data.makers.shapes import COLOURS, SHAPES, SIZES, SUPERSAMPLING, held_out_of, paint, tinted
from data.modalities.clip import Found, clip_bytes

DIRECTIONS: Final[Mapping[str, tuple[int, int]]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
ATTRIBUTES: Final[Mapping[str, tuple[str, ...]]] = {
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "direction": tuple(DIRECTIONS),
}
CAPTIONS: Final = tuple(
    f"a {size} {colour} {shape} moving {direction}"
    for size, colour, shape, direction in itertools.product(SIZES, COLOURS, SHAPES, DIRECTIONS)
)
HELD_OUT: Final = held_out_of(CAPTIONS)
PATH: Final = (0.3, 0.46)  # of a side, how far a shape moves in a clip


class Config(ClipEntry):
    """The entry of params.yaml."""

    maker: Literal["moving"]
    path: Path = Path("data/makers/moving.py")
    count: Annotated[int, Field(ge=1, le=1_000_000)] = 4800
    seed: Annotated[int, Field(ge=0)] = 0


def made(config: Config, project: Path) -> Made:  # noqa: ARG001 - drawn, not read
    """Return the drawn clips, every caption equally often."""
    return clips_made(
        _samples(config),
        config,
        channels=3,
        moving=("direction",),
        attributes=ATTRIBUTES,
        vocabulary=sorted({word for caption in CAPTIONS for word in caption.split()}),
        held_out=sorted(HELD_OUT),
    )


def _samples(config: Config) -> Iterator[Sample]:
    side = config.image_size
    for index in range(config.count):
        caption = CAPTIONS[index % len(CAPTIONS)]
        generator = np.random.default_rng((config.seed, index))
        found = Found(draw(caption, generator, config.frames, side), side, side, config.frame_rate)
        yield Sample(f"{index:06d}", clip_bytes(found), caption, attributes=values_of(caption))


def draw(
    caption: str, generator: np.random.Generator, frames: int = 9, side: int = 32
) -> npt.NDArray[np.uint8]:
    """Return the frames (F, H, W, 3) of one caption."""
    size, colour, shape, direction = values_of(caption)
    big = side * SUPERSAMPLING
    background = tuple(int(value) for value in generator.integers(12, 44, size=3))
    middle = 0.5 + generator.uniform(-0.06, 0.06, 2)
    pace = generator.uniform(*PATH) * np.array(DIRECTIONS[direction])
    radius = SIZES[size] * generator.uniform(0.92, 1.08) * big
    fill, angle = tinted(colour, generator), generator.uniform(-0.2, 0.2)
    drawn: list[Any] = []
    for moment in np.linspace(-0.5, 0.5, frames):
        image = Image.new("RGB", (big, big), background)
        paint(ImageDraw.Draw(image), shape, (middle + moment * pace) * big, radius, angle, fill)
        drawn.append(np.asarray(image.resize((side, side), Image.Resampling.BOX)))
    return np.stack(drawn)


def values_of(caption: str) -> tuple[str, ...]:
    """Return size, colour, shape and direction."""
    _, size, colour, shape, _, direction = caption.split()
    return size, colour, shape, direction
