"""Kandinsky of others behind the gateway: drawn, led away from a text, varied and blended as in process."""

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
from flows.provenance.checkpoint_stages import parted, wired
from flows.provenance.unclip_checkpoints import read
from infra.placement import Placement, Pool
from models import build
from tests.flows.checkpoint_kit import saved

Ask = Callable[..., httpx.Response]
APART = Placement(
    layout="staged",
    pools=(Pool(name="denoisers", stages=("*.model",)), Pool(name="others")),
)
ASKED = {"model": "foreign", "seed": 3, "response_format": "b64_json", "prompt": "a red cat"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("checkpoints") / "kandinsky"
    saved("kandinsky", folder)
    return parted(read(folder, "a test"), "model")


def levels(answer: httpx.Response) -> Any:
    """Return the first picture of an answer, (H, W, C)."""
    assert answer.status_code == 200, answer.text
    file = io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def is_drawn(answer: httpx.Response, wanted: torch.Tensor) -> bool:
    """Return whether an answer is what was drawn, (1, C, H, W), to one level."""
    pixels = (255 * wanted[0]).round().permute(1, 2, 0).int().numpy()
    return bool(np.abs(levels(answer) - pixels).max() <= 1)


def test_its_stages_answer_in_one_pool_and_in_two_what_they_draw_in_process(
    own_workshop: Any, parts: dict[str, Any], ask: Ask
) -> None:
    models = {}
    for name, part in parts.items():
        models[name] = build(part.document).eval()
        models[name].load_state_dict(dict(part.tensors))
    wires = wired("model", parts)
    assert wires is not None
    pipeline = own_workshop.publish_wired(
        "foreign", models, wires["generate"], vary=wires["vary"], blend=wires["blend"]
    )
    stages = [own_workshop.stage() for _ in range(3)]
    one = own_workshop.gateway(stages[0])
    two = own_workshop.gateway(*stages[1:], placement=APART)
    drawn = [*models.values()], pipeline

    def by_lead(**options: Any) -> dict[str, Any]:
        """What a request asks for is asked of what denoises."""
        lead = pipeline.stage("model").model_copy(update={"options": options})
        others = tuple(one for one in pipeline.stages if one.stage != "model")
        return {"pipeline": pipeline.model_copy(update={"stages": (*others, lead)})}

    negative = {"negative_prompt": "a dull dog"}
    for extra in ({}, negative):
        wanted = draw(drawn[0], **by_lead(steps=3, **extra), prompts=["a red cat"], seeds=[3])
        for app in (one, two):
            body = {**ASKED, "steps": 3, **extra}
            assert is_drawn(ask(app, "POST", "/v1/images/generations", json=body), wanted)
    blend = {"prompt": "two dogs", "weight": 0.5}
    beside = {"other": ["two dogs"], "weight": torch.tensor([0.5])}
    wanted = draw(
        drawn[0],
        **by_lead(steps=3),
        prompts=["a red cat"],
        seeds=[3],
        called="blend",
        beside=beside,
    )
    body = {**ASKED, "steps": 3, "blend": blend}
    assert is_drawn(ask(one, "POST", "/v1/images/generations", json=body), wanted)
    shown = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "PNG")
    image = torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 255
    wanted = draw(drawn[0], pipeline, [], [3], called="vary", beside={"image": image})
    fields = {"model": "foreign", "seed": "3", "response_format": "b64_json"}
    varied = ask(
        one, "POST", "/v1/images/variations", files={"image": file.getvalue()}, data=fields
    )
    assert is_drawn(varied, wanted)
    streamed = ask(
        two,
        "POST",
        "/v1/images/generations",
        json={**ASKED, "steps": 3, "stream": True, "partial_images": 1},
    )
    assert streamed.text.count("event: image_generation.partial_image") == 1, streamed.text
    for stage in stages:
        stage.close()
