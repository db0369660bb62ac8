"""A sound that was sent while it was made has its receipt behind it, where players hear nothing of it."""

import contextlib
import io
import zlib
from typing import Any, Final

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from infra.receipts.provenance import check, sign
from infra.receipts.receipts import MOST_BYTES, ReceiptError, attach, behind, read
from infra.receipts.signing import Signing
from services.media.sound_stream import writer
from tests.infra.test_receipts import RECEIPT

RATE: Final = 8000
KINDS: Final = ("mp3", "aac", "wav")
SOUND: Final = RECEIPT.model_copy(
    update={"size": None, "sample_rate": RATE, "prompt": "é 🙂" * 300}
)
TONE: Final = (9000 * np.sin(np.arange(9001) / 3)).astype(np.int16)


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Signing:
    return Signing(tmp_path_factory.mktemp("signing"))


def plain(kind: str) -> bytes:
    made = writer(kind, RATE)
    return made.push(TONE[:5000]) + made.push(TONE[5000:]) + made.close()


def streamed(kind: str, signing: Signing) -> bytes:
    file = plain(kind)
    return file + behind(file, sign(SOUND, file, signing))


def outcome(file: bytes, signing: Signing) -> dict[str, bool | None]:
    return {one.name: one.passed for one in check(file, signing)[1]}


def heard(file: bytes) -> Any:
    with av.open(io.BytesIO(file)) as container:
        return np.concatenate([one.to_ndarray().reshape(-1) for one in container.decode(audio=0)])


GOOD = {"signature": True, "signer": True, "content": True}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_verified_until_its_sound_is_another(kind: str, signing: Signing) -> None:
    made = streamed(kind, signing)
    assert outcome(made, signing) == GOOD
    assert read(made).prompt == SOUND.prompt
    for place in (200, len(plain(kind)) - 50):
        changed = bytearray(made)
        changed[place] ^= 1
        assert outcome(bytes(changed), signing) == {**GOOD, "content": False}
    for file in (plain(kind), made[:-3]):  # the sender broke off, before or in its receipt
        with pytest.raises(ReceiptError, match="no receipt in"):
            read(file)


@pytest.mark.parametrize("kind", KINDS)
def test_another_program_hears_the_sound_alone(kind: str, signing: Signing) -> None:
    before, after = heard(plain(kind)), heard(streamed(kind, signing))
    np.testing.assert_array_equal(after[: len(before)], before)
    if kind == "wav":
        assert 0 < len(after) - len(before) < RATE / 2
        assert np.abs(after[len(before) :]).max() <= 8, "of 32,768: -72 dB"
    else:
        assert len(after) == len(before)


@pytest.mark.parametrize("kind", KINDS)
def test_put_at_its_usual_place_it_is_there_alone(kind: str, signing: Signing) -> None:
    made = streamed(kind, signing)
    moved = attach(made, read(made))
    assert outcome(moved, signing) == GOOD
    assert len(heard(moved)) == len(heard(plain(kind)))
    with pytest.raises(ReceiptError, match="has 2 receipts"):
        read(moved + behind(moved, SOUND) if kind != "wav" else doubled(moved))


def doubled(file: bytes) -> bytes:
    """Put a receipt behind a WAV's samples, too."""
    samples = soundfile.read(io.BytesIO(file), dtype="int16")[0]
    hushed = np.frombuffer(behind(file, SOUND), "<i2")
    made = io.BytesIO()
    soundfile.write(made, np.concatenate([samples, hushed]), RATE, format="WAV", subtype="PCM_16")
    return attach_beside(made.getvalue())


def attach_beside(file: bytes) -> bytes:
    """Put one at a WAV's usual place and leave what its samples have."""
    alone = attach(plain("wav"), SOUND)
    comment = alone[alone.index(b"LIST") :]
    return file[:4] + (len(file) + len(comment) - 8).to_bytes(4, "little") + file[8:] + comment


def test_a_wav_keeps_it_when_its_samples_are_copied_without_loss(signing: Signing) -> None:
    samples = np.frombuffer(streamed("wav", signing)[44:], "<i2")
    copied = io.BytesIO()
    soundfile.write(copied, samples, RATE, format="WAV", subtype="PCM_16")
    assert outcome(copied.getvalue(), signing) == GOOD


def spoken(content: bytes) -> Any:
    """Return samples that have these bytes where a receipt is hushed."""
    fours = np.frombuffer(content + len(content).to_bytes(4, "little") + b"atelier", np.uint8)
    return (np.stack([fours >> 4, fours & 15], 1).reshape(-1).astype(np.int16) - 8).astype("<i2")


@pytest.mark.parametrize(
    "content",
    [b"", bytes(2**16 + 1), bytes(2**16), zlib.compress(b"{}") + bytes(1000)],
    ids=["nothing", "too much", "as much as may be", "more behind one"],
)
@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_nothing_can_be_added_that_only_looks_like_a_receipt(
    kind: str, content: bytes, signing: Signing
) -> None:
    made = attach(plain("wav"), sign(SOUND, plain("wav"), signing))
    comment = made[made.index(b"LIST") :]
    longer = np.concatenate([TONE, spoken(content)]).astype("<i2").tobytes()
    body = b"WAVE" + plain("wav")[12:40] + len(longer).to_bytes(4, "little") + longer + comment
    file = b"RIFF" + len(body).to_bytes(4, "little") + body
    if kind == "flac":
        packed = io.BytesIO()
        soundfile.write(packed, np.frombuffer(longer, "<i2"), RATE, format="FLAC")
        file = attach(packed.getvalue(), read(made))
    if kind == "wav" and 0 < len(content) <= 2**16:
        with pytest.raises(ReceiptError, match="its receipt is damaged"):
            read(file)
        return
    assert outcome(file, signing) == {**GOOD, "content": False}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_damaged_one_is_refused_or_has_its_receipt(kind: str, data: st.DataObject) -> None:
    file = bytearray(
        {"wav": b"RIFF\xff\xff\xff\xffWAVEdata\xff\xff\xff\xff"}.get(kind, b"\xff\xfb")
    )
    file += b"\x00\x07" * 40
    file += behind(bytes(file), SOUND)
    place = data.draw(st.integers(0, len(file) - 1))
    file[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ReceiptError):
        read(bytes(file[: data.draw(st.integers(1, len(file)))]))


def test_one_above_the_limit_is_not_written() -> None:
    large = SOUND.model_copy(update={"prompt": "x" * MOST_BYTES})
    with pytest.raises(ReceiptError, match=f"at most {MOST_BYTES} bytes"):
        behind(b"\xff\xfb", large)
