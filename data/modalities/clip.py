"""Clips: so many square frames at so many a second, as unsigned bytes (F, H, W, C); captions beside them.

A maker brings them in as arrays, for one file may hold many: what was found of it stands beside. A family of pictures
reads clips as `Stills`, a row a frame.

Shape letters: N rows, B rows of a batch, F frames, C channels, H and W pixels.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data.modalities import Modality, SampleError
from data.modalities.image import Image
from data.rules import Row, Rule, between
from infra.media.pictures import MAX_SIDE, png

LEAST_MOTION: Final = 0.1  # levels of 255 between a frame and the next, in the mean
MOST_RATE: Final = 240.0  # frames a second, of a file
SLACK: Final = 1e-3  # of a rate: 30000/1001 counts as 30


@dataclass(frozen=True, slots=True)
class Found:
    """A clip as it will be learned from, and what it was cut from."""

    frames: Any  # (F, H, W, C) uint8
    width: int
    height: int
    rate: float  # frames a second


def clip_bytes(clip: Found) -> bytes:
    """Return a clip as its maker writes it; `clip_of` reads it."""
    size = np.array([clip.width, clip.height], np.int32)
    rate = np.array([clip.rate], np.float64)
    return save({"frames": np.ascontiguousarray(clip.frames), "size": size, "rate": rate})


def clip_of(content: bytes, made: Mapping[str, Any]) -> Found:
    """Return a clip that a maker wrote.

    Raises:
        SampleError: it is none, or of another size or other channels than the dataset's.
    """
    try:
        found = load(content)
        frames, size, rate = found["frames"], found["size"], found["rate"]
    except (SafetensorError, KeyError) as error:
        raise SampleError(f"not a clip: {error}") from None
    side, channels = made["image_size"], made["channels"]
    if frames.shape[1:] != (side, side, channels) or frames.dtype != np.uint8:
        raise SampleError(f"frames of {frames.shape[1:]}, the dataset's are {side}x{side}")
    return Found(frames, int(size[0]), int(size[1]), float(rate[0]))


class Clip(Modality):
    """Settings: `image_size` pixels a side, `channels` 1 or 3, `frames`, `frame_rate` a second, `moving`.

    `moving` names the attributes that no single frame shows, such as a direction.
    """

    name = "clip"
    noun = "clip"
    column = "frames"
    settings = ("image_size", "channels", "frames", "frame_rate", "moving")
    facts: ClassVar[Sequence[pa.Field]] = (
        pa.field("width", pa.int32()),  # as found
        pa.field("height", pa.int32()),
        pa.field("rate", pa.float64()),
        pa.field("frames", pa.int32()),  # as prepared
        pa.field("mean", pa.float64()),  # of the levels 0 to 255
        pa.field("std", pa.float64()),  # of the channel that has the most
        pa.field("motion", pa.float64()),  # between a frame and the next, in the mean
    )

    def look(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return size and rate as found, levels and motion as prepared, and the sha256 of the frames."""
        found = clip_of(content, made)
        x = found.frames.astype(np.int16)
        return {
            "width": found.width,
            "height": found.height,
            "rate": found.rate,
            "frames": len(x),
            "mean": float(x.mean()) if x.size else 0.0,
            "std": float(x.reshape(-1, x.shape[3]).std(0).max()) if x.size else 0.0,
            "motion": float(np.abs(np.diff(x, axis=0)).mean()) if len(x) > 1 else 0.0,
            "digest": hashlib.sha256(found.frames.tobytes()).hexdigest(),
        }

    def rules(self, made: Mapping[str, Any]) -> list[Rule]:
        """Return the expectations: long, fast and large enough, not flat, not still."""
        side, frames, rate = made["image_size"], made["frames"], made["frame_rate"]
        least = rate * (1 - SLACK)
        return [
            Rule(
                "as many frames as asked",
                *between("frames", frames, frames),
                lambda row: _frames(row, frames, rate),
            ),
            Rule("known rate", *between("rate", least, MOST_RATE), lambda row: _rate(row, rate)),
            Rule("wide enough", *between("width", side, MAX_SIDE), lambda row: _size(row, side)),
            Rule("high enough", *between("height", side, MAX_SIDE), lambda row: _size(row, side)),
            Rule("not flat", *between("std", 1, 128), _flat),
            Rule("not still", *between("motion", LEAST_MOTION, None), _still),
        ]

    def pack(self, content: bytes, made: Mapping[str, Any]) -> bytes:
        """Return the frames, F*H*W*C bytes in row-major order."""
        frames: bytes = clip_of(content, made).frames.tobytes()
        return frames

    def summary(self, rows: pa.Table, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return {"mean", "std"}, in [0, 1], a number a channel, over the rows' pixels."""
        channels: int = made["channels"]
        count, sums = 0, np.zeros((2, channels))
        for content in rows[self.column]:
            levels = np.frombuffer(content.as_buffer(), np.uint8).reshape(-1, channels)
            x = levels.astype(np.float32) / 255
            count += len(x)
            sums += x.sum(0, dtype=np.float64), np.square(x).sum(0, dtype=np.float64)
        mean, square = sums / max(1, count)
        std = np.sqrt(np.maximum(square - np.square(mean), 0))
        return {"mean": mean.round(6).tolist(), "std": std.round(6).tolist()}

    def example(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return {"strip": PNG file}, the frames side by side."""
        x_FHWC = clip_of(content, made).frames
        return {"strip": png(np.concatenate(list(x_FHWC), 1).squeeze())}

    def network_facts(self, header: Mapping[str, Any], size: int | None) -> dict[str, Any]:
        """Return what is said of pictures, and frames, frame_rate and moving."""
        told = {
            **{"frames": header["frames"], "frame_rate": header["frame_rate"]},
            "moving": tuple(header["moving"]),
        }
        return {**Image().network_facts(header, size), **told}

    def stills(self) -> Modality:
        """Return the clips as pictures, a row a frame."""
        return Stills()

    def row_bytes(self, header: Mapping[str, Any], size: int | None) -> int:
        """Return the bytes of a clip's sums."""
        return int(header["frames"]) * Image().row_bytes(header, size)

    def read(
        self, header: Mapping[str, Any], rows: pa.Table, size: int | None
    ) -> dict[str, npt.NDArray[Any]]:
        """Return `sums` (N, F, C, H, W): pixels summed over the downsampled area, in as few bytes as hold them."""
        sums = _sums(header, rows[self.column], size)
        return {"sums": sums.reshape(len(rows), header["frames"], *sums.shape[1:])}

    def batch(
        self, header: Mapping[str, Any], rows: Mapping[str, Any], size: int | None
    ) -> dict[str, Any]:
        """Return `frames` (B, F, C, H, W) float32 in [0, 1]."""
        return {"frames": Image().batch(header, rows, size)["pixels"]}


class Stills(Image):
    """The frames of clips as pictures, without the attributes that none of them shows."""

    noun = "frame"
    view = ("stills",)

    def network_facts(self, header: Mapping[str, Any], size: int | None) -> dict[str, Any]:
        """Return what is said of pictures."""
        seen = {k: v for k, v in header["attributes"].items() if k not in header["moving"]}
        return super().network_facts({**header, "attributes": seen}, size)

    def rows_a_sample(self, header: Mapping[str, Any]) -> int:
        """Return the frames of a clip."""
        return int(header["frames"])

    def read(
        self, header: Mapping[str, Any], rows: pa.Table, size: int | None
    ) -> dict[str, npt.NDArray[Any]]:
        """Return `sums` (N * F, C, H, W), clip after clip."""
        return {"sums": _sums(header, rows[Clip.column], size)}


def _sums(header: Mapping[str, Any], column: pa.ChunkedArray, size: int | None) -> Any:
    """Return the frames' sums (N * F, C, H, W) as `Image.read` has them of pictures."""
    length = header["image_size"] ** 2 * header["channels"]
    content = b"".join(column.to_pylist())
    frames = [content[start : start + length] for start in range(0, len(content), length)]
    return Image().read(header, pa.table({Image.column: pa.array(frames, pa.binary())}), size)[
        "sums"
    ]


def _frames(row: Row, frames: int, rate: float) -> str:
    return f"{int(row['frames'])} frames at {rate:g} a second, {frames} are needed"


def _rate(row: Row, rate: float) -> str:
    return (
        f"{row['rate']:.4g} frames a second, between {rate:g} and {MOST_RATE:g} are needed:"
        " lower frame_rate"
    )


def _size(row: Row, side: int) -> str:
    width, height = int(row["width"]), int(row["height"])
    return f"{width}x{height} pixels, between {side} and {MAX_SIDE} a side are needed"


def _flat(row: Row) -> str:
    return f"flat frames: their levels spread by {row['std']:.2f} of 255"


def _still(row: Row) -> str:
    return f"nothing moves: a frame differs from the next by {row['motion']:.3f} of 255 in the mean"
