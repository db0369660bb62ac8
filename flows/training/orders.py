"""What a controller is told to run on which workers, and how its end is told."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from ray.train import RunConfig, ScalingConfig

Work: TypeAlias = Callable[[dict[str, Any]], None]

RAY_TRAIN_SETTINGS: Final = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the poll that sees an end or a death; Ray's own: 2
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",  # a stopped process; Ray's own: 600
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "86400",  # a busy cluster is waited for, an impossible one refused before
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True, slots=True)
class Order:
    """What is to run on which workers."""

    work: Work
    config: dict[str, Any]
    scaling: "ScalingConfig"
    run: "RunConfig"


def train_settings() -> dict[str, str]:
    """Return what this process's environment sets of Ray Train."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("RAY_TRAIN_") or name in RAY_TRAIN_SETTINGS
    }


def last_words(error: Any) -> str:
    """Return why workers, or else the controller, failed, in a line."""
    failures = getattr(error, "worker_failures", None) or {None: error}
    rank, failure = next(iter(failures.items()))
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    who = "the Ray Train controller" if rank is None else f"worker {rank}"
    return f"{who} failed: {lines[-1] if lines else type(failure).__name__}"
