"""Receipts: which endpoint, versions, seed and parameters made a picture, carried in the PNG itself.

A receipt is one tEXt chunk `atelier` of ASCII JSON straight after the header; the pixels' bytes stay as they are.
PNG: https://www.w3.org/TR/png-3/, section 5 (chunks) and 11.3.3.3 (tEXt).
"""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
KEYWORD: Final = b"atelier\x00"
MOST_BYTES: Final = 64 * 1024  # of a receipt: a prompt and four stages take about 1 kB
MOST_CHUNKS: Final = 100_000

Digest = Annotated[str, Field(min_length=1, max_length=64)]


class ReceiptError(ValueError):
    """The file is no PNG, has no receipt, or has one that cannot be read."""


class Strict(BaseModel):
    """A part of a receipt: frozen, without fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StageReceipt(Strict):
    """One stage's version."""

    name: str
    version: Annotated[int, Field(gt=0)]
    sha256: Digest


class Receipt(Strict):
    """What made one picture; the same values make it again."""

    format: Literal[1] = 1
    endpoint: str
    version: Annotated[str, Field(pattern=r"^[^:@]+:[0-9]+$")]  # the pipeline version, "shapes:4"
    digest: Digest
    place: str | None = None  # of the ledger: "production", "canary"; None: asked for by number
    epoch: Annotated[int, Field(ge=0)] = 0  # of the ledger's row for that place; 0 without one
    stages: tuple[StageReceipt, ...]
    prompt: str = ""
    seed: int
    steps: int | None = None
    guidance: float | None = None
    size: Annotated[str, Field(pattern=r"^[0-9]+x[0-9]+$")]  # width x height in pixels
    created: AwareDatetime
    request_id: str


def attach(png: bytes, receipt: Receipt) -> bytes:
    """Return the PNG with this receipt (and no older one); pixels and other chunks keep their bytes.

    Raises:
        ReceiptError: not a PNG, or a receipt above 64 KiB.
    """
    text = receipt.model_dump_json(ensure_ascii=True).encode("ascii")
    if len(text) > MOST_BYTES:
        raise ReceiptError(f"a receipt has at most {MOST_BYTES} bytes, this one has {len(text)}")
    made = [SIGNATURE]
    for kind, content in _chunks(io.BytesIO(png), "the picture", texts_only=False):
        if kind == b"tEXt" and content.startswith(KEYWORD):
            continue
        made.append(_chunk(kind, content))
        if kind == b"IHDR":
            made.append(_chunk(b"tEXt", KEYWORD + text))
    return b"".join(made)


def read(source: Path | bytes) -> Receipt:
    """Return a PNG's receipt; reads no pixels, and never more than 64 KiB at once.

    Raises:
        ReceiptError: no such file, not a PNG, damaged, without a receipt, or with one that is not ours.
    """
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), "the picture")
    try:
        with source.open("rb") as file:
            return _read(file, str(source))
    except OSError as error:
        raise ReceiptError(f"cannot read {source}: {error.strerror}") from None


def _read(file: BinaryIO, where: str) -> Receipt:
    texts = [
        content[len(KEYWORD) :]
        for _, content in _chunks(file, where, texts_only=True)
        if content.startswith(KEYWORD)
    ]
    if not texts:
        raise ReceiptError(f"no receipt in {where}: it was not made by atelier, or was saved anew")
    if len(texts) > 1:
        raise ReceiptError(f"{where} has {len(texts)} receipts: it was altered after it was made")
    try:
        return Receipt.model_validate_json(texts[0])
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ReceiptError(f"the receipt in {where} is not valid: {field} {first['msg']}") from None


def _chunks(file: BinaryIO, where: str, *, texts_only: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield a PNG's chunks in order as (kind, content); with `texts_only` only tEXt has its content."""
    if file.read(len(SIGNATURE)) != SIGNATURE:
        raise ReceiptError(f"{where} is not a PNG")
    for _ in range(MOST_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            raise ReceiptError(f"{where} is cut short: it has no end chunk")
        length, kind = struct.unpack(">I4s", header)
        if texts_only and not (kind == b"tEXt" and length <= len(KEYWORD) + MOST_BYTES):
            start = file.read(min(length, len(KEYWORD)))
            if kind == b"tEXt" and start == KEYWORD:
                raise ReceiptError(f"the receipt in {where} is above {MOST_BYTES} bytes: refused")
            file.seek(length - len(start) + 4, io.SEEK_CUR)
            yield kind, b""
        else:
            content, checksum = file.read(length), file.read(4)
            if checksum != struct.pack(">I", zlib.crc32(kind + content)):
                raise ReceiptError(f"{where} is damaged: chunk {kind!r} has a wrong checksum")
            yield kind, content
        if kind == b"IEND":
            return
    raise ReceiptError(f"{where} has more than {MOST_CHUNKS} chunks: refused")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
