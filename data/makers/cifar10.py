"""CIFAR-10 from files on disk: the binary version, or PNG sheets without labels.

The binary version is data_batch_1.bin to data_batch_5.bin and test_batch.bin, 3,073 bytes a picture: a label, then
32x32 red, green and blue levels. It keeps the official split and takes 5,000 training pictures for validation. A sheet
is `*batch*.png` of 1,024 pixels in width, a picture a row of it; sheets have no labels, so no captions, and are split
by hash. The python version is pickled and a pickle can run anything, so it is refused.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from data.makers import Entry, Made, MakerError, Sample, Split
from data.makers.files import unpacked
from infra.media.pictures import BROKEN, png

SIDE: Final = 32
AREA: Final = SIDE * SIDE
ROW: Final = 1 + 3 * AREA
MAX_PICTURES: Final = 100_000  # in a file
CLASSES: Final = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
BATCHES: Final[dict[str, Split]] = {
    **{f"data_batch_{number}.bin": "train" for number in range(1, 6)},
    "test_batch.bin": "test",
}


class Config(Entry):
    """The entry of params.yaml."""

    maker: Literal["cifar10"]
    image_size: Literal[32] = 32
    validation: Annotated[int, Field(ge=1, le=45_000)] = 5000


def made(config: Config, project: Path) -> Made:
    """Return the pictures of the folder `config.path`.

    Raises:
        MakerError: a file is missing (named, with its folder) or is not what its name says.
    """
    folder = project / config.path
    settings = {"image_size": SIDE, "channels": 3}
    sheets = sorted(folder.glob("*batch*.png"))
    if sheets:
        return Made(samples=_from_sheets(sheets), settings=settings, captioned=False)
    missing = [name for name in BATCHES if not (folder / name).is_file()]
    if missing and (folder / "data_batch_1").is_file():
        raise MakerError(
            f"{folder} has the python version, which is pickled: get the binary one (data_batch_1.bin)"
        )
    if missing:
        raise MakerError(
            f"{missing[0]} is missing in {folder}: put CIFAR-10's binary version or PNG sheets there"
        )
    return Made(
        samples=_from_batches(folder),
        settings=settings,
        attributes={"class": CLASSES},
        vocabulary=sorted(CLASSES),
        validation_rows=config.validation,
    )


def _from_batches(folder: Path) -> Iterator[Sample]:
    for name, split in BATCHES.items():
        content = unpacked(folder / name)
        if not content or len(content) % ROW:
            raise MakerError(
                f"{folder / name} has {len(content)} bytes, not a multiple of {ROW}: get it again"
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, ROW)
        if rows[:, 0].max() >= len(CLASSES):
            raise MakerError(f"{folder / name} has a label {rows[:, 0].max()}; they are 0 to 9")
        for index, row in enumerate(rows):
            x_HWC = row[1:].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
            file, said = f"{name}/{index:05d}.png", CLASSES[row[0]]
            content = png(np.ascontiguousarray(x_HWC))
            yield Sample(file, content, said, split, attributes=(said,))


def _from_sheets(sheets: list[Path]) -> Iterator[Sample]:
    for path in sheets:
        x_NHWC = _sheet(path).reshape(-1, SIDE, SIDE, 3)
        for index, x_HWC in enumerate(x_NHWC):
            yield Sample(f"{path.name}/{index:05d}.png", png(x_HWC))


def _sheet(path: Path) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    try:
        with Image.open(io.BytesIO(unpacked(path)), formats=["PNG"]) as image:
            if image.width != AREA or image.height > MAX_PICTURES or image.mode != "RGB":
                raise MakerError(
                    f"{path} is {image.width}x{image.height} {image.mode}, not a sheet of {AREA} RGB"
                    " pixels a row"
                )
            image.load()
            return np.asarray(image)
    except MakerError:
        raise
    except BROKEN as error:
        raise MakerError(f"cannot read {path}: {error}") from None
