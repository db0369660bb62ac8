"""Encoded pictures from anywhere into uint8 arrays of known sizes, with bounds, or the reason why not."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, TypeAlias

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
Size: TypeAlias = tuple[int, int]
"""Width and height, in pixels."""


class PictureError(ValueError):
    """A picture that cannot be used; the message is the reason, in a few words."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture as it will be learned from, and as it was found."""

    pixels: Any  # (H, W, channels) uint8
    width: int
    height: int
    mode: str
    kept: Size  # of the picture turned upright, what was not cropped


def decode(content: bytes, image_size: int, channels: int, sizes: Sequence[Size] = ()) -> Decoded:
    """Return the picture decoded to its last byte, turned upright, over white, cropped and resized.

    Args:
        content: the file.
        image_size: pixels a side.
        channels: 1 or 3.
        sizes: in place of a square the one of these of which least is cropped.

    Raises:
        PictureError: unknown format, larger than 4096 pixels a side, or damaged.
    """
    image, flat = _loaded(
        content, lambda upright: _flattened(upright, content, "L" if channels == 1 else "RGB")
    )
    return _decoded(image, flat, sizes or ((image_size, image_size),))


def transparency(content: bytes, image_size: int, sizes: Sequence[Size] = ()) -> Decoded:
    """Return how transparent a picture is, (H, W, 1): 255 where nothing of it is seen; cropped as by `decode`.

    Raises:
        PictureError: as `decode`.
    """
    image, clear = _loaded(
        content,
        lambda upright: ImageChops.invert(upright.convert("RGBA").getchannel("A")),
    )
    return _decoded(image, clear, sizes or ((image_size, image_size),))


def _decoded(image: Image.Image, upright: Image.Image, sizes: Sequence[Size]) -> Decoded:
    width, height = size = nearest(upright.size, sizes)
    pixels = np.asarray(fitted(upright, size)).reshape(height, width, -1)
    return Decoded(pixels, *image.size, image.mode, kept(upright.size, size))


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
    """Return a picture's central square, resized."""
    return fitted(image, (side, side))


def fitted(image: Image.Image, size: Size) -> Image.Image:
    """Return the middle of a picture at a size: resized by box where the size divides it, else by Lanczos."""
    (width, height), (wide, high) = kept(image.size, size), size
    if (width, height) != image.size:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    if image.size == size:
        return image
    exact = width % wide == 0 and height % high == 0
    return image.resize(size, Image.Resampling.BOX if exact else Image.Resampling.LANCZOS)


def size_of(written: str) -> Size:
    """Return the width and height that "40x24" names."""
    width, _, height = written.partition("x")
    return int(width), int(height)


def kept(found: Size, size: Size) -> Size:
    """Return the largest part of a picture that has the aspect ratio of a size, to the pixel.

    Example:
        >>> kept((300, 200), (32, 32)), kept((300, 200), (40, 24)), kept((300, 200), (24, 40))
        ((200, 200), (300, 180), (120, 200))
    """
    (width, height), (wide, high) = found, size
    if width * high > height * wide:
        return max(1, round(height * wide / high)), height
    return width, max(1, round(width * high / wide))


def nearest(found: Size, sizes: Sequence[Size]) -> Size:
    """Return the size whose aspect ratio is nearest to a picture's, so that least is cropped; the first of equals.

    Example:
        >>> nearest((300, 200), ((32, 32), (40, 24), (24, 40)))
        (40, 24)
    """
    width, height = found
    ratios = [Fraction(width * high, height * wide) for wide, high in sizes]
    return sizes[ratios.index(min(ratios, key=lambda one: max(one, 1 / one)))]
