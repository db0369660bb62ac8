"""Checkpoints of others: what is read draws what diffusers' own pipeline draws, and what could run code is refused."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows import context
from flows.context import registry
from flows.evaluating.evaluate import Order, draw_part, score_all
from flows.evaluating.gate import Evaluation, check
from flows.evaluating.pictures import fixed_requests
from flows.evaluating.pipeline import draw, load_model
from flows.provenance.bundle import export, import_folder
from flows.provenance.checkpoint_stages import NEEDS, parted
from flows.provenance.checkpoints import CheckpointError, read, told
from flows.provenance.importing import import_checkpoint
from flows.recipe import Bound, Gate
from flows.recipe import Evaluation as EvaluationSpec
from infra.documents import read_json
from infra.pipelines import read_pipeline
from infra.settings import settings
from infra.storage import IntegrityError
from models.parts import lora
from models.parts.noise import normals
from models.parts.rows import entered, join, take
from models.ports import salted
from models.request import Request
from models.text_to_image.diffusers_pipeline import KEPT_BYTES, Diffusers
from tests.flows.checkpoint_kit import BUILT, changed, model_of, saved, three
from tests.flows.conftest import Install
from tests.flows.training_kit import prepare
from tests.flows.versions_kit import Installation


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A folder of each kind, and diffusers' pipeline of it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: (folder / kind, saved(kind, folder / kind)) for kind in BUILT}


@pytest.fixture(scope="module")
def models(checkpoints: dict[str, tuple[Path, Any]]) -> dict[str, Any]:
    """What is read of each, as a family."""
    size = {"image_size": 16}  # of Flux's no file tells it
    return {kind: model_of(read(one, "a test"), **size) for kind, (one, _) in checkpoints.items()}


def theirs(pipeline: Any, seed: int, **asked: Any) -> torch.Tensor:
    """Return what diffusers' pipeline draws from the noise that the seed has here, (C, H, W)."""
    noise = normals((seed,), (4, 8, 8), torch.device("cpu"))
    if hasattr(pipeline, "_pack_latents"):
        noise = pipeline._pack_latents(noise, 1, 4, 8, 8)
        asked = {**asked, "height": 16, "width": 16}
    found = pipeline(latents=noise, output_type="pt", **asked).images[0]
    assert isinstance(found, torch.Tensor)
    return found


def named_there(kind: str, guidance: float, negative: str | None) -> dict[str, Any]:
    """Return how diffusers' pipeline of a kind calls guidance and what it leads away from."""
    if kind == "schnell":
        return {"true_cfg_scale": guidance, "negative_prompt": negative or ""}
    told = {} if kind == "flux" else {"negative_prompt": negative}
    return {"guidance_scale": guidance, **told}


