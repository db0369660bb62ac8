"""Receipts in clips: a part that players pass over, at the end, so that nothing else moves.

MP4: a `uuid` box (ISO/IEC 14496-12, section 11.1). GIF: a comment extension (GIF89a, section 24) that begins with
"atelier", before the trailer. WebP: a chunk `ATLR` (WebP container, unknown chunks). What the receipt names is the hash
of all the file's other bytes.
"""

import hashlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

BOX: Final = bytes.fromhex("0f7a3c5e52d64b0fa1d961746c727663")  # ours alone, drawn at random once
WORD: Final = b"atelier\x00"
CHUNK: Final = b"ATLR"
TRAILER: Final = b";"
MOST_PARTS: Final = 100_000
BLOCK: Final = 2**16
LONGEST_SUB_BLOCK: Final = 255


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes of a file, and where in them a receipt stands if it is one."""

    start: int
    end: int
    receipt: bool = False


def is_clip(start: bytes) -> bool:
    """Return whether a file that begins so (12 bytes) is one of these."""
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return webp or start[4:8] == b"ftyp" or start[:4] == b"GIF8"


def attach(file: bytes, receipt: bytes) -> bytes:
    """Return the file with this receipt and no other.

    Raises:
        ValueError: damaged.
    """
    reading = io.BytesIO(file)
    kept = [file[one.start : one.end] for one in _parts(reading) if not one.receipt]
    if file[:4] == b"RIFF":
        odd = b"\x00" * (len(receipt) % 2)
        body = b"".join([*kept, CHUNK, struct.pack("<I", len(receipt)), receipt, odd])[8:]
        return b"RIFF" + struct.pack("<I", len(body)) + body
    if file[:4] == b"GIF8":
        text = WORD + receipt
        blocks = [
            text[at : at + LONGEST_SUB_BLOCK] for at in range(0, len(text), LONGEST_SUB_BLOCK)
        ]
        comment = b"".join(bytes([len(one)]) + one for one in blocks)
        return b"".join([*kept[:-1], b"!\xfe", comment, b"\x00", kept[-1]])
    return b"".join([*kept, struct.pack(">I", 24 + len(receipt)), b"uuid", BOX, receipt])


def texts(file: BinaryIO, most: int) -> list[bytes]:
    """Return the receipts in a file; reads no frames, and no receipt above `most` bytes.

    Raises:
        ValueError: damaged.
    """
    found = []
    kind = file.read(4)
    for one in _parts(file):
        if not one.receipt:
            continue
        if one.end - one.start > most + most // LONGEST_SUB_BLOCK + 64:
            raise ValueError(f"the receipt is above {most} bytes: refused")
        file.seek(one.start)
        content = file.read(one.end - one.start)
        if kind == b"RIFF":
            found.append(content[8 : 8 + struct.unpack_from("<I", content, 4)[0]])
        elif kind == b"GIF8":
            found.append(_unblocked(content[2:])[len(WORD) :])
        else:
            found.append(content[24:])
    return found


def rest_sha256(file: BinaryIO) -> str:
    """Return the hash over a file's bytes, its receipts left out.

    Raises:
        ValueError: damaged, or a receipt before the end: it moves what stands behind it.
    """
    found = _parts(file)
    parts = [one for one in found if not one.receipt]
    digest = hashlib.sha256()
    file.seek(0)
    kind = file.read(4)
    if any(
        one.receipt for one in found[: -2 if kind == b"GIF8" else -1]
    ):  # of a GIF its trailer is last
        raise ValueError(
            "its receipt stands before the end: the clip was altered after it was made"
        )
    if kind == b"RIFF":  # whose head counts the receipt, too
        whole = sum(one.end - one.start for one in parts) - 8
        digest.update(b"RIFF" + struct.pack("<I", whole) + b"WEBP")
        parts = parts[1:]
    for one in parts:
        file.seek(one.start)
        left = one.end - one.start
        while left and (block := file.read(min(left, BLOCK))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _parts(file: BinaryIO) -> list[_Part]:
    """Return all of a file in order, receipts by themselves."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(4)
    walk = {b"RIFF": _chunks, b"GIF8": _blocks}.get(start, _boxes)
    found = []
    for number, one in enumerate(walk(file, size)):
        if one.end > size or one.end <= one.start or number >= MOST_PARTS:
            raise ValueError("the clip is cut short or damaged")
        found.append(one)
    return found


def _boxes(file: BinaryIO, size: int) -> Iterator[_Part]:
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(24)
        if len(head) < 8:
            raise ValueError("the clip is cut short: half a box at its end")
        length, kind = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) >= 16:
            (length,) = struct.unpack(">Q", head[8:16])
        end = size if length == 0 else place + length
        yield _Part(place, end, kind == b"uuid" and length >= 24 and head[8:24] == BOX)
        place = end


def _chunks(file: BinaryIO, size: int) -> Iterator[_Part]:
    file.seek(0)
    (whole,) = struct.unpack("<I", file.read(8)[4:])
    if whole + 8 != size:
        raise ValueError("the clip is cut short, or longer than its head says")
    yield _Part(0, 12)
    place = 12
    while place < size:
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("the clip is cut short: half a chunk at its end")
        kind, length = struct.unpack("<4sI", head)
        end = place + 8 + length + length % 2
        file.seek(place + 8 + length)
        if length % 2 and file.read(1) not in {b"", b"\0"}:  # no signature covers that of a receipt
            raise ValueError(f"the clip's chunk {kind!r} is padded with what is no zero")
        yield _Part(place, end, kind == CHUNK)
        place = end


def _blocks(file: BinaryIO, size: int) -> Iterator[_Part]:
    file.seek(0)
    head = file.read(13)
    if len(head) < 13:
        raise ValueError("the clip is cut short: half a head")
    place = 13 + _colours(head[10])
    yield _Part(0, place)
    while True:
        file.seek(place)
        kind = file.read(2)
        if kind[:1] == TRAILER:
            yield _Part(place, size)
            return
        if kind[:1] == b"!":
            file.seek(place + 3)
            ours = kind == b"!\xfe" and file.read(len(WORD)) == WORD
            end = _after_sub_blocks(file, place + 2)
        elif kind[:1] == b",":
            file.seek(place)
            (packed,) = file.read(10)[9:] or b"\x00"
            ours, end = False, _after_sub_blocks(file, place + 11 + _colours(packed))
        else:
            raise ValueError("the clip is cut short or damaged: no block where one has to be")
        yield _Part(place, end, ours)
        place = end


def _colours(packed: int) -> int:
    """Return the bytes of the table of colours that a GIF's flags announce."""
    return 3 * 2 ** ((packed & 7) + 1) if packed & 0x80 else 0


def _after_sub_blocks(file: BinaryIO, place: int) -> int:
    while True:
        file.seek(place)
        length = file.read(1)
        if not length:
            raise ValueError("the clip is cut short: half a block at its end")
        place += 1 + length[0]
        if length == b"\x00":
            return place


def _unblocked(content: bytes) -> bytes:
    found, place = [], 0
    while place < len(content) and content[place]:
        found.append(content[place + 1 : place + 1 + content[place]])
        place += 1 + content[place]
    return b"".join(found)
