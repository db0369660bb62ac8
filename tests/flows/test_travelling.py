"""What was drawn with an adapter, and on the way between two prompts: verified, made again, and taken elsewhere."""

import base64
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from flows import context
from flows.cli import lineage_verbs
from flows.evaluating.adapters import adapted, around
from flows.evaluating.pipeline import entrance_of, load_model, ports_of
from flows.provenance.bundle import ExchangeError, export, import_folder
from flows.provenance.tracing import compare_pixels, redraw, verify
from flows.recipe import Recipe
from infra.pipelines import PinnedStage, Pipeline, read_pipeline
from infra.receipts.signing import Signing
from infra.registry.registry import Version
from models import build, configure, describe, trainable
from models.family import Family
from models.parts import lora
from models.parts.lora import LoRA
from tests.flows.conftest import Install
from tests.flows.test_bundle import listed_anew
from tests.flows.versions_kit import NAME, WORDS, Installation, network, served
from tests.services.test_variations import FURTHER, GENERATE

RED, GREEN = "red square", "green circle"


def drawn(address: str, file: Path, **body: Any) -> Path:
    """A picture that the gateway gave, as a file."""
    asked = {"seed": 7, "response_format": "b64_json", **body}
    answer = httpx.post(f"{address}/v1/images/generations", json=asked, trust_env=False)
    assert answer.status_code == 200, answer.text
    file.write_bytes(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    return file


def pinned(stage: str, version: Version, model: Family) -> PinnedStage:
    return PinnedStage(
        stage=stage, name=version.name, version=version.number, sha256=version.digest,
        family=describe(model)["family"], adapts=adapted(model), **ports_of(model),
    )  # fmt: skip


def with_adapter(here: Installation) -> Version:
    """A cascade in production, and one like it whose base has an adapter that knows a further word."""
    here.promote(here.pipeline(0))
    base, plain = here.registry.get(f"{NAME}.base"), network("base", 0)
    document = describe(plain)
    document["config"]["vocabulary"] = (*WORDS, "teal")
    asked = LoRA(2, 4.0, ("qkv", "context"), base.ref, base.digest, {"text.words": len(WORDS) + 1})
    torch.manual_seed(1)
    model = build({**document, "lora": dataclasses.asdict(asked)})
    assert isinstance(model, Family)
    for name, tensor in lora.own(model).items():
        if name.endswith("up"):
            tensor.normal_(std=0.3)
    version = here.publish("toys-teal.base", model, "teal")
    kept = load_model(*here.registry.weights(here.registry.fetch(version)))
    stage: dict[str, Any] = {"family": "ddpm", "training": {"lora": {"base": NAME}, "steps": 1}}
    recipe = {"name": "toys-teal", "data": {"name": "x"}, "stages": {"base": stage}}
    found = around(Recipe.model_validate(recipe), [pinned("base", version, kept)])
    assert found is not None
    return here.publish_wired(found)


def that_blends(here: Installation) -> Version:
    """DALL-E 2 in production: CLIP, prior and decoder."""
    facts: dict[str, Any] = {"vocabulary": WORDS, "max_words": 8, "channels": 3}
    models: dict[str, Family] = {}
    for stage, family in (("clip", "clip"), ("prior", "unclip-prior"), ("decoder", "unclip-decoder")):  # fmt: skip
        torch.manual_seed(0)
        sized = facts if stage == "prior" else {**facts, "image_size": 8}
        model = trainable(family)(configure(family, "tiny", {}, sized)).eval()
        assert isinstance(model, Family)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        models[stage] = model
        if stage == "clip":
            facts |= model.entries["text"].facts
    pins = {
        stage: pinned(stage, here.publish(f"mixed.{stage}", model, stage), model)
        for stage, model in models.items()
    }
    wires = {"generate": GENERATE, "blend": FURTHER["blend"]}
    return here.publish_wired(
        Pipeline(
            endpoint="mixed", abilities=("images", "blends"), stages=tuple(pins.values()),
            entrances={name: entrance_of(one, pins) for name, one in wires.items()},
            vocabulary=WORDS, image_size=(8, 8),
        )
    )  # fmt: skip


def told(file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    lineage_verbs.replay(file)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("published", "body", "size"),
    [
        (with_adapter, {"model": f"{NAME}+teal", "prompt": "teal square"}, 256),
        (that_blends, {"model": "mixed", "prompt": RED, "blend": {"prompt": GREEN, "weight": 0.25}}, 64),
    ],
    ids=["an adapter", "a blend"],
)  # fmt: skip
def test_a_picture_verifies_and_is_drawn_again_here_and_where_its_version_is_taken_to(
    published: Any,
    body: dict[str, Any],
    size: int,
    install: Install,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = install("here")
    here.stage("base", 50)  # so that numbers differ
    version = published(here)
    with served(here) as address:
        picture = drawn(address, tmp_path / "picture.png", **body)
        again = told(picture, capsys)
        name, _, _ = body["model"].partition("+")
        other = drawn(address, tmp_path / "other.png", model=name, prompt=RED)
    assert f"identical: all {size} pixels" in again
    assert "through the gateway" in again
    assert picture.read_bytes() != other.read_bytes()
    assert verify(picture).says == "verified"
    assert "on the CPU, since no gateway answers" in told(picture, capsys)
    export(version.ref, tmp_path / "sent")
    signer = context.signing().fingerprint()

    install("there")
    found = import_folder(tmp_path / "sent", signer)
    assert found.version.digest == version.digest
    checked = verify(picture)
    assert checked.verified
    assert checked.found is not None
    compared = compare_pixels(
        checked.found, picture.read_bytes(), redraw(checked.found), where="there"
    )
    assert compared.says == f"identical: all {size} pixels"


def test_an_adapter_brings_its_base_along_and_does_not_come_without(
    install: Install, tmp_path: Path
) -> None:
    here = install("here")
    here.stage("base", 50)
    version = with_adapter(here)
    stages = read_pipeline(here.registry.fetch(version)).stages
    index = export(version.ref, tmp_path / "sent")
    roles = [(one.role, one.ref) for one in index.versions]
    assert ("base", f"{NAME}.base:2") in roles
    assert ("stage", "toys-teal.base:1") in roles
    signer = context.signing().fingerprint()
    base = stages[0].adapts
    assert base is not None
    there = install("there")
    import_folder(tmp_path / "sent", signer)
    assert there.registry.get(f"{NAME}.base:1").digest == base.sha256
    shutil.rmtree(tmp_path / "sent" / "versions" / base.sha256)
    left = [one.model_dump() for one in index.versions if one.role != "base"]
    stranger = Signing(tmp_path / "stranger")
    listed_anew(tmp_path / "sent", {**index.model_dump(), "versions": left}, stranger)
    with pytest.raises(ExchangeError, match=r"do not name the same versions: toys\.base"):
        import_folder(tmp_path / "sent", stranger.fingerprint())
