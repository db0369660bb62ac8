"""Pictures and sounds from elsewhere, read alike whether a dataset is made of them or their likelihood is asked for."""

import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

PNG: Final = b"\x89PNG\r\n\x1a\n"
UNKNOWN: Final = (0, 0xFFFFFFFF)
"""Lengths of a WAV that was written to a pipe, such as ffmpeg's, when nobody knew how long it would be."""


class CutShort(ValueError):
    """A sound file that ends before what its header says."""


def flattened(image: "Image.Image", content: bytes, mode: str) -> "Image.Image":
    """Return a loaded picture in `mode` ("L" or "RGB"), transparency over white, 16 bits as 8.

    `content` is the file: of a PNG with a colour that counts as transparent, Pillow scales the pixels, not the colour.
    """
    from PIL import Image

    key = image.info.get("transparency")
    depth = content[24] if content.startswith(PNG) else 8  # bits a channel
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image).astype(np.float64)
        clear = levels == key if content.startswith(PNG) and key is not None else None
        levels = np.clip(levels / 257, 0, 255).astype(np.uint8)
        return _cleared(levels, clear).convert(mode)
    if content.startswith(PNG) and image.mode in {"1", "L", "RGB"} and key is not None:
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


def _cleared(levels: Any, clear: Any) -> "Image.Image":
    from PIL import Image

    levels = levels.copy()
    if clear is not None:
        levels[clear] = 255
    return Image.fromarray(levels)


def whole_sound(content: bytes) -> bytes:
    """Return a WAV, FLAC or Ogg file, a WAV of unknown length with its real one.

    Raises:
        CutShort: a WAV or Ogg file ends too early, which libsndfile passes over; of a FLAC only decoding tells.
    """
    if content[:4] == b"RIFF":
        return _whole_wav(content)
    if content[:4] == b"OggS" and not _ends(content):
        raise CutShort("truncated OGG (cannot be decoded fully)")
    return content


def _whole_wav(content: bytes) -> bytes:
    place, length = 12, len(content)
    whole = struct.unpack_from("<I", content.ljust(8, b"\0"), 4)[0]
    while place + 8 <= length:
        kind, size = struct.unpack_from("<4sI", content, place)
        start = place + 8
        # a sound of no samples has a length of 0 too, but then the whole's length counts what follows
        open_end = size or whole in UNKNOWN or 8 + whole <= start
        if kind == b"data" and size in UNKNOWN and open_end:
            mended = bytearray(content)
            struct.pack_into("<I", mended, 4, length - 8)
            struct.pack_into("<I", mended, place + 4, length - start)
            return bytes(mended)
        if start + size > length:
            raise CutShort("truncated WAV (cannot be decoded fully)")
        place = start + size + size % 2
    return content


def _ends(content: bytes) -> bool:
    """Return whether the pages of an Ogg file follow each other to one that is marked as the last."""
    place, last = 0, False
    while place + 27 <= len(content) and content[place : place + 4] == b"OggS":
        segments = content[place + 27 : place + 27 + content[place + 26]]
        last = bool(content[place + 5] & 4)
        place += 27 + content[place + 26] + sum(segments)
    return last and place == len(content)
