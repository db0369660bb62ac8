"""DALL-E 2 served: a picture's variations, and the way from one prompt to another; both through CLIP's embeddings."""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from flows.cli import request_verbs
from flows.cli.client import Unanswered
from flows.evaluating.pipeline import check_fit, draw
from infra.receipts import receipts
from infra.settings import settings
from models import configure, trainable
from models.family import Family
from tests.services.conftest import WORDS
from tests.services.served_kit import listening

VARIATIONS, GENERATIONS = "/v1/images/variations", "/v1/images/generations"
SIDE = 8
RED, GREEN = "a small red circle", "a large green square"
GENERATE = {
    "clip/text": {"text": "request.text"},
    "prior": {"text": "request.text", "text_embedding": "clip/text.embedding"},
    "decoder": {"embedding": "prior.embedding"},
}
FURTHER = {
    "edit": {
        "clip/text": {"text": "request.text"},
        "prior": {"text": "request.text", "text_embedding": "clip/text.embedding"},
        "decoder": {
            **{"embedding": "prior.embedding", "text": "request.text"},
            **{"image": "request.image", "mask": "request.mask"},
        },
    },
    "vary": {
        "clip/pixels": {"pixels": "request.image"},
        "decoder": {"embedding": "clip/pixels.embedding"},
    },
    "blend": {
        "clip/text": {"text": "request.text"},
        "clip/text#other": {"text": "request.other"},
        "prior": {"text": "request.text", "text_embedding": "clip/text.embedding"},
        "prior#other": {"text": "request.other", "text_embedding": "clip/text#other.embedding"},
        "prior/blend": {
            **{"embedding": "prior.embedding", "other": "prior#other.embedding"},
            "weight": "request.weight",
        },
        "decoder": {"embedding": "prior/blend.embedding"},
    },
}
Ask = Callable[..., httpx.Response]


def made(name: str, facts: dict[str, Any]) -> Family:
    """A tiny network whose weights are all away from zero."""
    torch.manual_seed(0)
    model = trainable(name)(configure(name, "tiny", {}, facts)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    assert isinstance(model, Family)
    return model


@pytest.fixture(scope="module")
def stages() -> dict[str, Family]:
    facts: dict[str, Any] = {"vocabulary": tuple(WORDS), "max_words": 8, "channels": 3}
    clip = made("clip", {**facts, "image_size": SIDE})
    facts |= clip.entries["text"].facts
    prior = made("unclip-prior", facts)
    decoder = made("unclip-decoder", {**facts, "image_size": SIDE})
    return {"clip": clip, "prior": prior, "decoder": decoder}


@pytest.fixture(scope="module")
def house(own_workshop: Any, stages: Any, networks: Any) -> Any:
    own_workshop.unclip = own_workshop.publish_wired("unclip", stages, GENERATE, **FURTHER)
    own_workshop.promote(own_workshop.publish_pipeline("old", networks("base")))
    return own_workshop


@pytest.fixture(scope="module")
def app(house: Any) -> Iterator[Any]:
    stage = house.stage()
    yield house.gateway(stage)
    stage.close()


def picture(seed: int, side: int = SIDE) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    return out.getvalue()


def vary(app: Any, ask: Ask, files: Any = None, **fields: str) -> httpx.Response:
    sent = {"image": picture(0)} if files is None else files
    return ask(app, "POST", VARIATIONS, files=sent, data={"model": "unclip", "seed": "7", **fields})


def generate(app: Any, ask: Ask, prompt: str, **fields: Any) -> httpx.Response:
    return ask(
        app, "POST", GENERATIONS, json={"model": "unclip", "prompt": prompt, "seed": 7, **fields}
    )


def pixels(answer: httpx.Response, row: int = 0) -> Any:
    assert answer.status_code == 200, answer.text
    content = base64.b64decode(answer.json()["data"][row]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(content)))


def test_variations_follow_the_picture_and_each_seed_draws_another(app: Any, ask: Ask) -> None:
    both = vary(app, ask, n="2", size=f"{SIDE}x{SIDE}")
    assert (pixels(both, 0) != pixels(both, 1)).any()
    np.testing.assert_array_equal(pixels(vary(app, ask, seed="8")), pixels(both, 1))
    other = vary(app, ask, {"image": picture(1)})
    assert (pixels(other) != pixels(both)).any()
    receipt = receipts.read(base64.b64decode(both.json()["data"][1]["b64_json"]))
    assert (receipt.entrance, receipt.seed, receipt.prompt) == ("vary", 8, "")
    assert receipt.inputs == {"image": hashlib.sha256(picture(0)).hexdigest()}


