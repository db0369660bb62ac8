"""The transformer of clips: what its tokens hear of, that it begins as a picture's, and frames that are known."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.parts.rows import join, take
from models.request import Request
from models.text_to_image.latent import LatentDiffusion
from models.text_to_video.latent_clips import LatentClips
from tests.models.families_kit import shaken, tiny

WORDS = ("left", "red", "right")
KINDS: tuple[dict[str, Any], ...] = (
    {"patch_frames": 1},
    {"patch_frames": 2},
    {"patch_frames": 1, "attending": "full"},
    {"patch_frames": 2, "attending": "full"},
)
ALONE: dict[str, Any] = {"patch_frames": 1, "temporal": False}


def clips(**changes: Any) -> LatentClips:
    """Clips of four frames by a network that has no weight at zero."""
    model = shaken("latent-clips", vocabulary=WORDS, max_words=3, **changes)
    assert isinstance(model, LatentClips)
    return model


def seen(model: LatentClips | LatentDiffusion, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy latents, times and a context."""
    torch.manual_seed(1)
    sigma_B = torch.linspace(0.2, 0.9, rows)
    times = torch.stack([1000 * sigma_B, 1 - sigma_B, sigma_B], 1)
    return torch.randn(rows, *model.config.shape), times, torch.randn(rows, 3, 16)


def some(frames: int, count: int = 1) -> Tensor:
    return torch.randn(count, frames, 4, 4, 4, generator=torch.Generator().manual_seed(3))


def test_a_clip_s_network_is_a_picture_s_frame_by_frame_at_first() -> None:
    """As Make-A-Video's, of a transformer: layers over time are gated by zeros."""
    torch.manual_seed(0)
    sizes = {"backbone": "dit", "widths": (24,), "blocks": 2, "patch": 2, "vocabulary": WORDS}
    picture = LatentDiffusion(dataclasses.replace(LatentDiffusion.presets["tiny"], **sizes))
    with torch.no_grad():
        for parameter in picture.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    video: Any = tiny("latent-clips", vocabulary=WORDS, patch_frames=1)
    video.load_state_dict({**video.state_dict(), **video.start_from(picture.state_dict())})
    x, times, context = seen(video)
    with torch.no_grad():
        made = video.network(x, times, context, None)
        for frame in range(4):
            planes = slice(4 * frame, 4 * frame + 4)
            alone = picture.network(x[:, planes], times, context, None)
            assert alone.abs().max() > 0.1
            torch.testing.assert_close(made[:, planes], alone, rtol=0, atol=1e-5)
    knowing: Any = tiny("latent-clips", vocabulary=WORDS, patch_frames=1, knows=0.5)
    first = knowing.start_from(picture.state_dict())["network.unet.stem.weight"]
    assert torch.equal(first[:, :16], picture.state_dict()["network.unet.stem.weight"])
    assert first[:, 16:].shape == (24, 20)
    assert not first[:, 16:].any(), "nothing is made yet of what is known"


@pytest.mark.parametrize("kind", [*KINDS, ALONE])
def test_frames_hear_of_one_another_through_layers_over_time_alone(kind: dict[str, Any]) -> None:
    """Even in one block; and without them of none, whatever the frame."""
    model = clips(**kind, blocks=1)
    x, times, context = seen(model, 1)
    x.requires_grad_()
    of_rate = model._at_rate(model.network.of_times(times), torch.tensor([8.0]))
    out = model.network(x, times, context, None, of_rate)
    (gradient,) = torch.autograd.grad(out[:, :4, 0, 0].sum(), x)
    reached = gradient.unflatten(1, (4, 4)).abs().sum((0, 2, 3, 4)) > 1e-7
    assert reached.tolist() == ([True] * 4 if model.config.temporal else [True] + [False] * 3)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_in_another_order_are_another_clip(kind: dict[str, Any]) -> None:
    model = clips(**kind)
    x, times, context = seen(model)
    back = x.unflatten(1, (4, 4)).flip(1).flatten(1, 2)
    with torch.no_grad():
        forward, backward = (model.network(one, times, context, None) for one in (x, back))
    turned = backward.unflatten(1, (4, 4)).flip(1).flatten(1, 2)
    assert (forward - turned).abs().max() > 1e-2


def test_a_token_is_a_patch_of_space_and_time_of_its_own_frames() -> None:
    """Nothing but the stem and the last layer where all blocks are the identity: a place of two frames is one token."""
    model: Any = tiny("latent-clips")
    with torch.no_grad():
        model.network.unet.out.weight.normal_()
    x, times, context = seen(model, 1)
    x.requires_grad_()
    out = model.network(x, times, context, None)
    (gradient,) = torch.autograd.grad(out[0, 0, 0, 0], x)
    reached = gradient.unflatten(1, (4, 4)).abs().sum((0, 2)) > 0
    wanted = torch.zeros(4, 4, 4, dtype=torch.bool)
    wanted[:2, :2, :2] = True
    assert torch.equal(reached, wanted)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), frames=st.integers(3, 6))
