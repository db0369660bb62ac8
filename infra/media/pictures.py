"""Encoded pictures from anywhere into square uint8 arrays, with bounds, or the reason why not."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageOps

MAX_SIDE: Final = 4096  # pixels; Pillow's own bound, 179 million, is too high
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
BROKEN: Final = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow's decoders are known to raise on damaged files."""

MAGIC: Final = {
    "JPEG": (b"\xff\xd8\xff", b"\xff\xd9"),
    "PNG": (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"),
    "GIF": (b"GIF8", b";"),
}
"""How files of a format begin and end."""

Pixels = npt.NDArray[np.uint8]


class PictureError(ValueError):
    """A picture that cannot be used; the message is the reason, in a few words."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture as it will be learned from, and as it was found."""

    pixels: Any  # (image_size, image_size, channels) uint8
    width: int
    height: int
    mode: str


def decode(content: bytes, image_size: int, channels: int) -> Decoded:
    """Return the picture decoded to its last byte, turned upright, over white, cropped and resized.

    Raises:
        PictureError: unknown format, larger than 4096 pixels a side, or damaged.
    """
    image, flat = _loaded(
        content, lambda upright: _flattened(upright, content, "L" if channels == 1 else "RGB")
    )
    pixels = np.asarray(square(flat, image_size)).reshape(image_size, image_size, channels)
    return Decoded(pixels, *image.size, image.mode)


def transparency(content: bytes, image_size: int) -> Decoded:
    """Return how transparent a picture is, (image_size, image_size, 1): 255 where nothing of it is seen.

    Raises:
        PictureError: as `decode`.
    """
    image, clear = _loaded(
        content,
        lambda upright: ImageChops.invert(upright.convert("RGBA").getchannel("A")),
    )
    pixels = np.asarray(square(clear, image_size)).reshape(image_size, image_size, 1)
    return Decoded(pixels, *image.size, image.mode)


def _loaded(
    content: bytes, read: Callable[[Image.Image], Image.Image]
) -> tuple[Image.Image, Image.Image]:
    """Return a picture as it was found, and what is read of it turned upright."""
    image = _open(content)
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise PictureError(f"{width}x{height} pixels, at most {MAX_SIDE}x{MAX_SIDE} are decoded")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            image.load()
            return image, read(ImageOps.exif_transpose(image))
    except BROKEN as error:
        cut = "truncated" in str(error).lower() or _is_cut(content)
        raise _undecodable(image.format or "picture", cut=cut) from None


def _flattened(image: Image.Image, content: bytes, mode: str) -> Image.Image:
    """Return a loaded picture in `mode` ("L" or "RGB"), transparency over white, 16 bits as 8.

    `content` is the file: of a PNG with a colour that counts as transparent, Pillow scales the pixels, not the colour.
    """
    key = image.info.get("transparency")
    depth = content[24] if content.startswith(MAGIC["PNG"][0]) else 8  # bits a channel
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image).astype(np.float64)
        clear = levels == key if content.startswith(MAGIC["PNG"][0]) and key is not None else None
        levels = np.clip(levels / 257, 0, 255).astype(np.uint8)
        return _cleared(levels, clear).convert(mode)
    if content.startswith(MAGIC["PNG"][0]) and image.mode in {"1", "L", "RGB"} and key is not None:
        levels = np.asarray(image.convert("L") if image.mode == "1" else image)
        colour = np.asarray(key)
        if depth < 8:  # of grey
            colour = colour * 255 // (2**depth - 1)
        colour = colour >> 8 if depth == 16 else colour
        clear = (levels == colour).reshape(*levels.shape[:2], -1).all(2)
        return _cleared(levels, clear).convert(mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _cleared(levels: Any, clear: Any) -> Image.Image:
    levels = levels.copy()
    if clear is not None:
        levels[clear] = 255
    return Image.fromarray(levels)


def png(pixels: Pixels) -> bytes:
    """Return (H, W) grey or (H, W, 3) colour bytes as a PNG file, quickly rather than small."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _open(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, our bound is lower, and of odd metadata
            return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise PictureError(f"more pixels than {MAX_SIDE}x{MAX_SIDE}") from None
    except BROKEN:
        for kind, (start, _) in MAGIC.items():
            if content.startswith(start):
                raise _undecodable(kind, cut=_is_cut(content)) from None
        raise PictureError(f"not a picture that can be read ({', '.join(FORMATS)})") from None


def _undecodable(kind: str, *, cut: bool) -> PictureError:
    return PictureError(f"{'truncated' if cut else 'damaged'} {kind} (cannot be decoded fully)")


def _is_cut(content: bytes) -> bool:
    """Return whether a file begins like one of a known format but does not end like one."""
    return any(
        content.startswith(start) and not content.rstrip(b"\0").endswith(end)
        for start, end in MAGIC.values()
    )


def square(image: Image.Image, side: int) -> Image.Image:
    """Return a picture's central square, resized: by box where the side divides it, else by Lanczos."""
    width, height = image.size
    edge = min(width, height)
    if (width, height) != (edge, edge):
        left, top = (width - edge) // 2, (height - edge) // 2
        image = image.crop((left, top, left + edge, top + edge))
    if edge == side:
        return image
    exact = edge % side == 0
    return image.resize((side, side), Image.Resampling.BOX if exact else Image.Resampling.LANCZOS)
