"""The samplers of diffusers' unCLIP pipelines as tables: DDPM's and Karlo's, which draw noise at each step, and DDIM's.

Ho et al. 2020, arXiv:2006.11239, eqs. 6 and 7; Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15, for variances that
the network tells between two bounds. With e what it says of the noise and z fresh noise, a step is

    x0 = clip(seen x + said e),    x' = keep x + new x0 + away e + fresh deviation z

Clipping keeps them out of `solvers`, whose steps are linear.

Shape letters: B rows, S steps, N times of training, K columns: time, seen, said, keep, new, away, fresh, and the
lower and the upper bound of the variance's logarithm.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor

SCHEDULERS: Final = ("DDPMScheduler", "DDIMScheduler", "UnCLIPScheduler")
LEARNED: Final = "learned_range"
BOUNDS_OF: Final[Mapping[str, tuple[bool, bool]]] = {
    **dict.fromkeys(("fixed_small", "fixed_small_log"), (False, False)),
    **{"fixed_large": (True, True), LEARNED: (False, True)},
}
"""By the kind of variance, whether its lower and its upper bound are beta's, and not the posterior's."""
LEAST: Final = 1e-20


def scheduler(document: str) -> Any:
    """Return diffusers' scheduler of a scheduler_config.json.

    Raises:
        ValueError: one that is not among `SCHEDULERS`, or is set in a way that no table has.
    """
    asked = json.loads(document)
    name = asked.get("_class_name") if isinstance(asked, dict) else None
    if name not in SCHEDULERS:
        raise ValueError(
            f"scheduler {name!r} is none of an unCLIP's; take one of {', '.join(SCHEDULERS)}"
        )
    with torch.device("cpu"):
        found = getattr(import_module("diffusers"), name).from_config(asked)
    c = found.config
    kinds = ("epsilon",) if name == "DDIMScheduler" else ("epsilon", "sample")
    if c.prediction_type not in kinds:
        raise ValueError(
            f"scheduler {name} must predict {' or '.join(kinds)}, got {c.prediction_type!r}"
        )
    if (kind := c.get("variance_type", "fixed_small")) not in BOUNDS_OF:
        raise ValueError(f"variance_type must be one of {', '.join(BOUNDS_OF)}, got {kind!r}")
    return found


@lru_cache(maxsize=64)
def table(document: str, steps: int) -> Tensor:
    """Return the (S, K) float32 table of a scheduler's steps."""
    solver = scheduler(document)
    with torch.device("cpu"):
        solver.set_timesteps(steps)
    times = [int(time) for time in solver.timesteps]
    rows = [_row(solver, *pair) for pair in zip(times, _after(solver, times), strict=True)]
    return torch.tensor(rows)


def _after(solver: Any, times: list[int]) -> list[int]:
    """Return the time that each step goes to; below 0: the end."""
    if type(solver).__name__ == "UnCLIPScheduler":
        return [*times[1:], times[-1] - 1]
    stride = solver.config.num_train_timesteps // len(times)
    return [time - stride for time in times]


def _row(solver: Any, time: int, after: int) -> list[float]:
    """Return a step's line, in float32 as diffusers has it: near to the end both roundings are a thousandth apart."""
    bars, end = solver.alphas_cumprod, getattr(solver, "final_alpha_cumprod", torch.tensor(1.0))
    bar, bar_after = bars[time], bars[after] if after >= 0 else end
    beta = 1 - bar / bar_after
    if type(solver).__name__ == "UnCLIPScheduler" and after == time - 1:
        beta = solver.betas[time]
    seen, said = bar**-0.5, -(((1 - bar) / bar) ** 0.5)
    if solver.config.prediction_type == "sample":
        seen, said = torch.zeros_like(bar), torch.ones_like(bar)
    if type(solver).__name__ == "DDIMScheduler":
        found = [seen, said, 0.0, bar_after**0.5, (1 - bar_after) ** 0.5, 0.0, 0.0, 0.0]
        return [time, *map(float, found)]
    posterior = ((1 - bar_after) / (1 - bar) * beta).clamp(min=LEAST)
    kind = solver.config.get("variance_type", "fixed_small")
    logs = [(beta if large else posterior).log() for large in BOUNDS_OF[kind]]
    keep = (1 - beta) ** 0.5 * (1 - bar_after) / (1 - bar)
    new = bar_after**0.5 * beta / (1 - bar)
    return [time, *map(float, (seen, said, keep, new, 0.0, time > 0, *logs))]


def advance(
    step_BK: Tensor,
    x: Tensor,
    e: Tensor,
    variance: Tensor | None,
    noise: Tensor,
    document: str,
) -> tuple[Tensor, Tensor]:
    """Return the next x (B, ...), and the clean estimate of this step.

    Args:
        step_BK: Each row's line of its table.
        x: Where it is.
        e: What the network said.
        variance: What it said of the variance, in [-1, 1] between its bounds; None where it says nothing.
        noise: Fresh and standard normal, like x.
        document: The scheduler's, which says how clean estimates are clipped.
    """
    columns = step_BK.view(*step_BK.shape, *[1] * (x.dim() - 1)).unbind(1)
    _, seen, said, keep, new, away, fresh, low, high = columns
    x0 = _clipped(seen * x + said * e, document)
    share = 0.0 if variance is None else (variance + 1) / 2
    deviation = (0.5 * (share * high + (1 - share) * low)).exp()
    return keep * x + new * x0 + away * e + fresh * deviation * noise, x0


def _clipped(x0: Tensor, document: str) -> Tensor:
    """Return a clean estimate within its range: a fixed one, or each row's own quantile."""
    c = _range(document)
    if c.get("thresholding"):
        far_B = x0.flatten(1).abs().quantile(c["dynamic_thresholding_ratio"], dim=1)
        far = far_B.clamp(1, c["sample_max_value"]).view(-1, *[1] * (x0.dim() - 1))
        return x0.clamp(-far, far) / far
    if c.get("clip_sample"):
        return x0.clamp(-c["clip_sample_range"], c["clip_sample_range"])
    return x0


@lru_cache(maxsize=64)
def _range(document: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = dict(scheduler(document).config)
    return found


def trained(document: str) -> Tensor:
    """Return (N, 2) the shares of sample and noise at each time of training."""
    bars = scheduler(document).alphas_cumprod
    return torch.stack([bars.sqrt(), (1 - bars).sqrt()], 1)


def predicts(document: str) -> str:
    """Return what the network says: "epsilon" or "sample"."""
    return str(_range(document)["prediction_type"])


def learns_variance(document: str) -> bool:
    """Return whether a network says between which bounds the variance is."""
    return _range(document).get("variance_type") == LEARNED
