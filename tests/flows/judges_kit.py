"""A judge that learned in seconds what the judging of clips and meshes is tried with."""

from pathlib import Path
from typing import Any

import torch

from data.loaders import Loader, facts_of
from models import configure


def learned(kind: Any, name: str, prepared: Path, *, rate: float, rows: int, steps: int) -> Any:
    """Return a judge of this class and name, trained by AdamW on a dataset's training split."""
    torch.manual_seed(0)
    found = kind(configure(name, "base", {}, facts_of(prepared)))
    loader = Loader(prepared, "train", batch_size=rows)
    optimizer = torch.optim.AdamW(found.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        found(loader.batch(step)).total.backward()
        optimizer.step()
        schedule.step()
    return found.eval()
