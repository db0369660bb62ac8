"""PixelRNN against its definition: it sums to one, sees all that came before and no more, and draws what it says."""

import dataclasses
import itertools
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import jacobian as jacobian_of

from models import build, describe
from models.autoregressive.pixelrnn import (
    DiagonalBiLSTM,
    PixelRNN,
    PixelRNNConfig,
    RowLSTM,
    lstm,
    skewed,
    straightened,
)
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

CELLS = ("diagonal", "row")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("side", "levels"), [(3, 2), (2, 4)])
def test_the_probabilities_of_all_pictures_sum_to_one(cell: str, side: int, levels: int) -> None:
    model = sharp(PixelRNN, cell=cell, image_size=side, levels=levels, layers=2)
    total = total_probability(model, side, levels)
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_they_sum_to_one_given_any_caption(cell: str) -> None:
    model = sharp(PixelRNN, cell=cell, image_size=3, vocabulary=WORDS, max_words=2)
    found = log_probs_by_caption(model)
    assert [one.exp().sum().item() for one in found] == pytest.approx([1] * 4, abs=1e-5)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(found, 2))


@pytest.mark.parametrize("cell", CELLS)
def test_a_first_layer_that_sees_its_own_pixel_gives_no_density(cell: str) -> None:
    model = sharp(PixelRNN, cell=cell, image_size=3, mask="B")
    total = total_probability(model, 3, 2)
    assert abs(total - 1) > 0.1


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 3])
def test_a_logit_depends_on_no_pixel_that_is_not_before_it(cell: str, layers: int) -> None:
    found = influence(sharp(PixelRNN, cell=cell, image_size=6, layers=layers))
    assert torch.equal(found.triu(), torch.zeros_like(found))
    leaking = influence(sharp(PixelRNN, cell=cell, image_size=6, layers=layers, mask="B"))
    assert (leaking.diagonal() > 0).all()
    assert torch.equal(leaking.triu(1), torch.zeros_like(found))


@pytest.mark.parametrize("kernel", [3, 5])
def test_one_diagonal_layer_sees_every_pixel_before(kernel: int) -> None:
    found = influence(sharp(PixelRNN, image_size=7, layers=1, first_kernel=kernel))
    assert (found[torch.tril(torch.ones_like(found), -1).bool()] > 0).all()


class WithoutMargin(PixelRNN):
    """The diagonal scans as the paper prints them: no blank column at the right."""

    def logits(self, x_B1HW: Tensor, tokens: Tensor | None = None) -> Tensor:
        features = self.first(self._seen(x_B1HW)) + self._said(tokens)[..., None, None]
        logits: Tensor = self.head2(self.head1(self.residual(features).relu()).relu())
        return logits


def test_without_the_blank_column_the_last_pixel_of_the_row_above_is_not_seen() -> None:
    """By the pixels further from the edge than the first kernel reaches; and the rest is."""
    torch.manual_seed(0)
    change = dataclasses.replace(PixelRNN.presets["tiny"], image_size=7, first_kernel=3)
    found = influence(WithoutMargin(change)).view(7, 7, 7, 7)
    missed = {(r, c, r - 1, 6) for r in range(1, 7) for c in range(5)}
    before = [(r, c, y, x) for r, c, y, x in itertools.product(range(7), repeat=4)]
    before = [(r, c, y, x) for r, c, y, x in before if (y, x) < (r, c)]
    assert {place for place in before if found[place] == 0} == missed


def test_a_row_layer_sees_a_triangle() -> None:
    """Of features, which have a kernel's width of their own: 3 pixels wider a row, further up, on both sides."""
    found = influence(sharp(PixelRNN, cell="row", image_size=7, first_kernel=3)).view(7, 7, 7, 7)
    assert found[3, 6, 2, 6] > 0
    assert found[3, 1, 2, 6] == 0
    widths = [int((found[6, 3, y] > 0).sum()) for y in range(6)]
    assert widths == sorted(widths, reverse=True)
    assert widths[5] < 7 == widths[0]


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 6), width=st.integers(1, 6), count=st.integers(1, 2))
def test_skewing_moves_a_row_by_its_number_and_back(height: int, width: int, count: int) -> None:
    x = torch.rand(count, height, width)
    moved = skewed(x)
    assert moved.shape == (count, height, width + height - 1)
    for row in range(height):
        assert torch.equal(moved[:, row, row : row + width], x[:, row])
    assert int((moved > -1).sum()) == x.numel()
    assert torch.equal(straightened(moved), x)


def told(cell: DiagonalBiLSTM, x_EHW: Tensor) -> Tensor:
    """Eq. 3 pixel by pixel, both ways, for one picture: states (P, H, W)."""
    gates = cell.input_to_state(x_EHW[None])[0].view(2, -1, *x_EHW.shape[1:])
    size, (height, width) = gates.shape[1] // 4, x_EHW.shape[1:]
    still = torch.zeros(size)
    total = torch.zeros(size, height, width)
    for way, columns in enumerate((range(width), reversed(range(width)))):
        states: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        step, order = 1 - 2 * way, list(columns)
        for r, c in itertools.product(range(height), order):
            beside, memory = states.get((r, c - step), (still, still))
            above, _ = states.get((r - 1, c), (still, still))
            heard = torch.cat([beside, above]) @ cell.state_to_state_DEG[way]
            states[r, c] = lstm(gates[way, :, r, c] + heard, memory)
        for (r, c), (h, _) in states.items():
            if r + way < height:  # what comes from the right is heard one row below
                total[:, r + way, c] += h
    return total


