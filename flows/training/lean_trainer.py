"""TorchTrainer of Ray Train V2 without what this platform does itself, so that a training starts sooner.

Left out, with the reason (Ray 2.60.0; an actor is a process that imports ray.train, pandas and ray.data: 4 s of CPU):
- the autoscaling coordinator: `fit` has compared the request with the whole cluster before;
- the placement group cleaner: the group has a name, and whoever finds the controller dead removes it;
- the synchronization actor: nothing here calls `ray.train.report`;
- the preemption watcher (by setting), Ray's metrics and dataset callbacks, and the chdir of workers;
- TorchConfig: its class makes the controller import torch (3 s). Workers join their process group themselves.
"""

from typing import Any

import ray
from ray._raylet import RAY_NODE_ID_KEY, PlacementGroupID  # type: ignore[attr-defined]
from ray.train.v2._internal.callbacks import AcceleratorSetupCallback, BackendSetupCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from flows.training.controller_parts import Group, NoAutoscaling, Rendezvous


class LeanTrainer(TorchTrainer):
    """A TorchTrainer whose controller belongs to the caller: `start` returns it, `release` ends it."""

    def __init__(self, name: str, scaling: ScalingConfig, **arguments: Any) -> None:
        self._name, self._scaling = name, scaling
        rendezvous: Any = Rendezvous()
        super().__init__(torch_config=rendezvous, scaling_config=scaling, **arguments)

    def _create_default_callbacks(self) -> list[Any]:
        return [
            AcceleratorSetupCallback(self.backend_config, self._scaling),
            BackendSetupCallback(self.backend_config),
            Group(self._name),
        ]

    def start(self) -> tuple[Any, Any]:
        """Start the controller; returns its handle and the reference that is ready when training has ended."""
        from ray.train.v2._internal.execution.failure_handling import create_failure_policy
        from ray.train.v2._internal.util import ObjectRefWrapper

        here = ray.get_runtime_context().get_node_id()
        rules = self.run_config.failure_config
        assert rules is not None
        remote: Any = ray.remote(
            num_cpus=0,
            label_selector={RAY_NODE_ID_KEY: here},
            runtime_env={"env_vars": get_env_vars_to_propagate()},
        )(TrainController)
        controller = remote.remote(
            train_fn_ref=ObjectRefWrapper(self._get_train_func()),
            scaling_policy=NoAutoscaling(self._scaling),
            failure_policy=create_failure_policy(rules),
            train_run_context=self.train_run_context,
            callbacks=self._create_default_callbacks(),
        )
        return controller, controller.run.remote()


def is_waiting(name: str) -> bool:
    """Return whether the placement group of a call waits for room, or for that of a node that was lost."""
    return any(group["state"] in {"PENDING", "RESCHEDULING"} for group in _groups(name))


def release(controller: Any, name: str) -> None:
    """End a controller, dead or alive, its workers with it, and give their resources back."""
    ray.kill(controller)
    for group in _groups(name):
        remove_placement_group(
            PlacementGroup(PlacementGroupID.from_hex(group["placement_group_id"]))
        )


def _groups(name: str) -> list[dict[str, Any]]:
    table = placement_group_table().values()
    return [
        group for group in table if group["name"].startswith(name) and group["state"] != "REMOVED"
    ]
