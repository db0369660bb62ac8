"""MADE against its definition: who hears whom, and a sum of probabilities that is one."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import build, describe
from models.autoregressive.made import MADE, MADEConfig


def made(**changes: object) -> MADE:
    torch.manual_seed(0)
    return MADE(MADEConfig(**{"image_size": 3, "hidden": (24, 16), **changes}))  # type: ignore[arg-type]


def heard(model: MADE) -> torch.Tensor:
    """Which logits (rows) depend on which bits (columns)."""
    x_BD = torch.rand(1, 9, requires_grad=True)
    rows = [
        torch.autograd.grad(logit, x_BD, retain_graph=True)[0] for logit in model.logits(x_BD)[0]
    ]
    return torch.cat(rows) != 0


@pytest.mark.parametrize("order", ["raster", "random"])
def test_a_bit_hears_all_bits_before_it_and_no_other(order: str) -> None:
    assert torch.equal(heard(made(order=order)), torch.ones(9, 9).tril(-1).bool())


def test_with_mask_b_a_bit_hears_itself() -> None:
    assert heard(made(mask="B")).diagonal().all()


@settings(max_examples=5, deadline=None)
@given(hidden=st.lists(st.integers(1, 20), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_the_probabilities_of_all_pictures_add_up_to_one(hidden: list[int], seed: int) -> None:
    model = made(hidden=tuple(hidden), order="random", order_seed=seed)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).view(-1, 1, 3, 3)
    total = model.log_prob({"pixels": every}).double().exp().sum()
    torch.testing.assert_close(float(total), 1.0, rtol=0, atol=1e-5)


def test_a_picture_of_one_bit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 bits, got 1"):
        MADEConfig(image_size=1)


def test_a_version_from_when_few_units_had_the_first_degrees_keeps_its_masks() -> None:
    """A registered version's config.json says nothing of degrees; its weights were learned under these masks."""
    few = made(hidden=(5,))
    document = describe(few)
    assert build(document).hidden[0].mask_OI.equal(few.hidden[0].mask_OI)
    del document["config"]["degrees"]
    older = build(document)
    sums = older.hidden[0].mask_OI.sum(1)
    assert sums.tolist() == [1, 2, 3, 4, 5]
    assert few.hidden[0].mask_OI.sum(1).tolist() == [1, 3, 4, 6, 8]
