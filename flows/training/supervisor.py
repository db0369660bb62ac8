"""A training on Ray that ends by itself: Ray replaces workers, this replaces Ray's controller, both within budgets."""

import os
import shutil
import time
from dataclasses import dataclass
from typing import Any, Final

from flows.recipe import TrainingSpec
from flows.training import halting
from flows.training.journal import Reporter
from flows.training.nodes import Nodes, things
from flows.training.run_folder import RunFolder
from infra.cluster import TooSmall, capacity, connect, require, too_small
from infra.settings import settings

WORKER_FAILURES: Final = 3
CONTROLLER_FAILURES: Final = 3
"""Budgets of one controller; a controller that brought training further is replaced without counting."""
STARTS_WITHOUT_PROGRESS: Final = 3
LOST_NODE_S: Final = 60.0
"""How long a node that was lost is waited for, where the recipe does not let training go on without it."""
NOTE_EVERY_S: Final = 10.0
POLL_S: Final = 0.5
RAY_TRAIN_SETTINGS: Final = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the poll that sees an end or a death; Ray's own: 2
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",  # a stopped process; Ray's own: 600
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "86400",  # a busy cluster is waited for, an impossible one refused before
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


class TrainingFailed(RuntimeError):
    """Training did not reach its end, and trying again did not help."""


@dataclass(frozen=True, slots=True)
class Request:
    """What every worker of a training is given."""

    workers: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.workers} x {self.cpus:g} CPUs{gpus}"


def train_on_ray(
    spec: TrainingSpec, folder: RunFolder, url: str | None, reporter: Reporter
) -> dict[str, float]:
    """Train to the end on the cluster at `url`; returns the seconds of joining it.

    Raises:
        infra.cluster.Unreachable, infra.cluster.TooSmall: no such cluster, or one that could never do it; also where
            an autoscaler brings no nodes, or a lost one does not come back, in time.
        flows.training.nodes.Unfit: a node lacks the run's folder, the data or this code.
        TrainingFailed: workers or controllers died more often than the budgets allow.
        flows.training.loop.Diverged, flows.training.run_folder.Fenced, infra.storage.IntegrityError, ValueError:
            as in `flows.training.loop.train`.
    """
    began = time.monotonic()
    connect(url)
    nodes = Nodes(things(spec, folder), reporter.note)
    joined = time.monotonic() - began
    left, reached = STARTS_WITHOUT_PROGRESS, folder.step()
    while not folder.final.is_dir():
        trouble = _one_controller(spec, folder, nodes, reporter)
        shutil.rmtree(
            folder.path / "ray", ignore_errors=True
        )  # what Ray keeps of a run, which nobody reads
        if trouble:
            left = STARTS_WITHOUT_PROGRESS if folder.step() > reached else left - 1
            reached = folder.step()
            if not left:
                raise TrainingFailed(
                    f"{spec.name} failed {STARTS_WITHOUT_PROGRESS} times without a new checkpoint, the last at"
                    f" step {reached}: {trouble}"
                )
            reporter.note(f"{trouble}; going on from step {reached}")
    return {"connect": joined}


def _request(spec: TrainingSpec) -> Request:
    """Return what to ask for: of an elastic training's numbers of workers, the most that the cluster has room for."""
    asked = spec.resources
    has = capacity()
    least, most = asked.elastic or (asked.num_workers, asked.num_workers)
    gpus = asked.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if has.gpus >= least else 0.0
    room = has.room(asked.cpus_per_worker, gpus)
    share = spec.training.accumulate
    fitting = (n for n in range(min(most, room), least - 1, -1))
    workers = next((n for n in fitting if spec.training.batch_size % (n * share) == 0), least)
    return Request(workers, asked.cpus_per_worker, gpus)


def _one_controller(spec: TrainingSpec, folder: RunFolder, nodes: Nodes, reporter: Reporter) -> str:
    """Run one Ray Train controller to its end; returns why another must follow, or nothing."""
    for name, value in RAY_TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.exceptions import RayActorError

    from flows.training.lean_trainer import release

    request = _request(spec)
    _wait_for_room(request, nodes, reporter)
    nodes.inspect()
    lease = folder.lease()
    controller, end = _trainer(spec, folder, request, lease).start()
    waiting = _Waiting(spec, request, nodes, reporter, lease)
    try:
        while not ray.wait([end], timeout=1.0)[0]:
            halting.check()
            _check(folder, lease)
            nodes.look()
            if trouble := waiting.over():
                return trouble
        ray.get(end)
        result = ray.get(controller.get_result.remote())
    except RayActorError:
        return "the Ray Train controller died"
    finally:
        release(controller, lease)
    _check(folder, lease)
    if result.error is not None:
        return _last_words(result.error)
    return "" if folder.final.is_dir() else "the workers ended without a result"


