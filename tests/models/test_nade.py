"""NADE against its definition: it sums to one, sees only what came before, and draws what it says."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.functional import jacobian as jacobian_of

from models import build, describe
from models.autoregressive.nade import NADE, NADEConfig
from models.family import Request
from tests.models.naive_kit import sample_naively


def nade(seed: int = 0, **change: object) -> NADE:
    """A NADE whose weights are large enough that every bit matters to those after it."""
    torch.manual_seed(seed)
    model = NADE(dataclasses.replace(NADE.presets["tiny"], **change))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def every_picture(side: int, channels: int = 1) -> Tensor:
    bits = list(itertools.product((0.0, 1.0), repeat=channels * side * side))
    return torch.tensor(bits).view(-1, channels, side, side)


@pytest.mark.parametrize("order", ["raster", "random"])
@pytest.mark.parametrize(("side", "channels"), [(3, 1), (2, 3)])
def test_the_probabilities_of_all_pictures_sum_to_one(order: str, side: int, channels: int) -> None:
    model = nade(image_size=side, channels=channels, order=order)
    total = model.log_prob({"pixels": every_picture(side, channels)}).double().exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_a_bit_that_sees_itself_has_no_density() -> None:
    total = nade(image_size=3, mask="B").log_prob({"pixels": every_picture(3)}).double().exp().sum()
    assert abs(total.item() - 1) > 0.1


def jacobian(model: NADE) -> Tensor:
    """d logit_i / d x_j (D, D), in the model's order."""
    x_D = torch.rand(len(model.order_D), generator=torch.Generator().manual_seed(0)).round()
    found = jacobian_of(lambda x: model.logits(x[None])[0], x_D)  # type: ignore[no-untyped-call]
    assert isinstance(found, Tensor)
    return found


def test_a_logit_depends_on_every_bit_before_it_and_on_no_other() -> None:
    found = jacobian(nade(image_size=4))
    assert torch.equal(found.triu(), torch.zeros_like(found))
    assert (found[torch.tril(torch.ones_like(found), -1).bool()] != 0).all()
    assert (jacobian(nade(image_size=4, mask="B")).diagonal() != 0).all()


def test_the_logits_are_the_recursion_of_the_paper() -> None:
    """Equations 3 to 6, one bit after another in plain arithmetic."""
    model = nade(image_size=3)
    x_D = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0, 1])
    a_U, wanted = model.c_U, []
    for d, bit in enumerate(x_D):
        wanted.append(model.b_D[d] + model.V_DU[d] @ torch.sigmoid(a_U))
        a_U = a_U + model.W_DU[d] * bit
    torch.testing.assert_close(model.logits(x_D[None])[0], torch.stack(wanted))


@settings(max_examples=15, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4),
    order=st.sampled_from(["raster", "random"]),
)
def test_the_kept_activation_draws_what_the_naive_sampler_draws(
    seeds: list[int], order: str
) -> None:
    model = nade(order=order)
    request = Request(seeds=tuple(seeds))
    assert torch.equal(model.sample(request), sample_naively(model, request))


def test_pictures_are_drawn_as_often_as_their_probability_says() -> None:
    """16 pictures, 20,000 draws: a standard error of 0.0036 at most."""
    model = nade(image_size=2, order="random")
    pictures = model.sample(Request(seeds=tuple(range(20_000)))).flatten(1)
    places = (pictures @ torch.tensor([8.0, 4, 2, 1])).long()
    often = places.bincount(minlength=16) / len(places)
    true = model.log_prob({"pixels": every_picture(2)}).exp()
    torch.testing.assert_close(often, true, rtol=0, atol=0.015)


def test_the_order_is_fixed_and_saved_with_the_weights() -> None:
    first, other = nade(order="random", order_seed=1), nade(order="random", order_seed=2)
    assert sorted(first.order_D.tolist()) == list(range(64))
    assert not torch.equal(first.order_D, other.order_D)
    batch = {"pixels": torch.rand(4, 1, 8, 8).round()}
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.log_prob(batch), first.log_prob(batch))
    again = build(describe(first))
    again.load_state_dict(first.state_dict())
    assert isinstance(again, NADE)
    assert torch.equal(again.sample(Request(seeds=(7,))), first.sample(Request(seeds=(7,))))


def test_grey_levels_are_redrawn_or_cut_at_one_half() -> None:
    grey = torch.full((500, 1, 8, 8), 0.3)
    assert nade(binarize="threshold").bits(grey).sum() == 0
    assert nade(binarize="threshold").bits(grey + 0.2).min() == 1
    drawn = nade().bits(grey, torch.Generator().manual_seed(0))
    assert set(drawn.flatten().tolist()) == {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.02)


def test_a_config_that_would_fail_late_fails_early() -> None:
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        NADEConfig(image_size=8, hidden=0)
