"""A receipt is signed over its fields and its content: what was changed is found, what was added is not in the way."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from infra.receipts.contents import ContentError
from infra.receipts.provenance import check, sign
from infra.receipts.receipts import Receipt, ReceiptError, attach, behind, read
from infra.receipts.signing import Signing
from tests.infra.test_receipts import RECEIPT, flac, packed, png, wav

PICTURE = RECEIPT.model_copy(update={"size": "8x8"})
SOUND = RECEIPT.model_copy(update={"size": None, "sample_rate": 8000})


@pytest.fixture(scope="session")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Signing:
    return Signing(tmp_path_factory.mktemp("signing"))


def stamped(file: bytes, receipt: Receipt, signing: Signing) -> bytes:
    return attach(file, sign(receipt, file, signing))


def outcome(source: Any, signing: Signing, beside: Path | None = None) -> dict[str, bool | None]:
    return {one.name: one.passed for one in check(source, signing, beside)[1]}


def said(source: Any, signing: Signing) -> str:
    return " | ".join(one.says for one in check(source, signing)[1])


GOOD = {"signature": True, "signer": True, "content": True}


@pytest.mark.parametrize(
    ("file", "receipt"),
    [
        (png(), PICTURE),
        (wav(), SOUND),
        (flac(), SOUND),
        (packed("mp3"), SOUND),
        (packed("aac"), SOUND),
    ],
    ids=["png", "wav", "flac", "mp3", "aac"],
)
def test_what_was_signed_is_right_and_every_changed_field_is_found(
    file: bytes, receipt: Receipt, signing: Signing
) -> None:
    made = stamped(file, receipt, signing)
    assert outcome(made, signing) == GOOD
    signed = read(made)
    changes: dict[str, Any] = {
        "prompt": "a small red circle on the right", "seed": 8, "steps": None, "guidance": 3.5,
        "endpoint": "others", "version": "shapes:5", "digest": "ac" * 32, "place": "production",
        "epoch": 1, "request_id": "req-2", "created": signed.created.replace(year=2025),
        "stages": signed.stages * 2, "seconds": 1.0, "stop": ("a",),
    }  # fmt: skip
    for field, value in changes.items():
        altered = attach(made, signed.model_copy(update={field: value}))
        assert outcome(altered, signing) == {"signature": False, "content": None}, field
        assert "altered after it was signed" in said(altered, signing)


def test_another_picture_with_this_receipt_is_found(signing: Signing) -> None:
    receipt = sign(PICTURE, png(), signing)
    other = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(other, "PNG")
    forged = attach(other.getvalue(), receipt)
    assert outcome(forged, signing) == {**GOOD, "content": False}
    assert "not the picture that was signed" in said(forged, signing)


@given(place=st.integers(0, 191), step=st.integers(1, 255))
def test_one_changed_level_of_one_pixel_is_found(signing: Signing, place: int, step: int) -> None:
    with Image.open(io.BytesIO(stamped(png(), PICTURE, signing))) as image:
        levels = bytearray(image.tobytes())
    levels[place] = (levels[place] + step) % 256
    file = io.BytesIO()
    Image.frombytes("RGB", (8, 8), bytes(levels)).save(file, "PNG")
    assert (
        outcome(attach(file.getvalue(), sign(PICTURE, png(), signing)), signing)["content"] is False
    )


@given(place=st.integers(0, 100), step=st.integers(1, 65535))
def test_one_changed_sample_is_found(signing: Signing, place: int, step: int) -> None:
    made = bytearray(stamped(wav(), SOUND, signing))
    start = made.index(b"data") + 8 + 2 * place
    (level,) = struct.unpack_from("<H", made, start)
    struct.pack_into("<H", made, start, (level + step) % 65536)
    assert outcome(bytes(made), signing)["content"] is False


def test_a_changed_frame_of_packed_sound_is_found(signing: Signing) -> None:
    made = bytearray(stamped(packed("mp3"), SOUND, signing))
    made[-1] ^= 1
    assert outcome(bytes(made), signing) == {**GOOD, "content": False}


def test_texts_may_be_added_and_the_file_packed_anew(signing: Signing) -> None:
    made = stamped(png(comment="mine"), PICTURE, signing)
    with Image.open(io.BytesIO(made)) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        texts = PngImagePlugin.PngInfo()
        texts.add_text("atelier", image.text["atelier"])
        texts.add_itxt("Title", "ein Kreis")
        again = io.BytesIO()
        image.convert("RGBA").save(again, "PNG", pnginfo=texts, compress_level=0, dpi=(300, 300))
    assert outcome(again.getvalue(), signing) == GOOD


def test_a_sound_keeps_its_receipt_from_wav_to_flac_but_not_at_another_rate(
    signing: Signing,
) -> None:
    import soundfile

    receipt = sign(SOUND, wav(), signing)
    levels, _ = soundfile.read(io.BytesIO(wav()), dtype="int16")
    found = {}
    for rate in (8000, 16000):
        file = io.BytesIO()
        soundfile.write(file, levels, rate, format="FLAC", subtype="PCM_16")
        found[rate] = outcome(attach(file.getvalue(), receipt), signing)["content"]
    assert found == {8000: True, 16000: False}


def with_chunks(file: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    made = b""
    for kind, content in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        made += struct.pack(">I", len(content)) + kind + content + checksum
    return file[:33] + made + file[33:]


@pytest.mark.parametrize("kind", [b"acTL", b"fdAT", b"gAMA", b"iCCP", b"eXIf", b"caBX", b"IHDR"])
def test_a_chunk_that_may_change_how_a_picture_is_shown_is_named(
    signing: Signing, kind: bytes
) -> None:
    made = with_chunks(stamped(png(), PICTURE, signing), (kind, b"\x00" * 13))
    assert outcome(made, signing)["content"] is False
    assert f"chunk {kind!r} may change how it is shown" in said(made, signing)


@pytest.mark.parametrize("keyword", [b"XML:com.adobe.xmp", b"Raw profile type exif"])
def test_a_text_that_may_turn_the_picture_is_named(signing: Signing, keyword: bytes) -> None:
    made = with_chunks(stamped(png(), PICTURE, signing), (b"tEXt", keyword + b"\x00turned"))
    assert outcome(made, signing)["content"] is False
    assert "take out XMP and Exif" in said(made, signing)


def test_loops_and_a_second_sound_in_a_wav_are_named(signing: Signing) -> None:
    made = stamped(wav(), SOUND, signing)
    for chunk in (
        b"smpl" + struct.pack("<I", 4) + b"\x00" * 4,
        b"data" + struct.pack("<I", 2) + b"ab",
    ):
        longer = made + chunk
        longer = longer[:4] + struct.pack("<I", len(longer) - 8) + longer[8:]
        assert outcome(longer, signing)["content"] is False
        assert "may change how it sounds" in said(longer, signing)


def lying(size: tuple[int, int], rows: bytes = b"") -> bytes:
    """A PNG whose header asks for a size that its bytes do not have."""
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return with_chunks(b"\x89PNG\r\n\x1a\n".ljust(33, b"."), *chunks).replace(b"." * 25, b"")


def test_a_header_that_lies_is_refused_before_anything_is_unpacked(
    signing: Signing, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = zlib.compress(b"\x00" * 2**24)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("it was unpacked"))
    huge = attach(lying((60000, 60000), bomb), sign(PICTURE, "any", signing))
    assert outcome(huge, signing)["content"] is False  # a text's receipt
    monkeypatch.undo()
    receipt = sign(PICTURE, png(), signing)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("it was unpacked"))
    forged = attach(lying((60000, 60000), bomb), receipt)
    assert "60000x60000 pixels, its receipt names 8x8" in said(forged, signing)
    vast = PICTURE.model_copy(update={"size": "60000x60000"})
    with pytest.raises(ContentError, match="at most 4096x4096"):
        sign(vast, lying((60000, 60000), bomb), signing)


def test_more_rows_than_the_header_says_are_not_unpacked(signing: Signing) -> None:
    rows = zlib.compress(b"\x00" * 25 * 8 + b"\x00" * 2**26)
    with Image.open(io.BytesIO(lying((8, 8), rows))) as image:
        black = image.tobytes()
    assert black == bytes(192)
    assert outcome(stamped(lying((8, 8), rows), PICTURE, signing), signing) == GOOD


def test_a_picture_without_its_pixels_is_damaged(signing: Signing) -> None:
    forged = attach(lying((8, 8), b"none"), sign(PICTURE, png(), signing))
    assert "the picture is damaged" in said(forged, signing)


def test_an_unsigned_receipt_is_told_as_such(signing: Signing) -> None:
    made = attach(png(), RECEIPT)
    assert outcome(made, signing) == {"signature": False, "content": None}
    assert "the receipt is unsigned: anybody could have written it" in said(made, signing)


def test_a_stranger_s_signature_holds_but_the_signer_is_unknown(
    signing: Signing, tmp_path: Path
) -> None:
    stranger = Signing(tmp_path / "theirs")
    made = stamped(png(), PICTURE, stranger)
    assert outcome(made, signing) == {**GOOD, "signer": False}
    assert f"`atelier verify FILE --trust {stranger.fingerprint()}`" in said(made, signing)
    mine = Signing(tmp_path / "mine")
    mine.trust(stranger.fingerprint(), "me")
    assert outcome(made, mine) == GOOD


def answer(**entry: Any) -> bytes:
    return json.dumps({"choices": [entry]}).encode()


TEXTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "completion": lambda text: {"text": text},
    "chat": lambda text: {"message": {"role": "assistant", "content": text}},
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_is_signed_with_its_answer(signing: Signing, kind: str) -> None:
    said_ = TEXTS[kind]("you have 3 things .")
    receipt = sign(RECEIPT, "you have 3 things .", signing).model_dump(
        mode="json", exclude_none=True
    )
    assert outcome(answer(**said_, receipt=receipt), signing) == GOOD
    altered = answer(**said_, receipt={**receipt, "seed": 9})
    assert outcome(altered, signing) == {"signature": False, "content": None}
    for other in (
        answer(**TEXTS[kind]("you have 4 things ."), receipt=receipt),
        answer(text="a", message={"content": "b"}, receipt=receipt),
        json.dumps({"choices": [{"text": "first"}, {**said_, "receipt": receipt}]}).encode(),
    ):
        with pytest.raises(
            ValueError, match=r"not the one that its receipt names|without a receipt|not an answer"
        ):
            check(other, signing)


def test_a_text_s_receipt_says_nothing_about_a_picture(signing: Signing) -> None:
    made = attach(png(), sign(PICTURE, "a text", signing))
    assert outcome(made, signing) == {**GOOD, "content": False}


def test_a_file_is_checked_with_the_receipt_that_lies_beside_it(
    signing: Signing, tmp_path: Path
) -> None:
    levels, receipt = tmp_path / "said.pcm", tmp_path / "receipt.json"
    levels.write_bytes(b"\x01\x00" * 500)
    receipt.write_bytes(sign(SOUND, levels.read_bytes(), signing, beside=True).ascii_json)
    assert outcome(levels, signing, receipt) == GOOD
    levels.write_bytes(b"\x01\x00" * 501)
    assert outcome(levels, signing, receipt) == {**GOOD, "content": False}


@given(st.data())
def test_what_is_taken_for_the_signed_picture_shows_its_pixels(
    signing: Signing, data: st.DataObject
) -> None:
    made = stamped(png(), PICTURE, signing)
    place = data.draw(st.integers(0, len(made) - 1))
    damaged = bytearray(made)
    damaged[place] ^= data.draw(st.integers(1, 255))
    try:
        found = outcome(bytes(damaged), signing)
    except ReceiptError:
        return
    if found == GOOD:  # a checksum that no reader looks at
        shown = [Image.open(io.BytesIO(bytes(file))).tobytes() for file in (made, damaged)]
        assert shown[0] == shown[1]


def frames_of(content: bytes) -> bytes:
    """Return what comes behind a FLAC's metadata."""
    place = 4
    while True:
        last, length = content[place] & 0x80, int.from_bytes(content[place + 1 : place + 4], "big")
        place += 4 + length
        if last:
            return content[place:]


