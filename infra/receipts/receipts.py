"""Receipts: which endpoint, versions, seed and parameters made a picture, a clip, a mesh, a sound or a text.

A PNG carries it in one tEXt chunk `atelier` of ASCII JSON straight after the header; the pixels' bytes stay as they
are. PNG: https://www.w3.org/TR/png-3/, section 5 (chunks) and 11.3.3.3 (tEXt). WAV and FLAC: see
infra.receipts.sound_receipts; MP4, GIF and WebP: infra.receipts.clip_receipts; GLB and OBJ:
infra.receipts.mesh_receipts. A text's receipt goes beside it and names its sha256; a file with the answer's JSON can be
read.
"""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from infra.documents import DocumentError, parse_json
from infra.receipts import clip_receipts, mesh_receipts, sound_receipts
from infra.receipts.contents import PNG as SIGNATURE
from infra.receipts.contents import text_sha256

KEYWORD: Final = b"atelier\x00"
START: Final = 12  # bytes that tell the kind of a file
MOST_BYTES: Final = 64 * 1024  # of a receipt: a prompt and four stages take about 1 kB
MOST_CHUNKS: Final = 100_000
MOST_JSON: Final = 2**24  # bytes
GENERATOR: Final = 2  # how a seed becomes noise: models/parts/noise.py; 1 was torch's generator

OPTIONS: Final = (
    *("steps", "guidance", "seconds", "max_tokens"),
    *("temperature", "top_k", "top_p"),
)
"""Options of families that have a field of their own in a receipt."""

Digest = Annotated[str, Field(min_length=1, max_length=64)]


class ReceiptError(ValueError):
    """The file carries no receipts, has none, or has one that cannot be read."""


class NoReceipt(ReceiptError):
    """The file is whole, as far as it was read, and carries none."""


class Strict(BaseModel):
    """A part of a receipt: frozen, without fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StageReceipt(Strict):
    """One stage's version."""

    name: str
    version: Annotated[int, Field(gt=0)]
    sha256: Digest


class Receipt(Strict):
    """What made one picture, clip, mesh, sound or text; the same values make it again.

    None: not asked for, or meaningless. One of the four digests names what it speaks for, and `signature` covers it and
    every other field; a receipt from before there were signatures has none (infra.receipts.provenance).
    """

    format: Literal[1] = 1
    endpoint: str
    version: Annotated[str, Field(pattern=r"^[^:@]+:[0-9]+$")]  # the pipeline version, "shapes:4"
    digest: Digest
    place: str | None = None  # of the ledger: "production", "canary"; None: asked for by number
    epoch: Annotated[int, Field(ge=0)] = 0  # of the ledger's row for that place; 0 without one
    stages: tuple[StageReceipt, ...]
    prompt: str = ""
    prompt_tokens: tuple[int, ...] | None = None  # in place of a prompt
    seed: int
    generator: Annotated[int, Field(ge=1)] | None = None  # of GENERATOR; None: 1
    steps: int | None = None
    guidance: float | None = None
    size: Annotated[str, Field(pattern=r"^[0-9]+x[0-9]+$")] | None = None  # width x height, pixels
    seconds: float | None = None  # of sound, as asked for
    speed: float | None = None  # of sound, stretched after it was made
    sources: tuple[tuple[str, float, float], ...] | None = None
    """Of sound put together from recordings: which, and from when to when in each, in seconds."""
    messages: tuple[tuple[str, str], ...] | None = None  # (role, text), in place of a prompt
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    options: dict[str, Any] | None = None  # further ones of the family's, by name
    entrance: str | None = None  # of the pipeline; None: generate
    blend: tuple[str, float] | None = None  # the other prompt, and how far on the way to it
    inputs: dict[str, Digest] | None = None  # sha256 of what else was given: a picture, a mask
    stop: tuple[str, ...] | None = None
    echo: bool | None = None  # whether the text begins with its prompt
    sample_rate: int | None = None  # of sound, Hz
    frames: Annotated[int, Field(gt=0)] | None = None  # of a clip
    frame_rate: Annotated[float, Field(gt=0)] | None = None  # of a clip, frames a second
    text_sha256: str | None = None  # of the text that it speaks for, UTF-8
    pixels_sha256: Digest | None = None  # of the picture that it lies in, RGBA
    samples_sha256: Digest | None = None  # of the sound that it lies in, 16 bits
    file_sha256: Digest | None = None  # of the file that it lies beside, or of what is around it
    created: AwareDatetime
    request_id: str
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{64} [0-9a-f]{128}$")] | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """The options that it was drawn with, by name."""
        known = {name: getattr(self, name) for name in OPTIONS}
        return {k: v for k, v in {**known, **(self.options or {})}.items() if v is not None}

    @property
    def ascii_json(self) -> bytes:
        """The receipt as it travels."""
        return self.model_dump_json(ensure_ascii=True, exclude_none=True).encode("ascii")


def attach(file: bytes, receipt: Receipt) -> bytes:
    """Return the file (of a kind that `read` reads) with this receipt alone; the rest keeps its bytes.

    Raises:
        ReceiptError: another kind of file, or a receipt above 64 KiB.
    """
    text = _text(receipt)
    if (carrier := _carrier(file[:START])) is not None:
        try:
            return carrier.attach(file, text)
        except ValueError as error:
            raise ReceiptError(str(error)) from None
    made = [SIGNATURE]
    for kind, content in _chunks(io.BytesIO(file), "the picture", texts_only=False):
        if kind == b"tEXt" and content.startswith(KEYWORD):
            continue
        made.append(_chunk(kind, content))
        if kind == b"IHDR":
            made.append(_chunk(b"tEXt", KEYWORD + text))
    return b"".join(made)


def behind(file: bytes, receipt: Receipt) -> bytes:
    """Return what comes behind a WAV, MP3 or AAC that is sent while it is made, so that it has this receipt.

    Raises:
        ReceiptError: a receipt above 64 KiB.
    """
    return sound_receipts.behind(file, _text(receipt))


def _text(receipt: Receipt) -> bytes:
    text = receipt.ascii_json
    if len(text) > MOST_BYTES:
        raise ReceiptError(f"a receipt has at most {MOST_BYTES} bytes, this one has {len(text)}")
    return text


@contextmanager
def opened(source: Path | bytes | BinaryIO) -> Iterator[BinaryIO]:
    """Yield a file at its begin; one that is open already stays open.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, Path):
        with source.open("rb") as file:
            yield file
    else:
        source.seek(0)
        yield source


