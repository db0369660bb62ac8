"""AdamW with its schedule, gradient clipping, and the averaged copy of the weights that is published.

The fused AdamW is called as a function: `torch.optim.AdamW` imports torch._dynamo, 4 s of CPU in every worker.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from flows.recipe import Optimizer
from models.family import Trainable
from models.parts.lora import own
from models.parts.tables import Table

FINAL: Final = 0.05  # of the rate, where a cosine ends that says nothing
LOOKED_UP: Final = (nn.Embedding, nn.EmbeddingBag)
NORMS: Final = (
    *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


def rate_at(step: int, steps: int, rule: Optimizer) -> float:
    """Return the learning rate of step 0, 1, ... `steps`-1: linear warm-up, then as the rule's schedule says."""
    if step < rule.warmup_steps:
        return rule.learning_rate * (step + 1) / rule.warmup_steps
    if rule.schedule == "constant":
        return rule.learning_rate
    if rule.schedule == "inverse_sqrt":
        return rule.learning_rate * math.sqrt(rule.warmup_steps / (step + 1))
    final = FINAL if rule.final_fraction is None else rule.final_fraction
    progress = (step - rule.warmup_steps) / max(1, steps - rule.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return rule.learning_rate * (final + (1 - final) * cosine)


@torch.no_grad()
def clip(gradients: Sequence[Tensor], limit: float, share: Tensor) -> Tensor:
    """Multiply the gradients by `share`, and to a norm of at most `limit` then; returns the norm before, a scalar."""
    norms = torch._foreach_norm(list(gradients))
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms)) * share
    torch._foreach_mul_(list(gradients), share * (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def decaying(model: nn.Module) -> set[str]:
    """Return the names of the parameters with weight decay: what is multiplied, matrices and filters.

    Not vectors (biases), nor what norms and embeddings own, nor learned tables of places and tokens.
    """
    kept = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (*LOOKED_UP, *NORMS))
        for parameter in module.parameters(recurse=False)
    }
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in kept and not isinstance(parameter, Table)
    }


class AdamW:
    """Loshchilov & Hutter 2019 (arXiv:1711.05101), over a player's parameters; which of them decay says `decaying`."""

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], rule: Optimizer
    ) -> None:
        self.rule = rule
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.names = [names[id(parameter)] for parameter in self.parameters]
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.counts = [
            torch.zeros((), dtype=torch.float32, device=parameter.device)
            for parameter in self.parameters
        ]
        decays = decaying(model)
        self._decays = [name in decays for name in self.names]

    def step(self, rate: float, taken: Tensor) -> None:
        """Move the parameters along their `.grad` where `taken` is 1; where it is 0, nothing changes."""
        for decays, weight_decay in ((True, self.rule.weight_decay), (False, 0.0)):
            chosen = [i for i, d in enumerate(self._decays) if d == decays]
            self._step(chosen, rate, weight_decay, 1 - taken)

    @torch.no_grad()
    def _step(self, chosen: list[int], rate: float, weight_decay: float, skipped: Tensor) -> None:
        parameters = [self.parameters[i] for i in chosen]
        if not parameters:
            return
        adamw(
            list[Tensor](parameters),
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [self.means[i] for i in chosen],
            [self.squares[i] for i in chosen],
            [],
            [self.counts[i] for i in chosen],
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=self.rule.betas[0],
            beta2=self.rule.betas[1],
            lr=rate,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
            found_inf=skipped,
        )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the state by name, to be written to or read from in place."""
        for index, name in enumerate(self.names):
            yield f"{name}/mean", self.means[index]
            yield f"{name}/square", self.squares[index]
            yield f"{name}/count", self.counts[index]


class Average:
    """The exponential moving average of what learns of a model, warmed up; buffers are the model's, as they are."""

    def __init__(self, model: Trainable, decay: float) -> None:
        self.decay = decay
        self._live = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        saved = own(model).keys()
        self._buffers = {name: one for name, one in model.named_buffers() if name in saved}
        self._kept = [parameter.detach().clone() for parameter in self._live.values()]
        self._sources = [parameter.detach() for parameter in self._live.values()]

    def update(self, step: int, taken: Tensor) -> None:
        """Take in the weights after step 0, 1, ... where `taken` is 1, nothing where it is 0.

        Early steps count more: decay <= (1 + n) / (10 + n).
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        pace = (1 - decay) * taken
        torch._foreach_lerp_(self._kept, self._sources, [pace] * len(self._kept))

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the averaged weights and the buffers by their names in the model, to be read or written in place."""
        return dict(zip(self._live, self._kept, strict=True)) | self._buffers

    @contextmanager
    @torch.no_grad()
    def swapped_in(self) -> Iterator[None]:
        """Let the model have the averaged weights inside the block."""
        aside = [tensor.clone() for tensor in self._sources]
        for tensor, value in zip(self._sources, self._kept, strict=True):
            tensor.copy_(value)
        try:
            yield
        finally:
            for tensor, value in zip(self._sources, aside, strict=True):
                tensor.copy_(value)
