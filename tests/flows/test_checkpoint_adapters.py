"""Adapters of a checkpoint: learned by the loop, written for diffusers, taken from it, and drawn alike by both."""

from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.context import named, registry
from flows.evaluating.adapters import base_of
from flows.evaluating.pipeline import draw, load_model
from flows.evaluation import pin
from flows.provenance import lora_files
from flows.provenance.checkpoints import CheckpointError
from flows.provenance.importing import import_checkpoint
from flows.recipe import Recipe, Training
from flows.train import publish
from flows.training.frozen import make
from flows.training.ray_train import fit
from flows.training.specifying import training_spec
from infra.pipelines import read_pipeline
from infra.registry.registry import Version
from models.parts.noise import normals
from models.ports import salted
from tests.flows.checkpoint_kit import saved
from tests.flows.training_kit import prepare
from tests.flows.versions_kit import Installation

PROMPT: Final = "a red cat"
SEED: Final = 7


@pytest.fixture(scope="module", params=["sd", "flux"])
def pipeline(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """A checkpoint with a U-Net, and one with a transformer of two kinds of blocks."""
    folder = tmp_path_factory.mktemp("checkpoint") / request.param
    return folder, saved(request.param, folder)


@pytest.fixture
def base(here: Installation, pipeline: tuple[Path, Any]) -> Version:
    return import_checkpoint(pipeline[0], "a test", "foreign", image_size=16)[1]


@pytest.fixture
def file(pipeline: tuple[Path, Any], tmp_path: Path) -> Path:
    """A LoRA file as diffusers saves one, of numbers by lot."""
    return _theirs(pipeline[1], tmp_path / "lora.safetensors")


def _theirs(pipeline: Any, path: Path) -> Path:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    layers = ["to_k", "to_q", "to_v", "to_out.0", "add_q_proj", "to_add_out"]
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    denoiser = getattr(pipeline, part)
    torch.manual_seed(5)
    denoiser.add_adapter(
        LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=layers), "theirs"
    )
    found = {f"{part}_lora_layers": get_peft_model_state_dict(denoiser, adapter_name="theirs")}
    pipeline.save_lora_weights(path.parent, weight_name=path.name, **found)
    denoiser.delete_adapters("theirs")
    return path


def drawn(version: Version) -> torch.Tensor:
    """What a pipeline version draws."""
    found = read_pipeline(registry().fetch(version))
    fetched = (registry().fetch(stage.pin.ref, digest=stage.sha256) for stage in found.stages)
    models = [load_model(*registry().weights(one)) for one in fetched]
    return draw(models, found, [PROMPT], [SEED])[0]


def theirs(pipeline: Any, file: Path | None) -> torch.Tensor:
    """What diffusers' pipeline draws from the same noise, with a LoRA file or without."""
    if file is not None:
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
    noise, asked = normals((salted(SEED, "model"),), (4, 8, 8), torch.device("cpu")), {}
    steps = 50
    if hasattr(pipeline, "_pack_latents"):
        noise, asked, steps = (
            pipeline._pack_latents(noise, 1, 4, 8, 8),
            {"height": 16, "width": 16},
            28,
        )
    asked |= {"output_type": "pt", "num_inference_steps": steps}
    found = pipeline(PROMPT, latents=noise, **asked).images[0]
    if file is not None:
        pipeline.unload_lora_weights()
    assert isinstance(found, torch.Tensor)
    return found