def read(source: Path | bytes | BinaryIO) -> Receipt:
    """Return the receipt of a PNG, MP4, GIF, WebP, GLB, OBJ, WAV, FLAC, MP3 or AAC, or of the JSON of one text.

    Reads no pixels, of sound at most a WAV's last 256 KiB, and else never more than 64 KiB at once; of JSON 16 MiB.

    Raises:
        ReceiptError: no such file, of another kind, damaged, without a receipt, or with one that is not ours.
    """
    where = str(source) if isinstance(source, Path) else "the file"
    try:
        with opened(source) as file:
            return _read(file, where)
    except OSError as error:
        raise ReceiptError(f"cannot read {where}: {error.strerror}") from None


class Carrier(Protocol):
    """Puts receipts into files of its kinds, and reads them."""

    def attach(self, file: bytes, receipt: bytes) -> bytes:
        """Return the file with this receipt and no other."""
        ...

    def texts(self, file: BinaryIO, most: int) -> list[bytes]:
        """Return the receipts in a file, of at most so many bytes each."""
        ...


def _carrier(start: bytes) -> Carrier | None:
    """Return who carries receipts in files that begin so; None of pictures and texts."""
    if clip_receipts.is_clip(start):
        return clip_receipts
    if mesh_receipts.is_mesh(start):
        return mesh_receipts
    return sound_receipts if sound_receipts.is_sound(start) else None


def _read(file: BinaryIO, where: str) -> Receipt:
    start = file.read(START)
    file.seek(0)
    if (carrier := _carrier(start)) is not None:
        try:
            texts = carrier.texts(file, MOST_BYTES)
        except ValueError as error:
            raise ReceiptError(f"{where}: {error}") from None
    elif start[:1] == b"{":
        texts = _of_answer(file.read(MOST_JSON), where)
    else:
        texts = [
            content[len(KEYWORD) :]
            for _, content in _chunks(file, where, texts_only=True)
            if content.startswith(KEYWORD)
        ]
    if not texts:
        raise NoReceipt(f"no receipt in {where}: it was not made by atelier, or was saved anew")
    if len(texts) > 1:
        raise ReceiptError(f"{where} has {len(texts)} receipts: it was altered after it was made")
    return parse(texts[0], f"the receipt in {where}")


def parse(text: bytes, what: str) -> Receipt:
    """Return a receipt from its JSON, as it stands in a file or in the header beside one.

    Raises:
        ReceiptError: above 64 KiB, no JSON, or not ours; `what` names it.
    """
    if len(text) > MOST_BYTES:
        raise ReceiptError(f"{what} is above {MOST_BYTES} bytes: refused")
    try:
        return Receipt.model_validate(parse_json(text, what))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ReceiptError(f"{what} is not valid: {field} {first['msg']}") from None
    except DocumentError as error:
        raise ReceiptError(str(error)) from None


def _of_answer(content: bytes, where: str) -> list[bytes]:
    """Return the receipts in the JSON of a completion, a chat turn or samples, each with its own text beside it."""
    try:
        document = parse_json(content, where)
        [entries] = [document[name] for name in ("choices", "data") if name in document]
        receipts = [entry["receipt"] for entry in entries if "receipt" in entry]
        if receipts and len(receipts) < len(entries):
            raise ReceiptError(f"{where} has a text without a receipt: it was altered")
        for entry in entries if receipts else ():
            if entry["receipt"].get("text_sha256") != text_sha256(_text_of(entry)):
                raise ReceiptError(f"the text in {where} is not the one that its receipt names")
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        if isinstance(error, ReceiptError):
            raise
        raise NoReceipt(f"{where} is not an answer of atelier's in JSON") from None
    return [json.dumps(receipt).encode() for receipt in receipts]


def _text_of(entry: dict[str, Any]) -> str:
    """Return a choice's one text: of a completion or a sample, or of a chat turn."""
    [text] = [
        *([entry["text"]] if "text" in entry else []),
        *([entry["message"]["content"]] if "message" in entry else []),
    ]
    return str(text or "")


def _chunks(file: BinaryIO, where: str, *, texts_only: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield a PNG's chunks in order as (kind, content); with `texts_only` only tEXt has its content."""
    if file.read(len(SIGNATURE)) != SIGNATURE:
        raise NoReceipt(
            f"{where} is not a PNG, MP4, GIF, WebP, GLB, OBJ, WAV, FLAC, MP3 or AAC, and no answer's JSON:"
            " only these carry receipts"
        )
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
