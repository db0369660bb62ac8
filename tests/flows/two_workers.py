"""Two workers that take every family's first steps together: `two_workers.py FOLDER`, where each leaves its results."""

import sys
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from flows.training.ranks import Ranks
from tests.flows.shared_batches import Shared, shared_in

STEPS: Final = 2  # the second one's gradient is of what the first has changed
PARTS: Final = (1, 2)  # of each worker's rows


def stepped(name: str, ranks: Ranks | None = None, parts: int = 1) -> dict[str, Tensor]:
    """Return the family's tiny model after its first steps."""
    shared = Shared(name, ranks, parts)
    for _ in range(STEPS):
        shared.step()
    return shared.state()


def work(rank: int, folder: Path) -> None:
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder / 'store'}", limit, rank=rank, world_size=2)
    ranks, found = Ranks.joined(torch.device("cpu")), dict[str, Tensor]()
    for name in shared_in():
        for parts in PARTS:
            shared = Shared(name, ranks, parts)
            steps = [shared.step() for _ in range(STEPS)]
            for player, (gradient, _) in steps[0].items():
                found[f"{name}/{parts}/gradient of {player}"] = gradient
            for key, value in shared.state().items():
                found[f"{name}/{parts}/{key}"] = value
    save_file(found, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name in shared_in():
        Shared(name)  # what networks of others import is imported once
    second = get_context("fork").Process(target=work, args=(1, folder))
    second.start()
    work(0, folder)
    second.join()
    sys.exit(second.exitcode)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
