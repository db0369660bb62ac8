"""Speech as the OpenAI client asks for it: every format, speed and stream, heard by another decoder."""

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import av
import httpx2
import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from infra.receipts import receipts
from services.media.encoders import encoded, stretched
from tests.services.toys import TOYS, Voice

RATE: Final = 8000
SECONDS: Final = 0.5
CONTENT: Final = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
}
PADDING_S: Final = {"aac": 2.1 * 1024 / RATE}
"""ADTS cannot say what of its first and last frames is padding; the other containers can."""
ASKED: Final[dict[str, Any]] = {"model": "speaker", "input": "high", "voice": "alloy"}


@pytest.fixture(scope="module")
def client(workshop: Any) -> Iterator[Any]:
    """Return what runs calls of an OpenAI client against the gateway in this process."""
    table: Any = models.FAMILIES
    before = dict(table)
    table.update(TOYS)
    workshop.publish_alone("speaker", Voice(Voice.presets["tiny"]), seconds=SECONDS)
    stage = workshop.stage()
    app = workshop.gateway(stage)

    def run(call: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
        async def inside() -> Any:
            transport = httpx2.ASGITransport(app)
            async with httpx2.AsyncClient(transport=transport) as http:
                url = "http://127.0.0.1/v1"
                return await call(openai.AsyncOpenAI(base_url=url, api_key="-", http_client=http))

        return asyncio.run(inside())

    yield run
    stage.close()
    table.clear()
    table.update(before)


def heard(file: bytes, kind: str | None = None) -> tuple[Any, int]:
    """Decode a file with ffmpeg, of a kind or as it looks: samples in [-1, 1] and their rate in Hz."""
    with av.open(io.BytesIO(file), format=kind) as container:
        resampler = av.AudioResampler(format="flt", layout="mono")
        frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
        rate = frames[0].sample_rate
        return np.concatenate([frame.to_ndarray()[0] for frame in frames]), rate


def pitch(samples_T: Any, rate: int) -> float:
    """Return the loudest frequency in Hz."""
    power = np.abs(np.fft.rfft(samples_T * np.hanning(len(samples_T))))
    return float(power.argmax() * rate / len(samples_T))


@pytest.mark.parametrize("kind", CONTENT)
@pytest.mark.parametrize("speed", [0.5, 1.0, 1.7])
def test_a_format_lasts_and_sounds_as_asked_and_names_its_maker(
    client: Any, tmp_path: Path, kind: Any, speed: float
) -> None:
    said = client(
        lambda c: c.audio.speech.with_raw_response.create(
            **ASKED, response_format=kind, speed=speed, extra_body={"seed": 3}
        )
    )
    assert said.headers["content-type"] == CONTENT[kind]
    samples, rate = heard(said.content)
    wanted = SECONDS / speed
    assert wanted - 0.001 <= len(samples) / rate <= wanted + PADDING_S.get(kind, 0.001)
    assert abs(pitch(samples, rate) - 440) < 1.5 / wanted
    if kind == "opus":
        made = receipts.Receipt.model_validate_json(said.headers["x-atelier-receipt"])
    else:
        (tmp_path / "said").write_bytes(said.content)
        made = receipts.read(tmp_path / "said")
    assert (made.prompt, made.seed, made.speed) == ("high", 3, None if speed == 1 else speed)


def test_who_names_no_format_gets_an_mp3(client: Any) -> None:
    said = client(lambda c: c.audio.speech.create(**ASKED))
    with av.open(io.BytesIO(said.content)) as container:
        assert container.format.name == "mp3"


def test_a_file_is_read_as_it_comes(client: Any, tmp_path: Path) -> None:
    async def call(ours: openai.AsyncOpenAI) -> None:
        create = ours.audio.speech.with_streaming_response.create
        async with create(**ASKED, response_format="wav") as answer:
            await answer.stream_to_file(tmp_path / "said.wav")

    client(call)
    assert len(heard((tmp_path / "said.wav").read_bytes())[0]) == SECONDS * RATE


@pytest.mark.parametrize("kind", ["mp3", "wav", "pcm"])
def test_events_carry_the_file_in_parts(client: Any, kind: Any) -> None:
    seed = {"extra_body": {"seed": 3, "seconds": 4.0}}
    whole = client(lambda c: c.audio.speech.create(**ASKED, response_format=kind, **seed)).content

    async def call(ours: openai.AsyncOpenAI) -> list[dict[str, Any]]:
        create = ours.audio.speech.with_streaming_response.create
        async with create(**ASKED, response_format=kind, stream_format="sse", **seed) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line async for line in answer.iter_lines()]
        return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]

    *parts, done = client(call)
    assert {part["type"] for part in parts} == {"speech.audio.delta"}
    file = b"".join(base64.b64decode(part["audio"], validate=True) for part in parts)
    if kind == "pcm":
        assert file == whole
    else:
        np.testing.assert_array_equal(heard(file)[0], heard(whole)[0])
    assert kind == "mp3" or len(parts) > 1
    assert done["type"] == "speech.audio.done"
    assert done["usage"] == {"input_tokens": 1, "output_tokens": 32_000, "total_tokens": 32_001}
    assert receipts.Receipt.model_validate_json(json.dumps(done["receipt"])).seed == 3


def test_lines_of_a_long_input_are_read_as_one(client: Any) -> None:
    long = f"\n high {' ' * 4000}\n"
    said = client(
        lambda c: c.audio.speech.create(**{**ASKED, "input": long}, response_format="wav")
    )
    assert receipts.read(said.content).prompt == "high"


def test_a_receipt_that_no_header_holds_is_left_out_and_said(client: Any) -> None:
    asked = {**ASKED, "input": "high " + "…" * 4000, "response_format": "pcm"}
    said = client(lambda c: c.audio.speech.with_raw_response.create(**asked))
    assert "x-atelier-receipt" not in said.headers
    [warning] = json.loads(said.headers["x-atelier-warnings"])
    assert warning.startswith("the receipt has ")
    assert warning.endswith("it comes with mp3, aac, flac and wav, and with sse")


@settings(max_examples=30, deadline=None)
@given(
    rate=st.sampled_from([4000, 8000, 11_025, 22_050, 44_100, 96_000]),
    seconds=st.floats(0.05, 0.5),
    kind=st.sampled_from(["mp3", "opus", "aac"]),
)
def test_any_rate_and_length_is_packed(rate: int, seconds: float, kind: Any) -> None:
    count = round(rate * seconds)
    tone = (9000 * np.sin(np.arange(count) / 3)).astype(np.int16)
    container = {"opus": "ogg"}.get(kind, kind)  # two frames of AAC alone look like nothing yet
    samples, found = heard(encoded(tone, rate, kind), container)
    assert len(samples) / found >= count / rate - 1 / found


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([8000, 16_000, 44_100]),
    count=st.integers(1, 4000),
    speed=st.floats(0.25, 4),
)
def test_a_stretched_sound_has_its_length_and_level(rate: int, count: int, speed: float) -> None:
    tone = (9000 * np.sin(np.arange(count) / 3)).astype(np.int16)
    found = stretched(tone, rate, speed)
    assert found.dtype == np.int16
    assert len(found) == round(count / speed)
    assert np.abs(found.astype(int)).max(initial=0) <= 9500
    if speed == 1:
        np.testing.assert_array_equal(found, tone)
