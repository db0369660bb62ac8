"""Receipts in sound files: a comment that every reader shows, before or after the samples, which keep their bytes.

WAV: a LIST chunk of type INFO with ISFT "atelier" and ICMT, the receipt (RIFF, Microsoft and IBM 1991). FLAC: the
comment ATELIER=receipt in the file's one VORBIS_COMMENT block (RFC 9639, section 8.6). MP3 and AAC in ADTS: an ID3v2.4
tag before the sound, with the text ATELIER alone (id3.org/id3v2.4.0-structure). What was sent while it was made has it
behind its sound: infra.receipts.stream_receipts.
"""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

from infra.receipts import stream_receipts

MAKER: Final = b"ISFT\x08\x00\x00\x00atelier\x00"
COMMENT: Final = b"ATELIER="
VORBIS_COMMENT: Final = 4  # kind of a FLAC metadata block
ID3: Final = b"ID3\x04\x00\x00"  # version 2.4, no flags
ID3_VERSIONS: Final = (2, 3, 4)
ID3_TEXT: Final = b"TXXX"
ID3_NAME: Final = b"\x03ATELIER\x00"  # UTF-8
MOST_PARTS: Final = 10_000
UNKNOWN: Final = 0xFFFFFFFF
"""The length of samples up to the end of a WAV that was sent while it was made."""
ONCE: Final = frozenset({b"fmt ", b"data"})
NEUTRAL: Final = frozenset({b"LIST", b"fact", b"bext", b"id3 ", b"ID3 ", b"JUNK", b"PAD "})
"""Chunks that may stand in a WAV beside those: texts, and room left free."""


def is_sound(start: bytes) -> bool:
    """Return whether a file that begins so is one of these."""
    return start[:4] in {b"RIFF", b"fLaC"} or is_packed(start)


def is_packed(start: bytes) -> bool:
    """Return whether a file that begins so is an MP3, or AAC in ADTS."""
    return start[:3] == b"ID3" or (start[:1] == b"\xff" and start[1:2] >= b"\xe0")


def skip_tag(file: BinaryIO) -> None:
    """Move a file to behind the tag that it begins with, if there is one."""
    file.seek(0)
    header = file.read(10)
    file.seek(10 + _number(header[6:]) if _is_tag(header) else 0)


def _is_tag(header: bytes) -> bool:
    """Return whether every player passes over a tag with this header, and over as much of it as we do.

    Of what is not as id3.org/id3v2.4.0-structure has it, or has a footer, some play what is said to be in the tag.
    """
    known = len(header) == 10 and header[3] in ID3_VERSIONS and header[4] != 0xFF
    return known and header[:3] == b"ID3" and not header[5] & 0x1F and max(header[6:]) < 0x80


def attach(file: bytes, receipt: bytes) -> bytes:
    """Return the file with this receipt and no other.

    Raises:
        ValueError: damaged, or a RIFF file that is no WAV.
    """
    if file[:4] == b"RIFF":
        return _into_wav(file, receipt)
    return _into_flac(file, receipt) if file[:4] == b"fLaC" else _before_frames(file, receipt)


def texts(file: BinaryIO, most: int) -> list[bytes]:
    """Return the receipts in a file; reads of samples a WAV's last ones alone, and no comment above `most` bytes.

    Raises:
        ValueError: damaged, or a RIFF file that is no WAV.
    """
    start = file.read(4)
    if start == b"RIFF":
        return _of_wav(file, most)
    if start == b"fLaC":
        return _of_flac(file, most)
    return [*_of_tag(start + file.read(6), file, most), *stream_receipts.of_tag(file, most)]


def behind(file: bytes, receipt: bytes) -> bytes:
    """Return what comes behind a WAV, MP3 or AAC that is sent while it is made, so that it has this receipt."""
    return stream_receipts.hushed(receipt) if file[:4] == b"RIFF" else stream_receipts.tag(receipt)


def check_plain(file: BinaryIO) -> None:
    """Check that a WAV has one format, one piece of sound, and nothing that may change it; "RIFF" was read.

    Raises:
        ValueError: a second one, loops, cues or a chunk that is not known.
    """
    seen: set[bytes] = set()
    for kind, _ in _chunks(file):
        if kind in seen or kind not in ONCE | NEUTRAL:
            raise ValueError(f"its chunk {kind!r} may change how it sounds: take it out")
        if kind in ONCE:
            seen.add(kind)