@pytest.mark.parametrize("kind", BUILT)
@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (6.0, None), (6.0, "a dull cat!")])
def test_a_checkpoint_draws_what_diffusers_own_pipeline_draws(
    checkpoints: dict[str, tuple[Path, Any]],
    models: dict[str, Any],
    kind: str,
    guidance: float,
    negative: str | None,
) -> None:
    if kind == "flux":
        negative = None  # refused, below
    prompts = ("a red cat", "Two cats!")
    options = {"steps": 5, "guidance": guidance, "negative_prompt": negative}
    ours = models[kind].sample(Request(seeds=(7, 8), prompts=prompts, options=options))
    for row, (seed, prompt) in enumerate(zip((7, 8), prompts, strict=True)):
        asked = {"num_inference_steps": 5, **named_there(kind, guidance, negative)}
        wanted = theirs(checkpoints[kind][1], seed, prompt=prompt, **asked)
        torch.testing.assert_close(ours[row], wanted, rtol=0, atol=1e-4)
    assert (ours[0] - ours[1]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", BUILT)
def test_rows_of_other_steps_guidance_and_negative_prompts_share_a_batch(
    models: dict[str, Any], kind: str
) -> None:
    model = models[kind]
    away = {} if kind == "flux" else {"negative_prompt": "cat"}
    asked = [
        Request(seeds=(1,), prompts=("a cat",), options={"steps": 2, "guidance": 1.0}),
        Request(seeds=(2,), prompts=("red",), options={"steps": 5, "guidance": 4.0, **away}),
        Request(seeds=(3,), options={"steps": 3}),
    ]
    first, *others = (model.begin(one) for one in asked)
    rows = join([model.step(first), *others])
    while not model.done(rows).all():
        rows = model.step(rows)
    for place, one in enumerate(asked):
        ended = model.finish(take(rows, [place]))
        torch.testing.assert_close(ended, model.sample(one), rtol=0, atol=1e-4)


def test_without_t5_zeros_are_read_in_its_place(tmp_path: Path) -> None:
    pipeline = three(long=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    model = model_of(read(tmp_path, "a test"))
    ours = model.sample(Request(seeds=(7,), prompts=("a red cat",), steps=2))[0]
    wanted = theirs(pipeline, 7, prompt="a red cat", num_inference_steps=2, guidance_scale=7.0)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", BUILT)
def test_what_denoises_learns_and_nothing_else(models: dict[str, Any], kind: str) -> None:
    model = copy.deepcopy(models[kind])
    batch = {"pixels": torch.rand(4, 3, 16, 16), "tokens": model.encode(["a cat"] * 4)}
    model(batch).total.backward()
    learned = {
        name.partition(".")[0] for name, one in model.named_parameters() if one.grad is not None
    }
    assert learned == {"unet" if kind in {"sd", "xl"} else "transformer"}
    assert all(one.grad.isfinite().all() for one in model.player_parameters("model"))


@pytest.mark.parametrize("kind", BUILT)
def test_what_does_not_learn_drops_nothing_out_in_training(
    models: dict[str, Any], kind: str
) -> None:
    """T5 has dropout, and a prompt is read in training as it is in drawing."""
    model = copy.deepcopy(models[kind])
    tokens = model.encode(["a red cat"])
    before = model.embedded(tokens)
    assert torch.equal(model.train().embedded(tokens), before)
    assert model.training
    assert all(one.training for one in model.denoiser.modules())
    assert not any(one.training for one in model.eval().modules())


def test_an_adapter_may_change_what_each_denoiser_attends_with(models: dict[str, Any]) -> None:
    there = {kind: lora.adaptable(model) for kind, model in models.items()}
    layers = ("to_q", "to_k", "to_v", "to_out.0")
    of_unets = tuple(f"{one}.{layer}" for one in ("attn1", "attn2") for layer in layers)
    of_texts = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    of_transformers = tuple(f"attn.{layer}" for layer in (*layers, *of_texts))
    assert there == {
        **{"sd": of_unets, "xl": of_unets},
        **dict.fromkeys(("sd3", "flux", "schnell"), of_transformers),
    }
    assert {*of_unets, *of_transformers} == {*Diffusers.adapts}, "none that no network has"


def test_what_guidance_a_distilled_network_is_told_is_a_number_and_no_text_leads_it_away(
    models: dict[str, Any],
) -> None:
    model = models["flux"]
    asked = Request(seeds=(1,), prompts=("red",), steps=2)
    weak, strong = (
        model.sample(replace(asked, options={"steps": 2, "guidance": one})) for one in (1.0, 9.0)
    )
    assert (weak - strong).abs().max() > 1e-5
    with pytest.raises(ValueError, match=r"^negative_prompt: this model has none"):
        model.begin(replace(asked, options={"negative_prompt": "a cat"}))


@pytest.mark.parametrize(
    ("kind", "side", "message"),
    [("flux", 18, "image_size must be a multiple of 4, got 18"), ("sd3", 48, "at most 32")],
)
def test_a_size_that_a_transformer_has_no_places_for_is_refused(
    checkpoints: dict[str, tuple[Path, Any]], kind: str, side: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(checkpoints[kind][0], "a test", side)


def test_a_negative_prompt_that_nothing_leads_away_from_is_refused(models: dict[str, Any]) -> None:
    asked = {"negative_prompt": "a cat", "guidance": 1.0}
    with pytest.raises(ValueError, match="negative_prompt: guidance leads away from it"):
        models["sd"].begin(Request(seeds=(1,), prompts=("red",), options=asked))


@pytest.mark.parametrize("kind", BUILT)
def test_a_prompt_is_read_once_and_anew_by_other_weights(models: dict[str, Any], kind: str) -> None:
    model, read_by = copy.deepcopy(models[kind]), list[int]()
    encoder = model.text_encoder
    encoder.register_forward_hook(lambda *given: read_by.append(len(given[1][0])))
    asked = Request(seeds=(1, 2), prompts=("a red cat", "a cat"), steps=1)
    model.load_state_dict(model.state_dict())  # nothing that others had read
    first = model.sample(asked)
    read_at_first = len(read_by)
    again = model.sample(Request(seeds=(2, 1), prompts=("a cat", "a red cat"), steps=1))
    assert len(read_by) == read_at_first
    assert torch.equal(again.flip(0), first)
    weights = {name: 1.5 * tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights)
    other = model.sample(asked)
    assert len(read_by) == 2 * read_at_first
    assert not torch.equal(other, first)


def test_no_more_prompts_are_kept_than_their_bytes_allow(models: dict[str, Any]) -> None:
    model = copy.deepcopy(models["sd"])
    model.load_state_dict(model.state_dict())
    one = model.begin(Request(seeds=(1,), prompts=("red",)))["context"].nbytes
    for number in range(20):
        model.begin(Request(seeds=(1,), prompts=("a" * (1 + number),)))
    assert model._kept.currsize <= model._kept.maxsize == KEPT_BYTES
    assert model._kept.currsize == one * len(model._kept) == one * 22  # with no text at all


def test_a_prompt_that_is_too_long_is_refused_with_both_lengths(models: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a prompt of 52 tokens, and this model reads 48 at most"):
        models["sd"].sample(Request(seeds=(1,), prompts=("red " * 50,)))


def test_a_checkpoint_tells_its_licence_and_the_hash_of_every_file(
    checkpoints: dict[str, tuple[Path, Any]],
) -> None:
    folder, _ = checkpoints["sd"]
    found = read(folder, "a test")
    assert found.licence == "openrail"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found.files.keys() == names
    assert found.document["config"]["image_size"] == 16


@pytest.fixture
def folder(checkpoints: dict[str, tuple[Path, Any]], tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints["sd"][0], tmp_path / "sd")


def _pickled(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")


def _truncated(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (_pickled, r"unet/diffusion_pytorch_model\.bin is a pickle"),
    "checkpoint": (lambda f: (f / "v1-5.ckpt").write_bytes(b"."), r"v1-5\.ckpt is a pickle"),
    "truncated": (_truncated, r"vae/diffusion_pytorch_model\.safetensors is truncated"),
    "code": (lambda f: (f / "pipeline.py").write_text(""), r"pipeline\.py is code"),
    "auto_map": (
        lambda f: changed(f / "unet" / "config.json", auto_map={"AutoModel": "m.M"}),
        r"unet/config\.json asks for auto_map",
    ),
    "custom pipeline": (
        lambda f: changed(f / "model_index.json", _class_name=["pipeline", "Mine"]),
        "is a pipeline of its own; taken are StableDiffusionPipeline",
    ),
    "no object": (
        lambda f: (f / "model_index.json").write_text("[]"),
        "is no JSON object with a _class_name; taken are StableDiffusionPipeline",
    ),
    "custom class": (
        lambda f: changed(f / "model_index.json", unet=["my_unet", "UNet"]),
        "takes unet from 'my_unet', code of its own",
    ),
    "another class": (
        lambda f: changed(f / "model_index.json", unet=["diffusers", "UNet3DConditionModel"]),
        "unet is a UNet3DConditionModel, not a UNet2DConditionModel",
    ),
    "no index": (lambda f: (f / "model_index.json").unlink(), "it is no checkpoint of diffusers"),
    "no weights": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
        "unet has no weights as .safetensors",
    ),
    "other sizes": (
        lambda f: changed(f / "vae" / "config.json", block_out_channels=[8, 16]),
        "vae",
    ),
    "no size": (
        lambda f: changed(f / "unet" / "config.json", sample_size=[8, 8]),
        r"unet/config\.json: sample_size must be one number, got \[8, 8\]",
    ),
    "noise": (
        lambda f: changed(
            f / "scheduler" / "scheduler_config.json", _class_name="EulerAncestralDiscreteScheduler"
        ),
        "'EulerAncestralDiscreteScheduler' draws noise of its own",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_could_run_code_or_is_not_whole_is_refused_by_name(folder: Path, fault: str) -> None:
    spoil, message = REFUSED[fault]
    spoil(folder)
    with pytest.raises((CheckpointError, IntegrityError, ValueError), match=message):
        read(folder, "a test")


@pytest.mark.parametrize("config", [{}, {"block_out_channels": 64}, ["block_out_channels"]])
def test_a_config_that_does_not_list_its_blocks_is_refused_by_the_setting_s_name(
    config: Any,
) -> None:
    message = r"vae/config\.json: block_out_channels must be a list, got (None|64)"
    with pytest.raises(CheckpointError, match=message):
        told(config, "vae/config.json", "block_out_channels", list)


@pytest.mark.parametrize("kind", BUILT)
@pytest.mark.parametrize("negative", [None, "a dull cat!"])
def test_three_stages_draw_what_the_whole_checkpoint_draws(
    checkpoints: dict[str, tuple[Path, Any]],
    models: dict[str, Any],
    kind: str,
    negative: str | None,
) -> None:
    apart = parts_of(checkpoints[kind][0])
    options = {"steps": 3, "guidance": 4.0}
    prompts = ("a red cat", "Two cats!")
    given = {"embedding": entered(apart["text"], "read", {}, prompts)}
    away = negative if kind != "flux" else None
    if away:
        given["without"] = entered(apart["text"], "read", {}, (away, away))
    latent = apart["model"].sample(Request(seeds=(7, 8), given=given, options=options))
    drawn = entered(apart["autoencoder"], "decode", {"latent": latent})
    asked = Request(seeds=(7, 8), prompts=prompts, options={**options, "negative_prompt": away})
    torch.testing.assert_close(drawn, models[kind].sample(asked), rtol=0, atol=1e-5)
    unasked = Request(seeds=(7,), options={"steps": 3})
    latent = apart["model"].sample(unasked)
    drawn = entered(apart["autoencoder"], "decode", {"latent": latent})
    torch.testing.assert_close(drawn, models[kind].sample(unasked), rtol=0, atol=1e-5)


def parts_of(folder: Path) -> dict[str, Any]:
    """Return the stages of a checkpoint, as models."""
    parts = parted(read(folder, "a test", 16), "model")
    return {name: model_of(part) for name, part in parts.items()}


def test_what_denoises_learns_alone_from_what_the_other_two_stages_make(
    checkpoints: dict[str, tuple[Path, Any]],
) -> None:
    apart = parts_of(checkpoints["xl"][0])
    pixels = torch.rand(4, 3, 16, 16)
    batch = {
        "pixels": pixels,
        "latent": entered(apart["autoencoder"], "encode", {"pixels": pixels}),
        "embedding": entered(apart["text"], "read", {}, ["a cat"] * 4),
    }
    apart["model"](batch).total.backward()
    assert all(one.grad.isfinite().all() for one in apart["model"].player_parameters("model"))
    assert batch.keys() >= NEEDS.keys()
    for name in ("text", "autoencoder"):
        with pytest.raises(ValueError, match=f"the {name} of a checkpoint stays as it is"):
            apart[name](batch)


def test_another_decoder_of_pictures_shares_the_other_two_stages(
    folder: Path, here: Installation
) -> None:
    """What encodes pictures says what latents mean; with another one, the denoiser is another one, too."""
    import_checkpoint(folder, "a test", "foreign")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_out.bias"] += 0.1
    save_file(tensors, path, metadata={"format": "pt"})
    _, version = import_checkpoint(folder, "a test", "foreign")
    stages = read_pipeline(registry().fetch(version)).stages
    assert [one.version for one in stages] == [1, 1, 2]
    tensors["encoder.conv_in.bias"] += 0.1
    save_file(tensors, path, metadata={"format": "pt"})
    _, version = import_checkpoint(folder, "a test", "foreign")
    stages = read_pipeline(registry().fetch(version)).stages
    assert [one.version for one in stages] == [1, 2, 3]


def test_a_checkpoint_is_registered_exported_and_draws_the_same_elsewhere(
    checkpoints: dict[str, tuple[Path, Any]], install: Install, tmp_path: Path
) -> None:
    install("there")
    folder, pipeline = checkpoints["sd3"]
    found, version = import_checkpoint(folder, "a test", "foreign")
    assert import_checkpoint(folder, "a test", "foreign")[1] == version, "found, not repeated"
    for stage in ("text", "model", "autoencoder"):
        directory = registry().fetch(registry().get(f"foreign.{stage}"))
        assert "| licence | openrail |" in (directory / "card.md").read_text()
        assert read_json(directory / "checkpoint.json")["files"] == found.files
    report = read_json(registry().fetch(version) / "report.json")
    assert not report["passed"], "nobody has judged it"
    export(version.ref, tmp_path / "sent")
    signer = context.signing().fingerprint()
    install("here")
    again = import_folder(tmp_path / "sent", signer).version
    assert again.digest == version.digest
    pinned = read_pipeline(registry().fetch(again))
    models = [load_model(registry().fetch(one.name, digest=one.sha256)) for one in pinned.stages]
    for negative in (None, "a dull cat"):
        options = {"negative_prompt": negative} if negative else {}
        ours = draw(models, pinned, ["a red cat"], [7], options=options)[0]
        asked = {"num_inference_steps": 28, "guidance_scale": 7.0, "negative_prompt": negative}
        wanted = theirs(pipeline, salted(7, "model"), prompt="a red cat", **asked)
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["sd", "sd3", "flux"])
def test_a_checkpoint_is_judged_as_ours_are_and_its_gate_passes_or_refuses(
    checkpoints: dict[str, tuple[Path, Any]], here: Installation, tmp_path: Path, kind: str
) -> None:
    """What `--recipe` asks for, without a cluster: captions of the data are drawn, costs and bounds follow."""
    _, version = import_checkpoint(checkpoints[kind][0], "a test", "foreign", image_size=16)
    pipeline = read_pipeline(registry().fetch(version))
    text, stage, autoencoder = pipeline.stages
    quick = stage.model_copy(update={"options": {"steps": 1}})
    stages = (text, quick, autoencoder)
    spec = EvaluationSpec(samples=4, bootstrap=50, gallery=4)
    data = str(prepare(tmp_path / "shades", side=16, rows=24, validation=24, test=24))
    order = Order(
        pipeline=pipeline.model_copy(update={"stages": stages}).model_dump(mode="json"),
        judge=None,
        prepared=data,
        data_identity="d0",
        spec=spec.model_dump(mode="json"),
        judged_on=data,
        tracking_uri=settings().mlflow_uri,
        cache=str(settings().state / "versions"),
        num_gpus=0,
    )
    prompts, seeds = fixed_requests(pipeline, ("dark", "light"), spec)
    document, files = score_all(order, prompts, seeds, [draw_part(order, prompts, seeds)])
    found = Evaluation.model_validate_json(document)
    assert "gallery.png" in files
    memorised = found.metrics["memorised"].value
    assert check(Gate(metrics={"memorised": Bound(at_most=1.0)}), found, None).passed
    refused = check(Gate(metrics={"memorised": Bound(at_least=2.0)}), found, None)
    assert refused.refusal().startswith(f"memorised {memorised:.4g}")
