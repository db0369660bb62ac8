"""PixelCNN against its definition: it sums to one, sees all that came before and no more, and draws what it says."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor
from torch.autograd.functional import jacobian as jacobian_of
from torch.nn import functional as F

from models import build, describe
from models.autoregressive.pixelcnn import PixelCNN, PixelCNNConfig
from models.family import Request
from models.parts.levels import drawn
from tests.models.densities_kit import (
    WORDS,
    every_picture,
    influence,
    log_probs_by_caption,
    sharp,
    total_probability,
)
from tests.models.naive_kit import sample_naively


@pytest.mark.parametrize(("side", "levels"), [(3, 2), (2, 4)])
def test_the_probabilities_of_all_pictures_sum_to_one(side: int, levels: int) -> None:
    model = sharp(PixelCNN, image_size=side, levels=levels)
    total = total_probability(model, side, levels)
    assert total == pytest.approx(1, abs=1e-5)


def test_they_sum_to_one_given_any_caption() -> None:
    model = sharp(PixelCNN, image_size=3, vocabulary=WORDS, max_words=2)
    found = log_probs_by_caption(model)
    assert [one.exp().sum().item() for one in found] == pytest.approx([1] * 4, abs=1e-5)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(found, 2))


def test_a_first_layer_that_sees_its_own_pixel_gives_no_density() -> None:
    model = sharp(PixelCNN, image_size=3, mask="B")
    total = total_probability(model, 3, 2)
    assert abs(total - 1) > 0.1


@pytest.mark.parametrize("levels", [2, 17])
def test_a_logit_depends_on_no_pixel_that_is_not_before_it(levels: int) -> None:
    found = influence(sharp(PixelCNN, image_size=6, levels=levels))
    assert torch.equal(found.triu(), torch.zeros_like(found))
    leaking = influence(sharp(PixelCNN, image_size=6, levels=levels, mask="B"))
    assert (leaking.diagonal() > 0).all()
    assert torch.equal(leaking.triu(1), torch.zeros_like(found))


def test_there_is_no_blind_spot() -> None:
    """With layers enough, every pixel before is seen: (r - 1, c + 1), too, which one masked stack misses at first."""
    found = influence(sharp(PixelCNN, image_size=5, layers=5, first_kernel=3))
    assert (found[torch.tril(torch.ones_like(found), -1).bool()] > 0).all()
    one = influence(sharp(PixelCNN, image_size=5, layers=1, first_kernel=3)).view(5, 5, 5, 5)
    assert one[2, 2, 1, 3] > 0
    above = set(itertools.product((0, 1), (1, 2, 3)))  # a vertical kernel of 2 x 3 in the row above
    seen = {(r, c) for r, c in itertools.product(range(5), repeat=2) if one[2, 2, r, c] > 0}
    assert seen == {*above, (2, 1)}


class Masked(torch.nn.Module):
    """What the paper mends: stacked masked 3 x 3 kernels, one stack."""

    def forward(self, x_B1HW: Tensor) -> Tensor:
        first = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])[None, None]
        others = torch.tensor([[1.0, 1, 1], [1, 1, 0], [0, 0, 0]])[None, None]
        for kernel in (first, *[others] * 3):
            x_B1HW = F.conv2d(x_B1HW, kernel.double(), padding=1)
        return x_B1HW


def test_the_detector_sees_the_blind_spot_of_one_masked_stack() -> None:
    start = torch.rand(1, 1, 7, 7).double()
    found = jacobian_of(Masked(), start)  # type: ignore[no-untyped-call]
    assert isinstance(found, Tensor)
    assert found[0, 0, 4, 2, 0, 0, 3, 3] > 0
    assert found[0, 0, 4, 2, 0, 0, 3, 4] == 0  # blind: it is before, and near
    ours = influence(sharp(PixelCNN, image_size=7, layers=4, first_kernel=3)).view(7, 7, 7, 7)
    assert ours[4, 2, 3, 4] > 0


@settings(max_examples=12, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4),
    levels=st.sampled_from([2, 17]),
    kernels=st.sampled_from([(3, 3), (5, 3), (7, 5)]),
    conditional=st.booleans(),
)
def test_the_cached_sampler_draws_what_the_naive_one_draws(
    seeds: list[int], levels: int, kernels: tuple[int, int], conditional: bool
) -> None:
    """Sums differ in the last bits, so a level could differ with a chance near 1e-6 a pixel; these do not."""
    model = sharp(
        PixelCNN,
        levels=levels,
        first_kernel=kernels[0],
        kernel=kernels[1],
        vocabulary=WORDS if conditional else (),
        max_words=1,
    )
    prompts = tuple(WORDS[seed % 3] for seed in seeds) if conditional else ()
    request = Request(seeds=tuple(seeds), prompts=prompts)
    assert torch.equal(model.sample(request), sample_naively(model, request))


def test_the_cached_logits_are_the_naive_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is drawn: the numbers behind it, pixel after pixel, to 1e-5."""
    seen: list[Tensor] = []

    def watching(logits_BK: Tensor, u_B: Tensor) -> Tensor:
        seen.append(logits_BK)
        return drawn(logits_BK, u_B)

    monkeypatch.setattr("models.autoregressive.pixelcnn.drawn", watching)
    model = sharp(PixelCNN, levels=5, vocabulary=WORDS, max_words=2)
    prompts = ("one", "two three")
    pictures = model.sample(Request(seeds=(1, 2), prompts=prompts))
    with torch.no_grad():
        whole = model.logits(model.observed(pictures), model.encode(prompts))
    torch.testing.assert_close(torch.stack(seen, 2).view_as(whole), whole, rtol=0, atol=1e-5)


