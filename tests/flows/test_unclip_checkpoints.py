"""Kandinsky and Karlo of others: their stages draw what diffusers draws at the same noise."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

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
from models import build, describe
from models.parts.noise import normals
from models.parts.rows import entered, join
from models.ports import salted
from models.request import Request
from tests.flows.checkpoint_kit import changed, saved, text_config, tokenizer
from tests.flows.versions_kit import Installation

CPU = torch.device("cpu")
PROMPT = "a red cat"
Shape: TypeAlias = tuple[int, ...]
Noise: TypeAlias = Callable[[Mapping[Shape, int]], None]
LATENTS: Final[Mapping[str, Shape]] = {
    **{"prior_latents": (16,), "decoder_latents": (3, 8, 8)},
    "super_res_latents": (3, 16, 16),
}
"""What Karlo's loops begin with, a row."""
STEPS: Final = {f"{part}_num_inference_steps": 3 for part in ("prior", "decoder", "super_res")}


@pytest.fixture(scope="module")
def kandinsky(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder, and diffusers' pipeline of it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "kandinsky"
    pipeline = saved("kandinsky", folder)
    for part in (pipeline.prior_pipe, pipeline.decoder_pipe):
        part.set_progress_bar_config(disable=True)
    return folder, pipeline


@pytest.fixture(scope="module")
def karlo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder, and diffusers' pipeline of it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "karlo"
    pipeline = saved("karlo", folder)
    as_its_authors_did = {"text_proj": ["unclip", "UnCLIPTextProjModel"]}
    changed(folder / "model_index.json", **as_its_authors_did)
    return folder, pipeline


def stages_of(folder: Path) -> dict[str, Any]:
    """Return what is read of a folder, a model a stage."""
    found = {}
    for name, part in parted(read(folder, "a test"), "model").items():
        found[name] = build(part.document).ready()
        found[name].load_state_dict(dict(part.tensors))
    return found


@pytest.fixture(scope="module")
def stages(kandinsky: tuple[Path, Any]) -> dict[str, Any]:
    return stages_of(kandinsky[0])


@pytest.fixture(scope="module")
def parts(karlo: tuple[Path, Any]) -> dict[str, Any]:
    return stages_of(karlo[0])


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Noise:
    """Have diffusers' schedulers draw what a seed draws here, one step after the other, by the shape of a row."""
    seeds: dict[Shape, int] = {}
    draws: Counter[Shape] = Counter()

    def drawn(shape: Shape, **_: Any) -> torch.Tensor:
        draws[shape[1:]] += 1
        return _noise(seeds.get(shape[1:], 0), shape, draws[shape[1:]])

    def begin(asked: Mapping[Shape, int]) -> None:
        seeds.update(asked)
        draws.clear()

    for name in ("ddpm", "unclip"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{name}.randn_tensor", drawn)
    return begin


def _noise(seed: int, shape: Shape, draw: int = 0) -> torch.Tensor:
    return torch.cat(
        [normals((seed,), shape[1:], CPU, stage=row, draws=draw) for row in range(shape[0])]
    )


def embedded_there(
    pipeline: Any, noise: Noise, seed: int, negative: str | None, **asked: Any
) -> torch.Tensor:
    """Return the two embeddings (1, 2, E) that diffusers' prior pipeline draws."""
    noise({(16,): seed})
    rows = 1 if negative is None else 2
    found = pipeline.prior_pipe(
        PROMPT, negative_prompt=negative, latents=_noise(seed, (rows, 16)), **asked
    )
    return torch.stack([found.image_embeds, found.negative_image_embeds], 1)


def drawn_there(
    pipeline: Any, noise: Noise, seed: int, pair: torch.Tensor, **asked: Any
) -> torch.Tensor:
    """Return what diffusers' decoder pipeline draws of two embeddings, (C, H, W)."""
    noise({(4, 8, 8): seed})
    given = {"image_embeds": pair[:, 0], "negative_image_embeds": pair[:, 1]}
    sizes = {"height": 16, "width": 16, "output_type": "np"}
    found = pipeline.decoder_pipe(**given, **sizes, latents=_noise(seed, (1, 4, 8, 8)), **asked)
    return torch.from_numpy(found.images[0]).permute(2, 0, 1)


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (4.0, None), (4.0, "a dull cat!")])
def test_the_stages_draw_what_diffusers_own_pipelines_draw(
    kandinsky: tuple[Path, Any],
    stages: dict[str, Any],
    noise: Noise,
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
    kandinsky: tuple[Path, Any], stages: dict[str, Any], noise: Noise
) -> None:
    levels = torch.randint(256, (16, 16, 3), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(levels.byte().numpy())
    shown = entered(stages["image"], "embed", {"pixels": levels.permute(2, 0, 1)[None] / 255})
    wanted = kandinsky[1].prior_pipe.interpolate([picture], [1.0], num_inference_steps=2)
    torch.testing.assert_close(shown[:, 0], wanted.image_embeds, rtol=0, atol=1e-4)
    torch.testing.assert_close(shown[:, 1], wanted.negative_image_embeds, rtol=0, atol=1e-4)
    said = embedded_there(kandinsky[1], noise, 7, None, num_inference_steps=2)
    noise({(16,): 7})
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
    kandinsky: tuple[Path, Any], here: Installation, noise: Noise
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
        pair = embedded_there(pipeline, noise, seeds["prior"], negative)
        wanted = drawn_there(pipeline, noise, seeds["model"], pair, num_inference_steps=4)
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


def picture_there(
    pipeline: Any, noise: Noise, seeds: Mapping[str, int], **asked: Any
) -> torch.Tensor:
    """Return what diffusers' Karlo draws of the prompt, (C, H, W)."""
    noise({shape: seeds[name] for name, shape in LATENTS.items()})
    latents = {name: _noise(seeds[name], (1, *shape)) for name, shape in LATENTS.items()}
    found = pipeline(PROMPT, output_type="np", **latents, **asked)
    return torch.from_numpy(found.images[0]).permute(2, 0, 1)


@pytest.mark.parametrize("guidance", [1.0, 8.0])
def test_karlo_s_stages_draw_what_diffusers_own_pipeline_draws(
    karlo: tuple[Path, Any], parts: dict[str, Any], noise: Noise, guidance: float
) -> None:
    known = entered(parts["text"], "read", {}, (PROMPT,) * 2)
    asked = {"seeds": (7, 8), "steps": 3}
    pairs = parts["prior"].sample(Request(**asked, given={"text_embedding": known}))
    given = {"embedding": pairs, "text_embedding": known}
    small = parts["model"].sample(Request(**asked, given=given, guidance=guidance))
    ours = parts["upsampler"].sample(Request(**asked, given={"low": small}))
    assert small.shape[2:] == (8, 8)
    assert ours.shape[2:] == (16, 16)
    for row, seed in enumerate((7, 8)):
        seeds = dict.fromkeys(LATENTS, seed)
        scale = {"decoder_guidance_scale": guidance}
        wanted = picture_there(karlo[1], noise, seeds, **STEPS, **scale)
        torch.testing.assert_close(ours[row], wanted, rtol=0, atol=1e-4)
    assert (ours[0] - ours[1]).abs().max() > 1e-2
    unread = parts["model"].sample(Request(**asked, given={"embedding": pairs}, guidance=guidance))
    assert (unread - small).abs().max() > 1e-3, "the decoder reads the text, too"


def test_karlo_is_registered_as_four_stages_and_draws_there_what_diffusers_draws(
    karlo: tuple[Path, Any], here: Installation, noise: Noise
) -> None:
    _, version = import_checkpoint(karlo[0], "a test", "foreign")
    assert import_checkpoint(karlo[0], "a test", "foreign")[1] == version, "found, not repeated"
    pinned = read_pipeline(registry().fetch(version))
    assert [one.stage for one in pinned.stages] == ["text", "prior", "upsampler", "model"]
    assert pinned.image_size == (16, 16)
    assert not {"variations", "blends"} & {*pinned.abilities}
    models = [load_model(registry().fetch(one.name, digest=one.sha256)) for one in pinned.stages]
    assert [one.config.steps for one in models[1:]] == [25, 7, 25], "as diffusers' pipeline takes"
    ours = draw(models, pinned, [PROMPT], [7], options={"steps": 3})[0]
    stages = zip(LATENTS, ("prior", "model", "upsampler"), strict=True)
    seeds = {name: salted(7, stage) for name, stage in stages}
    wanted = picture_there(karlo[1], noise, seeds, decoder_num_inference_steps=3)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)


