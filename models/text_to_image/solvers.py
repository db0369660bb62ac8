"""The samplers of diffusers as tables: what each of their steps does to numbers, found by asking the scheduler itself.

A step of a sampler without noise of its own is linear in what the network said and in what there was before:

    x' = keep x + new e + sum over the last four steps of (kept x_before + old e_before)

with e the network's prediction. So a scheduler is walked once over unit vectors, one for the first noise and one for
each prediction to come, and each step's coefficients are solved for. Rows of different schedulers and steps then
advance together, and no scheduler keeps a state.

Shape letters: B rows, S calls of the network, K columns.
"""

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

BEFORE: Final = 4  # steps that a step looks back at
COLUMNS: Final = 6 + 2 * BEFORE
"""time, scale of the network's input, x0 by (input, prediction), keep, new; then kept and old, newest first."""
LINEAR: Final = 1e-5  # how far a step may be from its coefficients
SCHEDULERS: Final = (
    *("DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"),
    *("LMSDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
)
"""Those that draw no noise on the way."""


def scheduler(document: Mapping[str, Any]) -> Any:
    """Return diffusers' scheduler of a scheduler_config.json.

    Raises:
        ValueError: one that is not among `SCHEDULERS`, or that clips what the network says.
    """
    name = document.get("_class_name")
    if name not in SCHEDULERS:
        raise ValueError(
            f"scheduler {name!r} draws noise of its own or is not known; take one of {', '.join(SCHEDULERS)}"
        )
    with torch.device("cpu"):
        found = getattr(import_module("diffusers"), name).from_config(dict(document))
    for setting in ("clip_sample", "thresholding"):
        if found.config.get(setting):
            raise ValueError(
                f"scheduler {name} has {setting}, which is not linear: set it to false"
            )
    return found


@lru_cache(maxsize=64)
def table(
    document: str, steps: int, places: int = 0, *, even: bool = False
) -> tuple[Tensor, float]:
    """Return the (S, K) float32 table of a scheduler's steps, and the deviation of the first noise.

    Args:
        document: scheduler_config.json.
        steps: As a request asks for them; some schedulers call the network more than once a step.
        places: That a transformer attends to: the more, the longer some schedulers stay near to noise.
        even: The shares of noise are 1, 1 - 1 / steps, ..., 1 / steps before any shift, whatever was trained: Flux's.

    Raises:
        ValueError: as `scheduler`, or more steps than it can take.
    """
    import json

    solver = scheduler(json.loads(document))
    with torch.device("cpu"):
        solver.set_timesteps(**_asked(solver, steps, even=even), **_shifted(solver, places))
        first = float(getattr(solver, "init_noise_sigma", 1.0))
        rows = [[*_seen(solver, row), *row[2:]] for row in _walk(solver)]
    return torch.tensor(rows, dtype=torch.float64).float(), first


def _asked(solver: Any, steps: int, *, even: bool) -> dict[str, Any]:
    """Return how a scheduler is asked for so many steps."""
    if not even or solver.config.get("use_flow_sigmas"):
        return {"num_inference_steps": steps}
    return {"sigmas": np.linspace(1.0, 1 / steps, steps)}


def _walk(solver: Any) -> list[list[float]]:
    """Return each call's time, scale of the input, keep, new, kept and old."""
    count = len(solver.timesteps)
    units = torch.eye(count + 1, dtype=torch.float64)[:, None, None]
    x, found = units[0], []
    xs: list[Tensor] = []
    for call, time in enumerate(solver.timesteps):
        e = units[call + 1]
        scale = 1.0
        if hasattr(solver, "scale_model_input"):
            scale = float(solver.scale_model_input(torch.ones(1, 1, 1, dtype=torch.float64), time))
        moved = solver.step(e, time, x, return_dict=False)[0].double()
        blank = torch.zeros_like(x)
        behind = [call - back - 1 for back in range(BEFORE)]
        kept = [xs[place] if place >= 0 else blank for place in behind]
        old = [units[place + 1] if place >= 0 else blank for place in behind]
        basis = torch.stack([one.flatten() for one in (x, e, *kept, *old)], 1).numpy()
        wanted = moved.flatten().numpy()
        columns = np.linalg.lstsq(basis, wanted, rcond=1e-9)[0]
        if not np.abs(basis @ columns - wanted).max() <= LINEAR:
            raise ValueError(
                f"scheduler {type(solver).__name__}, as it is set, is no sum of the last {BEFORE} steps"
            )
        found.append([float(time), scale, *columns.tolist()])
        xs.append(x)
        x = moved
    return found


def _seen(solver: Any, row: list[float]) -> tuple[float, float, float, float]:
    """Return the time, the input's scale, and how x0 follows from the scaled input and the prediction."""
    time, scale = row[:2]
    alpha, sigma = _levels(solver, time)
    kind = predicts(solver)
    if kind == "sample":
        return time, scale, 0.0, 1.0
    if kind == "flow":
        return time, scale, 1.0, -sigma
    if kind == "v_prediction":
        return time, scale, alpha, -sigma
    return time, scale, 1 / max(alpha, 1e-4), -sigma / max(alpha, 1e-4)


def predicts(solver: Any) -> str:
    """Return what the network says: "epsilon", "v_prediction", "sample" or "flow", the noise less the picture."""
    return "flow" if _flows(solver) else str(solver.config.prediction_type)


def _flows(solver: Any) -> bool:
    """Return whether picture and noise are mixed as (1 - time) and time: some schedulers do on request."""
    return not hasattr(solver, "alphas_cumprod") or bool(solver.config.get("use_flow_sigmas"))


def trained(solver: Any) -> Tensor:
    """Return (N, 3) the times at which a network is trained, and the shares of picture and noise there."""
    count = solver.config.num_train_timesteps
    times = range(count)
    if not hasattr(solver, "alphas_cumprod"):  # shifted towards noise, as it is sampled
        times = solver.timesteps.flip(0).tolist()
    elif _flows(solver):
        even, shift = torch.arange(1, count + 1) / count, solver.config.flow_shift
        times = (count * shift * even / (1 + (shift - 1) * even)).tolist()
    return torch.tensor([[time, *_levels(solver, time)] for time in times])


def _levels(solver: Any, time: float) -> tuple[float, float]:
    """Return the share of the picture and of the noise in what the network sees at a time."""
    if _flows(solver):
        sigma = time / solver.config.num_train_timesteps
        return 1 - sigma, sigma
    bar = np.interp(time, np.arange(len(solver.alphas_cumprod)), solver.alphas_cumprod.numpy())
    return float(bar**0.5), float((1 - bar) ** 0.5)


def _shifted(solver: Any, places: int) -> dict[str, float]:
    """Return the shift towards noise for so many places, as diffusers has it, where the scheduler wants one."""
    c = solver.config
    if not c.get("use_dynamic_shifting"):
        return {}
    fewest, most = c.get("base_image_seq_len", 256), c.get("max_image_seq_len", 4096)
    low, high = c.get("base_shift", 0.5), c.get("max_shift", 1.16)
    return {"mu": low + (places - fewest) * (high - low) / (most - fewest)}


def advance(step_BK: Tensor, x: Tensor, e: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next x (B, C, H, W), and past (B, 2 BEFORE, C, H, W) with this step in front of it.

    `past` has the x of earlier steps, newest first, and behind them the predictions.
    """
    columns = step_BK[:, :, None, None, None]
    moved = columns[:, 4] * x + columns[:, 5] * e + (columns[:, 6:] * past).sum(1)
    xs, es = past.chunk(2, 1)
    return moved, torch.cat([x[:, None], xs[:, :-1], e[:, None], es[:, :-1]], 1)
