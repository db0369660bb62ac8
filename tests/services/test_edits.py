"""/v1/images/edits: a picture is drawn anew where a mask says so, and nowhere else."""

import asyncio
import base64
import copy
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from flows.evaluating.pipeline import StageMismatch, check_fit, draw
from infra.ledger.rollout_rules import Terms
from infra.receipts import provenance, receipts
from models.diffusion.ddpm import DDPM
from models.family import Family
from models.request import Request
from models.variational.vqvae import VQVAE, VQVAEConfig
from tests.services.served_kit import with_toys
from tests.services.toys import Blind, Inverting, Negative

EDITS = "/v1/images/edits"
SIDE = 16
Ask = Callable[..., httpx.Response]
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
CLEAR = np.full((SIDE, SIDE), 255, dtype=np.uint8)
CLEAR[4:12, 4:12] = 0  # of alpha: the middle is to be changed


def file(pixels: Any, alpha: Any = None, size: int = SIDE) -> bytes:
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    out = io.BytesIO()
    image.resize((size, size), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


PICTURE, MASK = file(NOISE), file(NOISE, CLEAR)


@pytest.fixture(scope="module")
def cascade(networks: Any) -> dict[str, Family]:
    """A base of 8 pixels, and an upsampler of two inputs: the low picture and the text."""
    base = networks("base")
    torch.manual_seed(3)
    up = DDPM(dataclasses.replace(base.config, image_size=SIDE, low_size=8, steps=3)).eval()
    with torch.no_grad():
        for parameter in up.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return {"base": base, "upsampler": up}


@pytest.fixture(scope="module")
def house(own_workshop: Any, cascade: Any, networks: Any) -> Any:
    own_workshop.shapes = own_workshop.publish_wired("shapes", cascade)
    own_workshop.promote(own_workshop.publish_pipeline("old", networks("base")))
    return own_workshop


@pytest.fixture(scope="module")
def app(house: Any) -> Iterator[Any]:
    stage = house.stage()
    yield house.gateway(stage)
    stage.close()


def edit(app: Any, ask: Ask, files: Any = None, **fields: Any) -> httpx.Response:
    sent = {"image": PICTURE, "mask": MASK} if files is None else files
    asked = {"model": "shapes", "prompt": "a small red circle", "seed": "7", **fields}
    return ask(app, "POST", EDITS, files=sent, data=asked)


def pixels(answer: httpx.Response, row: int = 0) -> Any:
    return decoded(answer.json()["data"][row]["b64_json"])


def decoded(b64: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def test_only_what_the_mask_leaves_open_is_drawn_anew(app: Any, ask: Ask) -> None:
    answer = edit(app, ask, n="2")
    assert answer.status_code == 200, answer.text
    kept = CLEAR == 255
    for row in range(2):
        np.testing.assert_array_equal(pixels(answer, row)[kept], NOISE[kept])
        assert (pixels(answer, row)[~kept] != NOISE[~kept]).mean() > 0.5
    assert (pixels(answer, 0) != pixels(answer, 1)).any(), "each seed fills it in its own way"
    np.testing.assert_array_equal(pixels(edit(app, ask, seed="8")), pixels(answer, 1))


def test_a_picture_s_own_transparency_is_a_mask_and_the_prompt_counts(app: Any, ask: Ask) -> None:
    alone = pixels(edit(app, ask, {"image": MASK}))
    kept = CLEAR == 255
    np.testing.assert_array_equal(alone[kept], NOISE[kept])
    other = pixels(edit(app, ask, {"image": MASK}, prompt="a large green square"))
    assert (other[~kept] != alone[~kept]).any()


def test_an_edit_s_receipt_names_what_it_was_made_of(app: Any, ask: Ask, house: Any) -> None:
    content = base64.b64decode(edit(app, ask, steps="2").json()["data"][0]["b64_json"])
    receipt = receipts.read(content)
    assert (receipt.entrance, receipt.seed, receipt.steps) == ("edit", 7, 2)
    assert receipt.inputs == {
        "image": hashlib.sha256(PICTURE).hexdigest(), "mask": hashlib.sha256(MASK).hexdigest()
    }  # fmt: skip
    signing = house.signing()
    assert all(one.passed for one in provenance.check(content, signing)[1])


def test_a_weak_edit_stays_near_the_picture_and_its_receipt_says_so(app: Any, ask: Ask) -> None:
    kept = CLEAR == 255
    for strength in ("0", "0.5", "1"):
        answer = edit(app, ask, strength=strength)
        drawn = pixels(answer)
        np.testing.assert_array_equal(drawn[kept], NOISE[kept])
        receipt = receipts.read(base64.b64decode(answer.json()["data"][0]["b64_json"]))
        assert receipt.options == {"strength": float(strength)}
    np.testing.assert_array_equal(drawn, pixels(edit(app, ask)))  # 1 is what is not said
    refused = ask(
        app, "POST", "/v1/images/generations",
        json={"model": "shapes", "prompt": "a circle", "strength": 0.5},
    )  # fmt: skip
    assert refused.json()["error"]["code"] == "unknown_parameter"


def test_an_edit_is_no_answer_to_look_for_drift_in(app: Any, ask: Ask, house: Any) -> None:
    """What was kept is drawn again from prompt and seed, of which an edit is not made alone."""
    folder = house.folder / "samples" / "shapes"
    before = len(list(folder.glob("*.png")))
    edit(app, ask)
    assert len(list(folder.glob("*.png"))) == before
    ask(app, "POST", "/v1/images/generations", json={"model": "shapes", "prompt": "a red circle"})
    assert len(list(folder.glob("*.png"))) == before + 1


def test_an_edit_that_comes_out_alike_for_every_seed_is_no_fault_of_a_challenger(
    house: Any, ask: Ask, cascade: Any
) -> None:
    def sure(model: Any) -> Any:
        with torch.no_grad():
            model.network.unet.out.weight.zero_()
            model.network.unet.out.bias.fill_(1e4)
        return model

    alike = {name: sure(copy.deepcopy(model)) for name, model in cascade.items()}
    house.publish_wired("rolled", alike)
    house.publish_wired("rolled", cascade)  # in production, the other beside it
    digest = next(
        key for key, one in house.published.items() if (one["name"], one["number"]) == ("rolled", 1)
    )
    terms = Terms(percent=100, limits={"max_slowdown": 1000.0})
    house.ledger.transition(
        name="rolled", stage="canary", to_version=1, to_digest=digest, expected_epoch=0,
        key="rolled/canary/0", actor="test", report={"terms": terms.model_dump()},
    )  # fmt: skip
    stage = house.stage()
    app = house.gateway(stage)
    seen = [edit(app, ask, model="rolled", seed=str(seed)) for seed in range(4)]
    stage.close()
    receipt = receipts.read(base64.b64decode(seen[-1].json()["data"][0]["b64_json"]))
    assert receipt.version == "rolled:1"
    assert len({one.json()["data"][0]["b64_json"] for one in seen}) > 1  # the receipts differ,
    assert all((pixels(one) == pixels(seen[0])).all() for one in seen)  # the pictures do not
    house.observer.close()
    told = house.observations.read("rolled", "canary", 1)["challenger"]
    assert (told.requests, told.repeated, told.flat) == (4, 0, 0)


def test_a_stream_shows_the_edit_growing(app: Any, ask: Ask) -> None:
    answer = edit(app, ask, stream="true", partial_images="1")
    kinds = [line for line in answer.text.splitlines() if line.startswith("event: ")]
    assert kinds == ["event: image_edit.partial_image", "event: image_edit.completed"]


def test_the_openai_client_edits(app: Any) -> None:
    from openai import AsyncOpenAI

    web_library = pytest.importorskip("httpx2", reason="the client of before 3.5 sends by httpx")

    async def asked() -> Any:
        transport = web_library.ASGITransport(app)
        async with web_library.AsyncClient(transport=transport) as web:
            client = AsyncOpenAI(
                base_url="http://127.0.0.1/v1", api_key="none", http_client=web, max_retries=0
            )
            return await client.images.edit(
                model="shapes",
                image=("in.png", PICTURE),
                mask=("mask.png", MASK),
                prompt="a small red circle",
                n=2,
                size="16x16",
                extra_body={"seed": 7},
            )

    found = asyncio.run(asked())
    assert len(found.data) == 2


@pytest.mark.parametrize(
    ("files", "fields", "expected"),
    [
        ({"image": PICTURE}, {}, (400, "invalid_value", "mask")),
        ({"mask": MASK}, {}, (400, "missing_required_parameter", "image")),
        ({"image": b"no picture", "mask": MASK}, {}, (400, "invalid_value", "image")),
        ({"image": PICTURE, "mask": b"none"}, {}, (400, "invalid_value", "mask")),
        ({"image": PICTURE, "mask": file(NOISE, CLEAR, 32)}, {}, (400, "invalid_value", "mask")),
        ({"image": PICTURE, "pose": MASK}, {}, (400, "unknown_parameter", "pose")),
        (None, {"style_of": "x"}, (400, "unknown_parameter", "style_of")),
        (None, {"steps": "many"}, (400, "invalid_value", "steps")),
        (None, {"prompt": "a purple zebra"}, (400, "invalid_value", "prompt")),
        (None, {"model": "old"}, (400, "unsupported_capability", "model")),
        (None, {"model": "nobody"}, (404, "model_not_found", "model")),
    ],
)
def test_what_is_wrong_with_an_edit_is_named(
    app: Any, ask: Ask, files: Any, fields: Any, expected: Any
) -> None:
    answer = edit(app, ask, files, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == expected, error["message"]


@pytest.mark.parametrize(
    "twice",
    [
        ("prompt", "prompt"),
        ("prompt", "prompt[x]"),
        ("prompt[x]", "prompt"),
        ("prompt[x]", "prompt[x]"),
    ],
)
def test_a_field_is_sent_once_whole_or_in_parts(app: Any, ask: Ask, twice: tuple[str, str]) -> None:
    fields = [(name, (None, b"a small red circle")) for name in twice]
    answer = ask(app, "POST", EDITS, files=[("image", MASK), *fields])
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "prompt")
    assert error["message"] == "prompt: one is taken, got several"


def test_what_is_neither_a_form_nor_json_is_refused(app: Any, ask: Ask) -> None:
    plain = {"content-type": "text/plain"}
    answer = ask(app, "POST", EDITS, content=b"{}", headers=plain)
    assert (answer.status_code, answer.json()["error"]["param"]) == (415, "image")


def url(content: bytes) -> dict[str, str]:
    return {"image_url": f"data:image/png;base64,{base64.b64encode(content).decode()}"}


def as_json(app: Any, ask: Ask, **fields: Any) -> httpx.Response:
    asked = {"model": "shapes", "prompt": "a small red circle", "seed": 7}
    return ask(app, "POST", EDITS, json={**asked, "images": [url(PICTURE)], **fields})


@pytest.mark.parametrize("charset", ["undefined", "punycode", '"utf-16"'])
def test_a_form_is_in_utf_8(app: Any, ask: Ask, charset: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na-b\r\n--x--\r\n'
    form = "multipart/form-data; boundary=x; Charset="
    answer = ask(app, "POST", EDITS, content=body, headers={"content-type": form + charset})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    answer = ask(app, "POST", EDITS, content=body, headers={"content-type": f"{form}UTF-8"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")


def test_json_with_data_urls_is_what_a_form_is(app: Any, ask: Ask) -> None:
    answer = as_json(app, ask, mask=url(MASK), strength=0.5)
    assert answer.status_code == 200, answer.text
    np.testing.assert_array_equal(pixels(answer), pixels(edit(app, ask, strength="0.5")))
    receipt = receipts.read(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    assert receipt.inputs == {
        "image": hashlib.sha256(PICTURE).hexdigest(), "mask": hashlib.sha256(MASK).hexdigest()
    }  # fmt: skip
    alone = as_json(app, ask, images=[url(MASK)])
    np.testing.assert_array_equal(pixels(alone), pixels(edit(app, ask, {"image": MASK})))


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"images": []}, "images", "at least 1"),
        ({"images": [url(MASK), url(MASK)]}, "images", "at most 1"),
        (
            {"images": [{"image_url": "https://a.example/b.png"}]},
            "images.0.image_url",
            "no other is",
        ),
        ({"images": [{"file_id": "file_1"}]}, "images.0.image_url", "required"),
        ({"images": [{"image_url": "data:image/png;base64,?"}]}, "image", "no base64"),
        ({"images": [{"image_url": "data:image/png;base64,\u00e9"}]}, "image", "no base64"),
        ({"images": [url(b"no picture")]}, "image", "image: "),
        ({"images": [url(bytes(2**22 + 1))]}, "image", "4194305 bytes, at most 4194304"),
        ({"mask": url(file(NOISE, CLEAR, 32))}, "mask", "as large as the picture"),
        ({"strength": "0.5"}, "strength", "strength"),
    ],
)
def test_what_is_wrong_with_an_edit_in_json_is_named(
    app: Any, ask: Ask, fields: Any, param: str, says: str
) -> None:
    answer = as_json(app, ask, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error["message"]
    assert says in error["message"]


@pytest.mark.parametrize("options", [{}, {"steps": 3, "guidance": 4.0}])
def test_a_stage_of_two_inputs_has_both_and_one_process_draws_what_the_gateway_answers(
    app: Any, ask: Ask, house: Any, cascade: Any, options: dict[str, Any]
) -> None:
    """The cascade is no chain: the upsampler takes the base's picture and the request's text, and not its options."""
    pipeline = house.shapes
    check_fit(pipeline)
    wires = pipeline.entrances["generate"].wires["upsampler"]
    assert wires == {"text": "request.text", "low": "base.pixels"}
    answer = ask(
        app, "POST", "/v1/images/generations",
        json={"model": "shapes", "prompt": "a small red circle", "seed": 5, "n": 2, **options},
    )  # fmt: skip
    here = draw([*cascade.values()], pipeline, ["a small red circle"] * 2, [5, 6], options=options)
    levels = (here.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for row in range(2):
        np.testing.assert_array_equal(pixels(answer, row), levels[row])
    other = ask(
        app, "POST", "/v1/images/generations",
        json={"model": "shapes", "prompt": "a large green square", "seed": 5},
    )  # fmt: skip
    assert (pixels(other) != levels[0]).any()


def test_a_new_kind_of_stage_is_one_class(house: Any, ask: Ask, cascade: Any, app: Any) -> None:
    """It says what it takes and gives; wiring, checks, executor, gateway and receipt need nothing new."""
    with with_toys():
        stages = {**cascade, "negative": Negative(Negative.presets["tiny"]).eval()}
        check_fit(house.publish_wired("negatives", stages))
        asked = {"prompt": "a small red circle", "seed": 5}
        made = ask(app, "POST", "/v1/images/generations", json={"model": "negatives", **asked})
        plain = ask(app, "POST", "/v1/images/generations", json={"model": "shapes", **asked})
    assert np.abs(255 - pixels(made).astype(int) - pixels(plain)).max() <= 1  # of rounding
    receipt = receipts.read(base64.b64decode(made.json()["data"][0]["b64_json"]))
    assert [stage.name for stage in receipt.stages][-1] == "negatives.negative"


def test_rows_that_keep_something_and_rows_that_do_not_share_a_batch(cascade: Any) -> None:
    from models.parts.rows import join, take

    base = cascade["base"]
    side = base.config.image_size
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, side, side)
    mask[..., : side // 2] = 1
    plain = Request(seeds=(1,), prompts=("a red circle",))
    kept = dataclasses.replace(plain, given={"image": image, "mask": mask})
    rows = join([base.begin(plain), base.begin(kept), base.begin(plain), base.begin(kept)])
    while not base.done(rows).all():
        rows = base.step(rows)
    together = base.finish(rows)
    torch.testing.assert_close(together[1][..., side // 2 :], image[0][..., side // 2 :])
    torch.testing.assert_close(together[0], together[2], atol=0, rtol=0)
    alone = join([base.begin(plain)] * 4)
    while not base.done(alone).all():
        alone = base.step(alone)
    torch.testing.assert_close(together[0], base.finish(take(alone, [0]))[0], atol=0, rtol=0)
    with pytest.raises(ValueError, match="image: a picture is changed where a mask says so"):
        base.begin(dataclasses.replace(plain, given={"image": image}))


@pytest.fixture(scope="module")
def coder() -> VQVAE:
    """Pictures as codes, at the cascade's end: untrained, so that what comes out is a mosaic of its own."""
    torch.manual_seed(4)
    return VQVAE(VQVAEConfig(image_size=SIDE, channels=3, hidden=(8,), codes=8, width=4)).eval()


def test_an_entry_is_a_node_and_the_same_alone_in_a_batch_and_in_one_process(
    app: Any, ask: Ask, house: Any, cascade: Any, coder: VQVAE
) -> None:
    wires = {
        "base": {"text": "request.text"},
        "upsampler": {"low": "base.pixels", "text": "request.text"},
        "coder/encode": {"pixels": "upsampler.pixels"},
        "coder/decode": {"codes": "coder/encode.codes"},
    }
    pipeline = house.publish_wired("coded", {**cascade, "coder": coder}, wires)
    check_fit(pipeline)
    asked = {"model": "coded", "prompt": "a small red circle", "seed": 5}
    answer = ask(app, "POST", "/v1/images/generations", json={**asked, "n": 2})
    here = draw([*cascade.values(), coder], pipeline, ["a small red circle"] * 2, [5, 6])
    levels = (here.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for row in range(2):
        np.testing.assert_array_equal(pixels(answer, row), levels[row])
    alone = ask(app, "POST", "/v1/images/generations", json=asked)
    np.testing.assert_array_equal(pixels(alone), levels[0])


def test_codes_of_another_codebook_are_refused_with_both_ends_named(
    house: Any, cascade: Any, coder: VQVAE
) -> None:
    other = copy.deepcopy(coder)
    with torch.no_grad():
        other.codebook.vectors_KD.add_(1)
    wires = {
        "base": {"text": "request.text"},
        "upsampler": {"low": "base.pixels", "text": "request.text"},
        "coder/encode": {"pixels": "upsampler.pixels"},
        "other/decode": {"codes": "coder/encode.codes"},
    }
    pipeline = house.publish_wired("mixed", {**cascade, "coder": coder, "other": other}, wires)
    with pytest.raises(StageMismatch) as refusal:
        check_fit(pipeline)
    space = [one.entries["encode"].outputs["codes"].space for one in (other, coder)]
    taken, given = (f"codes 64 of {one}" for one in space)
    assert str(refusal.value) == (
        f"other/decode takes {taken} as codes, but coder/encode.codes is {given}"
    )


def test_sketches_of_codes_are_shown_as_the_pictures_that_they_decode_to(
    app: Any, ask: Ask, house: Any, cascade: Any
) -> None:
    """The lead draws what is no picture yet; what is seen on the way has been through the rest of the graph."""
    with with_toys():
        painter, base = Inverting(Inverting.presets["tiny"]).eval(), cascade["base"]
        blind = Blind(base.config).eval()
        blind.load_state_dict(base.state_dict())
        wires = {
            "blind": {"text": "request.text"},
            "painter/decode": {"latent": "blind.latent"},
        }
        house.publish_wired("latents", {"blind": blind, "painter": painter}, wires)
        house.publish_wired("alone", {"blind": base})
        asked = {"prompt": "a small red circle", "seed": 5, "stream": True, "partial_images": 1}
        seen = []
        for model in ("latents", "alone"):
            answer = ask(app, "POST", "/v1/images/generations", json={"model": model, **asked})
            events = [
                json.loads(line[6:]) for line in answer.text.splitlines() if line[:6] == "data: "
            ]
            seen.append([decoded(one["b64_json"]) for one in events])
    assert len(seen[0]) == len(seen[1]) == 2
    for ours, plain in zip(*seen, strict=True):
        assert np.abs(255 - ours.astype(int) - plain).max() <= 1  # of rounding
