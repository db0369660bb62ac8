"""Kandinsky of others: its stages draw what diffusers draws at the same noise, taken in whole or in two folders."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flows.context import registry
from flows.evaluating.pipeline import draw, load_model
from flows.provenance.checkpoint_stages import parted
from flows.provenance.checkpoints import CheckpointError
from flows.provenance.importing import import_checkpoint
from flows.provenance.unclip_checkpoints import read
from infra.pipelines import read_pipeline
from infra.storage import IntegrityError
from models import build
from models.parts.noise import normals
from models.parts.rows import entered
from models.ports import salted
from models.request import Request
from tests.flows.checkpoint_kit import changed, saved
from tests.flows.versions_kit import Installation

CPU = torch.device("cpu")
PROMPT = "a red cat"


@pytest.fixture(scope="module")
def kandinsky(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder, and diffusers' pipeline of it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "kandinsky"
    pipeline = saved("kandinsky", folder)
    for part in (pipeline.prior_pipe, pipeline.decoder_pipe):
        part.set_progress_bar_config(disable=True)
    return folder, pipeline


@pytest.fixture(scope="module")
def stages(kandinsky: tuple[Path, Any]) -> dict[str, Any]:
    """What is read of it, a model a stage."""
    found = {}
    for name, part in parted(read(kandinsky[0], "a test"), "model").items():
        found[name] = build(part.document).ready()
        found[name].load_state_dict(dict(part.tensors))
    return found


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Have diffusers' schedulers draw what a seed draws here, one step after the other."""
    state = {"seed": 0, "draw": 0}

    def drawn(shape: tuple[int, ...], **_: Any) -> torch.Tensor:
        state["draw"] += 1
        return _noise(state["seed"], shape, state["draw"])

    for name in ("ddpm", "unclip"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{name}.randn_tensor", drawn)
    return lambda seed: state.update(seed=seed, draw=0)


def _noise(seed: int, shape: tuple[int, ...], draw: int = 0) -> torch.Tensor:
    return torch.cat(
        [normals((seed,), shape[1:], CPU, stage=row, draws=draw) for row in range(shape[0])]
    )


def embedded_there(
    pipeline: Any, noise: Callable[[int], None], seed: int, negative: str | None, **asked: Any
) -> torch.Tensor:
    """Return the two embeddings (1, 2, E) that diffusers' prior pipeline draws."""
    noise(seed)
    rows = 1 if negative is None else 2
    found = pipeline.prior_pipe(
        PROMPT, negative_prompt=negative, latents=_noise(seed, (rows, 16)), **asked
    )
    return torch.stack([found.image_embeds, found.negative_image_embeds], 1)


def drawn_there(
    pipeline: Any, noise: Callable[[int], None], seed: int, pair: torch.Tensor, **asked: Any
) -> torch.Tensor:
    """Return what diffusers' decoder pipeline draws of two embeddings, (C, H, W)."""
    noise(seed)
    given = {"image_embeds": pair[:, 0], "negative_image_embeds": pair[:, 1]}
    sizes = {"height": 16, "width": 16, "output_type": "np"}
    found = pipeline.decoder_pipe(**given, **sizes, latents=_noise(seed, (1, 4, 8, 8)), **asked)
    return torch.from_numpy(found.images[0]).permute(2, 0, 1)


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (4.0, None), (4.0, "a dull cat!")])
def test_the_stages_draw_what_diffusers_own_pipelines_draw(
    kandinsky: tuple[Path, Any],
    stages: dict[str, Any],
    noise: Callable[[int], None],
    guidance: float,
    negative: str | None,
) -> None:
    asked = {"num_inference_steps": 3, "guidance_scale": guidance}
    options = {"steps": 3, "guidance": guidance}
    given = {"text_embedding": entered(stages["text"], "read", {}, (PROMPT,) * 2)}
    if negative:
        given["without"] = entered(stages["text"], "read", {}, (negative,) * 2)
    pairs = stages["prior"].sample(Request(seeds=(7, 8), given=given, options=options))
    latents = stages["model"].sample(
        Request(seeds=(7, 8), given={"embedding": pairs}, options=options)
    )
    ours = entered(stages["autoencoder"], "decode", {"latent": latents})
    for row, seed in enumerate((7, 8)):
        wanted = embedded_there(kandinsky[1], noise, seed, negative, **asked)
        torch.testing.assert_close(pairs[row, None], wanted, rtol=0, atol=1e-4)
        picture = drawn_there(kandinsky[1], noise, seed, wanted, **asked)
        torch.testing.assert_close(ours[row], picture, rtol=0, atol=1e-4)
    assert (ours[0] - ours[1]).abs().max() > 1e-2


