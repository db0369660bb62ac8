"""A checkpoint of others behind the gateway: rows share the engine's batch, and are what it draws alone."""

import asyncio
import base64
import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from flows.evaluating.pipeline import draw
from models.text_to_image.diffusers_pipeline import Diffusers

PROMPTS = ("a red cat", "two dogs", "no 7")
Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def foreign() -> Diffusers:
    torch.manual_seed(0)
    return Diffusers(Diffusers.presets["tiny"]).eval()


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
