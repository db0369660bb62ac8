"""Has what is asked for, or what is answered, moved away from a baseline? Two measures, each with a plain reading."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

MOST_ROWS = 1000  # a side of a permutation test: its table of distances has the square of both


def stability_index(expected: Mapping[str, int], found: Mapping[str, int]) -> float:
    """Return the population stability index of two counts by category: sum (q - p) ln(q / p), symmetric.

    0 is no change; below 0.1 is commonly read as none to speak of, above 0.25 as a shift (Siddiqi 2006, Credit Risk
    Scorecards, chapter 10). Half a count is added to every category, so that one seen on one side alone stays finite.

    Raises:
        ValueError: a side has no counts.

    Example:
        >>> stability_index({"red": 50, "green": 50}, {"red": 50, "green": 50})
        0.0
        >>> stability_index({"red": 50, "green": 50}, {"red": 90, "green": 10}) > 0.25
        True
    """
    return float(_index(*_tables(expected, found)))


def stability_test(
    expected: Mapping[str, int], found: Mapping[str, int], draws: int = 2000, seed: int = 0
) -> float:
    """Return the p-value of a stability index: the share of draws of both sides by their pooled shares that reach it.

    As many are drawn a side as it has, by a fixed seed, and the found ones counted among the draws. By chance the index
    is about (k - 1) / n of k categories and n counts, so that a few counts of many categories pass any fixed limit
    (Yurdakul & Naranjo 2020, Journal of Risk Model Validation 14(4)).

    Raises:
        ValueError: a side has no counts.

    Example:
        >>> stability_test({"red": 50, "green": 50}, {"red": 52, "green": 48}) > 0.5
        True
        >>> stability_test({"red": 50, "green": 50}, {"red": 90, "green": 10}) < 0.01
        True
    """
    then, now = _tables(expected, found)
    pooled = ((then + now) / (then + now).sum()).numpy()
    chance = np.random.default_rng(seed)
    # by categories, not by counts: of a hundred thousand requests those took 5 GB and 9 s
    drawn = [chance.multinomial(int(side.sum()), pooled, size=draws) for side in (then, now)]
    drawn_then, drawn_now = (torch.from_numpy(counts).double() for counts in drawn)
    reached = (_index(drawn_then, drawn_now) >= _index(then, now) - 1e-12).sum()
    return (1 + int(reached)) / (1 + draws)


def _tables(expected: Mapping[str, int], found: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Return both sides' counts of all categories, (K,) float64."""
    names = sorted(expected.keys() | found.keys())
    then, now = (
        torch.tensor([counts.get(name, 0) for name in names], dtype=torch.float64)
        for counts in (expected, found)
    )
    if not names or then.sum() == 0 or now.sum() == 0:
        raise ValueError("a stability index needs counts on both sides")
    return then, now


def _index(then: Tensor, now: Tensor) -> Tensor:
    """Return the index of counts (K,) and counts (..., K)."""
    p, q = ((counts + 0.5) / (counts + 0.5).sum(-1, keepdim=True) for counts in (then, now))
    return ((q - p) * (q / p).log()).sum(-1)


def energy_test(
    a_ND: Tensor, b_MD: Tensor, permutations: int = 500, seed: int = 0
) -> tuple[float, float]:
    """Return the energy distance between features (N, D) and (M, D) and its permutation p-value.

    2 E|a - b| - E|a - a'| - E|b - b'| (Székely & Rizzo 2013); it is 0 for equal distributions only. The p-value is
    the share of random exchanges of the rows that are as far apart, the observed one counted.

    Raises:
        ValueError: fewer than 2 rows a side, different widths, or values that are not finite.

    Example:
        >>> a = torch.arange(20.0)[:, None]
        >>> distance, p = energy_test(a, a + 100)
        >>> p < 0.01
        True
    """
    if a_ND.dim() != 2 or b_MD.dim() != 2 or a_ND.shape[1] != b_MD.shape[1]:
        raise ValueError(
            f"rows of shapes {tuple(a_ND.shape)} and {tuple(b_MD.shape)} do not compare"
        )
    if min(len(a_ND), len(b_MD)) < 2:
        raise ValueError(f"at least 2 rows a side are needed, got {len(a_ND)} and {len(b_MD)}")
    rows = torch.cat([a_ND[:MOST_ROWS], b_MD[:MOST_ROWS]]).double()
    if not rows.isfinite().all():
        raise ValueError("features are not finite: the sampler or the judge diverged")
    distances = torch.cdist(rows, rows)
    first = min(len(a_ND), MOST_ROWS)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(len(rows))]
    orders += [torch.randperm(len(rows), generator=generator) for _ in range(permutations)]
    inside = torch.zeros(len(orders), len(rows), dtype=torch.float64)
    for place, order in enumerate(orders):
        inside[place, order[:first]] = 1
    outside = 1 - inside
    n, m = first, len(rows) - first
    to_a, to_b = inside @ distances, outside @ distances
    between = (to_a * outside).sum(1) / (n * m)
    within_a = (to_a * inside).sum(1) / (n * (n - 1))
    within_b = (to_b * outside).sum(1) / (m * (m - 1))
    energies = 2 * between - within_a - within_b
    extreme = float((energies >= energies[0] - 1e-12).double().mean())
    return float(energies[0]), extreme
