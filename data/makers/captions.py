"""What all sources of a user's own captioned pictures have in common: settings, and what captions come to."""

from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median
from typing import Annotated, Final

from pydantic import Field

from data.makers import Entry, Made, Sample
from data.makers.words import normal, pieces

MAX_CLASSES: Final = 256
PICTURES_PER_CLASS: Final = 8  # in the median, before captions count as classes


class CaptionedEntry(Entry):
    """An entry of params.yaml for captioned pictures."""

    image_size: Annotated[int, Field(ge=8, le=512)] = 32
    pieces: Annotated[int, Field(ge=32, le=65_536)] | None = None
    """Captions are cut into so many pieces of words at most, and no word of a prompt is unknown; None: into words."""


def captioned(
    config: CaptionedEntry,
    captions: Iterable[str],
    pictures: Callable[[bool], Iterable[Sample]],
) -> Made:
    """Return a dataset of pictures with these captions.

    Args:
        config: its entry.
        captions: of all pictures, as they are found.
        pictures: returns the samples, told whether each has its caption as an attribute.
    """
    classes, vocabulary = told_by(captions, config.pieces)
    return Made(
        samples=pictures(bool(classes)),
        settings={"image_size": config.image_size, "channels": 3},
        attributes={"caption": classes} if classes else {},
        vocabulary=vocabulary,
    )


def told_by(captions: Iterable[str], most: int | None) -> tuple[list[str], list[str]]:
    """Return captions that are classes, none where they are no few, and the vocabulary: words, or `most` pieces."""
    counts = Counter(normal(caption) for caption in captions)
    counts.pop("", None)
    classes = sorted(counts)
    few = 1 < len(classes) <= MAX_CLASSES and median(counts.values()) >= PICTURES_PER_CLASS
    words = sorted({word for caption in classes for word in caption.split()})
    return classes if few else [], words if most is None else pieces(counts.elements(), most)


def sample(file: str, found: tuple[bytes, str], caption: str, *, classed: bool) -> Sample:
    """Return a picture as found, its bytes or why there are none, with its caption as it is learned."""
    content, problem = found
    said = normal(caption)
    return Sample(file, content, said, problem=problem, attributes=(said,) if classed else ())
