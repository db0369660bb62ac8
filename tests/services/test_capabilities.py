"""Sound, embeddings, likelihoods and samples of anything, each as the model itself gives them."""

import base64
import io
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import models
from infra.media.sounds import wav
from infra.receipts import provenance, receipts
from infra.receipts.signing import Signing
from models.autoregressive.nade import NADE
from models.language.gpt import GPT
from models.parts.tokens import tokenizer
from models.request import Request
from services.pipelines.payload import Text
from services.routing.observer import look
from tests.services.toys import TOYS, Reader, Voice

Ask = Callable[..., httpx.Response]
SPEECH, EMBEDDINGS = "/v1/audio/speech", "/v1/embeddings"
SAMPLES, SCORES = "/v1/samples", "/v1/scores"


CUT = base64.b64encode(wav(np.ones(800, np.int16), 8000)[:-100]).decode()
"""A WAV that is shorter than its header says."""


def nade() -> NADE:
    torch.manual_seed(1)
    model = NADE(NADE.presets["tiny"])
    with torch.no_grad():
        model.b_D.normal_()
    return model.eval()


def gpt() -> GPT:
    torch.manual_seed(2)
    return GPT(GPT.presets["tiny"]).eval()


@pytest.fixture(scope="module", autouse=True)
def toys() -> Iterator[None]:
    """The table of families with the toys in it."""
    table: Any = models.FAMILIES
    before = dict(table)
    table.update(TOYS)
    yield
    table.clear()
    table.update(before)


@pytest.fixture(scope="module")
def served(workshop: Any, toys: None) -> Iterator[Any]:
    torch.manual_seed(0)
    workshop.publish_alone("voice", Voice(Voice.presets["tiny"]), seconds=0.25)
    workshop.publish_alone("reader", reader())
    workshop.publish_alone("bits", nade())
    workshop.publish_alone("prose", gpt())
    stage = workshop.stage()
    yield workshop.gateway(stage)
    stage.close()


def reader() -> Reader:
    torch.manual_seed(0)
    return Reader(Reader.presets["tiny"])


def error(answer: httpx.Response) -> tuple[int, Any, Any]:
    body = answer.json()["error"]
    assert body["message"]
    return answer.status_code, body["code"], body["param"]


def levels(file: bytes) -> tuple[Any, int]:
    found, rate = soundfile.read(io.BytesIO(file), dtype="int16")
    return found, rate


