"""Intervals of statistics of all rows together are as wide as those vary from one lot of rows to another."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.parts.codes import perplexity, perplexity_by_picture, relative_cost
from models.parts.influence import influence
from models.parts.mmd import excess
from models.text_to_image.unclip import _ratio
from models.variational.kl_autoencoder import _deviation

ROWS = 80


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=30))
def test_of_a_mean_they_are_the_rows_own_values(rows: list[float]) -> None:
    x_N = torch.tensor(rows, dtype=torch.float64)
    found = influence(x_N.mean(), (x_N.sum() - x_N) / (len(x_N) - 1))
    torch.testing.assert_close(found.double(), x_N, rtol=1e-4, atol=1e-4)


def test_one_row_alone_has_no_spread() -> None:
    assert influence(torch.tensor(3.0), torch.tensor([torch.nan])).tolist() == [3.0]


def normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(seed))


def codes(seed: int) -> Tensor:
    """Sixteen places of each picture, which like some codes of 32 more than others."""
    shares_BK = (0.7 * normals(seed, 32)).softmax(1)
    return torch.multinomial(shares_BK, 16, True, generator=torch.Generator().manual_seed(seed))


def costs(seed: int) -> Tensor:
    pixels, errors = normals(seed, 1, 2, 2) * (1 + normals(seed + 1000, 1, 1, 1).abs()), 0.3
    return relative_cost(pixels + errors * normals(seed + 2000, 1, 2, 2), pixels)


def ratio(seed: int) -> Tensor:
    return _ratio(1.3 * normals(seed).square(), normals(seed + 1000).square())


STATISTICS: dict[str, Callable[[int], Tensor]] = {
    "perplexity": lambda seed: perplexity_by_picture(codes(seed), 32),
    "relative cost": costs,
    "deviation of latents": lambda seed: _deviation(normals(seed, 4) * (1 + normals(seed + 1, 1))),
    "distance of codes that are off": lambda seed: excess(1.3 * normals(seed, 4)),
    "ratio of variances": ratio,
}


@pytest.mark.parametrize("name", STATISTICS)
def test_the_error_that_the_rows_tell_is_that_from_one_lot_of_rows_to_another(name: str) -> None:
    found = [STATISTICS[name](7 * seed) for seed in range(100)]
    varies = torch.stack([values.mean() for values in found]).std()
    told = torch.stack([values.std() / len(values) ** 0.5 for values in found]).mean()
    assert all(len(values) == ROWS for values in found)
    assert 0.75 < (told / varies).item() < 1.35, (told, varies)


def test_codes_that_are_the_prior_s_have_an_interval_that_is_not_too_narrow() -> None:
    """There the first order is nought, and what is left makes the jackknife's error too large: 1.4 times."""
    found = [excess(normals(seed, 4)) for seed in range(100)]
    varies = torch.stack([values.mean() for values in found]).std()
    told = torch.stack([values.std() / len(values) ** 0.5 for values in found]).mean()
    assert 1.0 < (told / varies).item() < 1.8, (told, varies)


def test_the_values_mean_is_the_statistic_of_all_rows() -> None:
    index_BP, pixels = codes(3), normals(4, 1, 2, 2)
    found = perplexity_by_picture(index_BP, 32).mean()
    torch.testing.assert_close(found, perplexity(index_BP, 32))
    plain = (pixels - pixels.mean(0)).square().sum()
    torch.testing.assert_close(
        relative_cost(0.5 * pixels, pixels).mean(), (0.5 * pixels).square().sum() / plain
    )
    torch.testing.assert_close(_deviation(pixels.flatten(1)).mean(), pixels.std())
