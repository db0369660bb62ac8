"""A loss and its backward pass as one CUDA graph: a network of many small kernels no longer waits for the CPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flows.training.checkpoints import generators, set_generators
from models.family import Losses, Trainable


class Captured:
    """A model of one player whose loss is recorded on its first batch and replayed on every later one.

    Python runs once: a loss that takes another path from step to step, or waits for the GPU to choose among rows,
    cannot be captured. Every batch must have the first one's shapes.
    """

    def __init__(self, model: Trainable, call: Any) -> None:
        self.model, self._call = model, call  # the model itself or what was compiled from it
        self._step: _Step | None = None
        self._replay: Any = None
        self._shapes: list[torch.Size] = []

    def __call__(self, batch: Mapping[str, Tensor], player: str) -> Losses:
        """Return the losses of the batch, with gradients; the tensors are overwritten by the next call.

        Raises:
            ValueError: the family cannot be captured, or the batch has other shapes than the first.
        """
        shapes = [value.shape for value in batch.values()]
        if self._step is None:
            self._step, self._shapes = self._capture(batch, player), shapes
        if shapes != self._shapes:
            raise ValueError(
                f"a batch of {[*map(tuple, shapes)]} after one of {[*map(tuple, self._shapes)]}: leave out"
                " training.cuda_graph"
            )
        return self._step.losses(self._replay(*batch.values()))

    def _capture(self, batch: Mapping[str, Tensor], player: str) -> "_Step":
        """Record; the rounds before leave no trace in the model's buffers and the random generators."""
        step = _Step(self._call, tuple(batch), player)
        inputs = tuple(value.clone() for value in batch.values())
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        before = generators(inputs[0].device)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        # What is wrong with the loss itself is said by the loss.
        torch.autograd.grad(step(*inputs)[0], weights, allow_unused=True)
        # Gradients are made in the graph's own stream from here on, and meant to be.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        try:
            self._replay = torch.cuda.make_graphed_callables(step, inputs, allow_unused_input=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(
                f"{type(self.model).__name__} cannot be captured ({str(error).splitlines()[0]}): leave out"
                " training.cuda_graph"
            ) from error
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        set_generators(before, inputs[0].device)
        return step


class _Step(nn.Module):
    """The loss as tensors in, tensors out."""

    def __init__(self, call: Any, names: tuple[str, ...], player: str) -> None:
        super().__init__()
        self.call, self.names, self.player = call, names, player
        self.first: Losses | None = None  # whose names and kind of count all have

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        losses = self.call(dict(zip(self.names, values, strict=True)), self.player)
        self.first = losses
        counts = [losses.count] if isinstance(losses.count, Tensor) else []
        return (losses.total, *counts, *losses.parts.values(), *losses.seen.values())

    def losses(self, values: Sequence[Tensor]) -> Losses:
        """Return what `forward`'s tensors mean."""
        assert self.first is not None
        found, first = iter(values), self.first
        total = next(found)
        count = next(found) if isinstance(first.count, Tensor) else first.count
        parts, seen = ({name: next(found) for name in some} for some in (first.parts, first.seen))
        return Losses(total, count, parts, seen)