def test_pictures_are_drawn_as_often_as_their_probability_says() -> None:
    """16 pictures, 20,000 draws: a standard error of 0.0036 at most."""
    model = sharp(PixelCNN, image_size=2)
    pictures = model.sample(Request(seeds=tuple(range(20_000)))).flatten(1)
    places = (pictures @ torch.tensor([8.0, 4, 2, 1])).long()
    often = places.bincount(minlength=16) / len(places)
    true = model.log_prob({"pixels": every_picture(2, 2)}).exp()
    torch.testing.assert_close(often, true, rtol=0, atol=0.015)


def test_a_level_is_drawn_by_its_share_of_the_line() -> None:
    logits = torch.tensor([[0.25, 0.5, 0.25]]).log()
    found = [drawn(logits, torch.tensor([u])).item() for u in (0.0, 0.2, 0.3, 0.7, 0.8, 1.0)]
    assert found == [0, 0, 1, 1, 2, 2]


def test_pixels_are_rounded_to_levels_or_become_bits() -> None:
    seventeen = torch.from_numpy(load_digits().images).float()[:20, None]
    as_bytes = (seventeen * 255 / 16).round() / 255  # as the dataset stores them
    assert torch.equal(sharp(PixelCNN, levels=17).observed(as_bytes), seventeen)
    assert torch.equal(
        sharp(PixelCNN, binarize="threshold").observed(as_bytes), (seventeen >= 8).float()
    )
    redrawn = sharp(PixelCNN).observed(torch.full((500, 1, 8, 8), 0.3))
    assert redrawn.mean().item() == pytest.approx(0.3, abs=0.02)


def test_captions_are_needed_where_they_were_learned() -> None:
    model = sharp(PixelCNN, vocabulary=WORDS, max_words=1)
    assert model.capabilities.condition == "text"
    with pytest.raises(ValueError, match="give one prompt a seed"):
        model.sample(Request(seeds=(1,)))
    with pytest.raises(ValueError, match="unknown word 'four'"):
        model.sample(Request(seeds=(1,), prompts=("four",)))
    with pytest.raises(ValueError, match="the batch needs tokens"):
        model.log_prob({"pixels": torch.zeros(1, 1, 8, 8)})
    assert sharp(PixelCNN, vocabulary=WORDS, text="none").capabilities.condition == "none"


def test_a_conditional_model_is_rebuilt_from_json() -> None:
    model = sharp(PixelCNN, vocabulary=WORDS, max_words=1)
    again = build(describe(model))
    again.load_state_dict(model.state_dict())
    assert isinstance(again, PixelCNN)
    request = Request(seeds=(7,), prompts=("two",))
    assert torch.equal(again.sample(request), model.sample(request))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 3}, "channels must be 1, got 3"),
        ({"levels": 1}, "levels must be between 2 and 256, got 1"),
        ({"kernel": 4}, "kernel must be odd and at least 3, got 4"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
    ],
)
def test_a_config_that_would_fail_late_fails_early(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelCNNConfig(**change)  # type: ignore[arg-type]