def test_what_a_model_s_entries_are_is_not_asked_for_at_every_request(
    app: Any, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CLIP's are of these weights alone, all of which are hashed for that."""
    vary(app, ask)  # it is loaded
    hashed, real = list[int](), hashlib.blake2b

    def seen(*given: Any, **more: Any) -> Any:
        hashed.extend([] if given else [1])  # what is not there at once, as weights
        return real(*given, **more)

    monkeypatch.setattr(hashlib, "blake2b", seen)
    assert vary(app, ask).status_code == 200
    assert not hashed


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Pillow was asked for while an event loop waited."""
    found: list[str] = []
    for kind, name in ((Image, "open"), (Image.Image, "save")):
        real: Callable[..., Any] = getattr(kind, name)

        def seen(
            *given: Any, real: Callable[..., Any] = real, name: str = name, **more: Any
        ) -> Any:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop()
                found.append(name)
            return real(*given, **more)

        monkeypatch.setattr(kind, name, seen)
    return found


@pytest.mark.parametrize("path", [VARIATIONS, "/v1/images/edits"])
def test_no_picture_is_read_or_written_while_others_wait(
    app: Any, ask: Ask, held_up: list[str], path: str
) -> None:
    alpha = Image.open(io.BytesIO(picture(0)))
    alpha.putalpha(0)
    clear = io.BytesIO()
    alpha.save(clear, "PNG")
    fields = {"model": "unclip", "stream": "true", "partial_images": "2"}
    fields |= {"prompt": RED} if path != VARIATIONS else {}
    answer = ask(app, "POST", path, files={"image": clear.getvalue()}, data=fields)
    kinds = [line.rpartition(".")[2] for line in answer.text.splitlines() if "event: " in line]
    assert kinds == ["partial_image", "partial_image", "completed"], answer.text
    assert held_up == []


def test_openai_s_own_client_asks_for_variations(app: Any) -> None:
    from openai import AsyncOpenAI

    web_library = pytest.importorskip("httpx2", reason="the client of before 3.5 sends by httpx")

    async def asked() -> Any:
        transport = web_library.ASGITransport(app)
        async with web_library.AsyncClient(transport=transport) as web:
            client = AsyncOpenAI(
                base_url="http://127.0.0.1/v1", api_key="none", http_client=web, max_retries=0
            )
            return await client.images.create_variation(
                model="unclip", image=("in.png", picture(0)), n=2, response_format="b64_json"
            )

    with pytest.warns(
        DeprecationWarning, match="deprecated"
    ):  # OpenAI's own models have none any more
        found = asyncio.run(asked())
    assert len({one.b64_json for one in found.data}) == 2


@pytest.fixture
def commands(app: Any, private_home: Path) -> Iterator[None]:
    """What the command line asks: the same gateway, at the settings' port."""
    with listening(app, settings().gateway_port):
        yield


@pytest.mark.usefixtures("commands")
def test_the_command_line_varies_a_picture(app: Any, ask: Ask, tmp_path: Path) -> None:
    given, drawn = tmp_path / "given.png", tmp_path / "drawn.png"
    given.write_bytes(picture(0))
    request_verbs.vary("unclip", given, drawn, seed=7, steps=3)
    there = np.asarray(Image.open(drawn))
    np.testing.assert_array_equal(there, pixels(vary(app, ask, steps="3")))
    with pytest.raises(Unanswered, match="old gives no variations of pictures"):
        request_verbs.vary("old", given, drawn)


@pytest.mark.usefixtures("commands")
def test_the_command_line_edits_what_is_transparent_of_a_picture_or_of_a_mask(
    tmp_path: Path,
) -> None:
    names = ("given", "mask", "by-mask", "by-itself")
    given, mask, by_mask, by_itself = (tmp_path / f"{name}.png" for name in names)
    given.write_bytes(picture(0))
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[:, 4:] = 0
    clear = Image.open(given)
    clear.putalpha(Image.fromarray(alpha))
    clear.save(mask)
    request_verbs.edit("unclip", given, by_mask, RED, mask=mask, seed=7)
    request_verbs.edit("unclip", mask, by_itself, RED, seed=7)
    before, after = (np.asarray(Image.open(one).convert("RGB")) for one in (given, by_mask))
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert (after[:, 4:] != before[:, 4:]).any()
    receipt = receipts.read(by_mask.read_bytes())
    assert (receipt.entrance, receipt.prompt, receipt.seed) == ("edit", RED, 7)
    assert receipt.inputs.keys() == {"image", "mask"}
    assert receipts.read(by_itself.read_bytes()).inputs.keys() == {"image"}
    with pytest.raises(Unanswered, match="mask: nothing in it is transparent"):
        request_verbs.edit("unclip", given, by_mask, RED)


def test_a_larger_picture_is_brought_to_what_clip_sees(app: Any, ask: Ask) -> None:
    image = Image.open(io.BytesIO(picture(0))).resize((640, 640), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=0)
    assert out.tell() > 2**20, "what most bodies may have"
    large = pixels(vary(app, ask, {"image": out.getvalue()}))
    np.testing.assert_array_equal(large, pixels(vary(app, ask)))


@pytest.mark.parametrize(
    ("files", "fields", "expected"),
    [
        ({"mask": picture(0)}, {}, (400, "unknown_parameter", "mask")),
        ({"image": b"no picture"}, {}, (400, "invalid_value", "image")),
        (None, {"prompt": RED}, (400, "unknown_parameter", "prompt")),
        (None, {"n": "11"}, (400, "integer_above_max_value", "n")),
        (None, {"size": "256x256"}, (400, "invalid_value", "size")),
        (None, {"model": "old"}, (400, "unsupported_capability", "model")),
    ],
)
def test_what_is_wrong_with_a_variation_is_named(
    app: Any, ask: Ask, files: Any, fields: Any, expected: Any
) -> None:
    answer = vary(app, ask, files, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == expected, error["message"]


def test_a_blend_begins_and_ends_at_the_two_prompts_pictures(app: Any, ask: Ask) -> None:
    ends = [pixels(generate(app, ask, prompt)) for prompt in (RED, GREEN)]
    way = [
        pixels(generate(app, ask, RED, blend={"prompt": GREEN, "weight": weight}))
        for weight in (0, 0.5, 1)
    ]
    np.testing.assert_array_equal(way[0], ends[0])
    np.testing.assert_array_equal(way[2], ends[1])
    assert all((way[1] != end).any() for end in ends)


def test_a_blend_s_receipt_names_the_other_prompt_and_one_process_draws_it_again(
    app: Any, ask: Ask, house: Any, stages: Any
) -> None:
    answer = generate(app, ask, RED, blend={"prompt": GREEN, "weight": 0.25})
    receipt = receipts.read(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    assert (receipt.entrance, receipt.prompt, receipt.blend) == ("blend", RED, (GREEN, 0.25))
    beside = {"other": [GREEN], "weight": torch.tensor([0.25])}
    here = draw([*stages.values()], house.unclip, [RED], [7], called="blend", beside=beside)
    levels = (here.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(pixels(answer), levels[0])


def test_the_options_of_a_request_are_for_what_draws_the_picture(app: Any, ask: Ask) -> None:
    """Not for the prior, which comes first: an embedding is no picture."""
    plain, longer = (generate(app, ask, RED, **more) for more in ({}, {"steps": 9}))
    assert (pixels(plain) != pixels(longer)).any()
    seen = generate(app, ask, RED, stream=True, partial_images=1)
    assert "image_generation.partial_image" in seen.text


@pytest.mark.parametrize(
    ("blend", "expected"),
    [
        ({"prompt": "a purple zebra"}, (400, "invalid_value", "blend.prompt")),
        ({"prompt": ""}, (400, "invalid_value", "blend.prompt")),
        ({"prompt": GREEN, "weight": 1.5}, (400, "integer_above_max_value", "blend.weight")),
    ],
)
def test_what_is_wrong_with_a_blend_is_named(app: Any, ask: Ask, blend: Any, expected: Any) -> None:
    answer = generate(app, ask, RED, blend=blend)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == expected, error["message"]


def test_a_model_that_blends_nothing_says_so(app: Any, ask: Ask) -> None:
    answer = generate(app, ask, RED, model="old", blend={"prompt": GREEN})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_capability")


def test_a_prior_of_another_clip_is_refused_with_both_ports(house: Any, stages: Any) -> None:
    other = dataclasses.replace(stages["prior"].config, clip="0123456789ab")
    odd = {**stages, "prior": type(stages["prior"])(other).eval()}
    with pytest.raises(ValueError, match="prior takes embedding 16 of 0123456789ab as text_embed"):
        check_fit(house.publish_wired("odd", odd, GENERATE))
