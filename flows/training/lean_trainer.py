"""Ray Train's controller without what this platform does itself, so that a training starts sooner.

Left out, with the reason (Ray 2.60.0; an actor is a process that imports ray.train, pandas and ray.data: 2 s of CPU):
- the autoscaling coordinator: the supervisor has compared the request with the whole cluster before;
- the placement group cleaner: the group has a mark, and whoever finds the controller dead removes it;
- the synchronization actor: nothing here calls `ray.train.report`;
- the dataset manager: rows come from the loaders;
- the preemption watcher (by setting), Ray's metrics, and the chdir of workers.

All of it is private to Ray, and may move with any release: `check` says so, and `controllers` then does without.
The controller imports this module, so it must not import torch.
"""

import inspect
from collections.abc import Callable
from typing import Any, Final

import ray
from ray.train import DataConfig
from ray.train.v2._internal.callbacks import AcceleratorSetupCallback, BackendSetupCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import create_failure_policy
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import worker_group as ray_worker_group
from ray.train.v2._internal.util import ObjectRefWrapper, construct_train_func
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flows.training.nobody import Nobody
from flows.training.orders import Order, train_settings
from flows.training.rendezvous import Rendezvous


class WithoutSynchronization(WorkerGroupCallback):
    """Starts the workers without Ray's meeting point."""

    def before_worker_group_start(self, worker_group_context: Any) -> None:  # noqa: ARG002
        """Change a name in Ray's module, in this process, which is the controller's alone.

        An actor that imports nothing stands where Ray's SynchronizationActor would import ray.train. Only
        `ray.train.report` and its collectives meet there; this platform's workers call none of them.
        """
        vars(ray_worker_group)["SynchronizationActor"] = ray.remote(num_cpus=0)(Nobody)


class NoAutoscaling(FixedScalingPolicy):
    """A fixed number of workers, asked of nobody: the supervisor has compared it with the cluster."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Do nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Do nothing."""

    def _cancel_resource_request(self) -> None:
        """Do nothing."""


REPLACED: Final[dict[Any, tuple[str, ...]]] = {
    FixedScalingPolicy: (
        "after_controller_start",
        "_maybe_send_resource_request",
        "_cancel_resource_request",
    ),
    WorkerGroupCallback: ("before_worker_group_start",),
    ray_worker_group: ("SynchronizationActor",),
    TrainController: ("run", "get_result"),
}
"""What of Ray's stands under these names is replaced or called."""
CALLED: Final[dict[Callable[..., Any], str]] = {
    TrainController: "train_fn_ref scaling_policy failure_policy train_run_context callbacks",
    TrainRunContext: "run_config train_loop_config scaling_config backend_config dataset_config",
    construct_train_func: "train_func config train_func_context fn_arg_name",
    create_failure_policy: "failure_config",
    ObjectRefWrapper: "obj",
}
"""What is called with these arguments."""


def check() -> None:
    """Look whether Ray's internals are still what this module knows.

    Raises:
        AttributeError: a name is gone.
        TypeError: something wants other arguments.
    """
    for owner, names in REPLACED.items():
        for name in names:
            getattr(owner, name)
    for function, arguments in CALLED.items():
        inspect.signature(function).bind(**dict.fromkeys(arguments.split()))


def start(order: Order) -> tuple[Any, Any]:
    """Start a controller; returns its handle and the reference that is ready when training has ended."""
    backend = Rendezvous()
    context = TrainRunContext(
        run_config=order.run,
        train_loop_config=order.config,
        scaling_config=order.scaling,
        backend_config=backend,
        dataset_config=DataConfig(),
    )
    train = construct_train_func(
        order.work,
        config=order.config,
        train_func_context=backend.train_func_context,
        fn_arg_name="train_loop_per_worker",
    )
    here = ray.get_runtime_context().get_node_id()
    remote: Any = ray.remote(
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        runtime_env={"env_vars": train_settings()},
    )(TrainController)
    controller = remote.remote(
        train_fn_ref=ObjectRefWrapper(train),
        scaling_policy=NoAutoscaling(order.scaling),
        failure_policy=create_failure_policy(order.run.failure_config),
        train_run_context=context,
        callbacks=[
            AcceleratorSetupCallback(backend, order.scaling),
            BackendSetupCallback(backend),
            WithoutSynchronization(),
        ],
    )
    return controller, controller.run.remote()
