"""Adapters as versions: the pipeline around them, and the base that they name by digest."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flows.evaluating.adapters import adapted, around
from flows.evaluating.pipeline import StageMismatch, check_fit, draw, entrance_of, load_model
from flows.recipe import Recipe
from flows.train import check_specs
from flows.training.frozen import make
from flows.training.ray_train import fit
from flows.training.specifying import training_spec
from infra.pipelines import PinnedStage, Pipeline, read_pipeline
from infra.registry.registry import RegistryError, Version
from infra.storage import seal
from models import build, configure, describe, trainable
from models.family import Family
from models.parts import lora
from models.parts.lora import LoRA
from models.variational.vqvae import VQVAE, VQVAEConfig
from tests.flows.test_travelling import pinned
from tests.flows.training_kit import prepare
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


def coded(here: Installation) -> dict[str, Version]:
    """DALL-E in production, that knows one word: codes of a VQ-VAE, which paints them, too."""
    torch.manual_seed(0)
    codec = VQVAE(VQVAEConfig(image_size=8, channels=3, hidden=(8,), codes=16, width=4)).eval()
    facts = {**codec.entries["encode"].facts, "vocabulary": ("dark",), "max_words": 1}
    prior = trainable("dalle")(configure("dalle", "tiny", {}, facts)).eval()
    assert isinstance(prior, Family)
    found = {
        "vqvae": here.publish("coded.vqvae", codec, "vqvae"),
        "prior": here.publish("coded.prior", prior, "prior"),
    }
    pins = {
        "vqvae": pinned("vqvae", found["vqvae"], codec),
        "prior": pinned("prior", found["prior"], prior).model_copy(
            update={"needs": {"codes": "vqvae/encode"}}
        ),
    }
    wires = {"prior": {"text": "request.text"}, "vqvae/decode": {"codes": "prior.codes"}}
    document = Pipeline(
        endpoint="coded", abilities=("images",), stages=tuple(pins.values()),
        entrances={"generate": entrance_of(wires, pins)}, vocabulary=("dark",), image_size=(8, 8),
    )  # fmt: skip
    return {**found, "whole": here.publish_wired(document)}


def staged(base: str, **more: Any) -> Recipe:
    rules = {"lora": {"base": base, "rank": 2}, "steps": 8, "batch_size": 8}
    stage = {"family": "dalle", "training": rules, "resources": {"num_workers": 0}, **more}
    document = {"name": "coded-light", "data": {"name": "x"}, "stages": {"prior": stage}}
    return Recipe.model_validate(document)


def test_an_adapter_learns_a_word_from_what_its_base_learned_from(
    here: Installation, tmp_path: Path
) -> None:
    """The codes of the base's own VQ-VAE, made of the new pictures; the pipeline around it stays as it is."""
    published = coded(here)
    data = {"path": str(prepare(tmp_path / "prepared" / "shades")), "identity": "0" * 32}
    recipe = staged("coded")
    spec = training_spec(recipe, "prior", data)
    assert [(name, one.digest) for name, one in spec.needs.items()] == [
        ("codes", published["vqvae"].digest)
    ]
    check_specs([spec])
    assert make(spec.needs["codes"], spec.prepared, None, here=True)
    found = fit(spec, run_id=None, tracking_uri=None, runs=tmp_path / "runs")
    assert spec.base is not None
    model = load_model(spec.base.path, found.directory)
    assert model.config.vocabulary == ("dark", "light")
    version = here.publish("coded-light.prior", model, "light")
    whole = around(recipe, [pinned("prior", version, model)])
    assert whole is not None
    assert [stage.sha256 for stage in whole.stages] == [published["vqvae"].digest, version.digest]
    assert whole.stages[1].needs == {"codes": "vqvae/encode"}
    check_fit(whole)
    models = [
        load_model(*here.registry.weights(here.registry.fetch(one)))
        for one in (published["vqvae"], version)
    ]
    assert draw(models, whole, ["light", "dark"], [1, 2]).shape == (2, 3, 8, 8)


def test_what_an_adapter_learns_from_is_its_base_s_affair_and_a_stage_alone_does_not_know_it(
    here: Installation, tmp_path: Path
) -> None:
    coded(here)
    with pytest.raises(ValueError, match="needs: an adapter learns from what its base did"):
        staged("coded", needs={"codes": "vqvae/encode"})
    data = {"path": str(prepare(tmp_path / "prepared" / "shades")), "identity": "0" * 32}
    spec = training_spec(staged("coded.prior"), "prior", data)
    says = "training.lora: dalle learns from codes, and only a pipeline says whose"
    with pytest.raises(ValueError, match=says):
        check_specs([spec])