def test_the_diagonal_scans_are_the_equations_pixel_by_pixel() -> None:
    torch.manual_seed(0)
    cell, x = DiagonalBiLSTM(6, 3), torch.randn(6, 4, 5)
    torch.testing.assert_close(cell(x[None])[0], told(cell, x), rtol=0, atol=1e-6)


def test_a_cell_is_torchs_own() -> None:
    """With its gates put in torch's order: input, forget, cell, output."""
    torch.manual_seed(0)
    theirs = nn.LSTMCell(3, 4)
    x, h, c = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
    gates = x @ theirs.weight_ih.T + theirs.bias_ih + h @ theirs.weight_hh.T + theirs.bias_hh
    i, f, g, o = gates.chunk(4, 1)
    found = lstm(torch.cat([o, f, i, g], 1), c)
    torch.testing.assert_close(found, theirs(x, (h, c)), rtol=0, atol=1e-6)


def test_a_row_cell_hears_of_the_row_above_and_of_its_own_to_the_left() -> None:
    torch.manual_seed(0)
    cell = RowLSTM(4, 2, 3)
    found = jacobian_of(cell, torch.randn(1, 4, 4, 5))  # type: ignore[no-untyped-call]
    assert isinstance(found, Tensor)
    seen = found[0, :, 2, 2, 0].abs().sum((0, 1)) > 0
    triangle = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert seen.int().tolist() == triangle  # a state's own input is of two columns


@settings(max_examples=10, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4),
    levels=st.sampled_from([2, 17]),
    kernels=st.sampled_from([(3, 3), (5, 3), (7, 5)]),
    cell=st.sampled_from(CELLS),
    layers=st.integers(1, 3),
    conditional=st.booleans(),
)
def test_the_cached_sampler_draws_what_the_naive_one_draws(
    seeds: list[int],
    levels: int,
    kernels: tuple[int, int],
    cell: str,
    layers: int,
    conditional: bool,
) -> None:
    """Sums differ in the last bits, so a level could differ with a chance near 1e-6 a pixel; these do not."""
    model = sharp(
        PixelRNN,
        image_size=6,
        levels=levels,
        first_kernel=kernels[0],
        row_kernel=kernels[1],
        cell=cell,
        layers=layers,
        vocabulary=WORDS if conditional else (),
        max_words=1,
    )
    prompts = tuple(WORDS[seed % 3] for seed in seeds) if conditional else ()
    request = Request(seeds=tuple(seeds), prompts=prompts)
    assert torch.equal(model.sample(request), sample_naively(model, request))


@pytest.mark.parametrize("cell", CELLS)
def test_the_cached_logits_are_the_naive_ones(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is drawn: the numbers behind it, pixel after pixel, to 1e-5."""
    seen: list[Tensor] = []

    def watching(logits_BK: Tensor, u_B: Tensor) -> Tensor:
        seen.append(logits_BK)
        return drawn(logits_BK, u_B)

    monkeypatch.setattr("models.autoregressive.pixelrnn.drawn", watching)
    model = sharp(PixelRNN, cell=cell, levels=5, vocabulary=WORDS, max_words=2, layers=3)
    prompts = ("one", "two three")
    pictures = model.sample(Request(seeds=(1, 2), prompts=prompts))
    with torch.no_grad():
        whole = model.logits(model.observed(pictures), model.encode(prompts))
    torch.testing.assert_close(torch.stack(seen, 2).view_as(whole), whole, rtol=0, atol=1e-5)


def test_pictures_are_drawn_as_often_as_their_probability_says() -> None:
    """16 pictures, 20,000 draws: a standard error of 0.0036 at most."""
    model = sharp(PixelRNN, image_size=2)
    pictures = model.sample(Request(seeds=tuple(range(20_000)))).flatten(1)
    places = (pictures @ torch.tensor([8.0, 4, 2, 1])).long()
    often = places.bincount(minlength=16) / len(places)
    true = model.log_prob({"pixels": every_picture(2, 2)}).exp()
    torch.testing.assert_close(often, true, rtol=0, atol=0.015)


def test_captions_are_needed_where_they_were_learned() -> None:
    model = sharp(PixelRNN, vocabulary=WORDS, max_words=1)
    assert model.capabilities.condition == "text"
    with pytest.raises(ValueError, match="give one prompt a seed"):
        model.sample(Request(seeds=(1,)))
    with pytest.raises(ValueError, match="unknown word 'four'"):
        model.sample(Request(seeds=(1,), prompts=("four",)))
    with pytest.raises(ValueError, match="the batch needs tokens"):
        model.log_prob({"pixels": torch.zeros(1, 1, 8, 8)})
    assert sharp(PixelRNN, vocabulary=WORDS, text="none").capabilities.condition == "none"


@pytest.mark.parametrize("cell", CELLS)
def test_a_conditional_model_is_rebuilt_from_json(cell: Literal["diagonal", "row"]) -> None:
    model = sharp(PixelRNN, cell=cell, vocabulary=WORDS, max_words=1)
    again = build(describe(model))
    again.load_state_dict(model.state_dict())
    assert isinstance(again, PixelRNN)
    request = Request(seeds=(7,), prompts=("two",))
    assert torch.equal(again.sample(request), model.sample(request))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 3}, "channels must be 1, got 3"),
        ({"levels": 1}, "levels must be between 2 and 256, got 1"),
        ({"row_kernel": 4}, "row_kernel must be odd and at least 3, got 4"),
        ({"state": 0}, "state must be at least 1, got 0"),
    ],
)
def test_a_config_that_would_fail_late_fails_early(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelRNNConfig(**change)  # type: ignore[arg-type]
