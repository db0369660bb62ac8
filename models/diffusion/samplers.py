"""Samplers as tables: a step of each is x' = keep x + new x0 + old x0_before + noise z.

x0 is the network's estimate of the clean picture at this step, x0_before that of the step before,
z fresh standard normal noise. A sampler is thus a pure function from the (alpha, sigma) it visits
to four columns of coefficients, and rows at different steps of different samplers advance together.

Shape letters: B rows, S sampler steps. alpha and sigma have S + 1 entries: the times visited and
the end, (1, 0).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.family import Family, Rows
from models.parts import adapter_rows
from models.parts.rows import filled


def ddpm(alpha: Tensor, variance: str = "small") -> Tensor:
    """Return the (S, 4) table of ancestral sampling (Ho et al. 2020, arXiv:2006.11239, eqs. 6, 7).

    `variance` is the posterior's ("small") or beta ("large"), section 3.2; the last step adds none.
    """
    bar, bar_after = alpha[:-1].square(), alpha[1:].square()
    beta = 1 - bar / bar_after
    new = alpha[1:] * beta / (1 - bar)
    keep = (1 - beta).sqrt() * (1 - bar_after) / (1 - bar)
    noise = (beta if variance == "large" else beta * (1 - bar_after) / (1 - bar)).sqrt()
    noise[-1] = 0  # line 3 of Algorithm 2: z = 0 at t = 1
    return torch.stack([keep, new, torch.zeros_like(new), noise], 1)


def ddim(alpha: Tensor, sigma: Tensor, eta: float = 0.0) -> Tensor:
    """Return the (S, 4) table of DDIM (Song et al. 2021, arXiv:2010.02502, eqs. 12 and 16).

    `eta` 0 is deterministic, 1 has the variance of ancestral sampling.
    """
    bar, bar_after = alpha[:-1].square(), alpha[1:].square()
    noise = eta * ((1 - bar_after) / (1 - bar) * (1 - bar / bar_after)).sqrt()
    direction = (1 - bar_after - noise.square()).clamp(min=0).sqrt()  # rounding may go below 0
    keep = direction / sigma[:-1]
    return torch.stack([keep, alpha[1:] - keep * alpha[:-1], torch.zeros_like(keep), noise], 1)


def euler(sigma: Tensor) -> Tensor:
    """Return the (S, 4) table of Euler's method on a rectified flow.

    x' = x + (t' - t)(x - x0) / t with t = sigma.
    """
    keep = sigma[1:] / sigma[:-1]
    return torch.stack([keep, 1 - keep, torch.zeros_like(keep), torch.zeros_like(keep)], 1)


def dpmpp(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the (S, 4) table of DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    The first and the last step are first-order, and so is the second after a start from pure noise,
    whose log-SNR is infinitely far away.
    """
    log_snr = alpha.log() - sigma.log()
    h = log_snr.diff()
    shrink = sigma[1:] * alpha[:-1] / (alpha[1:] * sigma[:-1])  # exp(-h), also where h is infinite
    slope = torch.zeros_like(h)  # 1 / (2 r), r = h_before / h
    slope[1:-1] = h[1:-1] / h[:-2] / 2
    new = alpha[1:] * (1 - shrink)
    return torch.stack(
        [sigma[1:] / sigma[:-1], new * (1 + slope), -new * slope, torch.zeros_like(h)], 1
    )


def table(
    sampler: str, alpha_T: Tensor, times_S: Tensor, eta: float = 0.0, variance: str = "small"
) -> Tensor:
    """Return a diffusion row's (S, 7) float32 table: time, alpha, sigma and the sampler's four."""
    alpha = torch.cat([alpha_T[times_S], torch.ones(1, dtype=alpha_T.dtype)])
    sigma = (1 - alpha.square()).sqrt()
    moves = {
        "ddpm": lambda: ddpm(alpha, variance),
        "ddim": lambda: ddim(alpha, sigma, eta),
        "dpmpp": lambda: dpmpp(alpha, sigma),
    }[sampler]()
    return torch.cat([torch.stack([times_S, alpha[:-1], sigma[:-1]], 1), moves], 1).float()


def begun_at(table_BS7: Tensor, first: int) -> Tensor:
    """Return the tables of rows whose first step is that one: it looks back on nothing, as a first-order step does."""
    table_BS7 = table_BS7.clone()
    table_BS7[:, first, 4] += table_BS7[:, first, 5]
    table_BS7[:, first, 5] = 0
    return table_BS7


def advance(
    step_B4: Tensor, x: Tensor, x0: Tensor, before: Tensor | None, noise: Tensor | None
) -> Tensor:
    """Return the next x (B, C, H, W): each row by its own (keep, new, old, noise) coefficients.

    None stands for what no row has a coefficient for.
    """
    keep, new, old, fresh = (column.view(-1, *[1] * (x.dim() - 1)) for column in step_B4.unbind(1))
    moved = keep * x + new * x0
    moved = moved if before is None else moved + old * before
    return moved if noise is None else moved + fresh * noise


def guided(
    model: Family,
    predict: Callable[[Tensor, Tensor | None], Tensor],
    rows: Rows,
    live_B: Tensor,
) -> Tensor:
    """Return predictions with classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598).

    `predict(row_N, context)` calls the network on the rows of these numbers (N,). It is called once: for every row, and
    again for those under way that guidance moves, filled up to one of the model's `call_sizes`. So no row costs more
    for how its neighbours are guided, and its bits do not depend on that.
    """
    context, scale_B = rows.get("context"), rows["guidance"]
    under_way = zip(scale_B.tolist(), live_B.tolist(), strict=True)
    moved = [row for row, (scale, live) in enumerate(under_way) if live and scale != 1]
    moved = [] if context is None else moved
    count, device = len(live_B), rows["x"].device
    asked = filled([*range(count), *moved], model.call_sizes)
    row_N = torch.tensor(asked).to(device, non_blocking=True)
    if context is not None:
        without, spare = (
            rows["without"][row_N[count : count + len(moved)]],
            len(asked) - count - len(moved),
        )
        context = torch.cat([context, without, context[:1].expand(spare, -1, -1)])
    with adapter_rows.placed(model, asked):
        found = predict(row_N, context)
    given = found[:count]
    if not moved:
        return given
    row_M = row_N[count : count + len(moved)]
    scale = scale_B[moved].to(device, non_blocking=True)[:, None, None, None]
    without = found[count : count + len(moved)]
    return given.index_copy(0, row_M, without + scale * (given[row_M] - without))
