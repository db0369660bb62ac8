"""Noise schedules: the picture (alpha) and noise (sigma) in x = alpha x0 + sigma eps at each time.

Shape letters: T = 1000 discrete times, S sampler steps, B rows. Tables are float64, so that 1 - alpha^2 is exact near
the clean end.
"""

import math
from typing import Final

import torch
from torch import Tensor

TIMES: Final = 1000
"""Discrete times of a diffusion, and the scale on which every network is told its time."""
ENDS: Final = 0.05
"""Share of the training rows whose noise is anywhere a sampler may look; normal draws come near to no end."""


def betas(schedule: str, *, zero_terminal_snr: bool = False) -> Tensor:
    """Return the (T,) variances added at each time.

    `linear` is 1e-4..0.02 (Ho et al. 2020, arXiv:2006.11239, section 4); `cosine` is eq. 17 of
    Nichol & Dhariwal 2021 (arXiv:2102.09672). `zero_terminal_snr` rescales them so that the last
    time is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
    """
    if schedule == "linear":
        beta_T = torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64, device="cpu")
    else:
        time = torch.arange(TIMES + 1, dtype=torch.float64, device="cpu") / TIMES
        kept = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
        beta_T = (1 - kept[1:] / kept[:-1]).clamp(
            max=0.999
        )  # else the last is 1, where eps tells no x0
    if not zero_terminal_snr:
        return beta_T
    alpha_T = (1 - beta_T).cumprod(0).sqrt()
    first, last = alpha_T[0].clone(), alpha_T[-1].clone()
    bar_T = ((alpha_T - last) * first / (first - last)).square()
    return 1 - torch.cat([bar_T[:1], bar_T[1:] / bar_T[:-1]])


def alphas(beta_T: Tensor) -> Tensor:
    """Return the (T,) share of the picture left at each time: the root of the product of 1 - beta."""
    return (1 - beta_T).cumprod(0).sqrt()


def training_draws(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return `uniform` and `normal` draws (B,) for noise levels, and whether a row takes its `uniform` one, bool.

    A share ENDS of the rows does. All are spread evenly over the batch, which lowers the loss's variance (Kingma et al.
    2021, arXiv:2107.00630, appendix I.1).
    """
    spread_B = spread(count, device)
    ends_B = spread_B < ENDS
    uniform_B = with_ends(spread_B / ENDS)
    # the normal's quantile is infinite at 0 and 1
    normal_B = torch.special.ndtri(((spread_B - ENDS) / (1 - ENDS)).clamp(1e-6, 1 - 1e-6))
    return uniform_B, normal_B, ends_B


def spread(count: int, device: torch.device) -> Tensor:
    """Return (B,) numbers in [0, 1), each uniform and all as far apart as they can be."""
    return (torch.rand((), device=device) + torch.arange(count, device=device) / count) % 1


def with_ends(uniform: Tensor) -> Tensor:
    """Return numbers in [0, 1] for those in [0, 1): about one in 50 is 0 and one in 50 is 1, where samplers begin."""
    return (1.04 * uniform - 0.02).clamp(0, 1)


def trailing(steps: int) -> Tensor:
    """Return the (S,) discrete times that `steps` sampler steps visit, from 999 downwards.

    "Trailing" spacing (Lin et al. 2023, table 2): the first step sees the last time of training.
    """
    return torch.arange(TIMES, 0, -TIMES / steps, dtype=torch.float64)[:steps].round().long() - 1
