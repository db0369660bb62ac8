"""Make-A-Video's parts: pictures' networks at first, layers over time, frames that are known, noise that is shared."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models import trainable
from models.parts.rows import join
from models.request import Request
from models.text_to_image.unclip import Decoder
from models.text_to_video.frames import Clips
from models.text_to_video.make_a_video import Interpolation, VideoDecoder, VideoUpsampler, blend
from models.text_to_video.pseudo3d import TimeAttention, TimeConv
from tests.models.families_kit import shaken, tiny

WORDS = ("left", "red", "right")
FAMILY = "make-a-video-{}"


def picture_decoder() -> Decoder:
    """A decoder of pictures with no weight at zero, as if it had been trained."""
    c = trainable("unclip-decoder").presets["tiny"]
    torch.manual_seed(0)
    made = Decoder(dataclasses.replace(c, vocabulary=WORDS))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


def inflated(picture: Decoder, **changes: Any) -> VideoDecoder:
    made: Any = tiny(FAMILY.format("decoder"), vocabulary=WORDS, **changes)
    return begun(made, picture)


def begun(made: Any, other: Any) -> Any:
    """Return the model with what it takes of another's weights."""
    made.load_state_dict({**made.state_dict(), **made.start_from(other.state_dict())})
    return made.eval()


