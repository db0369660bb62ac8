"""Models that learned pictures of several sizes draw the one that is asked for, and refuse others."""

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
from safetensors.torch import load_file

from data.reading.outputs import folder_of
from flows.evaluating.pictures import drawn, packed, score
from flows.evaluating.pipeline import draw
from flows.recipe import Evaluation
from flows.training.frozen import make
from flows.training.ray_train import fit
from flows.training.spec import Need, TrainingSpec
from infra.documents import read_json
from infra.receipts import receipts
from infra.storage import MANIFEST, sha256_of
from models import build
from models.family import Family
from models.judges.attribute_judge import AttributeJudge, AttributeJudgeConfig
from models.request import Request
from tests.flows.training_kit import spec_of
from tests.sizes_kit import SIDE, SIZES, WORDS, prepare

IMAGES, EDITS = "/v1/images/generations", "/v1/images/edits"
Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "prepared" / "shades")


def trained(spec: TrainingSpec, runs: Path) -> tuple[Family, Path, str]:
    found = fit(spec, run_id=None, tracking_uri=None, runs=runs)
    model = build(read_json(found.directory / "config.json"))
    model.load_state_dict(load_file(found.directory / "model.safetensors"))
    assert isinstance(model, Family)
    with torch.no_grad():  # two steps are not enough to be seen
        for parameter in model.parameters():
            parameter.add_(
                torch.randn_like(parameter) * 0.1 if spec.family != "kl-autoencoder" else 0
            )
    return model.eval(), found.directory, sha256_of(found.directory / MANIFEST)


