"""Who trains beside this process: its rank, its device, and the few things that ranks tell one another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE: Final = timedelta(minutes=30)
"""How long ranks wait for one another; one that is hung is found sooner, by its heart (`hearts.py`)."""


@dataclass(frozen=True)
class Ranks:
    """One process of a training; `Ranks()` trains alone. A larger world needs `torch.distributed` started."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None  # a process group of CPU tensors with PATIENCE

    @classmethod
    def joined(cls, device: torch.device) -> "Ranks":
        """Return this process's place in the process group that stands."""
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), device, control)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over ranks, the same on each."""
        if self.world > 1:
            dist.all_reduce(values)
            values = values / self.world
        return values

    def total(self, count: int | Tensor, like: Tensor) -> Callable[[], Tensor]:
        """Begin to add up a count over ranks; call what is returned for the sum, a float32 scalar on `like`'s device.

        A plain number is the same on every rank.
        """
        if isinstance(count, int):
            whole = torch.full((), count * self.world, dtype=torch.float32, device=like.device)
            return lambda: whole
        found = count.detach().float()
        if self.world == 1:
            return lambda: found
        work: Any = dist.all_reduce(found, async_op=True)

        def ended() -> Tensor:
            work.wait()
            return found

        return ended

    def joined_rows(self, rows: Tensor) -> Tensor:
        """Return every rank's rows, in the order of ranks, on the same device; all have one shape."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum over ranks, the same on each; waits for ranks that are still at work."""
        total = values.cpu()
        if self.world > 1:
            dist.all_reduce(total, group=self.control)
        return total.to(values.device)

    def collected(self, rows: Tensor) -> Tensor:
        """Return every rank's rows, in the order of ranks, the same on each; each rank has as many as it likes."""
        if self.world == 1:
            return rows
        counts = [int(count) for count in self.gathered(torch.tensor([len(rows)]))]
        padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype)
        padded[: len(rows)] = rows
        flat = padded.flatten().view(torch.uint8)  # gloo has no 16-bit integers
        parts = [part.view(rows.dtype).view_as(padded) for part in self.gathered(flat)]
        whole = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        return whole.to(rows.device)

    def told(self, values: Sequence[int]) -> list[int]:
        """Return rank 0's integers on every rank; waits for it."""
        message = torch.tensor(values, dtype=torch.int64)
        if self.world > 1:
            dist.broadcast(message, 0, group=self.control)
        return [int(value) for value in message]

    def gathered(self, values: Tensor) -> list[Tensor]:
        """Return every rank's CPU tensor, in the order of ranks; all have one shape."""
        if self.world == 1:
            return [values]
        rows = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(rows, values, group=self.control)
        return rows
