"""Receipts behind a sound that was sent while it was made: its head left before anybody could sign it.

MP3 and AAC in ADTS: an APEv2 tag after the last frame (wiki.hydrogenaud.io, "APEv2 specification"), which ffmpeg passes
over, while it takes an ID3v2 tag there for a broken frame. WAV: its last samples. Such a WAV cannot say how long it is,
so that all players play what follows, and a chunk of text would be loud noise; a sample here has four bits of the
receipt, deflated: -8 to 7 of 32,768, which nobody hears (-72 dB).
"""

import io
import struct
import zlib
from typing import BinaryIO, Final

PREAMBLE: Final = b"APETAGEX"
VERSION: Final = 2000
EDGE: Final = 32  # bytes of a tag's header and of its footer
HEADER: Final = 0xA0000000  # flags: this is the header; there is one
FOOTER: Final = 0x80000000
KEY: Final = b"ATELIER\x00"
MARK: Final = b"atelier"  # behind a hushed receipt and the four bytes of its length
TRAILER: Final = 4 * (4 + len(MARK))  # bytes of samples that have both
MOST_PACKED: Final = 2**16  # bytes of a receipt, deflated
LONGEST: Final = 4 * MOST_PACKED + TRAILER  # bytes of samples that have a receipt
QUIET: Final = 8  # what is taken from four bits, so that they lie around silence


def tag(receipt: bytes) -> bytes:
    """Return an APEv2 tag with this receipt."""
    item = struct.pack("<II", len(receipt), 0) + KEY + receipt
    return _edge(len(item), HEADER) + item + _edge(len(item), FOOTER)


def _edge(size: int, flags: int) -> bytes:
    return PREAMBLE + struct.pack("<IIII", VERSION, size + EDGE, 1, flags) + bytes(8)


def tag_start(file: BinaryIO) -> int:
    """Return where a file's sound ends: where its tag of ours begins, or else at its end."""
    end = file.seek(0, io.SEEK_END)
    file.seek(max(0, end - EDGE))
    footer = file.read(EDGE)
    if footer[:8] != PREAMBLE:
        return end
    size = int.from_bytes(footer[12:16], "little") - EDGE
    start = end - size - 2 * EDGE
    if size < 0 or start < 0 or footer != _edge(size, FOOTER):
        return end
    file.seek(start)
    head = file.read(EDGE + 8 + len(KEY))
    length = size - 8 - len(KEY)
    ours = _edge(size, HEADER) + struct.pack("<II", max(0, length), 0) + KEY
    return start if head == ours else end


def of_tag(file: BinaryIO, most: int) -> list[bytes]:
    """Return the receipt in a tag of ours at a file's end.

    Raises:
        ValueError: it has more than `most` bytes.
    """
    start = tag_start(file)
    before = start + EDGE + 8 + len(KEY)
    length = file.seek(0, io.SEEK_END) - EDGE - before
    if length < 0:
        return []
    if length > most:
        raise ValueError(f"the receipt is above {most} bytes: refused")
    file.seek(before)
    return [file.read(length)]


def hushed(receipt: bytes) -> bytes:
    """Return samples of 16 bits with this receipt."""
    packed = zlib.compress(receipt, 9)
    content = packed + struct.pack("<I", len(packed)) + MARK
    fours = (four for byte in content for four in (byte >> 4, byte & 15))
    return b"".join(struct.pack("<h", four - QUIET) for four in fours)


def sound_end(levels: bytes) -> int:
    """Return how many bytes of samples are sound, where a receipt may be hushed behind it."""
    trailer = _spoken(levels[-TRAILER:])
    if trailer is None or trailer[4:] != MARK:
        return len(levels)
    size = int.from_bytes(trailer[:4], "little")
    start = len(levels) - TRAILER - 4 * size
    known = 0 < size <= MOST_PACKED and start >= 0 and _spoken(levels[start:]) is not None
    return start if known else len(levels)


def of_samples(levels: bytes, most: int) -> list[bytes]:
    """Return the receipt that is hushed at the end of samples.

    Raises:
        ValueError: it is damaged, or has more than `most` bytes.
    """
    packed = _spoken(levels[sound_end(levels) : -TRAILER])
    if not packed:
        return []
    try:
        unpacking = zlib.decompressobj()
        receipt = unpacking.decompress(packed, most + 1)
    except zlib.error:
        raise ValueError("its receipt is damaged") from None
    if len(receipt) > most:
        raise ValueError(f"the receipt is above {most} bytes: refused")
    if not unpacking.eof or unpacking.unused_data:  # what no signature speaks for
        raise ValueError("its receipt is damaged")
    return [receipt]


def _spoken(levels: bytes) -> bytes | None:
    """Return the bytes that samples have four bits of, or None: they are none such."""
    if len(levels) % 4:
        return None
    fours = [level + QUIET for (level,) in struct.iter_unpack("<h", levels)]
    if any(not 0 <= four < 16 for four in fours):
        return None
    return bytes(16 * high + low for high, low in zip(fours[::2], fours[1::2], strict=True))
