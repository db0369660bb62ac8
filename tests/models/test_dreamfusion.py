"""Volumes and pictures of them, and score distillation, which moves a volume to what a network of pictures wants."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.parts.rows import join
from models.request import Request
from models.text_to_3d import volumes
from tests.models.families_kit import tiny

WORDS = ("red", "green", "low", "high")
VIEWS = ("low", "high")
ANGLES = st.floats(-math.pi, math.pi)


def sides(*degrees: tuple[float, float]) -> Tensor:
    """The directions of cameras at (azimuth, elevation)."""
    azimuth_V, elevation_V = torch.tensor(degrees).deg2rad().unbind(1)
    return volumes.axes(azimuth_V, elevation_V)


def block(low: tuple[float, ...], high: tuple[float, ...], colour: tuple[float, ...]) -> Tensor:
    """A volume of 16 voxels a side that is opaque, and of a colour, in a box of the world (x, y, z)."""
    place = (2 * torch.arange(16) + 1) / 16 - 1
    z, y, x = torch.meshgrid(place, place, place, indexing="ij")
    inside = torch.ones(16, 16, 16)
    for at, least, most in zip((x, y, z), low, high, strict=True):
        inside = inside * ((at > least) & (at < most))
    painted = torch.tensor(colour)[:, None, None, None].expand(3, 16, 16, 16)
    return torch.cat([painted, inside[None]])


@given(ANGLES, ANGLES)
def test_a_camera_s_directions_stand_at_right_angles_and_turn_to_the_right(
    a: float, e: float
) -> None:
    [axes] = volumes.axes(torch.tensor([a]), torch.tensor([e]))
    torch.testing.assert_close(axes @ axes.T, torch.eye(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.cross(axes[0], axes[1]), axes[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("camera", "rows", "columns"),
    [
        ((0.0, 0.0), "upper", "right"),
        ((180.0, 0.0), "upper", "left"),
        ((90.0, 0.0), "upper", "left"),
        ((-90.0, 0.0), "upper", "right"),
        ((0.0, 90.0), "lower", "right"),
    ],
)
def test_a_thing_at_the_right_top_of_the_front_is_seen_where_it_is(
    camera: tuple[float, float], rows: str, columns: str
) -> None:
    corner = block((0.2, 0.2, 0.2), (0.6, 0.6, 0.6), (1, 0, 0))
    picture = volumes.seen(corner[None], sides(camera), 16, background=0.0)[0, 0, 0]
    halves = {
        **{"upper": picture[:8], "lower": picture[8:]},
        **{"left": picture[:, :8], "right": picture[:, 8:]},
    }
    assert picture.sum() > 5
    for half in (rows, columns):
        assert halves[half].sum() > 0.99 * picture.sum()


def test_what_is_in_front_hides_what_is_behind() -> None:
    near = block((-0.4, -0.4, 0.2), (0.4, 0.4, 0.6), (1, 0, 0))
    far = block((-0.4, -0.4, -0.6), (0.4, 0.4, -0.2), (0, 1, 0))
    both = torch.where(near[3:] > 0, near, far)
    front, back = volumes.seen(both[None], sides((0, 0), (180, 0)), 16, background=0.0)[0]
    assert front[0, 8, 8] > 0.99 > 0.01 > front[1, 8, 8]
    assert back[1, 8, 8] > 0.99 > 0.01 > back[0, 8, 8]


@given(st.floats(0.01, 0.9))
def test_each_voxel_s_thickness_stops_its_share_of_the_light(opacity: float) -> None:
    """So a ray through n of them goes on with (1 - opacity)^n."""
    haze = torch.cat([torch.ones(3, 16, 16, 16), torch.full((1, 16, 16, 16), opacity)])
    _, opaque = volumes.render(haze[:3], volumes.thickness(haze[3]), sides((0, 0)), 15)
    assert 1 - float(opaque[0, 0, 7, 7]) == pytest.approx((1 - opacity) ** 16, rel=1e-3, abs=1e-6)


@given(ANGLES, st.floats(-1.5, 1.5))
def test_what_lies_outside_of_the_unit_ball_is_seen_from_nowhere(a: float, e: float) -> None:
    full = torch.ones(1, 4, 16, 16, 16)
    axes = volumes.axes(torch.tensor([a]), torch.tensor([e]))
    opaque = (
        1
        - volumes.seen(full * torch.tensor([0, 0, 0, 1.0])[:, None, None, None], axes, 33)[0, 0, 0]
    )
    place = volumes.FRAME * (2 * torch.arange(33) + 1 - 33) / 33
    away = torch.hypot(place[:, None], place)
    assert opaque[away > 1].max() == 0
    assert opaque[away < 0.9].min() > 0.9


def test_what_is_solid_is_what_a_mesh_is_cut_from() -> None:
    volume = torch.full((1, 4, 2, 2, 2), 0.3)
    volume[:, 3, 0] = torch.tensor([[0.2, 0.4], [0.6, 1.0]])
    found = volumes.solid(volume)
    assert found[:, :3].equal(volume[:, :3])
    assert found[0, 3, 0].tolist() == [[0, 0], [1, 1]]


class Wanting(nn.Module):
    """A perfect network of one picture: it knows what is under the noise whatever it is shown."""

    def __init__(self, wanted_CHW: Tensor) -> None:
        super().__init__()
        self.wanted = nn.Parameter(wanted_CHW, requires_grad=False)
        self.told = list[Tensor]()

    def forward(self, x: Tensor, times_B3: Tensor, context: Tensor | None, low: None) -> Tensor:  # noqa: ARG002
        """Return the flow from it to x."""
        if context is not None:
            self.told.append(context)
        return (x - (2 * self.wanted - 1)) / times_B3[:, 2, None, None, None]


def distilling(wanted_CHW: Tensor, **changes: Any) -> Any:
    model = tiny("dreamfusion", **{"guidance": 1.0, "rate": 0.2, "cameras": 4, **changes}).eval()
    model.network = Wanting(wanted_CHW)
    return model


def disc(side: int = 8) -> Tensor:
    place = volumes.FRAME * (2 * torch.arange(side) + 1 - side) / side
    return (torch.hypot(place[:, None], place) < 0.7).float()


def test_a_volume_comes_to_look_from_everywhere_as_the_network_wants_it() -> None:
    """Green all over: what is seen through it is not, so it must be opaque."""
    model = distilling(torch.tensor([0.1, 0.8, 0.1])[:, None, None].expand(3, 8, 8))
    volume = model.sample(Request(seeds=(3,), steps=100))
    for picture in volumes.seen(volume, sides((0, 0), (90, 30), (200, -10), (20, 80)), 8)[0]:
        torch.testing.assert_close(
            picture[:, 3:5, 3:5].mean((1, 2)), torch.tensor([0.1, 0.8, 0.1]), rtol=0, atol=0.15
        )


def test_the_gradient_is_that_of_eq_3() -> None:
    """sigma^2 (eps_hat - eps) = sigma alpha (x0 - wanted) of a network that wants one picture, whatever the noise."""
    wanted = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = distilling(wanted)
    row = model.begin(Request(seeds=(5,)))
    x0, share = torch.rand(4, 3, 8, 8) * 2 - 1, torch.tensor([0.0, 0.3, 0.6, 1.0])
    found = model._residual(row, x0, torch.zeros(4, dtype=torch.bool), share)
    sigma = (0.02 + 0.96 * share)[:, None, None, None]
    torch.testing.assert_close(
        found, sigma * (1 - sigma) * (x0 - (2 * wanted - 1)), rtol=1e-3, atol=1e-4
    )


def test_a_volume_is_asked_for_from_above_where_it_is_seen_from_there() -> None:
    model: Any = distilling(torch.zeros(3, 8, 8), vocabulary=WORDS, views=VIEWS, cameras=64)
    row = model.begin(Request(seeds=(5,), prompts=("red",)))
    plain: Any = tiny("dreamfusion", vocabulary=WORDS)
    told = Request(seeds=(5, 5), prompts=tuple(f"red {one}" for one in VIEWS))
    low, high = plain.begin(told)["context"][:, 0]
    assert row["context"].shape[1] == 2
    model.step(row)
    [told] = model.network.told
    is_high = [bool(one.equal(high)) for one in told]
    assert all(one.equal(high) or one.equal(low) for one in told)
    assert 0.15 < sum(is_high) / 64 < 0.45  # a third, as elevations are even from -10 to 90 degrees


def test_a_volume_without_a_prompt_is_told_the_same_alone_and_beside_one_that_has_one() -> None:
    model: Any = distilling(
        torch.zeros(3, 8, 8), vocabulary=WORDS, views=VIEWS, cameras=64, caption_drop=0.5
    )
    alone = model.begin(Request(seeds=(5,)))
    model.step(join([alone, model.begin(Request(seeds=(6,), prompts=("red",)))]))
    told, _ = model.network.told
    torch.testing.assert_close(told, model.null.expand_as(told), rtol=0, atol=0)


def test_a_prompt_that_is_too_long_with_its_view_is_refused_before_anything_is_drawn() -> None:
    model = tiny("dreamfusion", vocabulary=WORDS, views=VIEWS, max_words=2)
    model.check(Request(seeds=(1,), prompts=("red",)))
    says = "^prompt: with 'low' behind it, it has 3 words, the model reads 2"
    for draw in (model.check, model.sample):
        with pytest.raises(ValueError, match=says):
            draw(Request(seeds=(1,), prompts=("red green",)))


@pytest.mark.parametrize("steps", [0, 20_001])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps must be between 1 and 20000, got {steps}"):
        tiny("dreamfusion").sample(Request(seeds=(1,), steps=steps))


@pytest.mark.parametrize("guidance", [-1.0, 51.0, math.nan])
def test_guidance_out_of_range_is_refused_also_away_from_a_prompt(guidance: float) -> None:
    asked = Request(seeds=(1,), prompts=("red",), guidance=guidance, negative_prompt="green")
    with pytest.raises(ValueError, match=f"guidance must be between 0 and 50, got {guidance}"):
        tiny("dreamfusion", vocabulary=WORDS).sample(asked)


def test_the_control_that_does_not_turn_looks_right_from_the_front_alone() -> None:
    wanted = torch.stack([disc(), 0 * disc(), 0 * disc()])
    still = distilling(wanted, turning=False).sample(Request(seeds=(3,), steps=60))
    front, side, above = (
        float((picture - wanted).square().mean())
        for picture in volumes.seen(still, sides((0, 0), (90, 0), (0, 90)), 8, background=0.0)[0]
    )
    assert front < 0.02
    assert min(side, above) > 3 * front
