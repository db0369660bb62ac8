"""Recipes of moving shapes: graphs from a caption, a picture and a clip, drawn by networks that know nothing."""

from typing import Any

import pytest
import torch

from data.makers.moving import CAPTIONS
from flows.evaluating.pipeline import able_of, clips_of, draw
from infra.pipelines import Entrance, Node, Pipeline
from models.family import Family
from tests.flows.moving_kit import OF_LATENTS, SMALL_DIT, small_cascade
from tests.models.families_kit import tiny


@pytest.fixture(scope="module")
def cascade() -> tuple[list[Family], Pipeline]:
    return small_cascade()


@pytest.mark.parametrize(
    ("entrance", "beside"),
    [
        ("generate", {}),
        ("animate", {"image": (3, 16, 16)}),
        ("alter", {"clip": (9, 3, 32, 32)}),
        ("extend", {"clip": (9, 3, 16, 16)}),
    ],
)
def test_a_clip_comes_out_of_every_entrance(
    cascade: Any, entrance: str, beside: dict[str, tuple[int, ...]]
) -> None:
    models, pipeline = cascade
    generator = torch.Generator().manual_seed(0)
    given = {name: torch.rand(2, *shape, generator=generator) for name, shape in beside.items()}
    made = draw(models, pipeline, CAPTIONS[:2], (1, 2), called=entrance, beside=given)
    assert made.shape == (2, 9, 3, 64, 64)
    assert (made[0] - made[1]).abs().max() > 0.01
    if entrance == "extend":  # the last frame of the clip is the first one, enlarged
        small = torch.nn.functional.adaptive_avg_pool2d(made[:, 0], 16)
        apart_F = (small[:, None] - given["clip"]).abs().mean((0, 2, 3, 4))
        assert apart_F.argmin() == 8
        assert apart_F[8] < 0.5 * apart_F[:8].min()


@pytest.mark.parametrize(
    ("entrance", "beside"),
    [
        ("generate", {}),
        ("animate", {"image": (3, 32, 32)}),
        ("extend", {"clip": (9, 3, 32, 32)}),
    ],
)
def test_a_clip_of_latents_is_painted_at_every_entrance(
    entrance: str, beside: dict[str, tuple[int, ...]]
) -> None:
    """Its first frame is the picture's, or the clip's last one, as the autoencoder paints it."""
    models, pipeline = small_cascade(SMALL_DIT, recipe=OF_LATENTS, side=32)
    generator = torch.Generator().manual_seed(0)
    given = {name: torch.rand(2, *shape, generator=generator) for name, shape in beside.items()}
    made = draw(models, pipeline, CAPTIONS[:2], (1, 2), called=entrance, beside=given)
    assert made.shape == (2, 9, 3, 32, 32)
    assert (made[0] - made[1]).abs().max() > 0.01
    for name, known in given.items():
        first: Any = models[0]
        painted = first.decode(first.latents(known if name == "image" else known[:, -1]))
        torch.testing.assert_close(made[:, 0], painted, rtol=0, atol=1e-4)


def test_how_many_frames_a_clip_has_says_who_drew_it() -> None:
    """An autoencoder decodes any number of them."""
    for models, pipeline in (small_cascade(SMALL_DIT, recipe=OF_LATENTS, side=32), small_cascade()):
        generate = pipeline.entrances["generate"]
        by_stage = {one.stage: model for one, model in zip(pipeline.stages, models, strict=True)}
        assert clips_of(generate, by_stage, 8.0) == {"frames": 9, "frame_rate": 8.0}
        assert able_of(generate, by_stage) == ("videos",)


def test_a_clip_of_each_second_frame_is_played_half_as_fast_also_enlarged() -> None:
    decoder = tiny("make-a-video-decoder", frames=3, skips=(1, 2))
    models = {"decoder": decoder, "upsampler": tiny("make-a-video-upsampler")}
    nodes = {name: Node(stage=name, wires={}) for name in models}
    for few in (nodes, {"decoder": nodes["decoder"]}):
        way = Entrance(nodes=few, output=f"{[*few][-1]}.frames")
        assert clips_of(way, models, 8.0) == {"frames": 3, "frame_rate": 4.0}
