"""Every density by the chain rule: it sums to one, hears what came before and no more, and draws what it says.

A family's own file has what is its paper's alone.
"""

import importlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import FAMILIES, trainable
from models.family import Family
from models.parts.levels import drawn, levels_of
from models.request import Request
from tests.models.densities_kit import (
    WORDS,
    Logits,
    every_picture,
    every_sound,
    hears,
    of_bits,
    sharp,
)
from tests.models.families_kit import tiny
from tests.models.naive_kit import sample_naively

Change = Mapping[str, Any]
DENSITIES: Final[Mapping[str, Change]] = {
    "made": {"hidden": (24, 16)},
    "nade": {},
    "nade random": {"order": "random"},
    "pixelcnn": {},
    "pixelrnn diagonal": {"cell": "diagonal", "layers": 2},
    "pixelrnn row": {"cell": "row", "layers": 2},
    "wavenet": {},
}
"""What has few enough outcomes to count them all, by family and variant."""
CAPTIONED: Final = [case for case in DENSITIES if case.split()[0] not in {"made", "nade"}]
BROKEN: Final[Mapping[str, Change]] = {
    "pixelrnn diagonal": {"mask": "B", "layers": 1},
    "pixelrnn row": {"mask": "B", "layers": 1},
    "wavenet": {"shift": False},
}
"""The control in which a value sees itself; of the others it is the mask alone."""


def density(case: str, **change: Any) -> Any:
    return sharp(case.split()[0], **{**DENSITIES[case], **change})


def every(model: Any, size: int, levels: int) -> dict[str, Tensor]:
    """Return all pictures of that side, or sounds of that length."""
    if model.capabilities.modality == "audio":
        return {"sound": every_sound(size, levels)}
    return {"pixels": every_picture(size, levels, model.config.channels)}


def sizes(case: str) -> Sequence[tuple[int, Change]]:
    """Return sides or lengths, and what else is changed so that the outcomes can be counted."""
    if case == "wavenet":
        return (4, {"levels": 4}), (8, {"levels": 2})
    if case.startswith("pixel"):
        return (3, {"image_size": 3}), (2, {"image_size": 2, "levels": 4})
    return (3, {"image_size": 3}), (2, {"image_size": 2, "channels": 3})


def total(model: Any, outcomes: Mapping[str, Tensor]) -> float:
    return float(model.log_prob(outcomes).double().exp().sum())


@pytest.mark.parametrize("case", DENSITIES)
def test_the_probabilities_of_all_there_is_sum_to_one_and_those_of_a_broken_control_do_not(
    case: str,
) -> None:
    for size, change in sizes(case):
        model = density(case, **change)
        outcomes = every(model, size, change.get("levels", 2))
        assert total(model, outcomes) == pytest.approx(1, abs=1e-5)
    size, change = sizes(case)[0]
    broken = density(case, **change, **BROKEN.get(case, {"mask": "B"}))
    assert abs(total(broken, every(broken, size, change.get("levels", 2))) - 1) > 0.1


@pytest.mark.parametrize("case", CAPTIONED)
def test_they_sum_to_one_given_any_caption(case: str) -> None:
    size, change = sizes(case)[0]
    model = density(case, vocabulary=WORDS, max_words=2, **change)
    outcomes, found = every(model, size, change.get("levels", 2)), []
    count = len(next(iter(outcomes.values())))
    for caption in (*WORDS, "two three"):
        found.append(model.log_prob({**outcomes, "tokens": model.encode([caption] * count)}))
        assert found[-1].double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(found, 2))


@pytest.mark.parametrize("case", ["nade random", "pixelcnn", "pixelrnn diagonal", "wavenet"])
def test_samples_are_drawn_as_often_as_their_probability_says(case: str) -> None:
    """16 outcomes of 4 bits, 20,000 draws: a standard error of 0.0036 at most."""
    sound = case == "wavenet"
    model = density(case, **({"levels": 2} if sound else {"image_size": 2}))
    seeds = tuple(range(20_000))
    made = model.sample(Request(seeds, seconds=4 / 8000 if sound else None)).flatten(1)
    bits = levels_of(made, 2).float() if sound else made
    often = (bits @ torch.tensor([8.0, 4, 2, 1])).long().bincount(minlength=16) / len(seeds)
    true = model.log_prob(every(model, 4 if sound else 2, 2)).exp()
    torch.testing.assert_close(often, true, rtol=0, atol=0.015)


KERNELS: Final = [(3, 3), (5, 3), (7, 5)]
SAMPLED: Final[Mapping[str, list[Change]]] = {
    "nade": [{}, {"order": "random"}],
    "pixelcnn": [
        {"levels": levels, "first_kernel": first, "kernel": kernel}
        for levels, (first, kernel) in itertools.product((2, 17), KERNELS)
    ],
    "pixelrnn": [
        {
            **{"image_size": 6, "levels": levels, "cell": cell, "layers": layers},
            **{"first_kernel": first, "row_kernel": kernel},
        }
        for levels, (first, kernel), cell, layers in itertools.product(
            (2, 17), KERNELS, ("diagonal", "row"), (1, 2, 3)
        )
    ],
    "wavenet": [
        {"dilations": dilations, "block": block, "levels": 16, "seconds": 0.015}
        for dilations, block in itertools.product(((1, 2, 4), (3, 1), (1, 64)), (1, 7, 50))
    ],
}
"""Configs of samplers that keep what came before."""


