"""Pictures that are written as codes: DALL-E's prior before the stage that paints them."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from flows.evaluating.pipeline import StageMismatch, check_fit, draw, ports_of
from flows.recipes.loader import load
from infra.ledger.rollout_rules import Terms
from infra.pipelines import PinnedStage, Pipeline
from infra.receipts import receipts
from models import configure
from models.family import Family
from models.text_to_image.dalle import DALLE
from models.variational.vqvae import VQVAE

RECIPE: Final = Path(__file__).parents[2] / "flows" / "recipes" / "shapes-dalle.yaml"
IMAGES: Final = "/v1/images/generations"
WORDS: Final = ("a", "small", "red", "green", "circle", "square")
SIDE: Final = 8
Ask = Callable[..., httpx.Response]


def vqvae(seed: int) -> VQVAE:
    torch.manual_seed(seed)
    model = VQVAE(replace(VQVAE.presets["tiny"], channels=3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


@pytest.fixture(scope="module")
def stages() -> dict[str, Family]:
    painter = vqvae(seed=0)
    facts = {**painter.entries["encode"].facts, "vocabulary": WORDS, "max_words": 4}
    torch.manual_seed(0)
    prior = DALLE(configure("dalle", "tiny", {}, facts))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(6)
    return {"vqvae": painter, "prior": prior.eval()}


@pytest.fixture(scope="module")
def pipeline(own_workshop: Any, stages: dict[str, Family]) -> Pipeline:
    """Such stages in production, wired as the recipe wires them."""
    recipe = load(RECIPE)
    assert recipe.pipeline is not None
    published: Pipeline = own_workshop.publish_wired("shapes", stages, recipe.pipeline["generate"])
    return published


@pytest.fixture(scope="module")
def app(own_workshop: Any, pipeline: Pipeline) -> Iterator[Any]:
    check_fit(pipeline)
    stage = own_workshop.stage()
    yield own_workshop.gateway(stage)
    stage.close()


def pixels(encoded: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def asked(**changes: Any) -> dict[str, Any]:
    return {"model": "shapes", "prompt": "a small red circle", "seed": 7, **changes}


def drawn(app: Any, ask: Ask, **changes: Any) -> list[Any]:
    answer = ask(app, "POST", IMAGES, json=asked(**changes))
    assert answer.status_code == 200, answer.text
    return [pixels(one["b64_json"]) for one in answer.json()["data"]]


def test_a_picture_is_what_is_painted_of_the_codes_after_its_caption(
    app: Any, ask: Ask, pipeline: Pipeline, stages: dict[str, Family]
) -> None:
    """The same as where versions are judged; the receipt names both stages."""
    answer = ask(app, "POST", IMAGES, json=asked())
    assert answer.status_code == 200, answer.text
    found = answer.json()["data"][0]["b64_json"]
    judged = draw([*stages.values()], pipeline, ["a small red circle"], [7])
    expected = (judged[0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert np.abs(pixels(found).astype(int) - expected).max() <= 1
    receipt = receipts.read(base64.b64decode(found))
    assert [one.name for one in receipt.stages] == ["shapes.vqvae", "shapes.prior"]


def test_how_codes_are_drawn_can_be_asked_for(app: Any, ask: Ask) -> None:
    usual = drawn(app, ask)[0]
    likeliest = drawn(app, ask, temperature=0)[0]
    assert not np.array_equal(usual, likeliest)
    assert np.array_equal(drawn(app, ask, top_k=1)[0], likeliest)
    assert np.array_equal(drawn(app, ask, top_p=1e-6, seed=8)[0], likeliest)
    assert not np.array_equal(drawn(app, ask, guidance=5.0, temperature=0)[0], likeliest)
    several = drawn(app, ask, n=3, guidance=2.0)
    alone = drawn(app, ask, seed=9, guidance=2.0)[0]
    assert np.array_equal(several[2], alone)


def test_a_challenger_may_draw_alike_for_every_seed_where_the_likeliest_is_asked_for(
    own_workshop: Any, ask: Ask, stages: dict[str, Family]
) -> None:
    recipe = load(RECIPE)
    assert recipe.pipeline is not None
    other = deepcopy(stages["prior"])
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    for prior in (other, stages["prior"]):
        own_workshop.publish_wired(
            "rolled", {**stages, "prior": prior}, recipe.pipeline["generate"]
        )
    digest = next(
        key
        for key, one in own_workshop.published.items()
        if (one["name"], one["number"]) == ("rolled", 1)
    )
    terms = Terms(percent=100, limits={"max_slowdown": 1000.0, "max_repeated": 0})
    own_workshop.ledger.transition(
        name="rolled", stage="canary", to_version=1, to_digest=digest, expected_epoch=0,
        key="rolled/canary/0", actor="test", report={"terms": terms.model_dump()},
    )  # fmt: skip
    stage = own_workshop.stage()
    app = own_workshop.gateway(stage)
    sure = ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4})
    for seed, changes in enumerate(sure):
        body = asked(model="rolled", seed=seed, n=2, **changes)
        answer = ask(app, "POST", IMAGES, json=body).json()["data"]
        assert np.array_equal(*(pixels(one["b64_json"]) for one in answer))
        assert receipts.read(base64.b64decode(answer[0]["b64_json"])).version == "rolled:1"
    stage.close()
    own_workshop.observer.close()
    told = own_workshop.observations.read("rolled", "canary", 1)["challenger"]
    assert (told.requests, told.repeated) == (4, 0)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"steps": 3}, "steps"),
        ({"guidance": 50.5}, "guidance"),
        ({"top_p": 0}, "top_p"),
        ({"prompt": "a small blue circle"}, "prompt"),
    ],
)
def test_what_it_has_no_use_for_is_named(
    app: Any, ask: Ask, changes: dict[str, Any], param: str
) -> None:
    answer = ask(app, "POST", IMAGES, json=asked(**changes))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_sketches_are_painted_of_the_codes_so_far(app: Any, ask: Ask) -> None:
    text = ask(app, "POST", IMAGES, json=asked(stream=True, partial_images=2)).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    kinds = [event["type"].rpartition(".")[2] for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    shown = [pixels(event["b64_json"]) for event in events]
    assert not np.array_equal(shown[0], shown[1])
    assert np.array_equal(shown[2], drawn(app, ask)[0])


def test_a_painter_of_other_codes_is_refused_by_both_ports(
    pipeline: Pipeline, stages: dict[str, Family]
) -> None:
    """It was trained from another seed; nothing else tells the two apart."""
    other, prior = vqvae(seed=1), stages["prior"]
    theirs = other.entries["decode"].inputs["codes"].space
    swapped = [
        PinnedStage.model_validate(
            {**one.model_dump(), **(ports_of(other) if one.stage == "vqvae" else {})}
        )
        for one in pipeline.stages
    ]
    with pytest.raises(
        StageMismatch,
        match=f"vqvae/decode takes codes 16 of {theirs} as codes,"
        f" but prior.codes is codes 16 of {prior.config.codebook}",
    ):
        check_fit(pipeline.model_copy(update={"stages": tuple(swapped)}))