def seen(model: Clips | Decoder, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy rows, times and a context."""
    torch.manual_seed(1)
    c = model.config
    sigma_B = torch.linspace(0.2, 0.9, rows)
    times = torch.stack([1000 * sigma_B, 1 - sigma_B, sigma_B], 1)
    return torch.randn(rows, *c.shape), times, torch.randn(rows, 7, c.text_width)


def test_a_clips_network_is_the_pictures_frame_by_frame_at_first() -> None:
    """Figure 3 of the paper: convolutions over time are the identity, attention over time adds nothing."""
    picture = picture_decoder()
    video = inflated(picture)
    with torch.no_grad():
        x, times, context = seen(video)
        made = video.network(x, times, context, None)
        for frame in range(video.config.frames):
            planes = slice(3 * frame, 3 * frame + 3)
            alone = picture.network(x[:, planes], times, context, None)
            assert alone.abs().max() > 0.1
            torch.testing.assert_close(made[:, planes], alone, rtol=0, atol=1e-5)


def test_interpolation_starts_from_the_decoder_and_makes_nothing_of_known_frames_yet() -> None:
    video = inflated(picture_decoder(), frames=5)
    made: Any = tiny(FAMILY.format("interpolation"), vocabulary=WORDS)
    begun(made, video)
    with torch.no_grad():
        x, times, context = seen(video)
        of_times = video.network.of_times(times)
        low = torch.randn(2, 20, 8, 8), torch.zeros(2)
        found = made.network(x, times, context, low, of_times)
        without = video.network(x, times, context, None, of_times)
        told = made.network.level(torch.zeros(2, 64))
    assert told.shape == (2, 32)
    assert (found - without).abs().max() < 0.5, "but for what it is told of the noise on them"


def test_weights_that_are_no_pictures_or_of_another_shape_are_refused() -> None:
    made: Any = tiny(FAMILY.format("decoder"))
    with pytest.raises(ValueError, match="of no network of pictures"):
        made.start_from({"text.words": torch.zeros(3)})
    other = picture_decoder().state_dict() | {"network.unet.out.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"network\.unet\.out\.bias is 12 here, and 7 in what"):
        made.start_from(other)


@pytest.mark.parametrize("temporal", [True, False])
def test_only_layers_over_time_let_a_frame_know_of_the_others(temporal: bool) -> None:
    model: Any = tiny(FAMILY.format("decoder"), temporal=temporal)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, times, context = seen(model.eval())
    moved = x.clone()
    moved[:, :3] += 1
    with torch.no_grad():
        before, after = (model.network(one, times, context, None) for one in (x, moved))
    assert ((after - before)[:, 6:].abs().max() > 1e-4) == temporal


def test_what_is_said_of_a_clip_means_another_thing_in_each_frame() -> None:
    """No sum of what is said and of when: "left" moves the first frame the other way than the last."""
    network: Any = tiny(FAMILY.format("decoder")).network
    torch.manual_seed(0)
    said = torch.randn(2, 32)
    with torch.no_grad():
        assert torch.equal(network.of_frames(said, 3), said[:, None].expand(2, 3, 32)), "at first"
        network.moment.weight.normal_()
        told = network.of_frames(said, 3) - said[:, None]
    apart = told[0] - told[1]
    assert (apart[0] - apart[2]).abs().max() > 1e-2


def test_the_guess_stands_where_a_frame_is_not_known() -> None:
    model: Any = tiny(FAMILY.format("interpolation"))
    ramp = torch.linspace(-1, 1, 5).repeat_interleave(3)[None, :, None, None].expand(1, 15, 8, 8)
    low, guess = model._guess(ramp, torch.tensor([1]))
    seen = low.reshape(1, 5, 4, 8, 8)
    torch.testing.assert_close(guess, ramp)
    torch.testing.assert_close(seen[:, :, :3].flatten(1, 2), guess)
    assert seen[0, :, 3, 0, 0].tolist() == [1, 0, 0, 0, 1]


def test_nothing_is_to_be_learned_of_known_frames() -> None:
    """Drawing keeps them, so that a network never sees there what noise on them would leave over."""
    model: Any = tiny(FAMILY.format("interpolation"))
    torch.manual_seed(0)
    over, (low, level) = model._training_pair(torch.rand(200, 15, 8, 8) * 2 - 1)
    over = over.reshape(200, 5, 3, 8, 8)
    known = low.reshape(200, 5, 4, 8, 8)[:, :, 3, 0, 0] == 1
    assert level.max() > 0
    assert not over[known].any()
    assert (over[~known].abs().flatten(1).mean(1) > 0.1).all()
    half = (known.sum(1) == 3) & known[:, 4]
    assert 0.3 < half.float().mean() < 0.5, "most clips know each second frame"


def test_a_convolution_over_time_is_torch_s_own_of_each_place() -> None:
    torch.manual_seed(0)
    mixed = TimeConv(8)
    with torch.no_grad():
        mixed.weight.add_(torch.randn_like(mixed.weight))
        x = torch.randn(6, 8, 4, 5)  # two clips of three frames
        found = mixed.over(x, 3)
        line = x.reshape(2, 3, 8, 20).permute(0, 3, 2, 1).flatten(0, 1)  # (B P, W, F)
        expected = torch.nn.functional.conv1d(
            line, mixed.weight.squeeze(3), mixed.bias, padding=1
        ).reshape(2, 20, 8, 3)
    torch.testing.assert_close(found, expected.permute(0, 3, 2, 1).reshape(x.shape))


def test_attention_over_time_reads_one_place_in_all_frames() -> None:
    torch.manual_seed(0)
    read = TimeAttention(8, 2)
    with torch.no_grad():
        read.out.weight.normal_()
        x = torch.randn(1, 3, 4, 8)
        moved = x.clone()
        moved[0, 0, 1, 0] += 1
        change = (read(moved) - read(x)).abs().amax(3)[0]
    assert (change[:, 1] > 1e-4).all()
    assert not change[:, [0, 2, 3]].any()


def test_clips_are_cut_at_several_rates_and_told_theirs() -> None:
    model: Any = tiny(FAMILY.format("decoder"), skips=(1, 2, 4), frame_rate=8.0)
    torch.manual_seed(0)
    place = torch.arange(9.0)[None, :, None, None, None].expand(200, 9, 3, 8, 8)
    cut = model.cut({"frames": place, "embedding": place[..., 0, 0]})
    frames, rate = cut["frames"], cut["frame_rate"]
    first, second, third = frames[:, :, 0, 0, 0].unbind(1)
    assert torch.equal(second - first, third - second)
    assert torch.equal(8 / (second - first), rate)
    assert sorted(set(rate.tolist())) == [2, 4, 8]
    assert set(first[rate == 8].tolist()) == set(range(7))
    assert torch.equal(cut["embedding"][:, 0], second), "of the frame in the middle"
    with pytest.raises(ValueError, match=r"reach over 9, and the data's clips have 8"):
        model.cut({"frames": place[:, :8]})


def test_the_control_learns_frames_in_any_order() -> None:
    model: Any = tiny(FAMILY.format("decoder"), shuffled=True)
    torch.manual_seed(0)
    place = torch.arange(3.0)[None, :, None, None, None].expand(50, 3, 3, 8, 8)
    batch = {"frames": place, "embedding": place[..., 0, 0]}
    orders = {tuple(one) for one in model.cut(batch)["frames"][:, :, 0, 0, 0].tolist()}
    assert len(orders) == 6


def test_a_clip_that_is_told_another_rate_is_another_and_a_frame_s_embedding_may_be_any_of_its_clip() -> (
    None
):
    model: Any = shaken(FAMILY.format("decoder"), skips=(1, 2))
    given = {"embedding": torch.randn(1, 8, generator=torch.Generator().manual_seed(0))}
    slow, fast, usual = (
        model.sample(Request((1,), given=given, options=one))
        for one in ({"frame_rate": 8.0}, {"frame_rate": 16.0}, {})
    )
    assert torch.equal(slow, usual)
    assert (slow - fast).abs().max() > 1e-3
    batch = {"frames": torch.rand(2, 5, 3, 8, 8), "embedding": torch.randn(2, 5, 8)}
    assert model(batch).total.isfinite()


@pytest.mark.parametrize(
    ("changes", "rate", "learned"),
    [
        ({}, 4.0, "8"),
        ({}, math.nan, "8"),
        ({"skips": (1, 4, 2)}, 3.9, "4 to 16"),
        ({"skips": (1, 4, 2)}, 16.1, "4 to 16"),
        ({"temporal": False, "skips": (1, 2)}, 16.0, "8"),
    ],
)
def test_a_rate_that_no_clip_of_training_had_is_refused(
    changes: dict[str, Any], rate: float, learned: str
) -> None:
    """The network knows of it nothing but what it was told; frame by frame it is told of none."""
    model = tiny(FAMILY.format("decoder"), **changes)
    given = {"embedding": torch.zeros(1, 8)}
    says = f"^frame_rate: this model learned clips of {learned} frames a second, got {rate:g}$"
    with pytest.raises(ValueError, match=says):
        model.sample(Request((1,), given=given, frame_rate=rate))
    model.sample(Request((1,), given=given, frame_rate=8.0))


@pytest.mark.parametrize(
    ("given", "places"),
    [("half", [0, 2, 4]), ("quarter", [0, 4]), ("first", [0]), ("start", [0, 1, 2])],
)
def test_known_frames_stay_as_they_are_and_the_others_are_drawn(
    given: str, places: list[int]
) -> None:
    model: Any = shaken(FAMILY.format("interpolation"))
    clip = torch.rand(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    value = {"first": clip[:, 0], "start": clip}.get(given, clip[:, places])
    drawn = model.sample(Request((1, 2), given={given: value}))
    kept = clip[:, 2:] if given == "start" else clip[:, places]  # the end of a clip is the start
    torch.testing.assert_close(drawn[:, places], kept, rtol=0, atol=1e-6)
    others = [place for place in range(5) if place not in places]
    again = model.sample(Request((3, 4), given={given: value}))
    assert (drawn[:, others] - again[:, others]).abs().max() > 1e-3


def test_rows_that_know_other_frames_share_a_batch_each_with_its_own_gain() -> None:
    model: Any = shaken(FAMILY.format("interpolation"))
    clip = torch.rand(1, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    asked = [
        Request((1,), given={"half": clip[:, ::2]}),
        Request((2,), given={"first": clip[:, 0]}),
    ]
    rows = join([model.begin(one) for one in asked])
    assert rows["gain"].tolist() == pytest.approx([8, 8 / 6])
    while not model.done(rows).all():
        rows = model.step(rows)
    for made, one in zip(model.finish(rows), asked, strict=True):
        torch.testing.assert_close(made, model.sample(one)[0], rtol=0, atol=1e-4)


def test_what_is_known_is_one_thing() -> None:
    model: Any = shaken(FAMILY.format("interpolation"))
    with pytest.raises(ValueError, match="half: give one of half, quarter, first, start, got none"):
        model.sample(Request((1,)))
    both = {"half": torch.rand(1, 3, 3, 8, 8), "first": torch.rand(1, 3, 8, 8)}
    with pytest.raises(ValueError, match=r"half: give one of .* got half, first"):
        model.sample(Request((1,), given=both))


def test_a_guess_is_a_straight_line_between_known_frames_and_the_last_one_beyond() -> None:
    assert blend(range(0, 5, 4), 5)[1] == [0.75, 0, 0, 0, 0.25]
    assert blend(range(0, 5, 4), 5, nearest=True)[1] == [1, 0, 0, 0, 0]
    assert blend(range(3), 5)[3:] == [[0, 0, 1, 0, 0]] * 2
    assert all(sum(row) == 1 for places in (range(0, 9, 2), range(1)) for row in blend(places, 9))


def test_one_that_learns_to_go_on_knows_nothing_else_and_may_begin_from_nothing() -> None:
    shape: Any = {"frames": 7, "tasks": ("start", "nothing"), "channels": 1, "text": "none"}
    model: Any = shaken(FAMILY.format("interpolation"), **shape)
    assert {name for name, port in model.inputs.items() if port.kind != "text"} == {"start"}
    torch.manual_seed(0)
    over, (low, _) = model._training_pair(torch.rand(400, 7, 8, 8) * 2 - 1)
    known = low.reshape(400, 7, 2, 8, 8)[:, :, 1, 0, 0] == 1
    assert set(known.sum(1).tolist()) == {0, 4}
    assert 0.8 < known[:, 0].float().mean() < 1, "little is learned of what begins from nothing"
    assert not over[known].any()
    clip = torch.rand(2, 7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = model.sample(Request((1, 2), given={"start": clip}))
    torch.testing.assert_close(drawn[:, :4], clip[:, 3:], rtol=0, atol=1e-6)
    free = model.sample(Request((1, 2)))
    assert (free[0] - free[1]).abs().max() > 1e-2
    asked = [Request((1,)), Request((2,), given={"start": clip[1:]})]
    rows = join([model.begin(one) for one in asked])
    while not model.done(rows).all():
        rows = model.step(rows)
    torch.testing.assert_close(
        model.finish(rows), torch.stack([free[0], drawn[1]]), rtol=0, atol=1e-4
    )


def test_interpolation_that_copies_a_neighbour_draws_nothing() -> None:
    model: Any = shaken(FAMILY.format("interpolation"))
    copies = Interpolation(dataclasses.replace(model.config, copies=True)).eval()
    copies.load_state_dict(model.state_dict())
    ramp = torch.linspace(0, 1, 5)[None, :, None, None, None].expand(2, 5, 3, 8, 8)
    drawn = copies.sample(Request((1, 2), given={"half": ramp[:, ::2]}))
    assert torch.equal(drawn[:, 1], drawn[:, 0])


def test_the_same_noise_for_every_frame_makes_nothing_flicker() -> None:
    """SR_h works frame by frame: what it makes up differs where its noise does, and nowhere else."""
    flicker = {}
    for shared in (True, False):
        model: Any = tiny(
            FAMILY.format("upsampler"), temporal=False, shared_noise=shared, low_gain=1.0
        )
        assert isinstance(model, VideoUpsampler)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        frames = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        flicker[shared] = model.eval().measure({"frames": frames})["flicker"]
    assert (flicker[True] < 1e-3).all()
    assert (flicker[False] > 1).all()