def test_a_picture_is_embedded_and_two_are_mixed_as_diffusers_does(
    kandinsky: tuple[Path, Any], stages: dict[str, Any], noise: Callable[[int], None]
) -> None:
    levels = torch.randint(256, (16, 16, 3), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(levels.byte().numpy())
    shown = entered(stages["image"], "embed", {"pixels": levels.permute(2, 0, 1)[None] / 255})
    wanted = kandinsky[1].prior_pipe.interpolate([picture], [1.0], num_inference_steps=2)
    torch.testing.assert_close(shown[:, 0], wanted.image_embeds, rtol=0, atol=1e-4)
    torch.testing.assert_close(shown[:, 1], wanted.negative_image_embeds, rtol=0, atol=1e-4)
    said = embedded_there(kandinsky[1], noise, 7, None, num_inference_steps=2)
    noise(7)
    mixed = kandinsky[1].prior_pipe.interpolate(
        [PROMPT, picture], [0.75, 0.25], num_inference_steps=2, latents=_noise(7, (1, 16))
    )
    ends = {"embedding": said, "other": shown, "weight": torch.tensor([0.25])}
    ours = entered(stages["prior"], "blend", ends)
    torch.testing.assert_close(ours[:, 0], mixed.image_embeds, rtol=0, atol=1e-4)


def test_what_learns_learns_from_what_the_other_stages_make(stages: dict[str, Any]) -> None:
    pixels = torch.rand(4, 3, 16, 16)
    batch = {
        "pixels": pixels,
        "latent": entered(stages["autoencoder"], "encode", {"pixels": pixels}),
        "embedding": entered(stages["image"], "embed", {"pixels": pixels}),
        "text_embedding": entered(stages["text"], "read", {}, ["a cat"] * 4),
    }
    for name in ("prior", "model"):
        stages[name](batch).total.backward()
        learned = stages[name].player_parameters("model")
        assert all(one.grad.isfinite().all() for one in learned if one.grad is not None)
        assert any(one.grad is not None for one in learned)
    for name in ("text", "image", "autoencoder"):
        assert not stages[name].player_parameters("model")
        with pytest.raises(ValueError, match="of a checkpoint stays as it is: nothing learns"):
            stages[name](batch)


def test_it_is_registered_as_five_stages_and_draws_there_what_diffusers_draws(
    kandinsky: tuple[Path, Any], here: Installation, noise: Callable[[int], None]
) -> None:
    folder, pipeline = kandinsky
    _, version = import_checkpoint(folder, "a test", "foreign")
    assert import_checkpoint(folder, "a test", "foreign")[1] == version, "found, not repeated"
    pinned = read_pipeline(registry().fetch(version))
    assert [one.stage for one in pinned.stages] == [
        "text",
        "prior",
        "image",
        "autoencoder",
        "model",
    ]
    assert {"variations", "blends"} <= {*pinned.abilities}
    models = [load_model(registry().fetch(one.name, digest=one.sha256)) for one in pinned.stages]
    for negative in (None, "a dull cat"):
        options = {"steps": 4, **({"negative_prompt": negative} if negative else {})}
        ours = draw(models, pinned, [PROMPT], [7], options=options)[0]
        seeds = {stage: salted(7, stage) for stage in ("prior", "model")}
        asked = {"num_inference_steps": 4}
        pair = embedded_there(pipeline, noise, seeds["prior"], negative, **asked)
        wanted = drawn_there(pipeline, noise, seeds["model"], pair, **asked)
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)