@pytest.mark.parametrize("name", SAMPLED)
@settings(max_examples=8, deadline=None)
@given(
    data=st.data(),
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4),
    conditional=st.booleans(),
)
def test_a_sampler_that_keeps_what_came_before_draws_what_the_naive_one_draws(
    name: str, data: st.DataObject, seeds: list[int], conditional: bool
) -> None:
    """Sums differ in the last bits, so a level could differ with a chance near 1e-5 each; these do not."""
    change = dict(data.draw(st.sampled_from(SAMPLED[name])))
    prompts: tuple[str, ...] = ()
    if conditional and name != "nade":
        change |= {"vocabulary": WORDS, "max_words": 1}
        prompts = tuple(WORDS[seed % 3] for seed in seeds)
    model = sharp(name, **change)
    request = Request(tuple(seeds), prompts=prompts)
    assert torch.equal(model.sample(request), sample_naively(model, request))


@pytest.mark.parametrize("case", CAPTIONED)
def test_the_logits_behind_what_is_drawn_are_those_of_the_whole(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is drawn: value after value, to 1e-5; of a sound's thousand layers of sums, 1e-4."""
    seen: list[Tensor] = []

    def watching(logits_BK: Tensor, u_B: Tensor) -> Tensor:
        seen.append(logits_BK)
        return drawn(logits_BK, u_B)

    sound = case == "wavenet"
    model = density(case, vocabulary=WORDS, max_words=2, **({} if sound else {"levels": 5}))
    monkeypatch.setattr(importlib.import_module(type(model).__module__), "drawn", watching)
    prompts = ("one", "two three")
    made = model.sample(Request(seeds=(1, 2), prompts=prompts))
    values = levels_of(made, 256) if sound else model.observed(made)
    with torch.no_grad():
        whole = model.logits(values, model.encode(prompts))
    whole_BTK = whole if sound else whole.flatten(2).mT
    kept_BTK = torch.stack(seen, 1)
    torch.testing.assert_close(kept_BTK, whole_BTK, rtol=0, atol=1e-4 if sound else 1e-5)


def of_pictures(model: Any, x_BT: Tensor) -> Tensor:
    side = model.config.image_size
    logits: Tensor = model.logits(x_BT.view(-1, 1, side, side)).flatten(2).mT
    return logits


def of_target(model: Any, x_BT: Tensor) -> Tensor:
    """Place 0 is given <bos> alone."""
    input_BT = torch.cat([torch.full_like(x_BT[:, :1], 7), 10 + x_BT[:, :-1]], 1).long()
    source = hasattr(model.config, "max_source")
    args = (torch.full((len(x_BT), 3), 12), input_BT) if source else (input_BT,)
    logits: Tensor = model.logits(*args)
    return logits.clamp(min=-1e6)  # of what cannot come it is -inf


def of_sound(model: Any, x_BT: Tensor) -> Tensor:
    logits: Tensor = model.float().logits(100 + x_BT.long())
    return logits


SMALL: Final = {"image_size": 4}  # which the layers reach across
SELF: Final = {"mask": "B"}
LOGITS: Final[Mapping[str, tuple[Logits, int, Change, Change | None]]] = {
    "causal-lm": (of_target, 12, {}, None),  # others' network: no setting breaks it
    "gpt": (of_target, 12, {}, {"causal": False}),
    "made": (of_bits, 16, SMALL, SELF),
    "made random": (of_bits, 16, {**SMALL, "order": "random"}, SELF),
    "nade": (of_bits, 16, SMALL, SELF),
    "nade random": (of_bits, 16, {**SMALL, "order": "random"}, SELF),
    "pixelcnn": (of_pictures, 16, SMALL, SELF),
    "pixelcnn levels": (of_pictures, 16, {**SMALL, "levels": 17}, SELF),
    "pixelrnn": (of_pictures, 16, SMALL, SELF),
    "pixelrnn layers": (of_pictures, 16, {**SMALL, "layers": 3}, SELF),
    "transformer": (of_target, 12, {}, {"causal": False}),
    "wavenet": (of_sound, 7, {}, {"shift": False}),
}
"""Of each family: its logits, how many places are looked at, what is changed of its tiny preset, its broken control."""


@pytest.mark.parametrize("case", LOGITS)
def test_a_place_hears_all_that_is_before_it_and_nothing_else_but_in_a_broken_control(
    case: str,
) -> None:
    logits, places, change, control = LOGITS[case]
    before = torch.ones(places, places).tril(-1).bool()
    for broken in ({},) if control is None else ({}, control):
        model = tiny(case.split()[0], **change, **broken).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        found = hears(model, logits, places)
        if not broken:
            assert torch.equal(found, before)
            continue
        assert found[before].all()
        if "causal" in broken:
            assert found.triu(1).any()
        else:
            assert found.diagonal().all(), "it hears itself"
            assert not found.triu(1).any()


def test_no_family_whose_logits_go_one_after_another_is_left_out() -> None:
    """An exact likelihood by the chain rule is what `logits` stands for."""
    able = set()
    for name in FAMILIES:
        model = trainable(name)(trainable(name).presets["tiny"])
        assert isinstance(model, Family)
        if model.capabilities.likelihood and hasattr(model, "logits"):
            able.add(name)
    assert able == {case.split()[0] for case in LOGITS}
