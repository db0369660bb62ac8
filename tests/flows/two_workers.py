"""One of two workers that take every family's first steps together: `two_workers.py RANK STORE_FILE RESULT`."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from flows.training.ranks import Ranks
from tests.flows.shared_batches import Shared, shared_in

STEPS: Final = 3
PARTS: Final = (1, 2)  # of each worker's rows


def stepped(name: str, ranks: Ranks | None = None, parts: int = 1) -> dict[str, Tensor]:
    """Return the family's tiny model after its first steps."""
    shared = Shared(name, ranks, parts)
    for _ in range(STEPS):
        shared.step()
    return shared.state()


def main(rank: int, store: str, result: Path) -> None:
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{store}", limit, rank=rank, world_size=2)
    ranks, found = Ranks.joined(torch.device("cpu")), dict[str, Tensor]()
    for name in shared_in():
        for parts in PARTS:
            for player in Shared(name).model.players:
                gradient, _ = Shared(name, ranks, parts).gradient(player)
                found[f"{name}/{parts}/gradient of {player}"] = gradient
            for key, value in stepped(name, ranks, parts).items():
                found[f"{name}/{parts}/{key}"] = value
    save_file(found, result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
