"""The measures of drift stay quiet on equal samples and speak up on moved ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.judges.drift import energy_test, stability_index, stability_test

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 500), min_size=1)


@given(expected=COUNTS, found=COUNTS)
def test_a_stability_index_is_symmetric_and_never_negative(
    expected: dict[str, int], found: dict[str, int]
) -> None:
    forth = stability_index(expected, found)
    assert forth == pytest.approx(stability_index(found, expected), abs=1e-12)
    assert forth >= -1e-12
    assert stability_index(expected, expected) == pytest.approx(0, abs=1e-12)


def test_a_word_that_takes_over_raises_the_stability_index_above_the_common_limit() -> None:
    even = {"red": 100, "green": 100, "blue": 100, "white": 100}
    assert stability_index(even, {"red": 105, "green": 97, "blue": 101, "white": 97}) < 0.01
    assert stability_index(even, {"red": 300, "green": 40, "blue": 30, "white": 30}) > 0.25
    with pytest.raises(ValueError, match="counts on both sides"):
        stability_index(even, {})


def test_what_chance_does_to_few_counts_of_many_categories_is_no_shift() -> None:
    names = [str(number) for number in range(20)]
    even, generator = dict.fromkeys(names, 50), torch.Generator().manual_seed(1)
    index, p = [], []
    for _ in range(200):
        counts = torch.randint(20, (60,), generator=generator).bincount(minlength=20).tolist()
        found = dict(zip(names, counts, strict=True))
        index.append(stability_index(even, found))
        p.append(stability_test(even, found, draws=500))
    assert sum(one > 0.25 for one in index) > 60
    assert sum(one < 0.01 for one in p) <= 6
    assert 0.4 < sum(p) / len(p) < 0.6
    assert stability_test(even, dict.fromkeys(names[:8], 8)) < 0.01


def test_the_energy_test_keeps_its_level_on_equal_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    below = 0
    for _ in range(60):
        a, b = (torch.randn(60, 5, generator=generator) for _ in range(2))
        below += energy_test(a, b, permutations=100)[1] < 0.05
    assert below <= 9  # 3 expected


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_energy_test_finds_a_moved_mean_and_a_collapsed_spread(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(150, 6, generator=generator)
    moved = torch.randn(150, 6, generator=generator) + 0.5
    collapsed = 0.3 * torch.randn(150, 6, generator=generator)
    for other in (moved, collapsed):
        energy, p = energy_test(a, other)
        assert energy > 0
        assert p < 0.01


def test_rows_that_do_not_compare_are_refused() -> None:
    with pytest.raises(ValueError, match="do not compare"):
        energy_test(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="at least 2 rows"):
        energy_test(torch.zeros(1, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="not finite"):
        energy_test(torch.full((3, 2), float("nan")), torch.zeros(3, 2))


def test_chance_moves_a_stability_index_in_one_of_a_hundred_and_many_counts_cost_no_memory() -> (
    None
):
    chance, moved = np.random.default_rng(1), 0
    for _ in range(200):
        then, now = (
            {
                str(place): int(count)
                for place, count in enumerate(chance.multinomial(size, [0.05] * 20))
            }
            for size in (400, 50)
        )
        moved += stability_test(then, now, draws=500) < 0.01
    assert moved <= 8  # more by chance: in .0002 of such runs
    many = dict.fromkeys(map(str, range(30)), 10**8)
    assert stability_test(many, many) > 0.99
