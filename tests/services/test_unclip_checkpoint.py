"""Kandinsky and Karlo of others behind the gateway: drawn, led away from a text, varied and blended as in process."""

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
ASKED = {"seed": 3, "response_format": "b64_json", "prompt": "a red cat"}


class Served(NamedTuple):
    """A checkpoint's stages in process, and behind gateways with one pool and with two."""

    kind: str
    models: list[Any]
    pipeline: Any
    one: Any
    two: Any


@pytest.fixture(scope="module", params=["kandinsky", "karlo"])
def served(
    request: pytest.FixtureRequest, own_workshop: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("checkpoints") / request.param
    saved(request.param, folder)
    parts, models = parted(read(folder, "a test"), "model"), {}
    for name, part in parts.items():
        config = {**part.document["config"], "steps": 2}  # where nobody says
        models[name] = build({**part.document, "config": config}).eval()
        models[name].load_state_dict(dict(part.tensors))
    wires = wired("model", parts)
    assert wires is not None
    generate = wires.pop("generate")
    pipeline = own_workshop.publish_wired(request.param, models, generate, **wires)
    stages = [own_workshop.stage() for _ in range(3)]
    one = own_workshop.gateway(stages[0])
    two = own_workshop.gateway(*stages[1:], placement=APART)
    yield Served(request.param, [*models.values()], pipeline, one, two)
    for stage in stages:
        stage.close()


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
    served: Served, ask: Ask
) -> None:
    asked = {**ASKED, "model": served.kind, "steps": 3}
    for extra in ({}, {"negative_prompt": "a dull dog"}):
        for app in (served.one, served.two):
            answer = ask(app, "POST", "/v1/images/generations", json={**asked, **extra})
            if extra and served.kind == "karlo":  # it has none in diffusers, either
                assert answer.status_code == 400
                assert answer.json()["error"]["param"] == "negative_prompt"
                continue
            by = {"options": {"steps": 3, **extra}}
            assert is_drawn(answer, draw(served.models, served.pipeline, ["a red cat"], [3], **by))
    streamed = {**asked, "stream": True, "partial_images": 1}
    shown = ask(served.two, "POST", "/v1/images/generations", json=streamed)
    assert shown.text.count("event: image_generation.partial_image") == 1, shown.text


@pytest.mark.parametrize("served", ["kandinsky"], indirect=True)
def test_a_kandinsky_blends_two_texts_and_varies_a_picture_as_in_process(
    served: Served, ask: Ask
) -> None:
    asked = {**ASKED, "model": served.kind}
    beside = {"other": ["two dogs"], "weight": torch.tensor([0.5])}
    wanted = draw(
        served.models, served.pipeline, ["a red cat"], [3],
        called="blend", beside=beside, options={"steps": 3},
    )  # fmt: skip
    blend = {"prompt": "two dogs", "weight": 0.5}
    body = {**asked, "steps": 3, "blend": blend}
    assert is_drawn(ask(served.one, "POST", "/v1/images/generations", json=body), wanted)
    shown = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "PNG")
    image = torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 255
    wanted = draw(served.models, served.pipeline, [], [3], called="vary", beside={"image": image})
    fields = {"model": served.kind, "seed": "3", "response_format": "b64_json"}
    varied = ask(
        served.one,
        "POST",
        "/v1/images/variations",
        files={"image": file.getvalue()},
        data=fields,
    )
    assert is_drawn(varied, wanted)
