"""A training's controller on Ray, owned by whoever starts it: the lean one, or Ray's own where Ray has changed."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from flows.training.orders import RAY_TRAIN_SETTINGS, Order, last_words


@dataclass(frozen=True, slots=True)
class Running:
    """A controller that was started; `release` must follow."""

    order: Order
    actor: Any
    end: Any  # a reference that is ready when training has ended

    def trouble(self) -> str:
        """Wait for the end; return why it came before the work was done, or nothing.

        Raises:
            ray.exceptions.RayActorError: the controller died.
        """
        found = ray.get(self.end)
        if found is None:  # the lean one's
            error = ray.get(self.actor.get_result.remote()).error
            return "" if error is None else last_words(error)
        return str(found)

    @property
    def is_waiting(self) -> bool:
        """Whether the workers wait for room, or for that of a node that was lost."""
        return any(group["state"] in {"PENDING", "RESCHEDULING"} for group in self._groups())

    def release(self) -> None:
        """End the controller, dead or alive, its workers with it, and give their resources back."""
        ray.kill(self.actor)
        for group in self._groups():
            id = ray.PlacementGroupID.from_hex(group["placement_group_id"])
            remove_placement_group(PlacementGroup(id))

    def _groups(self) -> list[dict[str, Any]]:
        mark = self.order.scaling.resources_per_worker["memory"]
        return [
            group
            for group in placement_group_table().values()
            if group["state"] != "REMOVED"
            and all(bundle.get("memory") == mark for bundle in group["bundles"].values())
        ]


def mark(lease: str) -> int:
    """Return the bytes, 1 MiB at most, that a call's workers ask for besides: their placement group is known by them.

    Ray Train gives its group no name, and Ray's list of groups does not say whose one is.
    """
    return 1 + int(lease[:5], 16)


def start(order: Order, note: Callable[[str], None], *, doubt: str = "") -> Running:
    """Start a training's controller; says so where it is not the lean one.

    Args:
        order: the training.
        note: is told.
        doubt: why the lean one is not to be tried, if there is a reason.
    """
    for name, value in RAY_TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    if why := doubt or changed():
        note(f"{why}: training starts by Ray's plain TorchTrainer, some seconds later")
        from flows.training import plain_trainer

        return Running(order, *plain_trainer.start(order))
    from flows.training import lean_trainer

    return Running(order, *lean_trainer.start(order))


def changed() -> str:
    """Return what of Ray's internals is not as the lean controller knows it, nothing where all is."""
    try:
        from flows.training import lean_trainer

        lean_trainer.check()
    except (ImportError, AttributeError, TypeError) as error:
        return f"Ray {ray.__version__} has changed inside ({error})"
    return ""
