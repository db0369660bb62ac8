"""Every family under two workers: they hold the same weights, and what one worker would, but for noise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.flows.two_workers import ROWS, learned_by_gradients, state, steps
from tests.models.families_kit import batch_of, tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of two workers ended with, by family and name."""
    folder = tmp_path_factory.mktemp("workers")
    script = Path(__file__).with_name("two_workers.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, script, str(rank), folder / "store", folder / f"{rank}.safetensors"],
            env=environment,
        )
        for rank in range(2)
    ]
    assert [one.wait(200) for one in running] == [0, 0]
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def noise_free(name: str) -> bool:
    """Whether the loss is a function of the batch alone."""
    model = tiny(name)
    batch = batch_of(model, ROWS)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append([model(batch, player).total.item() for player in model.players])
    return losses[0] == losses[1]


@pytest.mark.parametrize("name", learned_by_gradients())
def test_two_workers_hold_the_same_and_what_one_would(
    workers: list[dict[str, Tensor]], name: str
) -> None:
    """With noise, and where rows are windows drawn at random, two workers draw other numbers than one."""
    first, second = (
        {key.partition("/")[2]: value for key, value in one.items() if key.startswith(f"{name}/")}
        for one in workers
    )
    assert first
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    if noise_free(name):
        torch.testing.assert_close(first, dict(state(steps(name))), rtol=1e-4, atol=1e-5)


def test_enough_families_are_free_of_noise_to_be_compared_with_one_worker() -> None:
    compared = {name for name in learned_by_gradients() if noise_free(name)}
    assert compared >= {"gpt", "made", "nade", "pixelcnn", "pixelrnn", "transformer"}
