"""The sampler of Karras et al. 2022 (arXiv:2206.00364) as tables: Heun's method on dx / dsigma = (x - D(x)) / sigma.

A line of a table is one evaluation of the denoiser D, so that rows at different steps of different requests advance
together at an equal cost. Shape letters: B rows, S evaluations.
"""

import torch
from torch import Tensor


def sigmas(steps: int, least: float, most: float, rho: float) -> Tensor:
    """Return the (steps + 1,) float64 noise levels that a sampler passes, eq. 5: from most to least, and 0."""
    if steps == 1:
        return torch.tensor([most, 0.0], dtype=torch.float64)
    line = torch.linspace(most ** (1 / rho), least ** (1 / rho), steps, dtype=torch.float64)
    return torch.cat([line**rho, torch.zeros(1, dtype=torch.float64)])


def table(sampler: str, sigma: Tensor) -> Tensor:
    """Return a row's (S, 3) float32 table, an evaluation a line: sigma, the step in sigma, and whether it corrects.

    "heun" looks twice at a step, before it and after it; the last one, to 0, has no after. "euler" looks once.
    """
    lines = []
    for now, then in zip(sigma[:-1].tolist(), sigma[1:].tolist(), strict=True):
        lines.append((now, then - now, 0.0))
        if sampler == "heun" and then:
            lines.append((then, then - now, 1.0))
    return torch.tensor(lines, dtype=torch.float32)


def advance(
    line_B3: Tensor, x: Tensor, x0: Tensor, start: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x, start, slope) after one evaluation x0 = D(x), each row by its own line of its table.

    A line that does not correct takes an Euler step, and keeps where it began and its slope; one that corrects goes
    back there and steps along the mean of both slopes.
    """
    sigma, h, corrects = (column.view(-1, *[1] * (x.dim() - 1)) for column in line_B3.unbind(1))
    here = (x - x0) / sigma
    second = corrects > 0
    moved = torch.where(second, start + h * (slope + here) / 2, x + h * here)
    return moved, torch.where(second, start, x), torch.where(second, slope, here)