def _check(folder: RunFolder, lease: str) -> None:
    """Raise what a worker found that will not be better next time; the others are ended with it."""
    if failure := folder.failure(lease):
        raise _permanent(*failure)


def _trainer(spec: TrainingSpec, folder: RunFolder, request: Request, lease: str) -> Any:
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

    from flows.training.lean_trainer import LeanTrainer
    from flows.training.worker import work

    resources = {"CPU": request.cpus, **({"GPU": request.gpus} if request.gpus else {})}
    return LeanTrainer(
        lease,
        ScalingConfig(
            num_workers=request.workers,
            use_gpu=bool(request.gpus),
            resources_per_worker=resources,
        ),
        train_loop_per_worker=work,
        train_loop_config={
            "spec": spec.model_dump_json(),
            "folder": str(folder.path),
            "lease": lease,
            "gpus": request.gpus,
            "submitted": time.time(),
        },
        run_config=RunConfig(
            name=lease,  # a fresh name: Ray keeps no state of ours, and must not find an old one
            storage_path=str(folder.path / "ray"),
            failure_config=FailureConfig(
                max_failures=WORKER_FAILURES, controller_failure_limit=CONTROLLER_FAILURES
            ),
        ),
    )


def _wait_for_room(request: Request, nodes: Nodes, reporter: Reporter) -> None:
    """Wait until the workers fit beside what runs now, saying so.

    Raises:
        TooSmall: they would not fit an idle cluster, and no node is waited for.
    """
    told = 0.0
    while True:
        nodes.look()
        short = too_small(request.workers, request.cpus, request.gpus)
        if short is not None:
            if not _patience(nodes):
                raise short
            return  # the workers' placement group asks the autoscaler: `_Waiting` bounds that
        if require(request.workers, request.cpus, request.gpus):
            return
        if time.monotonic() - told > NOTE_EVERY_S:
            told = time.monotonic()
            reporter.note(f"waiting for room: {_free(request)}")
        halting.check()
        time.sleep(POLL_S)


def _patience(nodes: Nodes) -> float:
    """Return how many seconds a cluster that is too small is waited for."""
    return max(settings().scale_s, LOST_NODE_S if nodes.lost else 0.0)


@dataclass
class _Waiting:
    """Says what workers wait for, and when that is over."""

    spec: TrainingSpec
    request: Request
    nodes: Nodes
    reporter: Reporter
    lease: str

    def __post_init__(self) -> None:
        self._told = time.monotonic()
        self._short_since: float | None = None

    def over(self) -> str:
        """Return why other workers must be started in place of these; nothing while they may go on, or wait.

        Raises:
            TooSmall: no node came in time.
        """
        from flows.training.lean_trainer import is_waiting

        now = time.monotonic()
        short = too_small(self.request.workers, self.request.cpus, self.request.gpus)
        late = now - self._told > NOTE_EVERY_S
        if not (short or late) or not is_waiting(self.lease):
            self._short_since = None
            return ""
        said = f"waiting for room: {_free(self.request)}"
        if short is not None:
            fewer = _request(self.spec)
            if fewer.workers < self.request.workers and _fits(fewer):
                return f"{self._for()}: {fewer.workers} in place of {self.request.workers} workers"
            late, self._short_since = late or self._short_since is None, self._short_since or now
            left = self._short_since + _patience(self.nodes) - now
            if left < 0:
                raise TooSmall(f"{self._for()}: {short}{self._way_out()}")
            said = f"{self._for()}, {left:.0f} s more at most: {_free(self.request)}"
        if late:
            self._told = now
            self.reporter.note(said)
        return ""

    def _for(self) -> str:
        lost = self.nodes.lost
        return f"{' and '.join(lost)} lost" if lost else "waiting for nodes of the autoscaler"

    def _way_out(self) -> str:
        if not self.nodes.lost:
            return "; or wait longer by ATELIER_RAY_SCALE_S"
        return (
            "; or let it go on with fewer by resources.elastic: [1, 2]. The same command goes on from the last"
            " checkpoint"
        )


def _fits(request: Request) -> bool:
    return too_small(request.workers, request.cpus, request.gpus) is None


def _free(request: Request) -> str:
    has = capacity()
    gpus = f" and {has.free_gpus:g} of {has.gpus:g} GPUs" if has.gpus else ""
    return f"asked for {request}, free are {has.free_cpus:g} of {has.cpus:g} CPUs{gpus}"


def _last_words(error: Any) -> str:
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, failure = next(iter(failures.items()))
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"worker {rank} failed: {lines[-1] if lines else type(failure).__name__}"


def _permanent(kind: str, why: str) -> Exception:
    from flows.training.loop import PERMANENT

    return next((cls for cls in PERMANENT if cls.__name__ == kind), TrainingFailed)(why)