def png(pixels: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def spoken(**changes: Any) -> dict[str, Any]:
    return {"model": "voice", "input": "high", "voice": "default", "seed": 5, **changes}


KNOBS: dict[str, Any] = {
    **{"steps": 2, "guidance": 2.0, "seconds": 0.1, "max_tokens": 3},
    **{"temperature": 0.5, "top_k": 1, "top_p": 0.5},
}


@pytest.mark.parametrize(
    ("model", "prompt", "takes"),
    [
        ("bits", "", ()),
        ("voice", "low", ("seconds",)),
        ("prose", "once", ("max_tokens", "temperature", "top_k", "top_p")),
    ],
)
def test_a_setting_that_a_model_has_no_use_for_is_400_by_its_name(
    served: Any, ask: Ask, model: str, prompt: str, takes: tuple[str, ...]
) -> None:
    body = {"model": model, "prompt": prompt}
    for name, value in KNOBS.items():
        answer = ask(served, "POST", SAMPLES, json={**body, name: value})
        if name in takes:
            assert answer.status_code == 200
        else:
            assert error(answer) == (400, "invalid_value", name)
            assert answer.json()["error"]["message"].startswith(f"{name}: ")


def test_speech_is_a_sound_file_with_its_signed_receipt(
    workshop: Any, served: Any, ask: Ask, tmp_path: Any
) -> None:
    signing = Signing(workshop.folder / "exchange")
    files = {}
    for kind in ("wav", "flac", "pcm"):
        answer = ask(served, "POST", SPEECH, json=spoken(response_format=kind))
        assert answer.headers["content-type"] == f"audio/{kind}"
        files[kind] = answer
    heard, rate = levels(files["wav"].content)
    assert (len(heard), rate) == (2000, 8000)
    np.testing.assert_array_equal(levels(files["flac"].content)[0], heard)
    np.testing.assert_array_equal(np.frombuffer(files["pcm"].content, "<i2"), heard)
    sample = Voice(Voice.presets["tiny"]).sample(
        Request(seeds=(5,), prompts=("high",), seconds=0.25)
    )
    np.testing.assert_allclose(heard / 32768, sample[0].detach().numpy(), atol=1 / 32768)
    for kind in ("wav", "flac"):
        (tmp_path / f"sound.{kind}").write_bytes(files[kind].content)
        receipt = receipts.read(tmp_path / f"sound.{kind}")
        assert (receipt.prompt, receipt.seed, receipt.seconds) == ("high", 5, 0.25)
        assert all(one.passed for one in provenance.check(files[kind].content, signing)[1])
    header = files["pcm"].headers["x-atelier-receipt"]
    assert receipts.Receipt.model_validate_json(header).sample_rate == 8000
    assert files["pcm"].headers["x-sample-rate"] == "8000"
    (tmp_path / "receipt.json").write_text(header)
    _, checks = provenance.check(files["pcm"].content, signing, tmp_path / "receipt.json")
    assert all(one.passed for one in checks)


def test_the_seed_decides_what_is_heard(served: Any, ask: Ask) -> None:
    body = spoken(input="low", voice="alloy", response_format="wav")
    first, second, again = (
        ask(served, "POST", SPEECH, json={**body, "seed": seed}).content for seed in (1, 2, 1)
    )
    assert first[:4] == b"RIFF"
    np.testing.assert_array_equal(levels(first)[0], levels(again)[0])
    assert (levels(first)[0] != levels(second)[0]).any()


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (SPEECH, spoken(response_format="mid"), (400, "invalid_value", "response_format")),
        (SPEECH, spoken(instructions="softly"), (400, "unsupported_value", "instructions")),
        (SPEECH, spoken(input="low " * 1025), (400, "invalid_value", "input")),
        (SPEECH, spoken(input="middle"), (400, "invalid_value", "input")),
        (SPEECH, spoken(input=""), (400, "invalid_value", "input")),
        (SPEECH, spoken(voice="anna"), (400, "invalid_value", "voice")),
        (SPEECH, spoken(speed=4.1), (400, "integer_above_max_value", "speed")),
        (SPEECH, spoken(seconds=61.0), (400, "integer_above_max_value", "seconds")),
        (SPEECH, spoken(temperature=0.5), (400, "invalid_value", "temperature")),
        (SPEECH, spoken(model="prose"), (400, "unsupported_capability", "model")),
        (EMBEDDINGS, {"model": "prose", "input": "a"}, (400, "unsupported_capability", "model")),
        (EMBEDDINGS, {"model": "reader", "input": []}, (400, "invalid_value", "input")),
        (EMBEDDINGS, {"model": "reader", "input": [[1]]}, (400, "invalid_value", "input")),
        (EMBEDDINGS, {"model": "reader", "input": [9906, 1917]}, (400, "invalid_value", "input")),
        (EMBEDDINGS, {"model": "reader", "input": ["a"] * 2049}, (400, "invalid_value", "input")),
        (EMBEDDINGS, {"model": "reader", "input": "a" * 101}, (400, "invalid_value", "input")),
        (
            EMBEDDINGS,
            {"model": "reader", "input": "a", "dimensions": 4},
            (400, "invalid_value", "dimensions"),
        ),
        (SAMPLES, {"model": "reader"}, (400, "unsupported_capability", "model")),
        (SAMPLES, {"model": "bits", "seconds": 1.0}, (400, "invalid_value", "seconds")),
        (SAMPLES, {"model": "voice", "prompt": "low", "steps": 2}, (400, "invalid_value", "steps")),
        (
            SAMPLES,
            {"model": "voice", "prompt": "low", "n": 4, "seconds": 16.0},
            (400, "invalid_value", "seconds"),
        ),
        (SAMPLES, {"model": "bits", "prompt": "one"}, (400, "invalid_value", "prompt")),
        (
            SAMPLES,
            {"model": "voice", "prompt": "low" + "!" * 998},
            (400, "invalid_value", "prompt"),
        ),
        (SAMPLES, {"model": "bits", "seed": 2**63}, (400, "integer_above_max_value", "seed")),
        (SAMPLES, {"model": "bits", "size": "8x8"}, (400, "unknown_parameter", "size")),
        (SCORES, {"model": "reader", "input": "a"}, (400, "unsupported_capability", "model")),
        (SCORES, {"model": "bits", "input": "a"}, (400, "invalid_value", "input")),
        (SCORES, {"model": "bits", "input": {"image_b64": "!"}}, (400, "invalid_value", "input")),
        (
            SCORES,
            {"model": "bits", "input": {"image_b64": "AAAA"}},
            (400, "invalid_value", "input"),
        ),
        (SCORES, {"model": "bits", "input": {}}, (400, "invalid_value", "input.0")),
        (SCORES, {"model": "voice", "input": {"image_b64": ""}}, (400, "invalid_value", "input")),
        (
            SCORES,
            {"model": "voice", "input": {"audio_b64": CUT}, "caption": "low"},
            (400, "invalid_value", "input"),
        ),
        (
            SCORES,
            {"model": "prose", "input": {"messages": [{"role": "user", "content": "a"}]}},
            (400, "invalid_value", "input"),
        ),
    ],
)
def test_what_is_wrong_is_named(served: Any, ask: Ask, path: str, body: Any, expected: Any) -> None:
    assert error(ask(served, "POST", path, json=body)) == expected


