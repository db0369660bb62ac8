"""What Ray Train's controller needs of ours; a module of its own because importing it must not import torch."""

import functools
import os
import uuid
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import worker_group as ray_worker_group
from ray.util.placement_group import placement_group

from flows.training.nobody import Nobody


class Rendezvous(BackendConfig):
    """Tells the workers where rank 0 listens; looks like a TorchConfig to TorchTrainer."""

    backend = "own"

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that runs in the controller."""
        return _RendezvousBackend


class _RendezvousBackend(Backend):
    share_cuda_visible_devices = True  # so that NCCL can reach a neighbour's GPU directly

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002
        from ray.train._internal.utils import get_address_and_port

        if len(worker_group) > 1:
            address, port = worker_group.execute_single(0, get_address_and_port)
            worker_group.execute(_note_rendezvous, address, port)


def _note_rendezvous(address: str, port: int) -> None:
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))


class Group(WorkerGroupCallback):
    """Starts the workers without Ray's meeting point, on a placement group that carries the call's name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def before_worker_group_start(self, worker_group_context: Any) -> None:  # noqa: ARG002
        """Change two names in Ray's module, in this process, which is the controller's alone.

        - An actor that imports nothing stands where Ray's SynchronizationActor would import ray.train (4 s of CPU).
          Only `ray.train.report` and its collectives meet there; this platform's workers call none of them.
        - The placement group has a name, so that it can be found and removed when this process is dead.
        """
        name = f"{self.name}-{uuid.uuid4().hex[:8]}"
        vars(ray_worker_group).update(
            SynchronizationActor=ray.remote(num_cpus=0)(Nobody),
            placement_group=functools.partial(placement_group, name=name),
        )


class NoAutoscaling(FixedScalingPolicy):
    """A fixed number of workers, asked of nobody: `fit` has compared it with the cluster."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Do nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Do nothing."""

    def _cancel_resource_request(self) -> None:
        """Do nothing."""
