"""A checkpoint of others behind the gateway: rows share the engine's batch, and are what it draws alone."""

import asyncio
import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from flows.evaluating.pipeline import draw
from flows.provenance.checkpoint_stages import parted, wired
from flows.provenance.checkpoints import Checkpoint, read
from infra.placement import Placement, Pool
from models import describe
from models.text_to_image.diffusers_pipeline import Diffusers
from tests.flows.checkpoint_kit import model_of, saved

PROMPTS = ("a red cat", "two dogs", "no 7")
Ask = Callable[..., httpx.Response]
APART = Placement(
    layout="staged",
    pools=(
        Pool(name="texts", stages=("*.text",)),
        Pool(name="pictures", stages=("*.autoencoder",)),
        Pool(name="denoisers"),
    ),
)


@pytest.fixture(scope="module")
def foreign() -> Diffusers:
    torch.manual_seed(0)
    return Diffusers(Diffusers.presets["tiny"]).eval()


@pytest.fixture
def apart(own_workshop: Any, foreign: Diffusers) -> Any:
    """Publish a checkpoint as three stages, and return its pipeline and models."""
    whole = Checkpoint(
        describe(foreign), foreign.state_dict(), "a test", "none", (), {}, "a tiny one"
    )
    return published(own_workshop, whole)


def published(workshop: Any, whole: Checkpoint) -> Any:
    """Publish a checkpoint's stages, and return the pipeline and its models."""
    parts = parted(whole, "model")
    models = {name: model_of(part) for name, part in parts.items()}
    wires = wired("model", parts)
    assert wires is not None
    return workshop.publish_wired("foreign", models, wires["generate"]), models


@pytest.fixture
def stages(own_workshop: Any) -> Iterator[list[Any]]:
    """Four processes' worth of stages."""
    found = [own_workshop.stage() for _ in range(4)]
    yield found
    for one in found:
        one.close()


def pixels_of(entry: dict[str, Any]) -> Any:
    file = io.BytesIO(base64.b64decode(entry["b64_json"]))
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


ASKED = {"model": "foreign", "seed": 3, "n": 2, "response_format": "b64_json"}


