"""Pictures that are drawn as latents: an autoencoder is a node before and behind the stage that draws."""

import base64
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from flows.evaluating.pipeline import StageMismatch, check_fit, entrances_of, ports_of
from flows.recipes.loader import load
from infra.pipelines import PinnedStage, Pipeline
from infra.receipts import receipts
from models import configure, describe
from models.family import Family
from models.text_to_image.latent import LatentDiffusion
from models.variational.kl_autoencoder import KLAutoencoder, KLAutoencoderConfig

RECIPE = Path(__file__).parents[2] / "flows" / "recipes" / "shapes-latent.yaml"
IMAGES, EDITS = "/v1/images/generations", "/v1/images/edits"
WORDS = ("a", "small", "red", "green", "circle", "square")
SIDE = 16
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
KEPT = np.ones((SIDE, SIDE), dtype=bool)
KEPT[3:12, 5:12] = False  # neither ends where a place of the latents does
Ask = Callable[..., httpx.Response]


def shaken(model: Family) -> Family:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def stages() -> dict[str, Family]:
    torch.manual_seed(0)
    sizes = KLAutoencoderConfig(image_size=SIDE, hidden=(16,))
    autoencoder = shaken(KLAutoencoder(sizes))
    facts = {**autoencoder.entries["encode"].facts, "vocabulary": WORDS, "max_words": 4}
    latent = LatentDiffusion(configure("latent-diffusion", "tiny", {}, facts))
    return {"autoencoder": autoencoder, "latent": shaken(latent)}


@pytest.fixture(scope="module")
def app(own_workshop: Any, stages: dict[str, Family]) -> Iterator[Any]:
    """The gateway before such stages, wired as the recipe wires them."""
    pinned = []
    for name, model in stages.items():
        version = own_workshop.publish(f"shapes.{name}", {}, model)
        pinned.append(
            PinnedStage(
                stage=name,
                name=version["name"],
                version=version["number"],
                sha256=version["digest"],
                family=describe(model)["family"],
                **ports_of(model),
            )
        )
    pipeline = Pipeline(
        endpoint="shapes",
        abilities=("images", "edits"),
        stages=tuple(pinned),
        entrances=entrances_of(load(RECIPE), pinned),
        vocabulary=WORDS,
        image_size=(SIDE, SIDE),
    )
    check_fit(pipeline)
    own_workshop.promote(
        own_workshop.publish("shapes", {"pipeline.json": pipeline.model_dump(mode="json")})
    )
    stage = own_workshop.stage()
    yield own_workshop.gateway(stage)
    stage.close()


def pixels(encoded: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def asked(**changes: Any) -> dict[str, Any]:
    return {"model": "shapes", "prompt": "a small red circle", "seed": 7, **changes}


def edited(app: Any, ask: Ask, **fields: str) -> tuple[Any, Any]:
    """Return an edit of noise and its receipt."""
    image = Image.fromarray(NOISE)
    image.putalpha(Image.fromarray((255 * KEPT).astype(np.uint8)))
    file = io.BytesIO()
    image.save(file, "PNG")
    form = {**asked(seed="7"), **fields}
    answer = ask(app, "POST", EDITS, files={"image": file.getvalue()}, data=form)
    assert answer.status_code == 200, answer.text
    content = answer.json()["data"][0]["b64_json"]
    return pixels(content), receipts.read(base64.b64decode(content))


def test_a_picture_is_what_the_autoencoder_paints_of_drawn_latents(
    app: Any, ask: Ask, stages: dict[str, Family]
) -> None:
    answer = ask(app, "POST", IMAGES, json=asked(steps=3))
    assert answer.status_code == 200, answer.text
    found = answer.json()["data"][0]["b64_json"]
    assert pixels(found).shape == (SIDE, SIDE, 3)
    receipt = receipts.read(base64.b64decode(found))
    assert (receipt.steps, [one.name for one in receipt.stages]) == (
        3,
        ["shapes.autoencoder", "shapes.latent"],
    )


def test_what_a_mask_keeps_is_the_picture_s_own_bit_by_bit(app: Any, ask: Ask) -> None:
    """Though a place of the latents is four pixels, and the autoencoder gives none of them back as it was."""
    drawn, _ = edited(app, ask)
    np.testing.assert_array_equal(drawn[KEPT], NOISE[KEPT])
    assert (drawn[~KEPT] != NOISE[~KEPT]).mean() > 0.5
    other, _ = edited(app, ask, prompt="a green square")
    assert (other[~KEPT] != drawn[~KEPT]).any()


def test_what_is_asked_for_is_asked_of_the_stage_that_draws(app: Any, ask: Ask) -> None:
    """Which is not the first node of an edit: that encodes the picture."""
    drawn, receipt = edited(app, ask, strength="1", steps="2", negative_prompt="a green square")
    assert (receipt.entrance, receipt.steps) == ("edit", 2)
    assert receipt.options == {"strength": 1.0, "negative_prompt": "a green square"}
    weaker, _ = edited(app, ask, strength="0.5", steps="2", negative_prompt="a green square")
    plain, _ = edited(app, ask, steps="2")
    assert (drawn != weaker).any()
    assert (drawn != plain).any()


def test_sketches_on_the_way_are_pictures_too(app: Any, ask: Ask) -> None:
    answer = ask(app, "POST", IMAGES, json=asked(stream=True, partial_images=2))
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    found = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [one["type"].rpartition(".")[2] for one in found] == ["partial_image"] * 2 + [
        "completed"
    ]
    sketches = [pixels(one["b64_json"]) for one in found]
    assert {one.shape for one in sketches} == {(SIDE, SIDE, 3)}
    assert (sketches[0] != sketches[-1]).any()


def test_an_autoencoder_that_was_trained_anew_does_not_fit(stages: dict[str, Family]) -> None:
    other = shaken(KLAutoencoder(dataclasses.replace(stages["autoencoder"].config)))
    pinned = [
        PinnedStage(stage=name, name=name, version=1, sha256="", family="", **ports_of(model))
        for name, model in {"autoencoder": other, "latent": stages["latent"]}.items()
    ]
    recipe = load(RECIPE)
    pipeline = Pipeline(
        endpoint="shapes", stages=tuple(pinned), entrances=entrances_of(recipe, pinned)
    )
    with pytest.raises(
        StageMismatch, match=r"autoencoder/decode takes latent 4x8x8 of \w+ as latent, but latent"
    ):
        check_fit(pipeline)