def test_a_clip_goes_on_from_the_last_frames_of_another(seed: int, frames: int) -> None:
    """Half of a clip's and the one in the middle, bit by bit; and from a picture as its first frame."""
    model, before = clips(knows=0.5), some(frames)
    known = {"start": before[:, -3:], "first": before[:, -1:]}
    for name, kept in known.items():
        given = before if name == "start" else before[:, -1]
        made = model.sample(Request(seeds=(seed,), prompts=("red",), given={name: given}))
        assert torch.equal(made[:, : kept.shape[1]], kept)
        assert (made[:, kept.shape[1] :].abs().amax((0, 2, 3, 4)) > 0).all()


def test_what_is_known_changes_what_follows() -> None:
    model = clips(knows=0.5)
    one, other = (
        model.sample(Request(seeds=(1,), prompts=("red",), given={"first": first}))
        for first in (some(1)[:, 0], -some(1)[:, 0])
    )
    assert (one - other)[:, 1:].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"start": some(2)}, "start: this model goes on from 3 frames, got 2"),
        ({"start": some(4), "first": some(1)[:, 0]}, "first: give the first frame or a clip"),
    ],
)
def test_what_it_cannot_go_on_from_is_refused(given: dict[str, Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        clips(knows=0.5).sample(Request(seeds=(1,), prompts=("red",), given=given))
    with pytest.raises(ValueError, match="this model takes no such input"):
        clips().sample(Request(seeds=(1,), prompts=("red",), given=given))


def test_the_share_that_it_says_learns_to_go_on() -> None:
    """From one frame to all but one, each as often; the mask says which."""
    model = clips(knows=0.5)
    torch.manual_seed(0)
    clip, low = model._training_pair(torch.randn(4000, 16, 4, 4))
    assert low is not None
    told = low[0].unflatten(1, (4, 5))
    mask = told[:, :, 4, 0, 0]
    counts = mask.sum(1).long().bincount(minlength=5) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.5, *[0.5 / 3] * 3, 0]), rtol=0, atol=0.03)
    torch.testing.assert_close(
        told[:, :, :4], clip.unflatten(1, (4, 4)) * mask[..., None, None, None]
    )
    assert (mask.diff(dim=1) <= 0).all(), "the first ones"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_all_kinds_share_a_batch(kind: dict[str, Any]) -> None:
    """Guided or not, away from a text or not, from frames or not, at other rates and steps: each ends as alone."""
    model = clips(**kind, knows=0.5, skips=(1, 2))
    asked = [
        Request(seeds=(1,), prompts=("red",), steps=5, negative_prompt="left"),
        Request(seeds=(2,), prompts=("red left",), steps=3, guidance=1.0, frame_rate=16.0),
        Request(seeds=(3,), prompts=("red",), given={"start": some(5)}),
        Request(seeds=(4,), given={"first": some(1)[:, 0]}),
    ]
    rows = model.step(model.step(model.begin(asked[0])))
    rows = join([rows, *(model.begin(one) for one in asked[1:])])
    while not model.done(rows).all():
        rows = model.step(rows)
    for place, one in enumerate(asked):
        ended = model.finish(take(rows, [place]))
        torch.testing.assert_close(ended, model.sample(one), rtol=0, atol=1e-4)


def test_the_same_noise_for_every_frame_of_latents_draws_the_same_latents() -> None:
    drawn = clips(**ALONE, shared_noise=True).sample(Request(seeds=(1, 2), guidance=0.0))
    torch.testing.assert_close(drawn, drawn[:, :1].expand_as(drawn), rtol=0, atol=1e-5)
    assert (drawn[0] - drawn[1]).abs().max() > 1e-2


def test_it_learns_what_is_cut_of_longer_clips() -> None:
    """The latents of the frames that are seen, at their rate."""
    model = clips(skips=(2,), frames=2)
    frame_F = torch.arange(7.0)
    batch = {
        "frames": torch.zeros(3, 7, 1, 8, 8),
        "latent": frame_F[None, :, None, None, None].expand(3, 7, 4, 4, 4),
    }
    found = model.cut(batch)
    assert found["latent"].shape == (3, 2, 4, 4, 4)
    assert (found["latent"].diff(dim=1) == 2).all()
    assert found["frame_rate"].tolist() == [4.0] * 3