def test_embeddings_are_the_models_own_in_both_encodings(served: Any, ask: Ask) -> None:
    texts = [f"text {sign}" for sign in "abcdefghijklmnopqrstuvwxyz"]
    body = {"model": "reader", "input": texts}
    plain = ask(served, "POST", EMBEDDINGS, json=body).json()
    packed = ask(served, "POST", EMBEDDINGS, json={**body, "encoding_format": "base64"}).json()
    found = [entry["embedding"] for entry in plain["data"]]
    expected = reader().embed(texts).detach()
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-6)
    for entry, numbers in zip(packed["data"], found, strict=True):
        raw = base64.b64decode(entry["embedding"])
        np.testing.assert_allclose(np.frombuffer(raw, "<f4"), numbers, rtol=1e-6)
    assert plain["usage"] == {"prompt_tokens": 6 * 26, "total_tokens": 6 * 26}
    assert [entry["index"] for entry in plain["data"]] == list(range(26))


def test_two_thousand_inputs_as_tokens_are_embedded_as_their_texts(served: Any, ask: Ask) -> None:
    words = tokenizer(Reader.presets["tiny"].tokenizer)
    texts = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"] * 20 + [
        "z"
    ] * 48
    by_text, by_token = (
        ask(served, "POST", EMBEDDINGS, json={"model": "reader", "input": inputs}).json()
        for inputs in (texts, words.encode_all(texts))
    )
    assert len(by_text["data"]) == 2048
    assert by_text == by_token


def test_another_number_of_dimensions_is_refused_with_the_models_own(served: Any, ask: Ask) -> None:
    body = {"model": "reader", "input": "a", "dimensions": 4}
    told = ask(served, "POST", EMBEDDINGS, json=body).json()["error"]["message"]
    assert "gives 8 numbers an input; send 8 or leave it out, got 4" in told
    assert ask(served, "POST", EMBEDDINGS, json={**body, "dimensions": 8}).status_code == 200


def test_samples_of_each_modality_come_with_their_type_and_receipt(served: Any, ask: Ask) -> None:
    picture, sound, text = (
        ask(served, "POST", SAMPLES, json={"seed": 7, "n": 2, **body}).json()
        for body in (
            {"model": "bits"},
            {"model": "voice", "prompt": "low", "seconds": 0.1},
            {"model": "prose", "prompt": "once ", "max_tokens": 5},
        )
    )
    entries = [answer["data"][1] for answer in (picture, sound, text)]
    assert [entry["seed"] for entry in entries] == [8, 8, 8]
    types = ["image/png", "audio/wav", "text/plain; charset=utf-8"]
    assert [entry["content_type"] for entry in entries] == types
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(entries[0]["b64"]))))
    drawn = nade().sample(Request(seeds=(8,)))[0, 0]
    np.testing.assert_array_equal(shown, (drawn * 255).byte().numpy())
    assert len(levels(base64.b64decode(entries[1]["b64"]))[0]) == 800
    request = Request(seeds=(8,), prompts=("once ",), max_tokens=5)
    assert entries[2]["text"] == gpt().text_of(gpt().sample(request)[0])
    for entry in entries[:2]:
        assert receipts.read(base64.b64decode(entry["b64"])).seed == 8
    one = json.dumps({**text, "data": text["data"][:1]}).encode()
    assert receipts.read(one).version == "prose:1"


def test_the_score_of_a_picture_is_the_models_log_likelihood(served: Any, ask: Ask) -> None:
    bits = (np.random.default_rng(0).random((8, 8)) < 0.5).astype(np.uint8) * 255
    body = {"model": "bits", "input": [{"image_b64": png(bits)}, {"image_b64": png(255 - bits)}]}
    found = ask(served, "POST", SCORES, json=body).json()["data"]
    pixels = torch.from_numpy(np.stack([bits, 255 - bits]))[:, None].float() / 255
    expected = nade().log_prob({"pixels": pixels})
    assert [entry["nats"] for entry in found] == pytest.approx(expected.tolist(), rel=1e-5)
    bits_a_pixel = -found[0]["nats"] / math.log(2) / 64
    assert found[0]["bits_per_dim"] == pytest.approx(bits_a_pixel)
    wrong = nade().log_prob({"pixels": 1 - pixels})
    assert abs(float(wrong[0]) - found[0]["nats"]) > 0.1


