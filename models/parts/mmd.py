"""Maximum mean discrepancy between codes and a Gaussian prior (Gretton et al. 2012, JMLR 13:723), unbiased.

Shape letters: N codes, M of them at hand, Z latent width.
"""

from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from models.parts.influence import influence

SCALES: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # Tolstikhin et al., appendix C
REPEATS: Final = 50  # pairs of prior batches that say what chance does


def imq(a_NZ: Tensor, b_MZ: Tensor) -> Tensor:
    """Return the inverse multiquadratic kernel (N, M), sum over scales s of C / (C + |a - b|^2) with C = 2 Z s.

    2 Z is the expected squared distance of two draws from the prior N(0, I). Its tails are heavy: a code far out
    still feels the prior, where a Gaussian kernel's gradient is 0.
    """
    # as products of matrices near codes would lose their digits
    squared_NM = torch.cdist(a_NZ, b_MZ, compute_mode="donot_use_mm_for_euclid_dist").square()
    base = 2.0 * a_NZ.shape[1]
    kernel_NM = torch.zeros_like(squared_NM)
    for s in SCALES:  # one after the other: a stack of all of them leaves the processor's cache
        kernel_NM = kernel_NM + s * base / (s * base + squared_NM)
    return kernel_NM


def mmd(codes_MZ: Tensor, prior_NZ: Tensor, codes_NZ: Tensor | None = None) -> Tensor:
    """Return the U-statistic of MMD^2 between N codes and N draws from the prior: a scalar, below 0 at times.

    Where only some of the N codes are at hand, it is these ones' part: the mean over equal parts is the whole, in value
    and, as the other codes are taken as they are, in gradient.

    The pairs of a sample with itself are left out of the first two terms (Tolstikhin et al., algorithm 2): with them
    every batch would look 7 / N too far from the prior, however well it fits.

    Raises:
        ValueError: fewer than two codes, or as many draws as codes there are not.
    """
    codes_NZ = (codes_MZ if codes_NZ is None else codes_NZ).detach()
    count = len(codes_NZ)
    if count < 2 or len(prior_NZ) != count:
        raise ValueError(f"MMD needs two equal batches of 2 or more, got {count}, {len(prior_NZ)}")
    near = imq(codes_MZ, codes_NZ).sum() / len(codes_MZ) - len(SCALES)
    near = 2 * near - near.detach()  # each pair pulls at both of its codes
    return (near + _apart(prior_NZ)) / (count - 1) - 2 * imq(codes_MZ, prior_NZ).mean()


def excess(codes_NZ: Tensor) -> Tensor:
    """Return how many times further the codes lie from N(0, I) than prior batches of N lie from each other.

    (N,), of which the mean counts and the spread says how sure it is (`influence`). The mean over fixed prior draws of
    the codes' MMD^2, over the root mean square of that between two draws: the U-statistic's mean on equal distributions
    is 0, so its spread is the yardstick. Codes that are the prior's come out between -1 and 3 or so; the same codes get
    the same numbers each time, and the global generator is left alone.
    """
    count = len(codes_NZ)
    draws, apart, chance = _chance(count, codes_NZ.shape[1])
    beyond = apart.mean().to(codes_NZ) / (count - 1)
    near_N = _others(codes_NZ)
    across_N = torch.stack([imq(codes_NZ, draw.to(codes_NZ)).mean(1) for draw in draws]).mean(0)
    ours = near_N.mean() / (count - 1) + beyond - 2 * across_N.mean()
    pairs = (count - 1) * max(1, count - 2)
    near, across = near_N.sum() - 2 * near_N, across_N.sum() - across_N  # without each code
    without_N = near / pairs + beyond - 2 * across / max(1, count - 1)
    return influence(ours / chance, without_N / chance)


@lru_cache(maxsize=4)
def _chance(count: int, width: int) -> tuple[Tensor, Tensor, float]:
    """Return prior batches (REPEATS, N, Z), how near each is to itself, and what MMD^2 two of them have by chance."""
    generator = torch.Generator().manual_seed(0)
    draws, others = torch.randn(2, REPEATS, count, width, generator=generator)
    found = torch.stack([mmd(a, b) for a, b in zip(draws, others, strict=True)])
    return draws, torch.stack([_apart(draw) for draw in draws]), float(found.square().mean().sqrt())


def _apart(codes_NZ: Tensor) -> Tensor:
    """Return the kernel's mean over codes of its sum over the others, a scalar."""
    return _others(codes_NZ).mean()


def _others(codes_NZ: Tensor) -> Tensor:
    """Return each code's sum of the kernel over the others (N,)."""
    kernel_NN = imq(codes_NZ, codes_NZ)
    return kernel_NN.sum(1) - kernel_NN.diagonal()