@pytest.mark.parametrize("negative", [None, "a dull dog"])
def test_three_stages_draw_in_one_pool_and_in_three_what_the_whole_checkpoint_draws(
    own_workshop: Any, stages: list[Any], apart: Any, ask: Ask, negative: str | None
) -> None:
    body = {**ASKED, "prompt": "a red cat", "negative_prompt": negative, "steps": 3}
    pipeline, models = apart
    for app in (
        own_workshop.gateway(stages[0]),
        own_workshop.gateway(*stages[1:], placement=APART),
    ):
        answer = ask(app, "POST", "/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        options = {"steps": 3, **({"negative_prompt": negative} if negative else {})}
        wanted = draw([*models.values()], pipeline, ["a red cat"], [3], options=options)
        assert is_drawn(answer, wanted)
    held = [[*one._versions.digests] for one in stages[1:]]
    assert [len(one) for one in held] == [1, 1, 1], "a stage a pool"


def is_drawn(answer: httpx.Response, wanted: torch.Tensor) -> bool:
    """Return whether an answer's first picture is what was drawn, (B, C, H, W), to one level."""
    found = pixels_of(answer.json()["data"][0])
    levels = (255 * wanted[0]).round().permute(1, 2, 0).int().numpy()
    return bool(np.abs(found - levels).max() <= 1)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_transformer_of_others_answers_what_it_draws_in_process(
    own_workshop: Any, stages: list[Any], ask: Ask, tmp_path: Path, kind: str
) -> None:
    """Of several requests at once, as the options of each say; a distilled one is led away from no text."""
    saved(kind, tmp_path)
    pipeline, models = published(own_workshop, read(tmp_path, "a test", 16))
    app = own_workshop.gateway(stages[0])
    away = {"negative_prompt": "a dull dog"}
    for options in ({"steps": 2}, {"steps": 3, "guidance": 2.0}, {"steps": 2, **away}):
        body = {**ASKED, "prompt": "a red cat", **options}
        answer = ask(app, "POST", "/v1/images/generations", json=body)
        if kind == "flux" and "negative_prompt" in options:
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"] == "negative_prompt"
            continue
        assert answer.status_code == 200, answer.text
        wanted = draw([*models.values()], pipeline, ["a red cat"], [3], options=options)
        assert is_drawn(answer, wanted), options


def test_a_prompt_is_read_once_for_all_requests(
    own_workshop: Any, stages: list[Any], apart: Any, ask: Ask
) -> None:
    stage = stages[0]
    app = own_workshop.gateway(stage)
    text = apart[0].stage("text").sha256
    body = {**ASKED, "prompt": "a red cat", "negative_prompt": "a dog", "steps": 1}
    ask(app, "POST", "/v1/images/generations", json=body)
    model: Any = stage._versions.held(text).model
    read: list[int] = []
    model.text_encoder.register_forward_hook(lambda *given: read.append(len(given[1][0])))
    ask(app, "POST", "/v1/images/generations", json={**body, "seed": 9, "steps": 2})
    assert read == []
    ask(app, "POST", "/v1/images/generations", json={**body, "prompt": "two dogs"})
    assert read == [1]


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"prompt": "red " * 20}, "prompt", "this model reads 40 at most"),
        ({"negative_prompt": "red " * 20}, "negative_prompt", "this model reads 40 at most"),
        ({"negative_prompt": "red", "guidance": 1}, "negative_prompt", "guidance leads away"),
    ],
)
def test_what_a_stage_cannot_do_is_refused_by_the_name_that_the_request_has(
    own_workshop: Any,
    stages: list[Any],
    apart: Any,
    ask: Ask,
    changes: dict[str, Any],
    param: str,
    message: str,
) -> None:
    body = {**ASKED, "prompt": "a red cat", **changes}
    answer = ask(own_workshop.gateway(stages[0]), "POST", "/v1/images/generations", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert message in answer.json()["error"]["message"]


def test_a_picture_on_the_way_is_decoded_from_its_latent(
    own_workshop: Any, stages: list[Any], apart: Any, ask: Ask
) -> None:
    body = {**ASKED, "n": 1, "prompt": "a red cat", "stream": True, "partial_images": 2}
    answer = ask(own_workshop.gateway(stages[0]), "POST", "/v1/images/generations", json=body)
    assert answer.text.count("event: image_generation.partial_image") == 2, answer.text
    assert "event: image_generation.completed" in answer.text


def test_prompts_of_several_requests_are_drawn_together_as_alone(
    own_workshop: Any, foreign: Diffusers
) -> None:
    pipeline = own_workshop.publish_wired("foreign", {"model": foreign})
    stage = own_workshop.stage()
    app = own_workshop.gateway(stage)

    async def one(client: httpx.AsyncClient, seed: int, prompt: str) -> Any:
        body = {"model": "foreign", "prompt": prompt, "seed": seed, "response_format": "b64_json"}
        answer = await client.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        file = base64.b64decode(answer.json()["data"][0]["b64_json"])
        return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))

    async def all_of_them() -> list[Any]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await asyncio.gather(
                *(one(client, seed, prompt) for seed, prompt in enumerate(PROMPTS))
            )

    found = asyncio.run(all_of_them())
    stage.close()
    for seed, (prompt, pixels) in enumerate(zip(PROMPTS, found, strict=True)):
        wanted = (255 * draw([foreign], pipeline, [prompt], [seed])[0]).round().permute(1, 2, 0)
        assert np.abs(pixels.astype(int) - wanted.int().numpy()).max() <= 1


def test_a_prompt_that_is_too_long_is_refused_by_the_prompt_s_name(
    own_workshop: Any, foreign: Diffusers, ask: Ask
) -> None:
    own_workshop.publish_wired("foreign", {"model": foreign})
    stage = own_workshop.stage()
    body = {"model": "foreign", "prompt": "red " * 20}
    answer = ask(own_workshop.gateway(stage), "POST", "/v1/images/generations", json=body)
    stage.close()
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"
    assert "this model reads 40 at most" in answer.json()["error"]["message"]
