"""PixelRNN against its definition: it sums to one, sees all that came before and no more, and draws what it says."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import jacobian as jacobian_of

from models.autoregressive.pixelrnn import (
    DiagonalBiLSTM,
    PixelRNN,
    RowLSTM,
    diagonal_order,
    lstm,
)
from tests.models.densities_kit import (
    influence,
    sharp,
)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_logit_of_row_cells_depends_on_no_pixel_that_is_not_before_it(layers: int) -> None:
    found = influence(sharp("pixelrnn", cell="row", image_size=6, layers=layers))
    assert torch.equal(found.triu(), torch.zeros_like(found))


@pytest.mark.parametrize("kernel", [3, 5])
def test_one_diagonal_layer_sees_every_pixel_before(kernel: int) -> None:
    found = influence(sharp("pixelrnn", image_size=7, layers=1, first_kernel=kernel))
    assert (found[torch.tril(torch.ones_like(found), -1).bool()] > 0).all()


class WithoutMargin(PixelRNN):
    """The diagonal scans as the paper prints them: no blank column at the right."""

    def logits(self, x_B1HW: Tensor, tokens: Tensor | None = None) -> Tensor:
        features = self.first(self._input(x_B1HW)) + self._conditioning(tokens)[..., None, None]
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
    found = influence(sharp("pixelrnn", cell="row", image_size=7, first_kernel=3)).view(7, 7, 7, 7)
    assert found[3, 6, 2, 6] > 0
    assert found[3, 1, 2, 6] == 0
    widths = [int((found[6, 3, y] > 0).sum()) for y in range(6)]
    assert widths == sorted(widths, reverse=True)
    assert widths[5] < 7 == widths[0]


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 6), width=st.integers(1, 6))
def test_pixels_come_by_diagonal_and_from_top_to_bottom(height: int, width: int) -> None:
    orders = diagonal_order(height, width, torch.device("cpu"))
    for way, order in enumerate(orders.tolist()):
        places = [divmod(place, width) for place in order]
        diagonals = [(r + (width - 1 - c if way else c), r) for r, c in places]
        assert diagonals == sorted(diagonals)
        assert len({*places}) == height * width


def by_definition(cell: DiagonalBiLSTM, x_EHW: Tensor) -> Tensor:
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
            input_to_gates = torch.cat([beside, above]) @ cell.state_to_state_DEG[way]
            states[r, c] = lstm(gates[way, :, r, c] + input_to_gates, memory)
        for (r, c), (h, _) in states.items():
            if r + way < height:  # what comes from the right is input_to_gates one row below
                total[:, r + way, c] += h
    return total


@pytest.mark.parametrize(("height", "width"), [(4, 5), (5, 4), (1, 3), (3, 1), (2, 6)])
def test_the_diagonal_scans_are_the_equations_pixel_by_pixel(height: int, width: int) -> None:
    torch.manual_seed(0)
    cell, x = DiagonalBiLSTM(6, 3), torch.randn(6, height, width)
    torch.testing.assert_close(cell(x[None])[0], by_definition(cell, x), rtol=0, atol=1e-6)


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
