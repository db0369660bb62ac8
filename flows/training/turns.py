"""One optimiser step's gradient, of a batch that accumulated parts and workers share: the same however it is shared."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flows.training.gradients import Gradients
from flows.training.ranks import Ranks
from models.family import Batch, Losses, Trainable

Precision: TypeAlias = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Turn:
    """What the whole batch comes to; the gradients are still sums, to be multiplied by `share`."""

    gradients: list[Tensor]
    share: Tensor  # 1 over the count of all parts and workers
    scalars: Mapping[str, Tensor]  # the loss and its parts; their mean over workers is the whole's
    seen: Mapping[str, Tensor]  # for `Trainable.follow`


def take(
    model: Trainable,
    call: Callable[[Batch, str], Losses],
    parts: Sequence[Batch],
    player: str,
    gradients: Gradients,
    ranks: Ranks,
    precision: Precision,
) -> Turn:
    """Return the player's turn on this worker's parts of the batch; every worker must call it with as many.

    Args:
        model: the model.
        call: its `forward`, or what was compiled or captured from it.
        parts: equally many rows each.
        player: whose turn it is.
        gradients: of the player's parameters.
        ranks: the workers.
        precision: gives the context of the forward passes.
    """
    gradients.start()
    known = _survey(model, parts, player, ranks, precision)
    sums = _Sums()
    for part in parts:
        with precision():
            loss = sums.add(call({**part, **known}, player))
        if part is parts[-1]:
            sums.share(ranks)
            gradients.last()
        loss.backward()
    found, share = gradients.finish(), sums.whole().clamp(min=1).reciprocal()
    joined = {name: ranks.joined_rows(torch.cat(rows)) for name, rows in sums.seen.items()}
    scalars = {name: value * (share * ranks.world) for name, value in sums.scalars.items()}
    return Turn(found, share, scalars, joined)


class _Sums:
    """What this worker's parts add up to."""

    def __init__(self) -> None:
        self.count: int | Tensor = 0
        self.scalars: dict[str, Tensor] = {}
        self.seen: dict[str, list[Tensor]] = {}
        self.whole: Callable[[], Tensor]

    def add(self, losses: Losses) -> Any:
        """Take a part in; return the sum that it is minimised by."""
        self.count = self.count + losses.count
        for name, value in {"loss": losses.total, **losses.parts}.items():
            weighed = value.detach() * losses.count
            self.scalars[name] = self.scalars[name] + weighed if name in self.scalars else weighed
        for name, rows in losses.seen.items():
            self.seen.setdefault(name, []).append(rows)
        return losses.total * losses.count

    def share(self, ranks: Ranks) -> None:
        """Begin to add the count up over workers, while the last part goes backward."""
        self.whole = ranks.total(self.count, self.scalars["loss"])


@torch.no_grad()
def _survey(
    model: Trainable, parts: Sequence[Batch], player: str, ranks: Ranks, precision: Precision
) -> dict[str, Tensor]:
    """Return what the family must know of all parts; nothing where one part is the whole."""
    if len(parts) * ranks.world == 1:
        return {}
    with precision():
        found = [model.survey(part, player) for part in parts]
    joined = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    return {name: ranks.joined_rows(rows) for name, rows in joined.items()}
