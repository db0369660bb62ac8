"""Ray's own TorchTrainer, so that whoever starts it can end it.

`TorchTrainer.fit` blocks, and what it starts has no handle. So it runs in an actor: with the actor end Ray's controller
and the workers.
"""

from typing import Any

import ray
from ray.train import TrainingFailedError
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from flows.training.orders import Order, last_words, train_settings
from flows.training.rendezvous import RendezvousBackend


class OwnProcessGroup(TorchConfig):
    """Workers that join their process group themselves."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that runs in the controller."""
        return RendezvousBackend


class PlainTrainer:
    """An actor around Ray's trainer."""

    def fit(self, order: Order) -> str:
        """Train to the end; return why it failed, or nothing."""
        trainer = TorchTrainer(
            order.work,
            train_loop_config=order.config,
            torch_config=OwnProcessGroup(),
            scaling_config=order.scaling,
            run_config=order.run,
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            return last_words(error)
        return ""


def start(order: Order) -> tuple[Any, Any]:
    """Start the trainer; returns its handle and the reference that is ready when training has ended."""
    remote: Any = ray.remote(num_cpus=0, runtime_env={"env_vars": train_settings()})(PlainTrainer)
    actor = remote.remote()
    return actor, actor.fit.remote(order)
