"""MADE against its definition: who hears whom, and a sum of probabilities that is one."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import build, describe
from models.autoregressive.made import MADE, MADEConfig, degrees
from tests.models.densities_kit import hears, of_bits


def made(**changes: object) -> MADE:
    torch.manual_seed(0)
    return MADE(MADEConfig(**{"image_size": 3, "hidden": (24, 16), **changes}))  # type: ignore[arg-type]


@settings(max_examples=5, deadline=None)
@given(hidden=st.lists(st.integers(1, 20), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_the_probabilities_of_all_pictures_add_up_to_one(hidden: list[int], seed: int) -> None:
    model = made(hidden=tuple(hidden), order="random", order_seed=seed)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).view(-1, 1, 3, 3)
    total = model.log_prob({"pixels": every}).double().exp().sum()
    torch.testing.assert_close(float(total), 1.0, rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("units", [1, 3, 500, 782, 783, 784, 2000])
def test_made_s_degrees_span_all_bits_but_the_last(units: int) -> None:
    """So with fewer hidden units than bits, too, the last bits are heard through the hidden layers."""
    found = degrees(units, 784)
    assert found[0] == 1
    assert found.max() == (783 if units > 1 else 1)
    assert found.bincount().max() <= max(1, -(-units // 783))
    gaps = found.sort().values.diff()
    assert not len(gaps) or gaps.max() <= max(1, -(-782 // max(1, units - 1)))


def test_with_fewer_units_than_bits_the_hidden_layers_of_made_hear_all_bits() -> None:
    torch.manual_seed(0)
    model = MADE(MADEConfig(image_size=28, hidden=(500, 500)))
    with torch.no_grad():
        model.direct.weight.zero_()
        for layer in model.hidden:  # so that no unit is silent
            layer.weight.abs_()  # type: ignore[operator, union-attr]
            layer.bias.fill_(1.0)  # type: ignore[operator, union-attr]
    found = hears(model.double(), of_bits, 784)
    assert found[-1, :-1].all(), "the last bit hears every other one through hidden units"
    assert not found.triu().any()
