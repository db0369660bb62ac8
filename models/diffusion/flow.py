"""Rectified flow (Liu et al. 2022, arXiv:2209.03003): the straight line x_t = (1 - t) x0 + t eps.

It is diffusion with alpha = 1 - t and sigma = t, whose network learns the line's velocity eps - x0 (objectives.py) and
whose sampler walks along it from t = 1 to 0. The times of training and sampling are those of Esser et al. 2024
(arXiv:2403.03206). Shape letters: B rows, S sampler steps.
"""

import torch
from torch import Tensor

from models.diffusion import samplers, schedules


def training_times(count: int, mean: float, device: torch.device) -> Tensor:
    """Return (B, 3) of the network's time 0..1000, alpha and sigma: t is logit-normal (section 3.1 of Esser et al.).

    But for a share that is uniform, for no logit-normal draw comes near the ends where a sampler looks
    (`schedules.training_draws`). `mean` is that of t's logit; above 0 is nearer to the noise.
    """
    uniform_B, normal_B, ends_B = schedules.training_draws(count, device)
    sigma_B = torch.where(ends_B, uniform_B, (normal_B + mean).sigmoid())
    return torch.stack([sigma_B * schedules.TIMES, 1 - sigma_B, sigma_B], 1)


def sampling_times(steps: int, shift: float = 1.0) -> Tensor:
    """Return the (S + 1,) times 1..0 that `steps` sampler steps pass through, float64.

    `shift` > 1 spends more of them near the noise (eq. 23 of Esser et al.).
    """
    time = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * time / (1 + (shift - 1) * time)


def table(sampler: str, sigma: Tensor) -> Tensor:
    """Return a row's (S, 7) float32 table for the times sigma (S + 1,), as `samplers.table` does for a diffusion."""
    moves = samplers.euler(sigma) if sampler == "euler" else samplers.dpmpp(1 - sigma, sigma)
    now = sigma[:-1]
    return torch.cat([torch.stack([now * schedules.TIMES, 1 - now, now], 1), moves], 1).float()
