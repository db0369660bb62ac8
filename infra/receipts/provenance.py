"""Signed receipts: who made a picture, a clip, a mesh, a sound or a text, and what can be checked without asking.

The signature (infra.receipts.signing, the key that signs exports) covers every field of the receipt, and with it the
sha256 of what is seen, heard or read (infra.receipts.contents). Texts, a time and a resolution may be added to a PNG,
texts to a WAV or FLAC, nothing to a clip or mesh; a changed pixel, sample, prompt or seed, and another's receipt are
found.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from infra.receipts import clip_receipts, contents, mesh_receipts, sound_receipts
from infra.receipts.contents import ContentError
from infra.receipts.receipts import START, Receipt, ReceiptError, opened, parse, read
from infra.receipts.signing import Signing, Untrusted

NOUNS: Final = {
    "text_sha256": "text",
    "pixels_sha256": "picture",
    "samples_sha256": "sound",
    "file_sha256": "file",
}
DIGESTS: Final = tuple(NOUNS)
PURPOSE: Final = b"atelier receipt\n"  # so that the signature of a receipt is one of nothing else
UNSIGNED: Final = "the receipt is unsigned: anybody could have written it (until 2026-11 none was)"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked, or was not."""

    name: str
    passed: bool | None  # None: not checked
    says: str


def sign(receipt: Receipt, made: bytes | str, signing: Signing, *, beside: bool = False) -> Receipt:
    """Return the receipt with the digest of what it speaks for and this installation's signature.

    Args:
        receipt: What made it; a digest and a signature of before are replaced.
        made: A PNG, WAV or FLAC, the receipt's own `size` or `sample_rate` in its header; a clip or mesh; MP3 or AAC;
            a text; or any other file.
        signing: The key.
        beside: The receipt travels beside the file, whose every byte counts.

    Raises:
        ContentError: the file is not what the receipt says of it.
    """
    found: dict[str, str | None] = dict.fromkeys((*DIGESTS, "signature"))
    if isinstance(made, str):
        found["text_sha256"] = contents.text_sha256(made)
    elif beside:
        found["file_sha256"] = contents.file_sha256(io.BytesIO(made))
    else:
        found |= _digest(io.BytesIO(made), receipt)
    named = receipt.model_copy(update=found)
    signature = signing.sign(_signed(named)).decode().strip()
    return named.model_copy(update={"signature": signature})


def check(
    source: Path | bytes | BinaryIO, signing: Signing, beside: Path | None = None, trust: str = ""
) -> tuple[Receipt, tuple[Check, ...]]:
    """Return a file's receipt and whether signature, signer and content are right.

    Args:
        source: A file as `receipts.read` takes it, an answer's JSON among them; with `beside` any file.
        signing: Whose signatures are known here.
        beside: The file with the receipt's JSON, where it came in a header.
        trust: The fingerprint of who is to have signed it, known here or not.

    Raises:
        ReceiptError: no receipt, or one that cannot be read.
    """
    receipt = read(source) if beside is None else _kept_beside(beside)
    if receipt.signature is None:
        says = "not compared: an unsigned receipt names no content that could be trusted"
        return receipt, (Check("signature", False, UNSIGNED), Check("content", None, says))
    try:
        signer = signing.verify(_signed(receipt), f"{receipt.signature}\n".encode(), "the receipt")
    except Untrusted:
        says = "the receipt was altered after it was signed: one of its fields is not what it was"
        return receipt, (Check("signature", False, says), Check("content", None, "not compared"))
    return receipt, (
        Check("signature", True, f"signed by {signer} over every field"),
        _known(signing, signer, trust),
        _content(source, receipt, beside=beside is not None),
    )


def _known(signing: Signing, signer: str, trust: str) -> Check:
    if trust:
        says = "the one to be trusted" if trust == signer else f"{signer}, and not {trust}"
        return Check("signer", trust == signer, says)
    if signer == signing.fingerprint():
        return Check("signer", True, "this installation")
    if signing.trusts(signer):
        return Check("signer", True, "another installation, which this one trusts")
    says = (
        f"unknown here: anybody has a key; if it is theirs, `atelier verify FILE --trust {signer}`"
    )
    return Check("signer", False, says)


def _content(source: Path | bytes | BinaryIO, receipt: Receipt, *, beside: bool) -> Check:
    """Compare what the receipt names with what is there."""
    named = {name: digest for name in DIGESTS if (digest := getattr(receipt, name))}
    if len(named) != 1:
        return Check("content", False, f"the receipt names {len(named)} contents, not one")
    [(name, digest)] = named.items()
    noun = NOUNS[name]
    try:
        with _opened(source) as file:
            found = _beside(file) if beside else _digest(file, receipt)
    except ContentError as error:
        return Check("content", False, str(error))
    if found.get(name) != digest:
        return Check("content", False, f"not the {noun} that was signed: the receipt is another's")
    return Check("content", True, f"the {noun} that was signed")


@contextmanager
def _opened(source: Path | bytes | BinaryIO) -> Iterator[BinaryIO]:
    with opened(source) as file:
        size = file.seek(0, io.SEEK_END)
        if size > contents.MOST_BYTES:
            raise ContentError(f"the file has {size} bytes, at most {contents.MOST_BYTES} are read")
        file.seek(0)
        yield file


def _digest(file: BinaryIO, receipt: Receipt) -> dict[str, str | None]:
    """Return the digest of what a receipt lies in, under its field's name."""
    start = file.read(START)
    if clip_receipts.is_clip(start) or mesh_receipts.is_mesh(start):
        return {"file_sha256": contents.rest_sha256(file)}
    if sound_receipts.is_packed(start):
        return {"file_sha256": contents.frames_sha256(file)}
    if sound_receipts.is_sound(start):
        return {"samples_sha256": contents.samples_sha256(file, receipt.sample_rate or 0)}
    if start.startswith(contents.PNG):
        return {"pixels_sha256": contents.pixels_sha256(file, receipt.size or "none")}
    return {"text_sha256": receipt.text_sha256}  # compared when the answer's JSON was read


def _beside(file: BinaryIO) -> dict[str, str | None]:
    """Return the digest of a file that a receipt lies beside; a text is its bytes."""
    whole = contents.file_sha256(file)
    return {"file_sha256": whole, "text_sha256": whole}


def _kept_beside(path: Path) -> Receipt:
    try:
        with path.open("rb") as file:
            return parse(file.read(2**17), f"the receipt {path}")
    except OSError as error:
        raise ReceiptError(f"cannot read {path}: {error.strerror}") from None


def _signed(receipt: Receipt) -> bytes:
    """Return the bytes that are signed: one spelling of all fields but the signature, however they travelled."""
    fields = receipt.model_dump(mode="json", exclude_none=True, exclude={"signature"})
    return PURPOSE + json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")
