"""Maximum mean discrepancy between codes and a Gaussian prior (Gretton et al. 2012, JMLR 13:723), unbiased.

Shape letters: N codes, M of them at hand, Z latent width.
"""

from typing import Final

import torch
from torch import Tensor

SCALES: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # Tolstikhin et al., appendix C
REPEATS: Final = 50  # pairs of prior batches that say what chance does


def imq(a_NZ: Tensor, b_MZ: Tensor) -> Tensor:
    """Return the inverse multiquadratic kernel (N, M), sum over scales s of C / (C + |a - b|^2) with C = 2 Z s.

    2 Z is the expected squared distance of two draws from the prior N(0, I). Its tails are heavy: a code far out
    still feels the prior, where a Gaussian kernel's gradient is 0.
    """
    squared_NM = torch.cdist(a_NZ, b_MZ, compute_mode="donot_use_mm_for_euclid_dist").square()
    base = 2.0 * a_NZ.shape[1]
    return torch.stack([s * base / (s * base + squared_NM) for s in SCALES]).sum(0)


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
    draws = _off_diagonal(imq(prior_NZ, prior_NZ)).sum() / count
    return (near + draws) / (count - 1) - 2 * imq(codes_MZ, prior_NZ).mean()


def excess(codes_NZ: Tensor) -> Tensor:
    """Return how many times further the codes lie from N(0, I) than prior batches of N lie from each other, a scalar.

    The mean over fixed prior draws of the codes' MMD^2, over the root mean square of that between two draws: the
    U-statistic's mean on equal distributions is 0, so its spread is the yardstick. Codes that are the prior's come out
    between -1 and 3 or so; the same codes get the same number each time, and the global generator is left alone.
    """
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2 * REPEATS, *codes_NZ.shape, generator=generator).to(codes_NZ)
    ours = torch.stack([mmd(codes_NZ, draw) for draw in draws[:REPEATS]])
    chance = torch.stack([mmd(a, b) for a, b in zip(draws[:REPEATS], draws[REPEATS:], strict=True)])
    return ours.mean() / chance.square().mean().sqrt()


def _off_diagonal(kernel_NN: Tensor) -> Tensor:
    return kernel_NN - kernel_NN.diag().diag()
