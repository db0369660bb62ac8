"""MNIST from files on disk: the four IDX files, plain or gzipped, or one statically binarised `*packed*.npz`.

IDX keeps the official 60,000/10,000 split and takes 5,000 of the first for validation; its captions are the digits as
words. The packed file (arrays `train`, `valid`, `test` of 98 bytes a row, a bit a pixel) keeps its own three splits and
has no labels, so no captions. Both are 28x28 grey.
"""

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data.makers import DIGITS, Entry, Made, MakerError, Sample, Split
from data.makers.files import unpacked
from infra.media.pictures import png

SIDE: Final = 28
IDX: Final[dict[Split, str]] = {"train": "train", "test": "t10k"}
PACKED: Final[dict[Split, str]] = {"train": "train", "validation": "valid", "test": "test"}

Bytes = npt.NDArray[np.uint8]


class Config(Entry):
    """The entry of params.yaml."""

    maker: Literal["mnist"]
    image_size: Literal[28] = 28
    validation: Annotated[int, Field(ge=1, le=55_000)] = 5000


def made(config: Config, project: Path) -> Made:
    """Return the digits of the folder `config.path`.

    Raises:
        MakerError: a file is missing (named, with its folder) or is not what its name says.
    """
    folder = project / config.path
    _check_folder(folder)
    packed = sorted(folder.glob("*packed*.npz"))
    if packed:
        pictures = _unpacked(packed[0])
        settings = {"image_size": SIDE, "channels": 1}
        return Made(samples=pictures, settings=settings, captioned=False)
    files = _idx_files(folder)
    return Made(
        samples=_pictures(files),
        settings={"image_size": SIDE, "channels": 1},
        attributes={"digit": DIGITS},
        vocabulary=sorted(DIGITS),
        validation_rows=config.validation,
    )


def digits_of(folder: Path) -> dict[Split, Callable[[], Bytes]]:
    """Return how to read the pictures (N, 28, 28) of MNIST's two splits.

    Raises:
        MakerError: a file is missing (named, with its folder).
    """
    _check_folder(folder)
    return {
        split: partial(read_idx, images, 3) for split, (images, _) in _idx_files(folder).items()
    }


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise MakerError(
            f"no folder {folder}: put the four MNIST IDX files there or set datasets.*.path in params.yaml"
        )


def _idx_files(folder: Path) -> dict[Split, tuple[Path, Path]]:
    """Return the files of pictures and of labels of each split."""
    return {split: (_file(folder, split, 3), _file(folder, split, 1)) for split in IDX}


def _file(folder: Path, split: Split, dimensions: int) -> Path:
    kind = "images" if dimensions == 3 else "labels"
    name = f"{IDX[split]}-{kind}-idx{dimensions}-ubyte"
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx")):
        if (folder / candidate).is_file():
            return folder / candidate
    raise MakerError(f"{name}[.gz] is missing in {folder}")


def _pictures(files: dict[Split, tuple[Path, Path]]) -> Iterator[Sample]:
    for split, (images, labels) in files.items():
        x_NHW, digits = read_idx(images, 3), read_idx(labels, 1)
        if len(x_NHW) != len(digits) or x_NHW.shape[1:] != (SIDE, SIDE):
            raise MakerError(
                f"{images} has {len(x_NHW)} pictures of {x_NHW.shape[1:]}, {labels.name} {len(digits)} labels"
            )
        if digits.max(initial=0) > 9:
            raise MakerError(f"{labels} has a label {digits.max()}; digits are 0 to 9")
        for index, (x_HW, digit) in enumerate(zip(x_NHW, digits, strict=True)):
            name, said = f"{split}/{index:05d}.png", DIGITS[digit]
            yield Sample(name, png(x_HW), said, split, attributes=(said,))


def read_idx(path: Path, dimensions: int) -> Bytes:
    """Return an IDX file of unsigned bytes with so many dimensions.

    Raises:
        MakerError: not such a file, cut short, or larger than a gibibyte.
    """
    content = unpacked(path)
    start = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < start:
        raise MakerError(f"{path} is not an IDX file of {dimensions}-dimensional bytes")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected = start + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise MakerError(
            f"{path} has {len(content)} bytes, its header says {expected}: download it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _unpacked(path: Path) -> Iterator[Sample]:
    arrays = _arrays(path)
    for split, key in PACKED.items():
        rows = arrays[key]
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != SIDE * SIDE // 8:
            raise MakerError(f"{path}: {key!r} is {rows.dtype} {rows.shape}, not uint8 (N, 98)")
        for index, row in enumerate(rows):
            x_HW = np.unpackbits(row).reshape(SIDE, SIDE) * np.uint8(255)
            yield Sample(f"{split}/{index:05d}.png", png(x_HW), "", split)


def _arrays(path: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):  # NumPy would take it for pickled, and say so
        raise MakerError(f"{path} is not an .npz file, or not whole: get it again")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := sorted(set(PACKED.values()) - set(archive.files)):
                raise MakerError(f"{path} has no array {missing[0]!r}")
            return {key: archive[key] for key in PACKED.values()}
    except MakerError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise MakerError(f"cannot read {path}: {error}") from None
