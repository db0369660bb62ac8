"""A receipt travels in the PNG and leaves its pixels alone."""

import contextlib
import io
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from infra.receipts.receipts import MOST_BYTES, Receipt, ReceiptError, StageReceipt, attach, read

RECEIPT = Receipt(
    endpoint="shapes",
    version="shapes:4",
    digest="ab" * 32,
    stages=(StageReceipt(name="shapes.base", version=3, sha256="cd" * 32),),
    prompt="a small red circle on the left",
    seed=7,
    steps=12,
    guidance=3.0,
    size="32x32",
    created=datetime(2026, 11, 20, 12, tzinfo=UTC),
    request_id="req-1",
)


def png(size: int = 8, **texts: str) -> bytes:
    picture = Image.frombytes("RGB", (size, size), bytes(range(3 * size * size)))
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    file = io.BytesIO()
    picture.save(file, "png", pnginfo=info)
    return file.getvalue()


def test_a_receipt_is_read_back_from_bytes_and_from_a_file(tmp_path: Path) -> None:
    made = attach(png(), RECEIPT)
    (tmp_path / "made.png").write_bytes(made)
    assert read(made) == read(tmp_path / "made.png") == RECEIPT


@given(
    prompt=st.text(max_size=300), seed=st.integers(0, 2**63), steps=st.none() | st.integers(1, 999)
)
def test_any_prompt_survives(prompt: str, seed: int, steps: int | None) -> None:
    receipt = RECEIPT.model_copy(update={"prompt": prompt, "seed": seed, "steps": steps})
    assert read(attach(png(), receipt)) == receipt


def test_the_rest_of_the_file_keeps_its_bytes_and_other_readers_see_the_receipt() -> None:
    plain = png(comment="mine")
    made = attach(plain, RECEIPT)
    header, rest = plain[:33], plain[33:]
    assert made.startswith(header)
    assert made.endswith(rest)
    with Image.open(io.BytesIO(made)) as picture:
        picture.load()
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        assert picture.text["comment"] == "mine"
        assert Receipt.model_validate_json(picture.text["atelier"]) == RECEIPT


def test_a_second_receipt_takes_the_place_of_the_first() -> None:
    newer = RECEIPT.model_copy(update={"seed": 8})
    made = attach(attach(png(), RECEIPT), newer)
    assert read(made) == newer
    assert made.count(b"atelier\x00") == 1


def test_a_file_without_a_receipt_is_named(tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(png())
    with pytest.raises(ReceiptError, match=r"no receipt in .*holiday\.png"):
        read(tmp_path / "holiday.png")


def test_what_is_no_png_or_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ReceiptError, match=r"notes\.txt is not a PNG"):
        read(tmp_path / "notes.txt")
    with pytest.raises(ReceiptError, match=r"cannot read .*absent\.png"):
        read(tmp_path / "absent.png")


def test_every_truncation_is_refused() -> None:
    made = attach(png(), RECEIPT)
    for length in range(len(made) - 12):
        with pytest.raises(ReceiptError):
            read(made[:length])


def test_an_altered_receipt_is_refused() -> None:
    made = attach(png(), RECEIPT)
    with pytest.raises(ReceiptError, match="wrong checksum"):
        read(made.replace(b"red circle", b"bed circle"))


def chunk(text: bytes) -> bytes:
    body = b"tEXtatelier\x00" + text
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def with_chunk(*texts: bytes) -> bytes:
    plain = png()
    return plain[:33] + b"".join(map(chunk, texts)) + plain[33:]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((b"{",), "is not JSON"),
        ((RECEIPT.model_dump_json().replace("{", '{"seed":7,', 1).encode(),), "says 'seed' twice"),
        ((b'{"format":2}',), "not valid: format"),
        ((RECEIPT.model_dump_json().replace('"seed"', '"sead"').encode(),), "not valid"),
        ((b" " * (MOST_BYTES + 1),), "above 65536 bytes"),
        ((b"{}", b"{}"), "has 2 receipts"),
    ],
)
def test_a_foreign_receipt_is_refused(texts: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(ReceiptError, match=message):
        read(with_chunk(*texts))


def test_a_huge_chunk_length_reads_nothing() -> None:
    hostile = png()[:33] + struct.pack(">I4s", 2**32 - 1, b"IDAT") + b"x"
    with pytest.raises(ReceiptError, match="cut short"):
        read(hostile)


def test_a_receipt_above_the_limit_is_not_written() -> None:
    long = RECEIPT.model_copy(update={"prompt": "a" * MOST_BYTES})
    with pytest.raises(ReceiptError, match="at most 65536 bytes"):
        attach(png(), long)


def wav(samples: int = 101) -> bytes:
    import soundfile

    file = io.BytesIO()
    levels = (np.sin(np.arange(samples) / 5) * 9000).astype(np.int16)
    soundfile.write(file, levels, 8000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def flac() -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.arange(2000, dtype=np.int16), 8000, format="FLAC", subtype="PCM_16")
    return file.getvalue()


@pytest.mark.parametrize("made", [wav(), wav(100), flac()], ids=["odd wav", "wav", "flac"])
def test_a_sound_carries_its_receipt_and_keeps_its_samples(made: bytes) -> None:
    import soundfile

    spoken = RECEIPT.model_copy(update={"size": None, "seconds": 0.5, "prompt": "é 🙂"})
    stamped = attach(attach(made, RECEIPT), spoken)
    assert read(stamped) == spoken
    before, after = (soundfile.read(io.BytesIO(one), dtype="int16") for one in (made, stamped))
    np.testing.assert_array_equal(after[0], before[0])
    assert after[1] == before[1]
    with pytest.raises(ReceiptError, match="no receipt in"):
        read(made)


def packed(kind: Any) -> bytes:
    from services.media.encoders import encoded

    return encoded((9000 * np.sin(np.arange(4000) / 3)).astype(np.int16), 8000, kind)


@pytest.mark.parametrize("kind", ["mp3", "aac"])
def test_packed_sound_carries_its_receipt_before_its_frames(kind: Any) -> None:
    made = packed(kind)
    spoken = RECEIPT.model_copy(update={"seconds": 0.5, "speed": 2.0, "prompt": "é 🙂" * 300})
    stamped = attach(attach(made, RECEIPT), spoken)
    assert read(stamped) == spoken
    assert stamped.endswith(made)
    with pytest.raises(ReceiptError, match="no receipt in"):
        read(made)


@pytest.mark.parametrize("made", [wav(), flac(), b"\xff\xfb" * 40], ids=["wav", "flac", "frames"])
@given(st.data())
def test_a_damaged_sound_is_refused_or_has_its_receipt(made: bytes, data: st.DataObject) -> None:
    stamped = bytearray(attach(made, RECEIPT))
    place = data.draw(st.integers(0, len(stamped) - 1))
    stamped[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ReceiptError):
        read(bytes(stamped[: data.draw(st.integers(1, len(stamped)))]))


def test_other_readers_show_a_wav_s_receipt() -> None:
    import soundfile

    with soundfile.SoundFile(io.BytesIO(attach(wav(), RECEIPT))) as file:
        assert Receipt.model_validate_json(file.comment) == RECEIPT
        assert file.software == "atelier"


def test_json_that_is_nested_too_deeply_is_no_answer() -> None:
    with pytest.raises(ReceiptError, match="not an answer"):
        read(b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