def test_a_row_is_enlarged_to_the_same_bits_beside_rows_at_other_steps(
    parts: dict[str, Any],
) -> None:
    model = parts["upsampler"]
    model.call_sizes = (4,)
    low = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    begun = [
        model.begin(Request(seeds=(seed,), given={"low": low}, steps=steps))
        for seed, steps in ((7, 2), (8, 3), (9, 4))
    ]
    ended = []
    for rows in (join(begun), *begun):
        while not model.done(rows).all():
            rows = model.step(rows)
        ended.append(model.finish(rows))
    mixed, *alone = ended
    assert torch.equal(mixed, torch.cat(alone))
    model.call_sizes = ()


def test_of_karlo_nothing_learns(parts: dict[str, Any]) -> None:
    for name in ("text", "model", "upsampler"):
        assert not parts[name].player_parameters("model")
        with pytest.raises(ValueError, match="of a checkpoint stays as it is: nothing learns"):
            parts[name]({})


def _truncated(folder: Path) -> None:
    path = folder / "prior_prior" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _other_texts(folder: Path) -> None:
    from transformers import CLIPTextModelWithProjection

    config = text_config(tokenizer(), projection_dim=24)
    CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder")


def _set(part: str, **values: Any) -> Callable[[Path], None]:
    """Return what writes settings of a part."""
    file = "scheduler_config.json" if part.endswith("scheduler") else "config.json"
    return lambda folder: changed(folder / part / file, **values)


