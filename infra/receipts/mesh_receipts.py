"""Receipts in meshes: a part that viewers pass over, at the end, so that nothing else moves.

GLB: a chunk of a type of its own behind the others (glTF 2.0, section 4.4.3). OBJ: a comment in the last line. What the
receipt names is the hash of all the file's other bytes.
"""

import hashlib
import io
import struct
from typing import BinaryIO, Final

MAGIC: Final = b"glTF"
CHUNK: Final = b"ATLR"
HEADER: Final = 12  # bytes of a GLB: magic, version and length of the whole
COMMENT: Final = b"# atelier receipt "
STATEMENTS: Final = (b"# ", b"v ", b"o ", b"g ", b"mtllib ")
"""What an OBJ may begin with; it has no magic number."""
MOST_CHUNKS: Final = 1000
BLOCK: Final = 2**16


def is_mesh(start: bytes) -> bool:
    """Return whether a file that begins so (12 bytes) is one of these."""
    return start.startswith((MAGIC, *STATEMENTS))


def attach(file: bytes, receipt: bytes) -> bytes:
    """Return the file with this receipt and no other.

    Raises:
        ValueError: damaged.
    """
    kept = file[: _rest(io.BytesIO(file))]
    if not file.startswith(MAGIC):
        if not kept.endswith(b"\n"):
            raise ValueError("the mesh is cut short: its last line does not end")
        return b"".join([kept, COMMENT, receipt, b"\n"])
    padded = receipt + b" " * (-len(receipt) % 4)  # chunks begin and end at every fourth byte
    whole = struct.pack("<I", len(kept) + 8 + len(padded))
    chunk = struct.pack("<I4s", len(padded), CHUNK)
    return b"".join([kept[: HEADER - 4], whole, kept[HEADER:], chunk, padded])


def texts(file: BinaryIO, most: int) -> list[bytes]:
    """Return the receipt in a file, of at most `most` bytes; of a mesh nothing is read.

    Raises:
        ValueError: damaged.
    """
    end = file.seek(0, io.SEEK_END)
    start = _rest(file)
    if start == end:
        return []
    head = 8 if _is_glb(file) else len(COMMENT)
    if end - start - head > most + 4:
        raise ValueError(f"the receipt is above {most} bytes: refused")
    file.seek(start + head)
    found = file.read().removesuffix(b"\n").rstrip(b" ")
    if not found.endswith(b"}"):  # what no signature speaks for
        raise ValueError("its receipt is damaged")
    return [found]


def rest_sha256(file: BinaryIO) -> str:
    """Return the hash over a file's bytes, its receipt left out.

    Raises:
        ValueError: damaged.
    """
    left = _rest(file)
    digest = hashlib.sha256()
    if _is_glb(file):  # whose head counts the receipt, too
        file.seek(0)
        digest.update(file.read(HEADER - 4) + struct.pack("<I", left))
        left -= HEADER
        file.seek(HEADER)
    else:
        file.seek(0)
    while left and (block := file.read(min(left, BLOCK))):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def _is_glb(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(len(MAGIC)) == MAGIC


def _rest(file: BinaryIO) -> int:
    """Return where in a file its receipt begins, or where it ends without one."""
    return _behind_chunks(file) if _is_glb(file) else _behind_lines(file)


def _behind_chunks(file: BinaryIO) -> int:
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(HEADER)
    if len(head) < HEADER or struct.unpack_from("<I", head, 8)[0] != end:
        raise ValueError("the mesh is cut short, or longer than its head says")
    place = HEADER
    for _ in range(MOST_CHUNKS):
        file.seek(place)
        chunk = file.read(8)
        if len(chunk) < 8:
            raise ValueError("the mesh is cut short: half a chunk at its end")
        length, kind = struct.unpack("<I4s", chunk)
        after = place + 8 + length
        if after > end:
            raise ValueError("the mesh is cut short or damaged")
        if after == end:
            return place if kind == CHUNK else end
        place = after
    raise ValueError(f"more than {MOST_CHUNKS} chunks: refused")


def _behind_lines(file: BinaryIO) -> int:
    """Return where the last line begins if it is a receipt, as written here: anything else is the mesh's own."""
    end = place = file.seek(0, io.SEEK_END)
    tail = b""
    while place and b"\n" not in tail[:-1]:
        before = max(0, place - BLOCK)
        file.seek(before)
        tail, place = file.read(place - before) + tail, before
        if len(tail) > 4 * BLOCK:  # no receipt is so long
            return end
    line = tail[:-1].rfind(b"\n") + 1
    ours = tail.startswith(COMMENT, line) and tail.endswith(b"\n")
    ours = ours and tail[line:].isascii()  # some readers end a line at U+2028, too
    return place + line if ours else end
