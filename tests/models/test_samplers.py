"""Our samplers against diffusers' schedulers, over whole trajectories with a fixed fake network."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from models.diffusion import flow, objectives, samplers, schedules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
    )

TOLERANCE = 1e-5  # pixels are float32 on both sides
SHAPE = (2, 3, 4, 4)


def network(x: Tensor, time: float) -> Tensor:
    """A smooth stand-in for a network: bounded, and different at each time and pixel."""
    return torch.tanh(x.flip(-1) * 0.7 + math.sin(time / 150)) * (1 + time / 2000)


def visited(beta_T: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    times = schedules.trailing(steps)
    alpha = torch.cat([schedules.alphas(beta_T)[times], torch.ones(1, dtype=torch.float64)])
    return times, alpha, (1 - alpha.square()).sqrt()


def ours(
    moves_S4: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    times: Tensor,
    objective: str,
    noises: list[Tensor],
    clip: bool = True,
) -> Tensor:
    """Walk a whole trajectory in float32 tables, as the family does."""
    x = before = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    rows = moves_S4.float()
    for index, time in enumerate(times.tolist()):
        x0 = objectives.clean(
            objective, network(x, time), x, alpha[index].float(), sigma[index].float()
        )
        if clip:
            x0 = x0.clamp(-1, 1)
        step_B4 = rows[index].expand(len(x), 4)
        x = samplers.advance(step_B4, x, x0, before, noises[index] if noises else None)
        before = x0
    return x


def exact(beta_T: Tensor) -> Tensor:
    """Our float64 table for a peer: its own is made in float32, where 1 - 0.999 keeps 4 digits."""
    return schedules.alphas(beta_T).square()


def noise_for(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(SHAPE, generator=generator) for _ in range(steps)]


def theirs(scheduler: Any, noises: list[Tensor], **options: Any) -> Tensor:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for index, time in enumerate(scheduler.timesteps):
        extra = {"variance_noise": noises[index]} if noises else {}
        x = scheduler.step(network(x, float(time)), time, x, **extra, **options).prev_sample
    return x


PREDICTION = {"eps": "epsilon", "v": "v_prediction"}


@pytest.mark.parametrize("objective", ["eps", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_ddim_equals_diffusers(objective: str, schedule: str, eta: float, steps: int) -> None:
    beta_T = schedules.betas(schedule)
    scheduler = DDIMScheduler(
        trained_betas=beta_T.numpy(),
        prediction_type=PREDICTION[objective],
        timestep_spacing="trailing",
        clip_sample=True,
    )
    scheduler.alphas_cumprod = exact(beta_T)
    scheduler.set_timesteps(steps)
    times, alpha, sigma = visited(beta_T, steps)
    assert times.tolist() == scheduler.timesteps.tolist()
    noises = noise_for(steps)
    mine = ours(samplers.ddim(alpha, sigma, eta), alpha, sigma, times, objective, noises)
    peer = theirs(scheduler, noises if eta else [], eta=eta, use_clipped_model_output=True)
    torch.testing.assert_close(mine, peer, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("steps", [20, 25])
def test_ddim_with_zero_terminal_snr_equals_diffusers(steps: int) -> None:
    scheduler = DDIMScheduler(
        trained_betas=schedules.betas("linear").numpy(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(steps)
    times, alpha, sigma = visited(schedules.betas("linear", zero_terminal_snr=True), steps)
    assert alpha[0] == 0
    mine = ours(samplers.ddim(alpha, sigma), alpha, sigma, times, "v", [])
    peer = theirs(scheduler, [], use_clipped_model_output=True)
    torch.testing.assert_close(mine, peer, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("objective", ["eps", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("variance", "steps"), [("small", 50), ("small", 1000), ("large", 1000)])
def test_ddpm_equals_diffusers(
    objective: str, schedule: str, variance: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    beta_T = schedules.betas(schedule)
    scheduler = DDPMScheduler(
        trained_betas=beta_T.numpy(),
        prediction_type=PREDICTION[objective],
        timestep_spacing="trailing",
        variance_type=f"fixed_{variance}",
    )
    scheduler.alphas_cumprod = exact(beta_T)
    scheduler.set_timesteps(steps)
    times, alpha, sigma = visited(beta_T, steps)
    noises = noise_for(steps)
    drawn = iter(noises)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(drawn)
    )
    mine = ours(samplers.ddpm(alpha, variance), alpha, sigma, times, objective, noises)
    torch.testing.assert_close(mine, theirs(scheduler, []), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("objective", ["eps", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 8, 20])
def test_dpm_solver_equals_diffusers(objective: str, schedule: str, steps: int) -> None:
    beta_T = schedules.betas(schedule)
    scheduler = DPMSolverMultistepScheduler(
        trained_betas=beta_T.numpy(),
        prediction_type=PREDICTION[objective],
        timestep_spacing="trailing",
        solver_order=2,
    )
    scheduler.alphas_cumprod = exact(beta_T).numpy()
    scheduler.set_timesteps(steps)
    times, alpha, sigma = visited(beta_T, steps)
    assert times.tolist() == scheduler.timesteps.tolist()
    mine = ours(samplers.dpmpp(alpha, sigma), alpha, sigma, times, objective, [], clip=False)
    torch.testing.assert_close(mine, theirs(scheduler, []), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("steps", [1, 7, 12, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_equals_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - index / steps for index in range(steps)])
    sigma = flow.sampling_times(steps, shift)
    times = sigma[:-1] * schedules.TIMES
    mine = ours(samplers.euler(sigma), 1 - sigma, sigma, times, "flow", [], clip=False)
    torch.testing.assert_close(mine, theirs(scheduler, []), rtol=0, atol=TOLERANCE)
