"""Adapters as versions: the pipeline around them, and the base that they name by digest."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flows.evaluating.adapters import adapted, around
from flows.evaluating.pipeline import StageMismatch, load_model
from flows.recipe import Recipe
from infra.pipelines import PinnedStage, read_pipeline
from infra.registry.registry import RegistryError, Version
from infra.storage import seal
from models import build, describe
from models.parts import lora
from models.parts.lora import LoRA
from tests.flows.versions_kit import NAME, Installation, network


def publish(here: Installation, base: Version, digest: str = "") -> Version:
    """Publish an adapter of a stage, which names these bytes."""
    document = describe(network("base", 0))
    asked = LoRA(2, 2.0, ("qkv",), base.ref, digest or base.digest)
    torch.manual_seed(1)
    model = build({**document, "lora": dataclasses.asdict(asked)})
    making = here.home / f"adapter-{digest[:4]}"
    making.mkdir(parents=True)
    (making / "config.json").write_text(json.dumps(describe(model)))
    save_file(lora.own(model), making / "model.safetensors")
    seal(making, {"kind": "model", "data_identity": "d0"})
    return here.registry.publish("toys-teal.base", making, key=f"teal-{digest[:4]}", tags={})


def recipe_of(ref: str) -> Recipe:
    stage: dict[str, Any] = {"family": "ddpm", "training": {"lora": {"base": ref}, "steps": 1}}
    return Recipe.model_validate({"name": "toys-teal", "data": {"name": "x"}, "stages": {"base": stage}})  # fmt: skip


def test_the_pipeline_of_the_base_stays_around_its_adapter(here: Installation) -> None:
    whole = here.pipeline(0)
    base = here.registry.get(f"{NAME}.base:1")
    version = publish(here, base)
    model = load_model(*here.registry.weights(here.registry.fetch(version)))
    pin = PinnedStage(
        stage="base", name=version.name, version=version.number, sha256=version.digest,
        family="ddpm", adapts=adapted(model),
    )  # fmt: skip
    found = around(recipe_of(NAME), [pin])
    assert found is not None
    before = read_pipeline(here.registry.fetch(whole))
    assert (found.base and found.base.sha256) == whole.digest
    assert [stage.sha256 for stage in found.stages] == [version.digest, before.stages[1].sha256]
    assert [one.digest for one in found.stages[0].pins] == [base.digest, version.digest]
    assert found.stages[0].options == before.stages[0].options
    assert around(recipe_of(f"{NAME}.base"), [pin]) is None, "a stage alone"
    here.pipeline(1)
    with pytest.raises(
        StageMismatch, match=r"base adapts toys\.base:1, and toys:2 pins toys\.base:2"
    ):
        around(recipe_of(NAME), [pin])


def test_an_adapter_that_names_other_bytes_than_the_version_has_is_refused(
    here: Installation,
) -> None:
    base = here.stage("base", 0)
    version = publish(here, base, digest="f" * 64)
    with pytest.raises(RegistryError, match=r"toys\.base:1 has digest \w+, but f{12} is pinned"):
        here.registry.weights(here.registry.fetch(version))
