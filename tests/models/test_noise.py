"""The generator against its published vectors and numpy's, and what rows drawn from it have to be."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.receipts.receipts import GENERATOR
from models.parts import noise
from models.parts.noise import normals, philox, places, uniforms

CPU = torch.device("cpu")
WORD = st.integers(0, 2**64 - 1)
PUBLISHED = """
0000000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000
16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b
ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff
87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0
243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89 452821e638d01377 be5466cf34e90c6c
a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6
"""
"""Counter, key and answer of `philox4x64 10` in Random123's kat_vectors."""


def bits(words: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(words, np.uint64).view(np.int64))


def test_philox_gives_the_published_answers() -> None:
    words = [int(word, 16) for word in PUBLISHED.split()]
    for start in range(0, len(words), 10):
        counter, key, answer = (words[start + a : start + b] for a, b in ((0, 4), (4, 6), (6, 10)))
        found = philox(bits(counter)[:, None, None], bits(key)[:, None, None])
        assert torch.equal(found[:, 0, 0], bits(answer))


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(WORD, st.integers(0, 2**63 - 1)), min_size=1, max_size=4),
    stage=st.integers(0, 2**63 - 1),
    count=st.integers(1, 19),
)
def test_a_device_s_bits_are_a_cpu_s(rows: list[tuple[int, int]], stage: int, count: int) -> None:
    """A CPU takes numpy's Philox, which is in C; other devices take ours, in torch's integers."""
    seeds, draws = zip(*rows, strict=True)
    ours = noise.by_torch(seeds, draws, stage, count, CPU)
    assert torch.equal(ours, noise.by_numpy(seeds, draws, stage, count))


def test_a_device_s_normals_are_a_cpu_s_up_to_rounding() -> None:
    """The largest of these is 4.6; a radius near 0 comes of a logarithm near 0, hence the absolute tolerance."""
    drawn = normals([5, 6], (100, 1000), CPU, stage=3, draws=4).flatten(1)
    found = noise.by_torch([5, 6], [4, 4], 3, 50_000, CPU).view(torch.int32).float()
    noise.box_muller(torch, found[:, :50_000], found[:, 50_000:])
    torch.testing.assert_close(found, drawn, rtol=1e-5, atol=1e-5)


def test_what_a_seed_draws_stays_what_it_is() -> None:
    """Receipts name the generator: whoever changes these numbers raises infra.receipts.receipts.GENERATOR."""
    assert GENERATOR == 2
    drawn = normals([8203], (4,), CPU, stage=1, draws=2)[0]
    expected = torch.tensor([0.0843231, 0.7890868, -0.1691538, 0.3902614])
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        uniforms([-1], (4,), CPU)[0],
        torch.tensor(
            [0.5541741251945496, 0.2349415421485901, 0.6799777746200562, 0.7173107266426086]
        ),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("draw", [normals, uniforms])
def test_every_bit_of_a_seed_counts_and_so_do_stage_and_draw(
    draw: Callable[..., torch.Tensor],
) -> None:
    """8203 and 34867 are two seeds that a generator of 32 bits cannot tell apart after mixing."""
    seeds = [0, 1, -1, 8203, 34867, 2**63 - 1, -(2**63), *(1 << bit for bit in range(2, 63))]
    rows = [*draw(seeds, (64,), CPU)]
    rows += [draw([0], (64,), CPU, stage=1)[0], draw([0], (64,), CPU, draws=1)[0]]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    assert torch.stack(rows).corrcoef().fill_diagonal_(0).abs().max() < 0.65  # 5 deviations


@pytest.mark.parametrize("draw", [normals, uniforms])
def test_a_row_is_drawn_from_its_own_seed_alone_or_in_a_batch(
    draw: Callable[..., torch.Tensor],
) -> None:
    """Bit for bit, however many rows fit into one call."""
    seeds, draws = list(range(40)), [n % 3 for n in range(40)]
    together = draw(seeds, (3, 31, 31), CPU, draws=draws)
    for row in (0, 17, 39):
        alone = draw([seeds[row]], (3, 31, 31), CPU, draws=draws[row])
        assert torch.equal(together[row], alone[0])


def test_normals_have_the_moments_and_the_tails_of_the_normal_distribution() -> None:
    """A million of them: standard errors of .001 and of sqrt(96 / 1e6) = .01 for the fourth moment."""
    drawn = normals(range(100), (100, 100), CPU).double().flatten()
    assert abs(drawn.mean()) < 0.005
    assert abs(drawn.var() - 1) < 0.008
    assert abs(drawn.pow(3).mean()) < 0.02
    assert abs(drawn.pow(4).mean() - 3) < 0.05
    for border in (1.0, 2.0, 3.0):
        share = 2 * torch.special.ndtr(torch.tensor(-border, dtype=torch.float64))
        found = (drawn.abs() > border).double().mean()
        assert abs(found - share) < 5 * (share / len(drawn)).sqrt()
    halves = torch.stack(drawn.view(100, 2, -1).unbind(1)).flatten(1)  # by cosines, by sines
    assert abs(halves.corrcoef()[0, 1]) < 0.008
    assert abs(halves.square().corrcoef()[0, 1]) < 0.008


def test_uniforms_are_even_and_their_first_ones_do_not_depend_on_how_many_there_are() -> None:
    """In each tenth of 100,000 there are 10,000, a standard deviation of 95."""
    drawn = uniforms(range(10), (10_000,), CPU)
    assert 0 <= drawn.min() <= drawn.max() < 1
    assert (drawn.flatten().histc(10, 0, 1) - 10_000).abs().max() < 500
    assert drawn.shape == (10, 10_000)
    assert torch.equal(uniforms(range(10), (7,), CPU), drawn[:, :7])
    both = torch.stack([drawn[:, :-1].flatten(), drawn[:, 1:].flatten()])
    assert abs(both.corrcoef()[0, 1]) < 0.02


def test_places_are_drawn_as_often_as_their_weights_say() -> None:
    weight = torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 2.0]])
    u = (torch.arange(8) + 0.5)[:, None].expand(8, 2) / 8
    assert places(u, weight).T.tolist() == [[0, 0, 2, 2, 2, 2, 2, 2], [2] * 8]
    assert places(torch.zeros(1, 2), weight).tolist() == [[0, 2]]