def played(content: bytes) -> int:
    """Return how many samples ffmpeg plays."""
    with av.open(io.BytesIO(content)) as file:
        return sum(frame.samples for frame in file.decode(audio=0))


def test_sound_behind_a_flac_s_end_is_found(signing: Signing) -> None:
    """libsndfile stops where the head says, others play on."""
    made = stamped(flac(), SOUND, signing)
    longer = made + frames_of(flac())
    assert played(longer) == 2 * played(made)
    assert outcome(longer, signing) == {**GOOD, "content": False}
    assert "some players play 4000 samples, its head names 2000" in said(longer, signing)


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize(
    ("place", "value"), [(3, 0xFF), (4, 0xFF), (6, 0x80), (9, 0xFF), (3, 5), (5, 0x10)]
)
def test_sound_in_what_only_looks_like_a_tag_is_found(
    signing: Signing, where: str, place: int, value: int
) -> None:
    """A tag's sound is passed over, and no part of the content; a player plays what is no tag to it."""
    receipt = sign(SOUND, packed("mp3"), signing)
    if where == "before":
        made = attach(packed("mp3"), receipt)
        start = 10 + 128 * made[8] + made[9]
        tag, sound = made[10:start], made[start:]
    else:
        tag, sound = b"", packed("mp3") + behind(packed("mp3"), receipt)
    size = len(tag) + len(packed("mp3"))
    head = bytearray(b"ID3\x04\x00\x00" + bytes(size >> bits & 0x7F for bits in (21, 14, 7, 0)))
    whole = bytes(head) + tag + packed("mp3") + sound
    assert outcome(whole, signing) == GOOD, "everybody passes over it"
    head[place] = value if place < 6 else head[place] | value
    try:
        found = outcome(bytes(head) + tag + packed("mp3") + sound, signing)
    except ReceiptError:
        return
    assert found["content"] is False
