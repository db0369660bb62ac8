"""What all sources of a user's own captioned pictures have in common: settings, and what captions come to."""

from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median
from typing import Annotated, Final, Self, TypeAlias

from pydantic import Field, model_validator

from data.makers import Entry, Made, Sample, Split
from data.makers.words import normal, pieces
from infra.media.pictures import size_of

MAX_CLASSES: Final = 256
PICTURES_PER_CLASS: Final = 8  # in the median, before captions count as classes
MOST_SIZES: Final = 16
LEAST_AREA: Final = 0.8  # of the square of image_size, and the other way round
Size: TypeAlias = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,2}x[1-9][0-9]{0,2}$")]


class CaptionedEntry(Entry):
    """An entry of params.yaml for captioned pictures."""

    image_size: Annotated[int, Field(ge=8, le=512)] = 32
    sizes: Annotated[tuple[Size, ...], Field(max_length=MOST_SIZES)] = ()
    """Sizes like 40x24, width and height, of about the area of `image_size`: each picture has the one of which least is
    cropped. The first is drawn where no other is asked for. Empty: all are squares."""
    pieces: Annotated[int, Field(ge=32, le=65_536)] | None = None
    """Captions are cut into so many pieces of words at most, and no word of a prompt is unknown; None: into words."""

    @model_validator(mode="after")
    def _sizes_are_alike(self) -> Self:
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("sizes: each is listed once")
        for size in self.sizes:
            width, height = size_of(size)
            if not all(8 <= side <= 512 for side in (width, height)):
                raise ValueError(f"sizes: sides are between 8 and 512 pixels, got {size}")
            if not LEAST_AREA <= width * height / self.image_size**2 <= 1 / LEAST_AREA:
                whole = f"image_size {self.image_size} has {self.image_size**2}"
                raise ValueError(
                    f"sizes: {size} has {width * height} pixels, and {whole}: between {LEAST_AREA:g} and"
                    f" {1 / LEAST_AREA:g} times as many may have"
                )
        return self

    @property
    def size(self) -> str:
        """Pixels a side, or the sizes that there are."""
        return ", ".join(self.sizes) or super().size


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
        settings={
            **{"image_size": config.image_size, "channels": 3},
            **({"sizes": list(config.sizes)} if config.sizes else {}),
        },
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


def sample(
    file: str,
    found: tuple[bytes, str],
    caption: str,
    *,
    classed: bool,
    split: Split | None = None,
) -> Sample:
    """Return a picture as found, its bytes or why there are none, with its caption as it is learned."""
    content, problem = found
    said = normal(caption)
    return Sample(file, content, said, split, problem, (said,) if classed else ())
