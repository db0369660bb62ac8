"""How a batch is shared: among workers, their accumulated parts, and the turns of a player at one step."""

from typing import TYPE_CHECKING

from flows.recipe import Stage
from flows.training.spec import TrainingSpec

if TYPE_CHECKING:
    from models.family import Trainable


def check_rows(spec: Stage | TrainingSpec, model: "Trainable | None" = None) -> None:
    """Refuse a batch that the workers asked for, their parts and, of a model, the turns of its players cannot share.

    Of an elastic training the fewest workers must be able to as well: that many are left where nodes are lost.

    Raises:
        ValueError: says what the batch, or a worker's rows of it, must be a multiple of.
    """
    asked = spec.resources
    for workers in {max(1, asked.num_workers), *(asked.elastic or ())[:1]}:
        rows = rows_of(spec, workers)
        if model is not None:
            check_turns(model, rows, spec.training.accumulate)


def rows_of(spec: Stage | TrainingSpec, world: int) -> int:
    """Return how many rows of a batch each of `world` ranks has.

    Raises:
        ValueError: the batch cannot be divided evenly.
    """
    rules = spec.training
    if rules.batch_size % (world * rules.accumulate):
        raise ValueError(
            f"batch_size {rules.batch_size} must be a multiple of {world * rules.accumulate}"
            f" ({world} workers x {rules.accumulate} accumulated parts)"
        )
    return rules.batch_size // world


def check_turns(model: "Trainable", rows: int, accumulate: int) -> None:
    """Refuse a worker's rows that the turns of a step cannot share evenly.

    Raises:
        ValueError: says which player, and what the rows must be a multiple of.
    """
    for player in model.players:
        unit = max(1, model.turns(player)) * accumulate
        if rows % unit:
            raise ValueError(
                f"a worker's {rows} rows of a batch must be a multiple of {unit}: {player} takes"
                f" {model.turns(player)} turns of {accumulate} accumulated parts at each step"
            )
