"""Every answer's receipt is signed, and the gateway checks files as OpenAI's client sends them."""

import asyncio
import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

from infra.receipts import provenance, receipts
from infra.receipts.signing import Signing
from tests.infra.test_receipts import RECEIPT

CHECKS = "/v1/content_provenance_checks"
Ask = Callable[..., httpx.Response]
NONE = {"issuer": None, "model": None, "generated_at": None}


@pytest.fixture(scope="module")
def picture(app: Any, ask: Ask) -> bytes:
    body = {"model": "shapes", "prompt": "a small red circle", "seed": 7}
    answer = ask(app, "POST", "/v1/images/generations", json=body)
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


@pytest.fixture(scope="module")
def signing(workshop: Any) -> Signing:
    return Signing(workshop.folder / "exchange")


def checked(app: Any, ask: Ask, content: bytes) -> dict[str, Any]:
    answer = ask(app, "POST", CHECKS, files={"file": content})
    assert answer.status_code == 200, answer.text
    found, c2pa, synthid = answer.json()["results"]
    assert (c2pa["type"], synthid["type"]) == ("c2pa", "synthid")
    return dict(found)


def test_a_picture_of_ours_is_trusted_with_issuer_model_and_time(
    app: Any, ask: Ask, picture: bytes, signing: Signing
) -> None:
    found = checked(app, ask, picture)
    receipt = receipts.read(picture)
    assert "the picture that was signed" in found.pop("says")
    assert found == {
        "type": "atelier_receipt",
        "outcome": "detected",
        "validation_state": "trusted",
        "issuer": signing.fingerprint(),
        "model": "shapes:1",
        "generated_at": receipt.created.isoformat(),
    }


def test_what_is_altered_another_s_or_without_receipt_is_not_detected(
    app: Any, ask: Ask, picture: bytes, tmp_path: Path
) -> None:
    receipt = receipts.read(picture)
    plain = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(plain, "PNG")
    jpeg = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(jpeg, "JPEG")
    stranger = provenance.sign(receipt, picture, Signing(tmp_path))
    for state, content in (
        ("invalid", receipts.attach(picture, receipt.model_copy(update={"seed": 8}))),
        ("invalid", receipts.attach(picture, receipt.model_copy(update={"signature": None}))),
        ("invalid", receipts.attach(plain.getvalue(), receipt)),
        ("invalid", picture[:200]),
        ("valid", receipts.attach(picture, stranger)),
        ("not_present", plain.getvalue()),
        ("not_present", jpeg.getvalue()),
        ("not_present", b"hello"),
        ("not_present", b""),
    ):
        found = checked(app, ask, content)
        assert found["validation_state"] == state, found
        assert found["outcome"] == ("detected" if state == "valid" else "not_detected")
        assert found["says"]


def test_a_large_file_of_ours_is_taken(app: Any, ask: Ask, signing: Signing) -> None:
    """Ten MiB of sound, as an answer may have."""
    sound, plain = io.BytesIO(), np.zeros(5 * 2**20, np.int16)
    soundfile.write(sound, plain, 24000, format="WAV", subtype="PCM_16")
    receipt = RECEIPT.model_copy(update={"sample_rate": 24000})
    signed = provenance.sign(receipt, sound.getvalue(), signing)
    found = checked(app, ask, receipts.attach(sound.getvalue(), signed))
    assert found["validation_state"] == "trusted", found


def test_the_openai_client_reads_the_answer(app: Any, picture: bytes) -> None:
    from openai import AsyncOpenAI
    from openai.types import ContentProvenanceCheck

    httpx2 = pytest.importorskip("httpx2", reason="the client of before 3.5 sends by httpx")

    async def asked() -> ContentProvenanceCheck:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport) as web:
            client = AsyncOpenAI(
                base_url="http://127.0.0.1/v1", api_key="none", http_client=web, max_retries=0
            )
            return await client.content_provenance_checks.create(file=("made.png", picture))

    check = asyncio.run(asked())
    assert check.object == "content_provenance_check"
    assert check.created_at > 0
    assert check.results[0].outcome == "detected"
    assert check.results[0].model == "shapes:1"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"json": {"file": "x"}}, (415, "unsupported_media_type", "file")),
        (
            {"files": {"file": b"x"}, "data": {"model": "a"}},
            (400, "unknown_parameter", "model"),
        ),
        ({"files": {"picture": b"x"}}, (400, "unknown_parameter", "picture")),
        ({"files": {"none": (None, b"x")}}, (400, "missing_required_parameter", "file")),
        ({"files": {"file": (None, b"x")}}, (400, "missing_required_parameter", "file")),
        ({"files": [("file", b"x"), ("file", b"y")]}, (400, "invalid_value", "file")),
        ({"files": [("file", (None, b"x")), ("file", b"y")]}, (400, "invalid_value", "file")),
        (
            {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
            (400, "invalid_value", "body"),
        ),
        ({"files": {"file": b"x" * 69_000_000}}, (413, "body_too_large", None)),
    ],
)
def test_what_is_no_upload_is_refused(app: Any, ask: Ask, options: Any, expected: Any) -> None:
    told = ask(app, "POST", CHECKS, **options)
    error = told.json()["error"]
    assert (told.status_code, error["code"], error["param"]) == expected


def test_a_larger_file_than_other_bodies_may_be_is_checked(app: Any, ask: Ask) -> None:
    assert checked(app, ask, b"x" * 2_000_000)["validation_state"] == "not_present"
