"""A clip and a mesh carry their receipt at the end, and every byte before it counts."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.media import clips, meshes
from infra.receipts import clip_receipts
from infra.receipts.provenance import sign
from infra.receipts.receipts import NoReceipt, Receipt, ReceiptError, attach, read
from infra.receipts.signing import Signing
from tests.infra.test_clips import FILES as CLIPS
from tests.infra.test_clips import moving
from tests.infra.test_meshes import FILES as MESHES
from tests.infra.test_meshes import ball
from tests.infra.test_provenance import GOOD, outcome, said
from tests.infra.test_receipts import RECEIPT

FILES = {**CLIPS, **MESHES}
CLIP = RECEIPT.model_copy(update={"size": "32x24", "frames": 6, "frame_rate": 8.0})


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Signing:
    return Signing(tmp_path_factory.mktemp("signing"))


def stamped(kind: str, receipt: Receipt, signing: Signing) -> bytes:
    return attach(FILES[kind], sign(receipt, FILES[kind], signing))


def shown(kind: Any, content: bytes) -> list[np.ndarray]:
    if kind in CLIPS:
        return [clips.decode(content).frames]
    mesh = meshes.decoded(content)
    return [mesh.vertices, mesh.faces, mesh.colours]


def another(kind: Any) -> bytes:
    if kind in CLIPS:
        return clips.encoded(moving()[::-1], 8, kind).content
    return meshes.encoded(meshes.mesh_of(ball(radius=0.4)), kind).content


@pytest.mark.parametrize("kind", FILES)
def test_a_file_carries_its_receipt_and_shows_what_it_showed(kind: str, signing: Signing) -> None:
    made = stamped(kind, CLIP, signing)
    assert outcome(made, signing) == GOOD
    assert read(made).frame_rate == 8
    for found, before in zip(shown(kind, made), shown(kind, FILES[kind]), strict=True):
        np.testing.assert_array_equal(found, before)
    newer = read(made).model_copy(update={"seed": 8})
    assert read(attach(made, newer)) == newer
    assert outcome(attach(made, newer), signing)["signature"] is False
    with pytest.raises(NoReceipt, match="no receipt in"):
        read(FILES[kind])


@pytest.mark.parametrize("kind", FILES)
def test_another_file_with_this_receipt_is_found(kind: Any, signing: Signing) -> None:
    forged = attach(another(kind), sign(CLIP, FILES[kind], signing))
    assert outcome(forged, signing) == {**GOOD, "content": False}
    assert "not the file that was signed" in said(forged, signing)


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
def test_one_changed_byte_of_a_signed_file_is_found(
    kind: str, signing: Signing, data: st.DataObject
) -> None:
    made = bytearray(stamped(kind, CLIP, signing))
    made[data.draw(st.integers(0, len(made) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = outcome(bytes(made), signing)
    except ReceiptError:
        return
    assert found != GOOD


@pytest.mark.parametrize("prompt", ["a", "ab"])
def test_the_byte_that_evens_a_receipt_in_webp_is_found_changed(
    prompt: str, signing: Signing
) -> None:
    made = stamped("webp", CLIP.model_copy(update={"prompt": prompt}), signing)
    with pytest.raises(ReceiptError):
        outcome(made[:-1] + bytes([made[-1] ^ 1]), signing)


@pytest.mark.parametrize("kind", MESHES)
@given(added=st.sampled_from([b"\0", b" ", b"\n", b"v 0 0 0\n", b"# atelier receipt {}\n"]))
def test_nothing_is_added_to_a_signed_mesh(kind: str, signing: Signing, added: bytes) -> None:
    with pytest.raises(ReceiptError):
        outcome(stamped(kind, CLIP, signing) + added, signing)


@pytest.mark.parametrize("end", ["\r", "\v", "\x85", "\u2028"])
def test_nothing_is_hidden_from_the_signature_in_an_obj_s_receipt(
    end: str, signing: Signing
) -> None:
    """A field that is said twice counts as it is said last, so the first could hold lines of another mesh."""
    hidden = f'{{"prompt":"{end}v 9 9 9{end}f 1 2 3{end}",'.encode()
    before, text, receipt = stamped("obj", CLIP, signing).partition(b"# atelier receipt ")
    with pytest.raises(ReceiptError):
        outcome(before + text + receipt.replace(b"{", hidden, 1), signing)


@pytest.mark.parametrize("kind", FILES)
@given(length=st.integers(0, 2**16))
def test_every_truncation_of_a_signed_file_is_refused(
    kind: str, signing: Signing, length: int
) -> None:
    made = stamped(kind, CLIP, signing)
    with pytest.raises(ReceiptError):
        read(made[: length % len(made)])


@given(prompt=st.text(max_size=300), kind=st.sampled_from([*FILES]))
def test_any_prompt_survives_in_any_file(prompt: str, kind: str) -> None:
    receipt = CLIP.model_copy(update={"prompt": prompt})
    assert read(attach(attach(FILES[kind], CLIP), receipt)) == receipt


def parts_of(kind: str, made: bytes) -> list[bytes]:
    """Return the parts that a signed clip is made of, its receipt the last but for a GIF's trailer."""
    found = clip_receipts._parts(io.BytesIO(made))
    return [made[one.start : one.end] for one in found]


@pytest.mark.parametrize("kind", CLIPS)
def test_a_receipt_that_moves_what_stands_behind_it_is_found(kind: str, signing: Signing) -> None:
    """An MP4's head says where its frames begin, from the file's first byte on."""
    parts = parts_of(kind, stamped(kind, CLIP, signing))
    receipt = parts.pop(-2 if kind == "gif" else -1)
    parts.insert(-2 if kind == "gif" else -1, receipt)
    moved = b"".join(parts)
    assert outcome(moved, signing) == {**GOOD, "content": False}
    assert "its receipt stands before the end" in said(moved, signing)
