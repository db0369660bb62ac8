"""The best weights of a training so far, by the validation loss, and whether waiting for better ones is over."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from flows.training.optimizers import Average


@dataclass
class Best:
    """Rank 0's; a checkpoint holds it, so that an interrupted training ends with the same weights."""

    loss: float = math.inf
    step: int = 0
    worse: int = 0  # validations since that one
    weights: dict[str, Tensor] = field(default_factory=dict)  # averaged ones, and buffers

    def look(self, step: int, loss: float, average: Average) -> None:
        """Keep the averaged weights if their loss is the least so far."""
        if loss < self.loss:
            kept = {name: tensor.detach().clone() for name, tensor in average.tensors().items()}
            self.loss, self.step, self.worse, self.weights = loss, step, 0, kept
        else:
            self.worse += 1

    def put_back(self, average: Average) -> None:
        """Make these the averaged weights."""
        for name, tensor in average.tensors().items():
            tensor.detach().copy_(self.weights[name])

    @property
    def document(self) -> dict[str, Any]:
        """The numbers, as JSON."""
        return {"loss": self.loss, "step": self.step, "worse": self.worse}

    def restore(self, document: Mapping[str, Any], weights: dict[str, Tensor]) -> None:
        """Take both from a checkpoint."""
        self.loss, self.step, self.worse = document["loss"], document["step"], document["worse"]
        self.weights = weights
