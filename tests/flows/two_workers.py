"""One of two workers that take every family's first steps together: `two_workers.py RANK STORE_FILE RESULT`.

Imported, `steps` does the same alone. Plain gradient descent, so that what differs is the family and not the optimiser.
"""

import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from models import FAMILIES, trainable
from models.family import Family
from tests.models.families_kit import batch_of, tiny

STEPS, RATE, ROWS = 3, 0.05, 16


def learned_by_gradients() -> list[str]:
    return [name for name in FAMILIES if not trainable(name).counts]


def steps(name: str, rank: int = 0, world: int = 1, device: str = "cpu") -> Family:
    """Return the family's tiny model after its first steps on this worker's rows, gradients averaged over workers."""
    model = tiny(name)
    torch.manual_seed(100 + rank)
    batch = {key: rows[rank::world].to(device) for key, rows in batch_of(model, ROWS).items()}
    model.to(device)
    for _ in range(STEPS):
        for player in model.players:
            parameters = model.player_parameters(player)
            gradients = torch.autograd.grad(model(batch, player).total, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if world > 1:
                    dist.all_reduce(gradient)
                parameter.data -= RATE * gradient / world
    return model


def state(model: Family) -> Mapping[str, Tensor]:
    return {key: value.clone().contiguous() for key, value in model.state_dict().items()}


def main(rank: int, store: str, result: Path) -> None:
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{store}", limit, rank=rank, world_size=2)
    found = {}
    for name in learned_by_gradients():
        for key, value in state(steps(name, rank, 2)).items():
            found[f"{name}/{key}"] = value
    save_file(found, result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