@pytest.fixture(scope="module")
def networks(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    """Four steps each: the first three are of two sizes."""
    runs, steps = tmp_path_factory.mktemp("runs"), {"steps": 4, "batch_size": 4}
    torch.manual_seed(0)
    autoencoder, path, digest = trained(spec_of(prepared, family="kl-autoencoder", **steps), runs)
    made = folder_of(prepared, "0" * 32, digest, "encode")
    need = Need(name="a.a", version=1, digest=digest, entry="encode", path=path, made=made)
    make(need, prepared, None, here=True)
    asked = spec_of(prepared, family="latent-diffusion", **steps)
    latent, _, _ = trained(asked.model_copy(update={"needs": {"latent": need}}), runs)
    config = {"backbone": "dit", "widths": [16], "attention": 1}
    pixels, _, _ = trained(spec_of(prepared, family="ddpm", config=config, **steps), runs)
    return {"autoencoder": autoencoder, "latent": latent, "pixels": pixels}


@pytest.fixture(scope="module")
def house(own_workshop: Any, networks: dict[str, Family]) -> Any:
    latents = {name: networks[name] for name in ("autoencoder", "latent")}
    wires = {
        "latent": {"text": "request.text"},
        "autoencoder/decode": {"latent": "latent.latent"},
    }
    edit = {
        "autoencoder/encode": {"pixels": "request.image"},
        "latent": {
            "text": "request.text",
            "image": "autoencoder/encode.latent",
            "mask": "request.mask",
        },
        "autoencoder/decode": {
            "latent": "latent.latent",
            "image": "request.image",
            "mask": "request.mask",
        },
    }
    own_workshop.latents = own_workshop.publish_wired("latents", latents, wires, edit=edit)
    own_workshop.pixels = own_workshop.publish_wired("pixels", {"base": networks["pixels"]})
    return own_workshop


@pytest.fixture(scope="module")
def app(house: Any) -> Iterator[Any]:
    stage = house.stage()
    yield house.gateway(stage)
    stage.close()


def asked(model: str, **changes: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "dark", "seed": 7, **changes}


def files_of(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]


def picture(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("model", ["latents", "pixels"])
def test_each_size_is_drawn_and_its_receipt_draws_it_again(
    house: Any, app: Any, ask: Ask, networks: dict[str, Family], model: str
) -> None:
    card = ask(app, "GET", f"/v1/models/{model}").json()
    assert (card["size"], card["sizes"]) == (SIZES[0], list(SIZES))
    pipeline = getattr(house, model)
    stages = [networks.get(one.stage, networks["pixels"]) for one in pipeline.stages]
    for size in SIZES:
        answer = ask(app, "POST", IMAGES, json=asked(model, size=size))
        [file] = files_of(answer)
        receipt = receipts.read(file)
        width, height = Image.open(io.BytesIO(file)).size
        assert {f"{width}x{height}", receipt.size, answer.json()["size"]} == {size}
        [again] = draw(stages, pipeline, [receipt.prompt], [receipt.seed], options=receipt.sampling)
        levels = (again.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.abs(levels.astype(int) - picture(file)).max() <= 1
    [usual] = files_of(ask(app, "POST", IMAGES, json=asked(model)))
    [first] = files_of(ask(app, "POST", IMAGES, json=asked(model, size=SIZES[0])))
    assert (picture(usual) == picture(first)).all()


def test_another_size_is_refused_and_those_that_there_are_are_named(app: Any, ask: Ask) -> None:
    answer = ask(app, "POST", IMAGES, json=asked("pixels", size="1024x1024"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "size")
    assert "pixels draws 8x8, 16x8, 8x16, got '1024x1024'" in answer.json()["error"]["message"]


def test_sizes_asked_for_at_once_are_drawn_as_if_alone(app: Any, ask: Ask) -> None:
    bodies = [asked("pixels", size=size, n=3, steps=6) for size in SIZES]
    alone = [files_of(ask(app, "POST", IMAGES, json=body)) for body in bodies]

    async def all_at_once() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await asyncio.gather(*(client.post(IMAGES, json=body) for body in bodies))

    for before, answer in zip(alone, asyncio.run(all_at_once()), strict=True):
        for one, other in zip(before, files_of(answer), strict=True):
            assert (picture(one) == picture(other)).all()


@pytest.mark.parametrize("model", ["latents", "pixels"])
def test_an_edited_picture_has_the_size_that_crops_least_of_it(
    app: Any, ask: Ask, model: str
) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    alpha = np.full((8, 16), 255, np.uint8)
    alpha[2:6, 8:] = 0
    image, file = Image.fromarray(levels), io.BytesIO()
    image.putalpha(Image.fromarray(alpha))
    image.save(file, "PNG")
    form = {**asked(model), "seed": "7"}
    [made] = files_of(ask(app, "POST", EDITS, files={"image": file.getvalue()}, data=form))
    assert receipts.read(made).size == "16x8"
    np.testing.assert_array_equal(picture(made)[alpha > 0], levels[alpha > 0])
    form["size"] = "8x16"
    [other] = files_of(ask(app, "POST", EDITS, files={"image": file.getvalue()}, data=form))
    assert picture(other).shape == (16, 8, 3)


def test_such_a_pipeline_is_judged_by_its_own_sizes(
    house: Any, prepared: Path, networks: dict[str, Family]
) -> None:
    torch.manual_seed(0)
    judge = AttributeJudge(
        AttributeJudgeConfig(
            image_size=SIDE, sizes=SIZES, attributes=(("shade", WORDS),), width=8, features=16
        )
    ).eval()
    spec = Evaluation(seeds=tuple(range(16)), bootstrap=20, gallery=8)
    pipeline = house.latents
    models = [networks["autoencoder"], networks["latent"]]
    prompts = list(WORDS) * 16
    seeds = [100_003 * seed + row for seed in range(16) for row in range(2)]
    parts = [packed(drawn(models, pipeline, prompts, seeds, prepared))]
    judged = score(
        parts, prompts, judge=judge, prepared=prepared, spec=spec, models=models, pipeline=pipeline
    )
    assert {"alignment", "autoencoder_psnr", "memorised", "fd_judge"} <= judged.metrics.keys()
    width, height = Image.open(io.BytesIO(judged.files["gallery.png"])).size
    assert width > height  # eight in a row, as large as the largest


def test_a_picture_of_another_size_than_what_is_drawn_is_refused(
    networks: dict[str, Family],
) -> None:
    given = {"image": torch.zeros(1, 3, 8, 16), "mask": torch.ones(1, 1, 8, 16)}
    with pytest.raises(ValueError, match="image: it has 16x8 places, what is drawn has 8x8"):
        networks["pixels"].sample(Request(seeds=(1,), prompts=("dark",), given=given))
    with pytest.raises(ValueError, match="size: this model draws 8x8, 16x8, 8x16, got '9x9'"):
        networks["pixels"].sample(Request(seeds=(1,), prompts=("dark",), size="9x9"))
