"""Pipelines of others that draw clips: AnimateDiff's and Wan's, read from tiny checkpoints built from configs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.provenance.checkpoints import CheckpointError, read
from models.parts.noise import normals
from models.parts.rows import join, take
from models.request import Request
from tests.flows.checkpoint_kit import CLIPS, changed, model_of, saved

FRAMES = {"animatediff": 4, "wan": 5}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What diffusers draws with, and the same as a model here, of 16 pixels and few frames."""
    found = {}
    for kind in CLIPS:
        folder = tmp_path_factory.mktemp(kind)
        theirs = saved(kind, folder)
        model = model_of(read(folder, "a test"), frames=FRAMES[kind], image_size=16)
        found[kind] = (theirs, model)
    return found


@pytest.mark.parametrize("kind", CLIPS)
@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (6.0, "a dull cat")])
def test_a_clip_is_the_one_that_diffusers_own_pipeline_draws(
    pipelines: dict[str, Any], kind: str, guidance: float, negative: str | None
) -> None:
    pipeline, model = pipelines[kind]
    prompts = ("a red cat", "two   cats")
    options = {"steps": 5, "guidance": guidance, "negative_prompt": negative}
    ours = model.sample(Request(seeds=(7, 8), prompts=prompts, options=options))
    assert ours.shape == (2, FRAMES[kind], 3, 16, 16)
    channels, height, width = model._shape()
    for row, (seed, prompt) in enumerate(zip((7, 8), prompts, strict=True)):
        noise = normals((seed,), (channels, height, width), torch.device("cpu"))
        wanted = pipeline(
            prompt,
            num_inference_steps=5,
            guidance_scale=guidance,
            negative_prompt=negative,
            num_frames=FRAMES[kind],
            height=16,
            width=16,
            latents=noise.unflatten(2, (model.config.latent_frames, -1)),
            output_type="pt",
        ).frames[0]
        torch.testing.assert_close(ours[row], wanted, rtol=0, atol=1e-4)
    moves = (ours[:, 1:] - ours[:, :-1]).abs().amax((1, 2, 3, 4))
    assert (moves > 1e-2).all(), "a still picture, repeated"


@pytest.mark.parametrize("kind", CLIPS)
def test_clips_of_other_steps_and_guidance_share_a_batch(
    pipelines: dict[str, Any], kind: str
) -> None:
    _, model = pipelines[kind]
    asked = [
        Request(seeds=(1,), prompts=("a cat",), options={"steps": 2, "guidance": 1.0}),
        Request(seeds=(2,), prompts=("red",), options={"steps": 4, "negative_prompt": "cat"}),
    ]
    rows = join([model.begin(one) for one in asked])
    while not model.done(rows).all():
        rows = model.step(rows)
    for place, one in enumerate(asked):
        ended = model.finish(take(rows, [place]))
        torch.testing.assert_close(ended, model.sample(one), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "learning"), [("animatediff", ".motion_modules."), ("wan", "transformer.")]
)
def test_of_animatediff_only_what_moves_learns_and_of_wan_the_transformer(
    pipelines: dict[str, Any], kind: str, learning: str
) -> None:
    _, model = pipelines[kind]
    assert (model.levels_N3[:, 1] >= 0).all()
    frames = torch.rand(2, FRAMES[kind], 3, 16, 16)
    losses = model.forward({"frames": frames, "tokens": model.encode(["a cat", "red"])})
    losses.total.backward()
    learned = {name for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    assert learned
    assert all(learning in name for name in learned)
    assert torch.isfinite(losses.total)


def test_wan_is_trained_at_the_mixtures_that_it_is_sampled_at(pipelines: dict[str, Any]) -> None:
    _, model = pipelines["wan"]
    time_N, alpha_N, sigma_N = model.levels_N3.unbind(1)
    torch.testing.assert_close(alpha_N + sigma_N, torch.ones_like(time_N))
    torch.testing.assert_close(sigma_N, time_N / 1000)
    table_SK, _ = model._table(Request(seeds=(1,), steps=8))
    assert time_N.min() < table_SK[:, 0].min()
    assert table_SK[:, 0].max() <= time_N.max()
    assert (sigma_N > 0.5).float().mean() == pytest.approx(0.75, abs=0.01)  # a shift of 3


def test_what_the_autoencoder_keeps_of_a_clip_is_what_it_decodes(pipelines: dict[str, Any]) -> None:
    _, model = pipelines["wan"]
    latents = torch.randn(1, *model._shape(), generator=torch.Generator().manual_seed(0))
    frames = model._decoded(latents)
    again = model._decoded(model._latents({"frames": frames}))
    assert frames.shape == again.shape == (1, 5, 3, 16, 16)


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("animatediff", {"frames": 17}, "frames must be between 1 and 16, got 17"),
        ("wan", {"frames": 6}, "frames must be a multiple of 4 and one more, got 6"),
        ("wan", {"image_size": 24}, "image_size must be a multiple of 16, got 24"),
        ("wan", {"pipeline": "StableDiffusionPipeline"}, "pipeline must be one of AnimateDiff"),
    ],
)
def test_sizes_that_a_checkpoint_cannot_draw_are_refused(
    pipelines: dict[str, Any], kind: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        replace(pipelines[kind][1].config, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"transformer_2": ["diffusers", "WanTransformer3DModel"]},
            "transformer_2, a WanTransformer3DModel, which no WanPipeline here draws with",
        ),
        ({"expand_timesteps": True}, "expand_timesteps is True: no such WanPipeline here"),
    ],
)
def test_a_pipeline_that_draws_in_another_way_is_refused_by_what_makes_it_so(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    saved("wan", tmp_path)
    changed(tmp_path / "model_index.json", **changes)
    with pytest.raises(CheckpointError, match=says):
        read(tmp_path, "a test")