def test_grey_levels_become_the_bits_that_the_seed_draws(served: Any, ask: Ask) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    body = {"model": "bits", "input": {"image_b64": png(grey)}}
    first, again, *others = (
        ask(served, "POST", SCORES, json={**body, "seed": seed}).json()["data"][0]["nats"]
        for seed in (0, 0, 1, -1, 2**32, 2**33)
    )
    assert first == again
    assert len({first, *others}) == 5, "every bit of a seed counts"
    pixels, model = torch.from_numpy(grey)[None, None].float() / 255, nade()
    torch.manual_seed(0)  # as an evaluation does
    assert first == pytest.approx(float(model.log_prob({"pixels": pixels})), rel=1e-5)


def test_an_upload_is_cropped_made_grey_and_resized_as_a_dataset_is(served: Any, ask: Ask) -> None:
    from infra.media.pictures import decode

    draw = np.random.default_rng(2)
    for shape in ((16, 24, 3), (20, 20, 3), (9, 31, 4)):
        encoded = png(draw.integers(0, 256, shape, dtype=np.uint8))
        answer = ask(
            served, "POST", SCORES, json={"model": "bits", "input": {"image_b64": encoded}}
        )
        learned = torch.from_numpy(decode(base64.b64decode(encoded), 8, 1).pixels.copy())
        pixels, model = learned.permute(2, 0, 1)[None].float() / 255, nade()
        torch.manual_seed(0)
        expected = float(model.log_prob({"pixels": pixels}))
        assert answer.json()["data"][0]["nats"] == pytest.approx(expected, rel=1e-5)


def test_the_score_of_a_text_is_that_of_its_examples(served: Any, ask: Ask) -> None:
    text = "it was a bright cold day in april, and the clocks were striking thirteen"
    found = ask(served, "POST", SCORES, json={"model": "prose", "input": text}).json()["data"]
    model = gpt()
    expected = float(model.log_prob(model.examples([(("text", text),)])).sum())
    assert len(model.examples([(("text", text),)])["tokens"]) == 3  # windows of 32 tokens
    assert found[0]["nats"] == pytest.approx(expected, rel=1e-5)
    assert found[0]["tokens"] == len(text)


def test_the_score_of_a_sound_needs_its_label_and_its_sample_rate(served: Any, ask: Ask) -> None:
    def body(rate: int, **more: Any) -> dict[str, Any]:
        file = io.BytesIO()
        soundfile.write(file, np.full(80, 0.5, np.float32), rate, format="WAV", subtype="PCM_16")
        upload = {"audio_b64": base64.b64encode(file.getvalue()).decode()}
        return {"model": "voice", "input": upload, **more}

    good = ask(served, "POST", SCORES, json=body(8000, caption="high")).json()["data"][0]
    assert good["nats"] == pytest.approx(-80 * 0.25 / 2 - 2)
    assert good["samples"] == 80
    for wrong, words in (
        (body(16000, caption="high"), "16000 Hz, the model learned 8000 Hz"),
        (body(8000), "give a caption"),
    ):
        told = ask(served, "POST", SCORES, json=wrong).json()["error"]
        assert words in told["message"]


def test_a_card_says_what_each_model_can_do(served: Any, ask: Ask) -> None:
    cards = {c["id"]: c for c in ask(served, "GET", "/v1/models").json()["data"]}
    assert cards["voice"]["capabilities"] == ["audio_speech", "scores", "samples"]
    assert (cards["voice"]["sample_rate"], cards["voice"]["seconds"]) == (8000, 0.25)
    assert cards["reader"]["capabilities"] == ["embeddings"]
    assert cards["shapes"]["capabilities"] == ["image_generation", "samples"]


@pytest.mark.parametrize(
    ("text", "flat"),
    [
        ("", True),
        (" \n", True),
        ("7", False),
        ("yes", False),
        ("a" * 40, True),
        ("abab" * 9, False),
    ],
)
def test_an_empty_text_and_one_sign_over_and_over_are_no_text(text: str, flat: bool) -> None:
    found = look(Text(text, len(text), "length"))
    assert (found.flat, found.digest) == (flat, None)