Spoil: TypeAlias = Callable[[Path], object]
REFUSED: dict[str, dict[str, tuple[Spoil, str]]] = {
    "kandinsky": {
        "pickle": (
            lambda f: (f / "prior_prior" / "a.bin").write_bytes(b"."),
            r"a\.bin is a pickle",
        ),
        "truncated": (_truncated, r"prior_prior/diffusion_pytorch_model\.safetensors is truncated"),
        "another class": (
            lambda f: changed(f / "model_index.json", movq=["diffusers", "AutoencoderKL"]),
            "movq is a AutoencoderKL, not a VQModel",
        ),
        "other noise": (
            lambda f: changed(
                f / "scheduler" / "scheduler_config.json",
                _class_name="EulerAncestralDiscreteScheduler",
            ),
            "'EulerAncestralDiscreteScheduler' is none of an unCLIP's",
        ),
        "another variance": (
            _set("scheduler", variance_type="learned"),
            "variance_type must be one of fixed_small, .*, got 'learned'",
        ),
        "another prediction": (
            _set("prior_scheduler", prediction_type="v_prediction"),
            "UnCLIPScheduler must predict epsilon or sample, got 'v_prediction'",
        ),
        "no size": (
            _set("unet", sample_size=None),
            r"unet/config\.json: sample_size must be one number, got None",
        ),
        "no means": (
            lambda f: changed(
                f / "prior_image_processor" / "preprocessor_config.json", image_mean=1
            ),
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
    },
    "karlo": {
        "a pickle": (lambda f: (f / "decoder" / "a.bin").write_bytes(b"."), r"a\.bin is a pickle"),
        "code": (lambda f: (f / "text_proj" / "a.py").write_text(""), r"a\.py is code"),
        "another library": (
            lambda f: changed(f / "model_index.json", text_proj=["mine", "UnCLIPTextProjModel"]),
            "takes text_proj from 'mine', code of its own",
        ),
        "another class": (
            lambda f: changed(f / "model_index.json", super_res_last=["diffusers", "VQModel"]),
            "super_res_last is a VQModel, not a UNet2DModel",
        ),
        "no super-resolution": (
            lambda f: changed(f / "model_index.json", super_res_last=[None, None]),
            "has no super_res_last, which a UnCLIPPipeline needs",
        ),
        "another pipeline": (
            lambda f: changed(f / "model_index.json", _class_name="UnCLIPImageVariationPipeline"),
            "is a UnCLIPImageVariationPipeline; taken are .*UnCLIPPipeline",
        ),
        "other noise": (
            _set("super_res_scheduler", _class_name="DDPMScheduler"),
            r"super_res_scheduler/scheduler_config\.json: _class_name must be UnCLIPScheduler, got DDPM",
        ),
        "a fixed variance": (
            _set("decoder_scheduler", variance_type="fixed_small_log"),
            "scheduler: of a decoder its variance_type must be learned_range",
        ),
        "no size": (
            _set("decoder", sample_size=None),
            r"decoder/config\.json: sample_size must be one number, got None",
        ),
        "two large sizes": (
            _set("super_res_last", sample_size=32),
            "super_res_last: sample_size must be 16, got 32",
        ),
        "a learned variance of nobody": (
            _set("super_res_scheduler", variance_type="learned_range"),
            "super_res_first: out_channels must be 6, got 3",
        ),
        "another width": (
            _other_texts,
            r"text_encoder/config\.json: projection_dim must be its hidden_size 16, got 24",
        ),
        "another length": (
            lambda f: changed(f / "tokenizer" / "tokenizer_config.json", model_max_length=40),
            "prior: num_embeddings must be 40, got 48",
        ),
    },
}


@pytest.mark.parametrize(
    ("stage", "part", "settings", "message"),
    [
        ("model", "text_proj", {"cross_attention_dim": 8}, "cross_attention_dim must be 12, got 8"),
        ("model", "text_proj", {"time_embed_dim": 16}, "time_embed_dim must be 32, got 16"),
        ("model", "text_proj", {"clip_embeddings_dim": 8}, "clip_embeddings_dim must be 16, got 8"),
        ("model", "decoder", {"class_embed_type": None}, "class_embed_type must be identity, got"),
        ("model", "decoder", {"out_channels": 3}, "out_channels must be 6, got 3"),
        ("upsampler", "super_res_first", {"in_channels": 3}, "in_channels must be 6, got 3"),
        ("prior", "prior", {"embedding_dim": 8}, "embedding_dim must be 16, got 8"),
    ],
)
def test_networks_that_would_not_take_what_the_others_give_are_refused(
    parts: dict[str, Any], stage: str, part: str, settings: dict[str, Any], message: str
) -> None:
    document = describe(parts[stage])
    networks = document["config"]["networks"]
    odd = {**networks, part: {**networks[part], **settings}}
    with pytest.raises(ValueError, match=f"{part}: {message}"):
        build({**document, "config": {**document["config"], "networks": odd}})


def test_karlo_draws_at_its_own_size_and_has_its_own_prior(karlo: tuple[Path, Any]) -> None:
    with pytest.raises(CheckpointError, match="image_size: a UnCLIPPipeline draws at its own"):
        read(karlo[0], "a test", 32)
    with pytest.raises(CheckpointError, match="has a prior of its own: leave --prior out"):
        read(karlo[0], "a test", prior=karlo[0])


@pytest.mark.parametrize(
    ("kind", "fault"), [(kind, fault) for kind, faults in REFUSED.items() for fault in faults]
)
def test_what_is_not_whole_or_draws_in_another_way_is_refused_by_name(
    request: pytest.FixtureRequest, here: Installation, tmp_path: Path, kind: str, fault: str
) -> None:
    folder = shutil.copytree(request.getfixturevalue(kind)[0], tmp_path / "spoilt")
    spoil, message = REFUSED[kind][fault]
    spoil(folder)
    with pytest.raises((CheckpointError, IntegrityError, ValueError), match=message):
        import_checkpoint(folder, "a test", "spoilt")
    assert not registry().names()


def test_a_size_that_diffusers_would_round_up_is_refused(kandinsky: tuple[Path, Any]) -> None:
    with pytest.raises(CheckpointError, match="image_size must be a multiple of 4, got 18"):
        read(kandinsky[0], "a test", 18)
