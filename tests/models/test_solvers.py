"""Samplers as tables: rows go where diffusers' own schedulers go, whatever a step looks back at."""

import json
from typing import Any, Final

import pytest
import torch

from models.text_to_image import solvers

BETAS: Final = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SET: Final[tuple[dict[str, Any], ...]] = (
    {"_class_name": "DDIMScheduler", "clip_sample": False, "steps_offset": 1},
    {"_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "v_prediction"},
    {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1},
    {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1},
    {"_class_name": "HeunDiscreteScheduler"},
    {"_class_name": "DPMSolverMultistepScheduler"},
    {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "use_karras_sigmas": True},
    {"_class_name": "UniPCMultistepScheduler"},
    {"_class_name": "LMSDiscreteScheduler"},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
)


def predicted(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """A network that is linear in nothing."""
    return torch.tanh(x * (1 + time / 1000)) + 0.1 * torch.sin(5 * x)


@pytest.mark.parametrize("settings", SET, ids=lambda one: str(one["_class_name"]))
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_a_table_goes_where_diffusers_own_scheduler_goes(
    settings: dict[str, Any], steps: int
) -> None:
    flows = str(settings["_class_name"]).startswith("Flow")
    document = settings if flows else {**BETAS, **settings}
    table_SK, first = solvers.table(json.dumps(document), steps)
    assert table_SK.shape[1] == solvers.COLUMNS
    theirs = solvers.scheduler(document)
    theirs.set_timesteps(steps)
    noise = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x = wanted = first * noise
    past = x.new_zeros(1, 2 * solvers.BEFORE, *x.shape[1:])
    for row_K, time in zip(table_SK, theirs.timesteps, strict=True):
        said = predicted(wanted if flows else theirs.scale_model_input(wanted, time), time)
        wanted = theirs.step(said, time, wanted, return_dict=False)[0]
        x, past = solvers.advance(row_K[None], x, predicted(row_K[1] * x, row_K[0]), past)
    torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-4)


def test_more_places_stay_longer_near_to_noise_where_the_scheduler_says_so() -> None:
    """As Stable Diffusion 3.5 shifts its times: by `mu` of diffusers' pipeline, from 256 to 4096 places."""
    document = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    theirs = solvers.scheduler(document)
    for places, mu in ((256, 0.5), (4096, 1.15)):
        theirs.set_timesteps(4, mu=mu)
        found, _ = solvers.table(json.dumps(document), 4, places)
        torch.testing.assert_close(found[:, 0], theirs.timesteps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "draws noise of its own"),
        ({"_class_name": "DDIMScheduler", "clip_sample": True}, "has clip_sample, which is not"),
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler, as it is set, is no sum of the last 4"),
        ({}, "scheduler None"),
    ],
)
def test_a_scheduler_that_no_table_can_be_is_refused_by_name(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        solvers.table(json.dumps({**BETAS, **settings}), 20)
