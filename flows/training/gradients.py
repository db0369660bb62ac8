"""Gradients added up over ranks in fixed buckets, each sent as soon as backward has filled it.

Why not DistributedDataParallel: it imports torch._dynamo (3 s of CPU in every worker), it regroups its buckets after
the first step, so that a resumed run adds in another order than an undisturbed one, and it needs
`find_unused_parameters` where several players share a model. Here buckets never change.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKETS: Final = 8
SMALLEST, LARGEST = 1 << 20, 16 << 20  # bytes of a bucket


class Bucket:
    """Some parameters whose gradients are views of one flat tensor."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        first = parameters[0]
        self.parameters = list(parameters)
        count = sum(parameter.numel() for parameter in parameters)
        self.flat = torch.zeros(count, dtype=first.dtype, device=first.device)
        self.views: list[Tensor] = []
        offset = 0
        for parameter in parameters:
            # the same strides as the parameter: fused AdamW walks both in memory order
            view = self.flat.as_strided(parameter.shape, parameter.stride(), offset)
            self.views.append(view)
            offset += parameter.numel()
        self.missing = 0
        self.work: Any = None


class Gradients:
    """The gradients of one player's parameters: `start`, backward passes (`last()` before the last), `finish`."""

    def __init__(self, parameters: Sequence[nn.Parameter], world: int) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.world = world
        self.buckets = [Bucket(group) for group in _groups(self.parameters)] if world > 1 else []
        self._sending = False
        self._next = 0
        for bucket in self.buckets:
            for parameter in bucket.parameters:
                leaf: Any = parameter  # its hook methods carry no types
                leaf.register_post_accumulate_grad_hook(self._arrived(bucket))

    def start(self) -> None:
        """Forget the last step's gradients."""
        self._sending = False
        self._next = 0
        for parameter in self.parameters if not self.buckets else ():
            parameter.grad = None
        for bucket in self.buckets:
            bucket.flat.zero_()
            bucket.missing = len(bucket.parameters)
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.grad = view

    def last(self) -> None:
        """Say that the next backward completes the gradients, so that buckets may leave."""
        self._sending = True

    def finish(self) -> list[Tensor]:
        """Return the gradients, summed over ranks; one that nothing reached is zero."""
        for bucket in self.buckets[self._next :]:
            self._send(bucket)
        for bucket in self.buckets:
            bucket.work.wait()
            bucket.work = None
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def _arrived(self, bucket: Bucket) -> Any:
        def count(_: Tensor) -> None:
            if not self._sending:
                return
            bucket.missing -= 1
            while self._next < len(self.buckets) and not self.buckets[self._next].missing:
                self._send(self.buckets[self._next])  # in one order on every rank
                self._next += 1

        return count

    def _send(self, bucket: Bucket) -> None:
        bucket.work = dist.all_reduce(bucket.flat, async_op=True)


def _groups(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return the parameters in the order in which backward reaches them, cut into buckets of one dtype."""
    total = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    limit = min(max(total // BUCKETS, SMALLEST), LARGEST)
    groups: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        full = size >= limit or (groups and groups[-1][0].dtype != parameter.dtype)
        if not groups or full:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return groups
