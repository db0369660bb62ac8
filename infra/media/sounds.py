"""Sounds to files and back: what is written here, and what comes from elsewhere."""

import io
import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNKNOWN: Final = (0, 0xFFFFFFFF)
"""Lengths of a WAV that was written to a pipe, such as ffmpeg's, when nobody knew how long it would be."""


class CutShort(ValueError):
    """A sound file that ends before what its header says."""


def wav(sound_T: "NDArray[Any]", sample_rate: int) -> bytes:
    """Return a sound, int16 or floats in [-1, 1], as a WAV file of one channel of 16 bits."""
    return _file(sound_T, sample_rate, "WAV")


def flac(sound_T: "NDArray[Any]", sample_rate: int) -> bytes:
    """Return a sound, int16 or floats in [-1, 1], as a FLAC file of one channel of 16 bits."""
    return _file(sound_T, sample_rate, "FLAC")


def _file(sound_T: "NDArray[Any]", sample_rate: int, kind: str) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, sound_T, sample_rate, format=kind, subtype="PCM_16")
    return file.getvalue()


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