def test_a_lora_file_of_diffusers_draws_here_what_it_draws_there_and_comes_out_again(
    base: Version, file: Path, pipeline: tuple[Path, Any], tmp_path: Path
) -> None:
    stage = registry().get("foreign.model")
    adapted = lora_files.take_in(file, base.ref, "other")
    assert lora_files.take_in(file, base.ref, "other") == adapted, "found, not repeated"
    ours = drawn(adapted)
    torch.testing.assert_close(ours, theirs(pipeline[1], file), rtol=0, atol=1e-4)
    assert (ours - drawn(base)).abs().max() > 1e-3
    assert registry().get("foreign.model") == stage, "the base is as it was"
    lora_files.write(adapted.ref, tmp_path / "again.safetensors")
    wanted, found = load_file(file), load_file(tmp_path / "again.safetensors")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def test_an_adapter_that_learned_here_draws_there_what_it_draws_here(
    base: Version, pipeline: tuple[Path, Any], tmp_path: Path
) -> None:
    data = prepare(tmp_path / "shades", side=16)
    rules = Training.model_validate(
        {
            **{"steps": 3, "batch_size": 8, "ema_half_life": 0},
            **{"lora": {"base": base.ref, "rank": 3, "alpha": 6}},
            "optimizers": {"model": {"learning_rate": 0.05, "warmup_steps": 0}},
        }
    )
    recipe = Recipe.model_validate(
        {
            **{"name": "mine", "data": {"name": "shades"}},
            "stages": {
                "model": {
                    **{"family": "diffusers", "training": rules},
                    "resources": {"num_workers": 0},
                }
            },
        }
    )
    spec = training_spec(recipe, "model", {"path": str(data), "identity": "d0"})
    assert {*spec.needs} == {"latent", "embedding"}, "what the base learned from"
    for need in spec.needs.values():
        make(need, spec.prepared, None, here=True)
    trained = fit(spec, run_id=None, tracking_uri=None, runs=tmp_path / "runs")
    mine = load_file(trained.directory / "model.safetensors")
    assert all(".attn" in name and ".lora." in name for name in mine)
    exported = tmp_path / "mine.safetensors"
    save_file(
        {
            name.replace(".lora.down", ".lora_A.weight").replace(".lora.up", ".lora_B.weight"): (
                tensor if name.endswith("down") else 2 * tensor
            )
            for name, tensor in mine.items()
        },
        exported,
    )
    adapted = lora_files.take_in(exported, base.ref, "mine")
    ours = drawn(adapted)
    assert (ours - drawn(base)).abs().max() > 1e-3, "it learned something"
    torch.testing.assert_close(ours, theirs(pipeline[1], exported), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "stage", "needs"),
    [
        ("sd", "model", {"latent", "embedding"}),
        ("kandinsky", "prior", {"embedding", "text_embedding"}),
        ("kandinsky", "model", {"latent", "embedding"}),
    ],
)
def test_a_stage_that_is_trained_further_stands_in_the_pipeline_that_it_comes_from(
    here: Installation, tmp_path: Path, kind: str, stage: str, needs: set[str]
) -> None:
    saved(kind, tmp_path / kind)
    _, whole = import_checkpoint(tmp_path / kind, "a test", "foreign")
    before = read_pipeline(registry().fetch(whole))
    training = {"from": whole.ref, "steps": 1, "batch_size": 4, "ema_half_life": 0}
    family = before.stage(stage).family
    recipe = Recipe.model_validate(
        {
            **{"name": "mine", "data": {"name": "shades"}},
            "stages": {
                stage: {"family": family, "training": training, "resources": {"num_workers": 0}}
            },
        }
    )
    data = prepare(tmp_path / "shades", side=16)
    spec = training_spec(recipe, stage, {"path": str(data), "identity": "d0"})
    assert {*spec.needs} == needs, "what the base learned from"
    for need in spec.needs.values():
        make(need, spec.prepared, None, here=True)
    trained = fit(spec, run_id=None, tracking_uri=None, runs=tmp_path / "runs")
    run = registry().start_run("mine", spec.identity, {})
    version = publish(spec, {}, trained.directory, trained.metrics, run)
    pipeline = pin(recipe, {stage: named(version)}, {})
    assert (pipeline.endpoint, pipeline.base) == ("mine", None), "it has all of its weights"
    assert pipeline.entrances == before.entrances
    for one in pipeline.stages:
        kept = before.stage(one.stage)
        assert (one.sha256 == kept.sha256) == (one.stage != stage)
        assert (one.inputs, one.outputs, one.needs) == (kept.inputs, kept.outputs, kept.needs)
    models = [load_model(registry().fetch(one.name, digest=one.sha256)) for one in pipeline.stages]
    ours = draw(models, pipeline, [PROMPT], [SEED], options={"steps": 2})
    assert ours.shape == (1, 3, 16, 16)
    assert ours.isfinite().all()
    assert base_of(recipe) == {"(base)": named(whole)}, "another base is judged anew"


def test_a_file_that_does_not_fit_is_refused_by_the_layer_s_name(
    base: Version, file: Path, tmp_path: Path
) -> None:
    stored = load_file(file)
    first, *others = sorted(stored)
    part = first.partition(".")[0]
    faults = {
        "is missing": {key: stored[key] for key in others},
        "is of no layer of what denoises": {
            **stored,
            "text_encoder.q.lora_A.weight": stored[first].clone(),
        },
        "takes no adapter here": {
            **stored,
            f"{part}.conv_in.lora_A.weight": torch.zeros(2, 4),
            f"{part}.conv_in.lora_B.weight": torch.zeros(4, 2),
        },
    }
    for message, tensors in faults.items():
        save_file(tensors, tmp_path / "odd.safetensors")
        with pytest.raises(CheckpointError, match=message):
            lora_files.take_in(tmp_path / "odd.safetensors", base.ref, "odd")
    with pytest.raises(CheckpointError, match=r"foreign:1 is no adapter of a checkpoint"):
        lora_files.write(base.ref, tmp_path / "none.safetensors")
