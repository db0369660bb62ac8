"""Pictures: square, resized, as unsigned bytes (H, W, C); captions beside them.

Shape letters: N rows, C channels, H and W pixels.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.modalities import Modality, SampleError
from data.rules import Row, Rule, between
from infra.media.pictures import MAX_SIDE, Decoded, PictureError, decode, png


class Image(Modality):
    """Settings: `image_size` pixels a side, `channels` 1 or 3."""

    name = "image"
    noun = "picture"
    column = "pixels"
    settings = ("image_size", "channels")
    facts: ClassVar[Sequence[pa.Field]] = (
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("mode", pa.string()),
        pa.field("low", pa.int16()),  # of the levels 0 to 255, after cropping and resizing
        pa.field("high", pa.int16()),
        pa.field("mean", pa.float64()),
        pa.field("std", pa.float64()),
    )

    def look(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return size as found, levels as prepared, and the sha256 of the pixels."""
        found = _decode(content, made)
        x = found.pixels
        return {
            "width": found.width,
            "height": found.height,
            "mode": found.mode,
            "low": int(x.min()),
            "high": int(x.max()),
            "mean": float(x.mean()),
            "std": float(x.std()),
            "digest": hashlib.sha256(x.tobytes()).hexdigest(),
        }

    def rules(self, made: Mapping[str, Any]) -> list[Rule]:
        """Return the expectations: large enough, not flat."""
        side = made["image_size"]
        return [
            Rule("wide enough", *between("width", side, MAX_SIDE), lambda row: _size(row, side)),
            Rule("high enough", *between("height", side, MAX_SIDE), lambda row: _size(row, side)),
            Rule("not flat", *between("std", 1, 128), _flat),
            Rule("levels in range", *between("high", 1, 255), _flat),
        ]

    def pack(self, content: bytes, made: Mapping[str, Any]) -> bytes:
        """Return the pixels, H*W*C bytes in row-major order."""
        pixels: bytes = _decode(content, made).pixels.tobytes()
        return pixels

    def summary(self, rows: pa.Table, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return {"mean", "std"}, in [0, 1], a number a channel, over the rows' pixels."""
        channels: int = made["channels"]
        count, sums = 0, np.zeros((2, channels))
        size = max(1, (8 << 20) // (made["image_size"] ** 2 * channels))
        for first in range(0, len(rows), size):
            part = pixels_of(rows.slice(first, size))
            x = part.reshape(-1, channels).astype(np.float32) / 255
            count += len(x)
            sums += x.sum(0, dtype=np.float64), np.square(x).sum(0, dtype=np.float64)
        mean, square = sums / max(1, count)
        std = np.sqrt(np.maximum(square - np.square(mean), 0))
        return {"mean": mean.round(6).tolist(), "std": std.round(6).tolist()}

    def example(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return {"picture": PNG file}."""
        return {"picture": png(_decode(content, made).pixels.squeeze())}

    def network_facts(self, header: Mapping[str, Any], size: int | None) -> dict[str, Any]:
        """Return image_size, channels, and what captions are made of."""
        side: int = header["image_size"]
        if side % (size or side):
            raise ValueError(
                f"image_size {size} does not divide the dataset's {side} pixels a side"
            )
        attributes = header["attributes"].items()
        return {
            "image_size": size or side,
            "channels": header["channels"],
            "vocabulary": tuple(header["vocabulary"]),
            "max_words": header["max_words"],
            "attributes": tuple((name, tuple(values)) for name, values in attributes),
        }

    def row_bytes(self, header: Mapping[str, Any], size: int | None) -> int:
        """Return the bytes of a picture's sums."""
        side, area = _sides(header, size)
        found: int = header["channels"] * side * side * _dtype(area).itemsize
        return found

    def read(
        self, header: Mapping[str, Any], rows: pa.Table, size: int | None
    ) -> dict[str, npt.NDArray[Any]]:
        """Return `sums` (N, C, H, W): pixels summed over the downsampled area, in as few bytes as hold them."""
        channels: int = header["channels"]
        (side, area), whole = _sides(header, size), header["image_size"]
        x_NHWC = np.frombuffer(b"".join(rows["pixels"].to_pylist()), np.uint8).reshape(
            len(rows), whole, whole, channels
        )
        if area > 1:
            split = (len(rows), side, area, side, area, channels)
            x_NHWC = x_NHWC.reshape(split).sum(axis=(2, 4), dtype=_dtype(area))
        return {"sums": np.array(x_NHWC.transpose(0, 3, 1, 2), order="C")}

    def batch(
        self, header: Mapping[str, Any], rows: Mapping[str, Any], size: int | None
    ) -> dict[str, Any]:
        """Return `pixels` (B, C, H, W) float32 in [0, 1]."""
        _, area = _sides(header, size)
        return {"pixels": rows["sums"].float().div_(255 * area * area)}


def pixels_of(rows: pa.Table) -> npt.NDArray[np.uint8]:
    """Return the rows' bytes one after the other, without a copy."""
    column = rows["pixels"].combine_chunks()
    _, offsets, content = column.buffers()
    if not len(column):
        return np.zeros(0, np.uint8)
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(content, np.uint8)[ends[0] : ends[-1]]


def _decode(content: bytes, made: Mapping[str, Any]) -> Decoded:
    try:
        return decode(content, made["image_size"], made["channels"])
    except PictureError as error:
        raise SampleError(str(error)) from None


def _sides(header: Mapping[str, Any], size: int | None) -> tuple[int, int]:
    """Return the pixels a side that are learned, and a side of the area that each is the mean of."""
    side: int = header["image_size"]
    return size or side, side // (size or side)


def _dtype(area: int) -> "np.dtype[Any]":
    return np.dtype(np.uint8 if area == 1 else np.min_scalar_type(-255 * area**2))


def _size(row: Row, side: int) -> str:
    width, height = int(row["width"]), int(row["height"])
    return f"{width}x{height} pixels, between {side} and {MAX_SIDE} a side are needed"


def _flat(row: Row) -> str:
    return f"flat picture: all levels between {int(row['low'])} and {int(row['high'])}"
