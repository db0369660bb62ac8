"""scikit-learn's handwritten digits: 1797 grey pictures of 8x8 pixels with 16 levels, captioned "zero" to "nine"."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from data.makers import DIGITS, Entry, Made, Sample
from infra.media.pictures import png


class Config(Entry):
    """The entry of params.yaml."""

    maker: Literal["digits"]
    path: Path = Path("data/makers/digits.py")
    image_size: Literal[8] = 8


def made(config: Config, project: Path) -> Made:  # noqa: ARG001 - comes with scikit-learn
    """Return the digits."""
    return Made(
        samples=_pictures(),
        settings={"image_size": config.image_size, "channels": 1},
        attributes={"digit": DIGITS},
        vocabulary=sorted(DIGITS),
    )


def _pictures() -> Iterator[Sample]:
    from sklearn.datasets import load_digits

    found = load_digits()
    levels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    for index, (x_HW, digit) in enumerate(zip(levels, found.target, strict=True)):
        yield Sample(f"{index:04d}.png", png(x_HW), DIGITS[digit], attributes=(DIGITS[digit],))
