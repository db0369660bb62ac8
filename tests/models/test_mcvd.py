"""MCVD: frames lie in the channels of a picture's U-Net, and those that it is shown are drawn at random."""

from typing import Any

import pytest
import torch

from models.parts.rows import join
from models.request import Request
from tests.models.families_kit import shaken, tiny


def clip(frames: int, rows: int = 2) -> torch.Tensor:
    return torch.rand(rows, frames, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("given", "places"), [("half", [0, 2, 4]), ("first", [0]), ("start", [0, 1, 2])]
)
def test_known_frames_stay_as_they_are_and_the_others_are_drawn(
    given: str, places: list[int]
) -> None:
    model: Any = shaken("mcvd")
    real = clip(5)
    value = {"first": real[:, 0], "start": real}.get(given, real[:, places])
    drawn = model.sample(Request((1, 2), given={given: value}))
    kept = real[:, 2:] if given == "start" else real[:, places]  # the end of a clip is the start
    torch.testing.assert_close(drawn[:, places], kept, rtol=0, atol=1e-6)
    others = [place for place in range(5) if place not in places]
    again = model.sample(Request((3, 4), given={given: value}))
    assert (drawn[:, others] - again[:, others]).abs().max() > 1e-3


def test_each_frame_that_is_drawn_sees_each_that_is_known_wherever_what_it_shows_went() -> None:
    model: Any = shaken("mcvd")
    picture = (clip(5, rows=1) * 2 - 1).flatten(1, 2)
    low, _ = model._guess(picture, torch.tensor([3]))  # to go on from the first three
    low.requires_grad_()
    times = torch.tensor([[1000.0, 0.0, 1.0]])
    told = model.network.of_times(times)
    model.network(torch.zeros_like(picture), times, None, (low, torch.zeros(1)), told)[
        :, -1, 0, 0
    ].backward()
    assert low.grad is not None
    reached = low.grad.reshape(5, 4, 8, 8)[:, :3].abs().sum(1)
    assert (reached > 0).all(), "every pixel of every frame, from a corner of the last one"


def test_what_is_not_known_is_black_and_all_of_it_is_learned() -> None:
    model: Any = tiny("mcvd", tasks=("start", "nothing"))
    picture = (clip(5, rows=200) * 2 - 1).flatten(1, 2)
    torch.manual_seed(0)
    over, (low, level_B) = model._training_pair(picture)
    low_BFDHW = low.unflatten(1, (5, 4))
    known_BF = low_BFDHW[:, :, 3, 0, 0] == 1
    assert set(known_BF.sum(1).tolist()) == {0, 3}
    assert (low_BFDHW[:, :, :3][~known_BF] == -1).all()
    over_BFCHW = over.unflatten(1, (5, 3))
    assert not over_BFCHW[known_BF].any()
    whole = level_B == 0
    there = (picture.unflatten(1, (5, 3)) + 1)[whole][~known_BF[whole]]
    torch.testing.assert_close(over_BFCHW[whole][~known_BF[whole]], there)


def test_rows_that_know_other_frames_share_a_batch() -> None:
    model: Any = shaken("mcvd", tasks=("half", "first", "nothing"))
    asked = [
        Request((1,), given={"half": clip(5, 1)[:, ::2]}),
        Request((2,), given={"first": clip(5, 1)[:, 0]}),
        Request((3,)),
    ]
    rows = join([model.begin(one) for one in asked])
    while not model.done(rows).all():
        rows = model.step(rows)
    for made, one in zip(model.finish(rows), asked, strict=True):
        torch.testing.assert_close(made, model.sample(one)[0], rtol=0, atol=1e-4)


def test_frames_that_come_faster_are_others() -> None:
    model: Any = shaken("mcvd", skips=(1, 2))
    given = {"first": clip(5, 1)[:, 0]}
    slow, fast = (
        model.sample(Request((1,), given=given, options={"frame_rate": rate}))
        for rate in (8.0, 16.0)
    )
    assert (slow - fast).abs().max() > 1e-3


def test_the_control_shows_the_last_known_frame_again() -> None:
    model: Any = shaken("mcvd", tasks=("start",), copies=True)
    drawn = model.sample(Request((1, 2), given={"start": clip(5)}))
    torch.testing.assert_close(drawn, clip(5)[:, [2, 3, 4, 4, 4]], rtol=0, atol=1e-6)
