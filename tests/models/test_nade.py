"""NADE against its definition: it sums to one, sees only what came before, and draws what it says."""

import dataclasses

import pytest
import torch

from models import build, describe
from models.autoregressive.nade import NADE
from models.request import Request


def nade(seed: int = 0, **change: object) -> NADE:
    """A NADE whose weights are large enough that every bit matters to those after it."""
    torch.manual_seed(seed)
    model = NADE(dataclasses.replace(NADE.presets["tiny"], **change))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def test_the_logits_are_the_recursion_of_the_paper() -> None:
    """Equations 3 to 6, one bit after another in plain arithmetic."""
    model = nade(image_size=3)
    x_D = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0, 1])
    a_U, wanted = model.c_U, []
    for d, bit in enumerate(x_D):
        wanted.append(model.b_D[d] + model.V_DU[d] @ torch.sigmoid(a_U))
        a_U = a_U + model.W_DU[d] * bit
    torch.testing.assert_close(model.logits(x_D[None])[0], torch.stack(wanted))


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
