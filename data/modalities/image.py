"""Pictures: resized to a square, or to one of some sizes, as unsigned bytes (H, W, C); captions beside them.

Shape letters: N rows, C channels, H and W pixels.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.modalities import Modality, SampleError
from data.rules import Row, Rule, between, contains
from infra.media.pictures import MAX_SIDE, Decoded, PictureError, Size, decode, png, size_of

LEAST_STD: Final = 1.0  # of the levels 0 to 255
MOST_CROPPED: Final = 0.5  # of a picture that has the best of several sizes


class Image(Modality):
    """Settings: `image_size` pixels a side, `channels` 1 or 3; `sizes` like 40x24 where not all are squares.

    A shard then has pictures of one size, which its entry in dataset.json says as `size`.
    """

    name = "image"
    noun = "picture"
    column = "pixels"
    settings = ("image_size", "channels", "sizes")
    facts: ClassVar[Sequence[pa.Field]] = (
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("mode", pa.string()),
        pa.field("size", pa.string()),  # as prepared
        pa.field("cropped", pa.float64()),  # share of what was found
        pa.field("enlarged", pa.float64()),  # what was not cropped, so many times; 1 at most
        pa.field("trained_size", pa.string()),  # where it is in the training split
        pa.field("low", pa.int16()),  # of the levels 0 to 255, after cropping and resizing
        pa.field("high", pa.int16()),
        pa.field("mean", pa.float64()),
        pa.field("std", pa.float64()),  # of the channel that has the most
    )

    def look(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return size as found, levels as prepared, and the sha256 of the pixels."""
        found = _decode(content, made)
        x = found.pixels
        return {
            "width": found.width,
            "height": found.height,
            "mode": found.mode,
            "size": _written((x.shape[1], x.shape[0])),
            "cropped": 1 - found.kept[0] * found.kept[1] / (found.width * found.height),
            "enlarged": max(x.shape[1] / found.kept[0], x.shape[0] / found.kept[1]),
            "low": int(x.min()),
            "high": int(x.max()),
            "mean": float(x.mean()),
            "std": float(x.reshape(-1, x.shape[2]).std(0).max()),
            "digest": hashlib.sha256(x.tobytes()).hexdigest(),
        }

    def relate(
        self,
        rows: pa.Table,
        column: Callable[[str], list[Any]],  # noqa: ARG002 - the rows say it
        made: Mapping[str, Any],  # noqa: ARG002
    ) -> dict[str, list[Any]]:
        """Return the sizes that are learned."""
        found = zip(rows["size"].to_pylist(), rows["split"].to_pylist(), strict=True)
        return {"trained_size": [size if split == "train" else None for size, split in found]}

    def rules(self, made: Mapping[str, Any]) -> list[Rule]:
        """Return the expectations: large enough, not flat; of several sizes, each is learned and little cropped."""
        side, sizes = made["image_size"], made.get("sizes", ())
        large = [
            Rule("wide enough", *between("width", side, MAX_SIDE), lambda row: _size(row, side)),
            Rule("high enough", *between("height", side, MAX_SIDE), lambda row: _size(row, side)),
        ]
        fits = [
            Rule("large enough", *between("enlarged", None, 1), _enlarged),
            Rule("little is cropped", *between("cropped", 0, MOST_CROPPED), _cropped),
            Rule("every size is learned", *contains("trained_size", sizes), _unlearned),
        ]
        return [
            *(fits if sizes else large),
            Rule("not flat", *between("std", LEAST_STD, 128), _flat),
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
        area = side // (size or side)
        if odd := [one for one in header.get("sizes", ()) if any(x % area for x in size_of(one))]:
            raise ValueError(
                f"image_size {size} is a {area}th of the dataset's {side}, which does not divide its size {odd[0]}"
            )
        attributes = header["attributes"].items()
        return {
            "image_size": size or side,
            **({"sizes": tuple(map(_written, _sizes(header, size)))} if "sizes" in header else {}),
            "channels": header["channels"],
            "vocabulary": tuple(header["vocabulary"]),
            "max_words": header["max_words"],
            "attributes": tuple((name, tuple(values)) for name, values in attributes),
        }

    def row_bytes(self, header: Mapping[str, Any], size: int | None) -> int:
        """Return the bytes of a picture's sums."""
        width, height = _whole(header)
        area = _area(header, size)
        found: int = header["channels"] * (width // area) * (height // area) * _dtype(area).itemsize
        return found

    def read(
        self, header: Mapping[str, Any], rows: pa.Table, size: int | None
    ) -> dict[str, npt.NDArray[Any]]:
        """Return `sums` (N, C, H, W): pixels summed over the downsampled area, in as few bytes as hold them."""
        channels: int = header["channels"]
        area, (width, height) = _area(header, size), _whole(header)
        x_NHWC = np.frombuffer(b"".join(rows["pixels"].to_pylist()), np.uint8).reshape(
            len(rows), height, width, channels
        )
        if area > 1:
            split = (len(rows), height // area, area, width // area, area, channels)
            x_NHWC = x_NHWC.reshape(split).sum(axis=(2, 4), dtype=_dtype(area))
        return {"sums": np.array(x_NHWC.transpose(0, 3, 1, 2), order="C")}

    def batch(
        self, header: Mapping[str, Any], rows: Mapping[str, Any], size: int | None
    ) -> dict[str, Any]:
        """Return `pixels` (B, C, H, W) float32 in [0, 1]."""
        area = _area(header, size)
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
        sizes = tuple(map(size_of, made.get("sizes", ())))
        return decode(content, made["image_size"], made["channels"], sizes)
    except PictureError as error:
        raise SampleError(str(error)) from None


def _area(header: Mapping[str, Any], size: int | None) -> int:
    """Return a side of the area that each learned pixel is the mean of."""
    side: int = header["image_size"]
    return side // (size or side)


def _whole(header: Mapping[str, Any]) -> Size:
    """Return the size of the pictures as they are kept, of those of one size where there are several."""
    side: int = header["image_size"]
    return size_of(header["size"]) if "size" in header else (side, side)


def _sizes(header: Mapping[str, Any], size: int | None) -> list[Size]:
    """Return the sizes that are learned."""
    area = _area(header, size)
    return [(width // area, height // area) for width, height in map(size_of, header["sizes"])]


def _written(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def told_of_sizes(facts: pa.Table) -> str:
    """Return how many pictures have each size, and how much of them was cropped."""
    sizes, cropped = facts["size"].to_pylist(), facts["cropped"].to_pylist()
    counts = Counter(size for size in sizes if size)
    lost = {
        one: sum(share for size, share in zip(sizes, cropped, strict=True) if size == one)
        for one in counts
    }
    told = counts.most_common()
    return ", ".join(f"{one}: {count:,} ({lost[one] / count:.0%} cropped)" for one, count in told)


def _dtype(area: int) -> "np.dtype[Any]":
    return np.dtype(np.uint8 if area == 1 else np.min_scalar_type(-255 * area**2))


def _size(row: Row, side: int) -> str:
    width, height = int(row["width"]), int(row["height"])
    return f"{width}x{height} pixels, between {side} and {MAX_SIDE} a side are needed"


def _enlarged(row: Row) -> str:
    found = f"{int(row['width'])}x{int(row['height'])} pixels"
    return f"{found}: to be {row['size']} it would be enlarged {row['enlarged']:.2f} times"


def _cropped(row: Row) -> str:
    found = f"{int(row['width'])}x{int(row['height'])} pixels"
    return f"{found}: {row['cropped']:.0%} would be cropped to {row['size']}, at most {MOST_CROPPED:.0%}; add a size"


def _unlearned(_: Row) -> str:
    return "a size has no picture in the training split: leave it out of sizes, or add pictures"


def _flat(row: Row) -> str:
    low, high = int(row["low"]), int(row["high"])
    if high - low <= 2 * LEAST_STD:
        return f"flat picture: all levels between {low} and {high}"
    return f"flat picture: no channel's levels spread by more than {row['std']:.2f} of 255"
