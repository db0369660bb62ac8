"""CPU-seconds of a training step with dropout over one without: by torch's masks, and by `models/parts/dropout.py`'s.

`python -m benchmarks.dropout [--rounds 15]` prints a row a network. A step is a loss and its backward pass, on one
thread; the three take turns, and medians are told.
"""

import argparse
import dataclasses
import statistics
import time
from typing import Any, Final

import torch
from torch import nn

from models import trainable
from models.family import Trainable
from models.parts.dropout import Dropout

CASES: Final[list[tuple[str, dict[str, Any], float, int]]] = [
    ("ddpm", {"image_size": 32}, 0.1, 16),
    ("edm", {"image_size": 32}, 0.13, 16),
    ("pixelcnn", {}, 0.5, 16),
]
"""Family, changes of its preset `base`, dropout, rows of a batch."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| network | dropout | without | torch's masks | ours |\n|---|---|---|---|---|")
    for family, changes, p, rows in CASES:
        models = [made(family, {**changes, "dropout": one}) for one in (0.0, p, p)]
        for module in models[1].modules():
            for name, child in module.named_children():
                if isinstance(child, Dropout):
                    setattr(module, name, nn.Dropout(child.p))
        side, channels = models[0].config.image_size, models[0].config.channels
        batch = {"pixels": torch.rand(rows, channels, side, side)}
        seconds: list[list[float]] = [[] for _ in models]
        for _ in range(2 + rounds):  # the first two allocate
            for model, found in zip(models, seconds, strict=True):
                began = time.process_time()
                model(batch).total.backward()
                found.append(time.process_time() - began)
        without, *others = (statistics.median(found[2:]) for found in seconds)
        told = " | ".join(f"x {one / without:.3f}" for one in others)
        print(f"| {family}, {rows} rows | {p} | {1000 * without:.0f} ms | {told} |", flush=True)


def made(family: str, changes: dict[str, Any]) -> Trainable:
    """Return a network of the preset `base`, to be trained."""
    cls = trainable(family)
    return cls(dataclasses.replace(cls.presets["base"], **changes)).train()


if __name__ == "__main__":
    main()
