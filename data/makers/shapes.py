"""Captioned shapes: "a small red circle on the left", drawn with jitter at 32 pixels from a seed.

240 captions = 2 sizes x 6 colours x 4 shapes x 5 positions; 24 of them never reach the training split. The 16-pixel
picture is the 2x2 mean of the 32-pixel one, so one dataset serves a base model and its super-resolution stage. A
dataset may be of other colours, and of one that the six are without: a word that a model is taught later.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from data.makers import Entry, Made, Sample
from infra.media.pictures import png

SIZES: Final[Mapping[str, float]] = {"small": 0.17, "large": 0.27}  # radius over side
COLOURS: Final[Mapping[str, tuple[int, int, int]]] = {
    "red": (214, 48, 49),
    "green": (39, 174, 96),
    "blue": (41, 98, 255),
    "yellow": (241, 196, 15),
    "purple": (142, 68, 173),
    "white": (240, 240, 240),
}
FURTHER: Final[Mapping[str, tuple[int, int, int]]] = {"teal": (0, 150, 150)}
SHAPES: Final = ("circle", "square", "triangle", "cross")
POSITIONS: Final[Mapping[str, tuple[float, float]]] = {
    "left": (0.3, 0.5),
    "right": (0.7, 0.5),
    "top": (0.5, 0.3),
    "bottom": (0.5, 0.7),
    "center": (0.5, 0.5),
}
ATTRIBUTES: Final[Mapping[str, tuple[str, ...]]] = {
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "position": tuple(POSITIONS),
}


def captions_of(colours: Sequence[str]) -> tuple[str, ...]:
    """Return all captions of these colours."""
    return tuple(
        f"a {size} {colour} {shape} on the {position}"
        for size, colour, shape, position in itertools.product(SIZES, colours, SHAPES, POSITIONS)
    )


def held_out_of(captions: Sequence[str]) -> frozenset[str]:
    """Return the tenth of the captions that training never sees."""
    return frozenset(one for index, one in enumerate(captions) if (index + index // 20) % 10 == 3)


CAPTIONS: Final = captions_of(tuple(COLOURS))
HELD_OUT: Final = held_out_of(CAPTIONS)
SUPERSAMPLING: Final = 4


class Config(Entry):
    """The entry of params.yaml."""

    maker: Literal["shapes"]
    path: Path = Path("data/makers/shapes.py")
    count: Annotated[int, Field(ge=1, le=10_000_000)] = 9600
    image_size: Annotated[int, Field(ge=8, le=512)] = 32
    seed: Annotated[int, Field(ge=0)] = 0
    colours: Annotated[
        tuple[Literal["red", "green", "blue", "yellow", "purple", "white", "teal"], ...],
        Field(min_length=1),
    ] = ("red", "green", "blue", "yellow", "purple", "white")


def made(config: Config, project: Path) -> Made:  # noqa: ARG001 - drawn, not read
    """Return the drawn pictures."""
    captions = captions_of(config.colours)
    further = tuple(name for name in FURTHER if name in config.colours)
    drawn = enumerate(make(config.count, config.seed, config.image_size, captions))
    return Made(
        samples=(
            Sample(f"{index:06d}.png", png(np.asarray(image)), caption, attributes=_values(caption))
            for index, (image, caption) in drawn
        ),
        settings={"image_size": config.image_size, "channels": 3},
        attributes={**ATTRIBUTES, "colour": (*COLOURS, *further)},
        vocabulary=sorted({word for caption in captions for word in caption.split()}),
        held_out=sorted(held_out_of(captions)),
    )


def draw(caption: str, generator: np.random.Generator, side: int = 32) -> Image.Image:
    """Draw one caption; place, size, angle, colour and background vary with the generator."""
    size, colour, shape, position = _values(caption)
    big = side * SUPERSAMPLING
    background = tuple(int(value) for value in generator.integers(12, 44, size=3))
    image = Image.new("RGB", (big, big), background)
    centre = (np.array(POSITIONS[position]) + generator.uniform(-0.04, 0.04, 2)) * big
    radius = SIZES[size] * generator.uniform(0.92, 1.08) * big
    fill = tinted(colour, generator)
    angle = generator.uniform(-0.2, 0.2)
    paint(ImageDraw.Draw(image), shape, centre, radius, angle, fill)
    return image.resize((side, side), Image.Resampling.BOX)


def tinted(colour: str, generator: np.random.Generator) -> tuple[int, ...]:
    """Return a colour, a little off."""
    levels = np.array({**COLOURS, **FURTHER}[colour]) + generator.integers(-14, 15, 3)
    return tuple(int(level) for level in np.clip(levels, 0, 255))


def paint(
    pen: ImageDraw.ImageDraw,
    shape: str,
    centre: Any,
    radius: float,
    angle: float,
    fill: tuple[int, ...],
) -> None:
    """Draw a shape about its centre (2,), all in pixels, turned by an angle in radians."""
    if shape == "circle":
        (x, y), r = centre, radius
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        return
    corners = {
        "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
        "triangle": [(0.0, -1.1), (1.0, 0.8), (-1.0, 0.8)],
        "cross": _cross(0.32, 1.05),
    }[shape]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pen.polygon(
        [tuple(centre + radius * (turn @ np.array(corner))) for corner in corners], fill=fill
    )


def make(
    count: int, seed: int, side: int = 32, captions: Sequence[str] = CAPTIONS
) -> Iterator[tuple[Image.Image, str]]:
    """Yield `count` pictures and captions, every caption equally often; a picture depends on (seed, index) alone."""
    for index in range(count):
        caption = captions[index % len(captions)]
        yield draw(caption, np.random.default_rng((seed, index)), side), caption


def _values(caption: str) -> tuple[str, ...]:
    """Return size, colour, shape and position."""
    _, size, colour, shape, _, _, position = caption.split()
    return size, colour, shape, position


def _cross(a: float, b: float) -> list[tuple[float, float]]:
    arm = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
    return arm + [(-x, -y) for x, y in arm]