def test_a_decoder_s_folder_and_a_prior_s_are_the_stages_of_one_that_has_both(
    kandinsky: tuple[Path, Any], here: Installation, tmp_path: Path
) -> None:
    folder, pipeline = kandinsky
    pipeline.decoder_pipe.save_pretrained(tmp_path / "decoder")
    pipeline.prior_pipe.save_pretrained(tmp_path / "prior")
    whole = read(folder, "a test")
    apart = read(tmp_path / "decoder", "a test", prior=tmp_path / "prior")
    for name, part in {"": whole, **whole.beside}.items():
        other = {"": apart, **apart.beside}[name]
        assert _but_for_padding(part.document) == _but_for_padding(other.document)
        assert all(torch.equal(part.tensors[key], other.tensors[key]) for key in part.tensors)
    _, version = import_checkpoint(
        tmp_path / "decoder", "a test", "apart", prior=tmp_path / "prior"
    )
    assert len(read_pipeline(registry().fetch(version)).stages) == 5
    with pytest.raises(CheckpointError, match="has no prior, which draws embeddings of texts"):
        read(tmp_path / "decoder", "a test")
    with pytest.raises(CheckpointError, match="is a prior alone, which draws no picture"):
        read(tmp_path / "prior", "a test")
    with pytest.raises(CheckpointError, match="has a prior of its own: leave --prior out"):
        read(folder, "a test", prior=tmp_path / "prior")
    with pytest.raises(CheckpointError, match="is no KandinskyV22PriorPipeline"):
        read(tmp_path / "decoder", "a test", prior=tmp_path / "decoder")


def _but_for_padding(document: dict[str, Any]) -> dict[str, Any]:
    """Return a config without its tokenizer, which a pipeline that has read a prompt saves with a padding."""
    return {name: one for name, one in document["config"].items() if name != "reader"}


def _truncated(folder: Path) -> None:
    path = folder / "prior_prior" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (lambda f: (f / "prior_prior" / "a.bin").write_bytes(b"."), r"a\.bin is a pickle"),
    "truncated": (_truncated, r"prior_prior/diffusion_pytorch_model\.safetensors is truncated"),
    "another class": (
        lambda f: changed(f / "model_index.json", movq=["diffusers", "AutoencoderKL"]),
        "movq is a AutoencoderKL, not a VQModel",
    ),
    "other noise": (
        lambda f: changed(
            f / "scheduler" / "scheduler_config.json", _class_name="EulerAncestralDiscreteScheduler"
        ),
        "'EulerAncestralDiscreteScheduler' is none of an unCLIP's",
    ),
    "another variance": (
        lambda f: changed(f / "scheduler" / "scheduler_config.json", variance_type="learned"),
        "variance_type must be one of fixed_small, .*, got 'learned'",
    ),
    "another prediction": (
        lambda f: changed(
            f / "prior_scheduler" / "scheduler_config.json", prediction_type="v_prediction"
        ),
        "UnCLIPScheduler must predict epsilon or sample, got 'v_prediction'",
    ),
    "no size": (
        lambda f: changed(f / "unet" / "config.json", sample_size=None),
        r"unet/config\.json: sample_size must be one number, got None",
    ),
    "no means": (
        lambda f: changed(f / "prior_image_processor" / "preprocessor_config.json", image_mean=1),
        r"preprocessor_config\.json: image_mean must be a list, got 1",
    ),
    "no scheduler": (
        lambda f: (f / "scheduler" / "scheduler_config.json").write_text("[]"),
        "scheduler None is none of an unCLIP's",
    ),
    "another pipeline": (
        lambda f: changed(f / "model_index.json", _class_name="KandinskyV22InpaintPipeline"),
        "is a KandinskyV22InpaintPipeline; taken are .*KandinskyV22CombinedPipeline",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_not_whole_or_draws_in_another_way_is_refused_by_name(
    kandinsky: tuple[Path, Any], here: Installation, tmp_path: Path, fault: str
) -> None:
    folder = shutil.copytree(kandinsky[0], tmp_path / "spoilt")
    spoil, message = REFUSED[fault]
    spoil(folder)
    with pytest.raises((CheckpointError, IntegrityError, ValueError), match=message):
        import_checkpoint(folder, "a test", "spoilt")
    assert not registry().names()


def test_a_size_that_diffusers_would_round_up_is_refused(kandinsky: tuple[Path, Any]) -> None:
    with pytest.raises(CheckpointError, match="image_size must be a multiple of 4, got 18"):
        read(kandinsky[0], "a test", 18)