def _into_wav(file: bytes, receipt: bytes) -> bytes:
    made = [b"WAVE"]
    reading = io.BytesIO(file)
    reading.seek(4)
    for kind, length in _chunks(reading):
        content = reading.read(length)
        if kind == b"LIST" and content[:4] == b"INFO" and content[4:].startswith(MAKER):
            continue
        if kind == b"data":
            content = content[: stream_receipts.sound_end(content)]
        made.append(_chunk(kind, content))
    made.append(_chunk(b"LIST", b"INFO" + MAKER + _chunk(b"ICMT", receipt + b"\x00")))
    body = b"".join(made)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _of_wav(file: BinaryIO, most: int) -> list[bytes]:
    found = []
    for kind, length in _chunks(file):
        if kind == b"data":
            whole = length // 2 * 2  # of samples, as whoever hears them counts
            last = min(whole, stream_receipts.LONGEST) // 4 * 4
            file.seek(whole - last, io.SEEK_CUR)
            found += stream_receipts.of_samples(file.read(last), most)
        if kind != b"LIST":
            continue
        start = file.read(min(length, 4 + len(MAKER) + 8))
        if start[:4] != b"INFO" or not start[4:].startswith(MAKER):
            continue
        inner, size = struct.unpack("<4sI", start[-8:])
        if len(start) < 4 + len(MAKER) + 8 or inner != b"ICMT" or size > length:
            raise ValueError("its comment is damaged")
        if size > most + 1:
            raise ValueError(f"the receipt is above {most} bytes: refused")
        found.append(file.read(size).rstrip(b"\x00"))
    return found


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield a WAV's chunks as (kind, length), with the file at the content of each; "RIFF" was read."""
    if file.read(8)[4:] != b"WAVE":
        raise ValueError("not a WAV file")
    whole = file.seek(0, io.SEEK_END)
    place = 12
    for _ in range(MOST_PARTS):
        file.seek(place)
        header = file.read(8)
        if len(header) < 8:
            return
        kind, length = struct.unpack("<4sI", header)
        if kind == b"data" and length == UNKNOWN:
            length = whole - place - 8
        if place + 8 + length > whole:
            raise ValueError(f"cut short in its chunk {kind!r}")
        yield kind, length
        place += 8 + length + length % 2
    raise ValueError(f"more than {MOST_PARTS} chunks: refused")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\x00" * (len(content) % 2)


def _into_flac(file: bytes, receipt: bytes) -> bytes:
    reading = io.BytesIO(file)
    reading.seek(4)
    blocks = [(kind, reading.read(length)) for kind, length in _blocks(reading)]
    sound = reading.read()
    comment = COMMENT + receipt
    ours = struct.pack("<I7sII", 7, b"atelier", 1, len(comment)) + comment
    kept = [(kind, content) for kind, content in blocks if kind != VORBIS_COMMENT]
    made = [kept[0], (VORBIS_COMMENT, ours), *kept[1:]]
    parts = [b"fLaC"]
    for number, (kind, content) in enumerate(made):
        last = 0x80 if number == len(made) - 1 else 0
        parts.append(bytes([kind | last]) + len(content).to_bytes(3, "big") + content)
    return b"".join([*parts, sound])


def _of_flac(file: BinaryIO, most: int) -> list[bytes]:
    found = []
    for kind, length in _blocks(file):
        if kind != VORBIS_COMMENT:
            file.seek(length, io.SEEK_CUR)
            continue
        if length > most + 1024:
            raise ValueError(f"its comments are above {most} bytes: refused")
        found += [one for one in _comments(file.read(length)) if one.startswith(COMMENT)]
    return [one.removeprefix(COMMENT) for one in found]


def _comments(content: bytes) -> Iterator[bytes]:
    try:
        (vendor,) = struct.unpack_from("<I", content)
        (count,) = struct.unpack_from("<I", content, 4 + vendor)
        place = 8 + vendor
        for _ in range(count):
            (length,) = struct.unpack_from("<I", content, place)
            yield content[place + 4 : place + 4 + length]
            place += 4 + length
    except struct.error:
        raise ValueError("its comments are damaged") from None


def _blocks(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield a FLAC's metadata blocks as (kind, length), with the file at the content of each; "fLaC" was read."""
    for number in range(MOST_PARTS):
        header = file.read(4)
        if len(header) < 4:
            raise ValueError("cut short in its metadata")
        if number == 0 and header[0] & 0x7F:
            raise ValueError("not a FLAC file")
        yield header[0] & 0x7F, int.from_bytes(header[1:], "big")
        if header[0] & 0x80:
            return
    raise ValueError(f"more than {MOST_PARTS} blocks: refused")


def _before_frames(file: bytes, receipt: bytes) -> bytes:
    reading = io.BytesIO(file)
    end = stream_receipts.tag_start(reading)
    skip_tag(reading)
    frame = ID3_NAME + receipt
    tag = ID3_TEXT + _bytes(len(frame)) + b"\x00\x00" + frame
    return ID3 + _bytes(len(tag)) + tag + file[reading.tell() : end]


def _of_tag(header: bytes, file: BinaryIO, most: int) -> list[bytes]:
    found: list[bytes] = []
    if not _is_tag(header):
        return found
    left = _number(header[6:10])
    while left >= 10:
        frame = file.read(10)
        length = _number(frame[4:8])
        if len(frame) < 10 or 10 + length > left or frame[:1] == b"\x00":
            break  # what is left is padding, or not ours
        start = file.read(min(length, len(ID3_NAME)))
        if frame[:4] == ID3_TEXT and start == ID3_NAME:
            if length > len(ID3_NAME) + most:
                raise ValueError(f"the receipt is above {most} bytes: refused")
            found.append(file.read(length - len(start)))
        else:
            file.seek(length - len(start), io.SEEK_CUR)
        left -= 10 + length
    return found


def _bytes(number: int) -> bytes:
    """Return four bytes of seven bits each, as ID3 writes sizes."""
    return bytes((number >> shift) & 0x7F for shift in (21, 14, 7, 0))


def _number(content: bytes) -> int:
    found = 0
    for byte in content:
        found = found << 7 | byte & 0x7F
    return found
