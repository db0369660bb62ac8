"""Sentences by a pipeline that speaks, acoustic model before vocoder: heard one after another, as they are made."""

import asyncio
import base64
import io
import json
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import av
import httpx2
import numpy as np
import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.receipts import provenance, receipts
from models.request import Request
from models.text_to_speech.griffin_lim import GriffinLim
from models.text_to_speech.matcha import Matcha
from models.text_to_speech.vocos import Vocos
from services.api.speech import ENDING
from services.media.codecs import Sound
from services.media.sound_stream import writer
from services.media.speech import FADE_S, LONG, PAUSE_S, growing, joined, parted, sentences
from services.stages.engine import Engine
from tests.models.families_kit import batch_of, counted, tiny
from tests.services.served_kit import with_toys
from tests.services.toys import Speaker

RATE: Final = 8000
KINDS: Final = ("mp3", "opus", "aac", "flac", "wav", "pcm")
TEXT: Final = "The cat sat on the mat. A dog ran after it! Where did both of them go?"
ASKED: Final[dict[str, Any]] = {
    "model": "story",
    "input": TEXT,
    "voice": "bob",
    "extra_body": {"seed": 3},
}
Run = Callable[[Callable[[openai.AsyncOpenAI], Awaitable[Any]]], Any]


@pytest.fixture(scope="module")
def client(own_workshop: Any) -> Iterator[Run]:
    """Return what runs calls of an OpenAI client against the gateway in this process."""
    with with_toys():
        models = {
            "speaker": Speaker(Speaker.presets["tiny"]),
            "vocoder": GriffinLim(GriffinLim.presets["tiny"]),
        }
        own_workshop.publish_wired("story", models)
        torch.manual_seed(0)
        networks = {
            "acoustic": Matcha(Matcha.presets["tiny"]).eval(),
            "vocoder": Vocos(Vocos.presets["tiny"]).eval(),
        }
        own_workshop.publish_wired("networks", networks)
        one = tiny("vits", speakers=("ann", "bob")).eval()
        own_workshop.publish_wired("vits", {"speech": one})
        pieces = tiny("unit-selection", speakers=("ann", "bob"))
        own_workshop.publish_wired("pieces", {"speech": counted(pieces, batch_of(pieces)).eval()})
        stage = own_workshop.stage()
        app = own_workshop.gateway(stage)

        def run(call: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
            async def inside() -> Any:
                transport = httpx2.ASGITransport(app)
                async with httpx2.AsyncClient(transport=transport) as http:
                    url = "http://127.0.0.1/v1"
                    ours = openai.AsyncOpenAI(
                        base_url=url, api_key="-", http_client=http, max_retries=0
                    )
                    return await call(ours)

            return asyncio.run(inside())

        yield run
        stage.close()


def heard(file: bytes, kind: str) -> Any:
    """Decode a file with ffmpeg: samples in [-1, 1] at 8 kHz."""
    if kind == "pcm":
        return np.frombuffer(file, "<i2") / 32768
    with av.open(io.BytesIO(file)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
        frames += resampler.resample(None)
        return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def seconds_of(texts: tuple[str, ...], speed: float = 1.0) -> float:
    """Return how long sentences take: eight frames of two milliseconds a letter, and the pauses between them."""
    return sum(map(len, texts)) * round(8 / speed) * 16 / RATE + PAUSE_S * (len(texts) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_last_as_long_as_they_take_in_every_format(client: Run, kind: Any) -> None:
    said = client(lambda c: c.audio.speech.with_raw_response.create(**ASKED, response_format=kind))
    lasts = len(heard(said.content, kind)) / RATE
    assert seconds_of(sentences(TEXT)) - 0.001 <= lasts <= seconds_of(sentences(TEXT)) + 0.4
    assert said.headers["x-atelier-seed"] == "3"
    assert said.headers["x-sample-rate"] == "8000"


async def events(ours: openai.AsyncOpenAI, **asked: Any) -> list[dict[str, Any]]:
    create = ours.audio.speech.with_streaming_response.create
    async with create(**{**ASKED, **asked}, stream_format="sse") as answer:
        lines = [line async for line in answer.iter_lines()]
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def test_a_receipt_names_the_recordings_that_sentences_are_put_together_from(client: Run) -> None:
    told, plain = (
        client(lambda c, model=model: events(c, model=model, response_format="pcm"))[-1]["receipt"]
        for model in ("pieces", "story")
    )
    assert len(told["sources"]) >= len(sentences(TEXT))
    assert all(len(name) == 16 and begin < end for name, begin, end in told["sources"])
    assert "sources" not in plain


def test_events_say_each_sentence_and_end_with_a_receipt_of_all(client: Run) -> None:
    *parts, done = client(lambda c: events(c, response_format="pcm"))
    whole = client(lambda c: c.audio.speech.create(**ASKED, response_format="pcm")).content
    assert len(parts) >= len(sentences(TEXT)) == 3
    file = b"".join(base64.b64decode(part["audio"], validate=True) for part in parts)
    assert file == whole
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["output_tokens"] == len(file) // 2
    made = receipts.Receipt.model_validate_json(json.dumps(done["receipt"]))
    assert (made.prompt, made.seed, made.options) == (TEXT, 3, {"voice": "bob"})
    assert made.file_sha256 is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_saved_while_it_was_sent_is_verified_where_it_can_hold_a_receipt(
    client: Run, own_workshop: Any, kind: Any, tmp_path: Path
) -> None:
    async def saved(ours: openai.AsyncOpenAI) -> Any:
        create = ours.audio.speech.with_streaming_response.create
        async with create(**ASKED, response_format=kind) as answer:
            await answer.stream_to_file(tmp_path / "said")
        return answer.headers, await ours.content_provenance_checks.create(file=tmp_path / "said")

    headers, told = client(saved)
    *parts, done = client(lambda c: events(c, response_format=kind))
    file = (tmp_path / "said").read_bytes()
    lasts = len(heard(file, kind)) / RATE
    assert seconds_of(sentences(TEXT)) - 0.001 <= lasts <= seconds_of(sentences(TEXT)) + 0.5
    shown = tmp_path / "shown"
    shown.write_bytes(b"".join(base64.b64decode(part["audio"]) for part in parts))
    if kind in ENDING:
        assert "x-atelier-warnings" not in headers
        assert told.results[0].to_dict()["validation_state"] == "trusted"
        made = receipts.read(tmp_path / "said")
        assert (made.prompt, made.seed, made.options) == (TEXT, 3, {"voice": "bob"})
        assert receipts.read(shown).model_dump(mode="json", exclude_none=True) == done["receipt"]
        checks = provenance.check(shown, own_workshop.signing())[1]
    else:
        assert (
            f"{kind} that is sent while it is made holds no receipt"
            in headers["x-atelier-warnings"]
        )
        beside = tmp_path / "receipt.json"
        beside.write_text(json.dumps(done["receipt"]))
        checks = provenance.check(shown, own_workshop.signing(), beside)[1]
    assert all(one.passed for one in checks)


def test_one_sentence_is_one_file_with_its_receipt(client: Run) -> None:
    asked = {**ASKED, "input": "The cat sat on the mat."}
    said = client(lambda c: c.audio.speech.create(**asked, response_format="wav")).content
    assert receipts.read(said).options == {"voice": "bob"}
    assert len(heard(said, "wav")) / RATE == pytest.approx(seconds_of((asked["input"],)), abs=0.01)


def test_the_first_sentence_is_heard_before_the_last_is_made(
    client: Run, own_workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last sentence's drawing waits until the first was heard."""
    sample, heard_first = Speaker.sample, asyncio.Event()
    asked: list[tuple[str, ...]] = []

    def watched(self: Speaker, request: Any) -> Any:
        asked.append(tuple(dict.fromkeys(request.prompts)))
        return sample(self, request)

    monkeypatch.setattr(Speaker, "sample", watched)

    async def call(ours: openai.AsyncOpenAI) -> int:
        create = ours.audio.speech.with_streaming_response.create
        async with create(**ASKED, response_format="pcm") as answer:
            async for _ in answer.iter_bytes():
                heard_first.set()
        return len(asked)

    assert client(call) == 3, "each of three sentences has a call of its own"
    assert asked == [(one,) for one in sentences(TEXT)]
    assert heard_first.is_set()


def test_who_speaks_and_how_fast_is_the_models_affair(client: Run) -> None:
    def said(**change: Any) -> Any:
        asked = {**ASKED, "input": "Hello over there.", "response_format": "wav", **change}
        return heard(client(lambda c: c.audio.speech.create(**asked)).content, "wav")

    bob, ann, anybody = said(), said(voice="ann"), said(voice="alloy")
    np.testing.assert_array_equal(ann, anybody)
    assert not np.array_equal(ann, bob)
    np.testing.assert_array_equal(said(voice={"id": "ann"}), ann)
    assert len(said(speed=2.0)) == pytest.approx(len(bob) / 2, abs=32)


@pytest.mark.parametrize("model", ["networks", "vits"])
def test_networks_speak_and_a_seed_says_the_same_again(client: Run, model: str) -> None:
    def said(seed: int, **change: Any) -> Any:
        asked = {**ASKED, "model": model, "voice": "alloy", "response_format": "pcm", **change}
        asked["extra_body"] = {"seed": seed}
        return heard(client(lambda c: c.audio.speech.create(**asked)).content, "pcm")

    first = said(3)
    assert len(first) > 2 * PAUSE_S * RATE
    np.testing.assert_array_equal(said(3), first)
    assert not np.array_equal(said(4), first)


def test_an_unknown_voice_and_instructions_are_refused_by_name(client: Run) -> None:
    async def call(ours: openai.AsyncOpenAI, **change: Any) -> str:
        with pytest.raises(openai.BadRequestError) as refused:
            await ours.audio.speech.create(**{**ASKED, **change})
        return str(refused.value)

    assert "story speaks as ann, bob; got 'eve'" in client(lambda c: call(c, voice="eve"))
    assert "no instructions here" in client(lambda c: call(c, instructions="whisper"))
    assert "speed" in client(lambda c: call(c, speed=5.0))
    assert "input" in client(lambda c: call(c, input="a" * 4097))


def test_a_text_of_all_characters_that_there_may_be_is_one_request(client: Run) -> None:
    text = ("Tell me about all of it, please. " * 125)[:4096].strip()
    asked = {**ASKED, "input": text, "response_format": "pcm"}
    said = client(lambda c: c.audio.speech.create(**asked)).content
    assert len(said) / 2 / RATE == pytest.approx(seconds_of(sentences(text)), rel=0.001)


def test_voices_are_listed_with_the_model_that_has_them(client: Run) -> None:
    async def call(ours: openai.AsyncOpenAI, path: str) -> Any:
        return await ours.get(path, cast_to=object)

    found = client(lambda c: call(c, "/audio/voices"))
    named = [(one["id"], one["model"]) for one in found["data"]]
    both = [("ann", "story"), ("bob", "story")]
    assert {("default", "networks"), ("bob", "vits"), *both} <= set(named)
    assert len(set(named)) == len(named)
    of_one = client(lambda c: call(c, "/audio/voices?model=story"))["data"]
    assert [(one["id"], one["model"]) for one in of_one] == both
    with pytest.raises(openai.NotFoundError):
        client(lambda c: call(c, "/audio/voices?model=nobody"))


def steepest(levels: Any) -> int:
    """Return the largest change of slope from sample to sample, which is what a click is."""
    return int(np.abs(np.diff(levels.astype(np.int64), 2)).max())


@settings(max_examples=30)
@given(st.lists(st.integers(200, 900), min_size=2, max_size=4), st.integers(0, 100))
def test_sounds_meet_without_a_click(lengths: list[int], phase: int) -> None:
    """Where parts meet nothing is steeper than within them, wherever their waves were cut."""
    tones = [
        (20_000 * np.sin(2 * np.pi * 300 * (np.arange(n) + phase) / RATE)).astype(np.int16)
        for n in lengths
    ]
    whole = joined([Sound(one, RATE) for one in tones]).levels
    within = max(map(steepest, tones))
    assert steepest(whole) <= 1.1 * within
    gap = round(PAUSE_S * RATE)
    assert len(whole) == sum(lengths) + gap * (len(lengths) - 1)
    plain = np.concatenate([np.concatenate([one, np.zeros(gap, np.int16)]) for one in tones])
    assert steepest(plain) > 2 * within or abs(int(tones[0][-1])) < 6000, "the control clicks"
    assert round(FADE_S * RATE) < min(lengths)


def test_parts_put_behind_one_another_are_the_whole() -> None:
    generator = np.random.default_rng(0)
    sounds = [
        Sound(generator.integers(-9000, 9000, n).astype(np.int16), RATE) for n in (300, 20, 500)
    ]
    parts = [parted(one, number, 3).levels for number, one in enumerate(sounds)]
    np.testing.assert_array_equal(np.concatenate(parts), joined(sounds).levels)
    np.testing.assert_array_equal(joined(sounds[:1]).levels, sounds[0].levels)


@given(st.text(st.sampled_from("ab .,!?\"'Dr"), max_size=900))
def test_sentences_are_the_text_in_parts_that_can_be_said(text: str) -> None:
    parts = sentences(" ".join(text.split()))
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(0 < len(part) <= LONG for part in parts)


@given(st.integers(1, 60))
def test_growing_groups_are_all_parts_in_order(count: int) -> None:
    groups = growing(count)
    assert [n for first, end in groups for n in range(first, end)] == list(range(count))
    assert groups[0] == (0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_written_as_it_is_made_has_every_sample(kind: str) -> None:
    tone = (9000 * np.sin(np.arange(20_000) / 3)).astype(np.int16)
    ours = writer(kind, RATE)
    pieces = [ours.push(tone[start : start + 5000]) for start in range(0, 20_000, 5000)]
    assert sum(map(len, pieces[:3])) > 0, "nobody waits for the end"
    samples = heard(b"".join(pieces) + ours.close(), kind)
    assert 20_000 <= len(samples) <= 20_000 + 0.4 * RATE
    if kind in {"flac", "wav", "pcm"}:
        np.testing.assert_array_equal((samples * 32768).round(), tone)


def test_mels_of_many_requests_share_a_call_and_each_sound_ends_with_its_own() -> None:
    calls: list[int] = []

    class Counted(Vocos):
        def drawing(self, request: Request) -> Iterator[torch.Tensor | None]:
            calls.append(len(request.seeds))
            return super().drawing(request)

    torch.manual_seed(0)
    model = Counted(Vocos.presets["tiny"]).eval()
    mels = [torch.randn(1, 8, frames) - 4 for frames in (5, 9, 2)]
    engine, free = Engine(), threading.Event()
    found: queue.Queue[tuple[int, Any]] = queue.Queue()

    def deliver(place: int, result: Any) -> None:
        found.put((place, result.made))

    engine.ask(free.wait, lambda _: None)  # all three come while it is busy
    for place, mel in enumerate(mels):
        asked = Request(seeds=(place,), given={"mel": mel})
        engine.submit(model, asked, partial(deliver, place), buckets=(4,))
    free.set()
    made = dict(found.get(timeout=60) for _ in mels)
    engine.close()
    assert calls == [4], "three and one to fill the batch"
    for place, mel in enumerate(mels):
        alone = model.sample(Request(seeds=(place,), given={"mel": mel}))[0].numpy()
        assert len(made[place]) == mel.shape[2] * model.config.mel.hop
        np.testing.assert_allclose(made[place], alone, atol=1e-5)
