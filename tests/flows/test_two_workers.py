"""However a batch is shared, by two workers and by parts of each one's rows, every family learns the same from it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.command_kit import commands
from tests.flows.shared_batches import Shared, shared_in
from tests.flows.two_workers import PARTS, stepped

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of two workers ended with, by family, parts and name."""
    folder = tmp_path_factory.mktemp("workers")
    script = Path(__file__).with_name("two_workers.py")
    assert commands.together(script, [str(folder)]) == [0]
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def apart(one: Tensor, other: Tensor) -> float:
    """How far two gradients are apart, as a share of the first's length."""
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("name", shared_in())
def test_parts_and_workers_give_the_gradient_of_the_whole_batch(
    workers: list[dict[str, Tensor]], name: str
) -> None:
    """Rows have unequally many tokens; what is drawn for a row is the same wherever the row goes."""
    in_parts = Shared(name, parts=4).step()
    for player, (whole, turn) in Shared(name).step().items():
        assert whole.norm() > 0
        found, shared = in_parts[player]
        assert apart(whole, found) < 1e-5
        torch.testing.assert_close(shared.scalars["loss"], turn.scalars["loss"])
        for parts in PARTS:
            for worker in workers:
                found = worker[f"{name}/{parts}/gradient of {player}"]
                assert apart(whole, found) < 1e-5


@pytest.mark.parametrize("name", shared_in())
def test_two_workers_hold_the_same_and_what_one_would(
    workers: list[dict[str, Tensor]], name: str
) -> None:
    alone = stepped(name)
    for parts in PARTS:
        first, second = ({key: one[f"{name}/{parts}/{key}"] for key in alone} for one in workers)
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt", "transformer", "wavenet"])
def test_the_mean_of_the_parts_own_gradients_is_another_one(name: str) -> None:
    """What a part has few tokens of would count too much: the check above is of batches where that shows."""
    shared = Shared(name, parts=4)
    whole, _ = Shared(name).gradient("model")
    parameters = shared.model.player_parameters("model")
    own = torch.zeros_like(whole)
    for batch in shared.batches:
        total = shared.forward(batch, "model").total
        own += torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)]) / 4
    assert apart(whole, own) > 1e-3
