"""What several workers' batches add up to; one worker alone gets back what it gave."""

import itertools

import torch
import torch.distributed as dist
from torch import Tensor


def summed(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors summed over workers, in one message."""
    if not many():
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    ends = itertools.accumulate(tensor.numel() for tensor in tensors)
    return [
        flat[end - tensor.numel() : end].view_as(tensor)
        for tensor, end in zip(tensors, ends, strict=True)
    ]


def gathered(rows: Tensor) -> Tensor:
    """Return all workers' rows, in the order of workers; each has as many."""
    if not many():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def many() -> bool:
    """Return whether there is more than one worker."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
