"""Every autoregressive family: a later output hears each earlier input, and no earlier output a later input.

Heard of by changing one input after another: what an input is, a bit, a level or a token, is the family's own.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from models import FAMILIES, trainable
from models.autoregressive.made import MADE, MADEConfig, degrees
from models.family import Family

Logits = Callable[[Any, Tensor], Tensor]
"""A model and inputs (B, T) of 0 and 1 to the logits (B, T, K), where place t is told the inputs before t."""


def of_pictures(model: Any, x_BT: Tensor) -> Tensor:
    side = model.config.image_size
    logits: Tensor = model.logits(x_BT.view(-1, 1, side, side)).flatten(2).mT
    return logits


def of_target(model: Any, x_BT: Tensor) -> Tensor:
    """Place 0 is told <bos> alone."""
    told_BT = torch.cat([torch.full_like(x_BT[:, :1], 7), 10 + x_BT[:, :-1]], 1).long()
    return following(model, told_BT)


def following(model: Any, told_BT: Tensor) -> Tensor:
    if hasattr(model.config, "max_source"):
        logits: Tensor = model.logits(torch.full((len(told_BT), 3), 12), told_BT)
        return logits
    found: Tensor = model.logits(told_BT)
    return found


LOGITS: Final[Mapping[str, tuple[Logits, int, dict[str, object]]]] = {
    "gpt": (of_target, 12, {}),
    "made": (lambda model, x_BT: model.logits(x_BT)[..., None], 16, {"image_size": 4}),
    "nade": (lambda model, x_BT: model.logits(x_BT)[..., None], 16, {"image_size": 4}),
    "pixelcnn": (of_pictures, 16, {"image_size": 4}),  # which its layers reach across
    "pixelrnn": (of_pictures, 16, {"image_size": 4}),
    "transformer": (of_target, 12, {}),
    "wavenet": (lambda model, x_BT: model.float().logits(100 + x_BT.long()), 7, {}),
}
"""Of each family: its logits, how many places are looked at, and what is changed of its tiny preset."""


def hears(model: Any, logits: Logits, places: int) -> Tensor:
    """Return (T, T) bool: whether the logits at each place (rows) change with each input (columns)."""
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randint(2, (places,), generator=generator).double()
    changed_TT = torch.where(torch.eye(places).bool(), 1 - x_T, x_T)
    with torch.no_grad():
        found = logits(model, torch.cat([x_T[None], changed_TT])).double()
    moved_TTK = (found[1:] - found[:1]).abs()
    return (moved_TTK.amax(2) > 1e-9).T


@pytest.mark.parametrize("name", LOGITS)
def test_a_place_hears_all_that_is_before_it_and_nothing_else(name: str) -> None:
    logits, places, changes = LOGITS[name]
    torch.manual_seed(0)
    kind = trainable(name)
    model = kind(dataclasses.replace(kind.presets["tiny"], **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert torch.equal(hears(model, logits, places), torch.ones(places, places).tril(-1).bool())


def test_no_family_whose_logits_go_one_after_another_is_left_out() -> None:
    """An exact likelihood by the chain rule is what `logits` stands for."""
    able = set()
    for name in FAMILIES:
        model = trainable(name)(trainable(name).presets["tiny"])
        assert isinstance(model, Family)
        if model.capabilities.likelihood and hasattr(model, "logits"):
            able.add(name)
    assert able == set(LOGITS)


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
    heard = hears(model.double(), LOGITS["made"][0], 784)
    assert heard[-1, :-1].all(), "the last bit hears every other one through hidden units"
    assert not heard.triu().any()
