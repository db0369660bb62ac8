"""A training on Ray that ends by itself: Ray replaces workers, this replaces Ray's controller, both within budgets."""

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flows.training import halting
from flows.training.hearts import Hearts
from flows.training.journal import Reporter
from flows.training.nodes import Nodes, things
from flows.training.room import NOTE_EVERY_S, Patience, Request, asked, bring, wait, wait_for_turn
from flows.training.run_folder import RunFolder
from flows.training.spec import TrainingSpec
from infra.settings import settings
from infra.stack.cluster import capacity, connect

if TYPE_CHECKING:
    from flows.training.controllers import Running
    from flows.training.orders import Order

WORKER_FAILURES: Final = 3
CONTROLLER_FAILURES: Final = 3
"""Budgets of one controller; a controller that brought training further is replaced without counting."""
STARTS_WITHOUT_PROGRESS: Final = 3
LOST_NODE_S: Final = 60.0
"""How long a node that was lost is waited for at least, where the recipe does not let training go on without it."""
GO_ON: Final = (
    "or let it go on with fewer by resources.elastic: [1, 2]."
    " The same command goes on from the last checkpoint"
)


class TrainingFailed(RuntimeError):
    """Training did not reach its end, and trying again did not help."""


def train_on_ray(
    spec: TrainingSpec, folder: RunFolder, url: str | None, reporter: Reporter
) -> dict[str, float]:
    """Train to the end on the cluster at `url`; returns the seconds of joining it.

    Raises:
        infra.stack.cluster.Unreachable, infra.stack.cluster.TooSmall: no such cluster, or one that could never do
            it; also where an autoscaler brings no nodes, or a lost one does not come back, in time.
        flows.training.nodes.Unfit: a node lacks the run's folder, the data or this code.
        TrainingFailed: workers or controllers died more often than the budgets allow.
        flows.training.loop.Diverged, flows.training.run_folder.Fenced, infra.storage.IntegrityError, ValueError:
            as in `flows.training.attempt.train`.
    """
    began = time.monotonic()
    connect(url)
    nodes = Nodes(things(spec, folder), reporter.note)
    joined = time.monotonic() - began
    left, reached, doubt = STARTS_WITHOUT_PROGRESS, folder.step(), ""
    while not folder.final.is_dir():
        begun = folder.attempt()
        trouble, gave_up = _one_controller(spec, folder, nodes, reporter, doubt)
        # no worker has begun: the lean controller may not suit this Ray
        doubt = trouble if gave_up and folder.attempt() == begun else ""
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


def _one_controller(
    spec: TrainingSpec, folder: RunFolder, nodes: Nodes, reporter: Reporter, doubt: str
) -> tuple[str, bool]:
    """Run one Ray Train controller to its end, not the lean one in doubt.

    Returns:
        Why another must follow, or nothing; and whether that is the controller's own doing.
    """
    import ray
    from ray.exceptions import RayActorError

    from flows.training.controllers import start

    request = _request(spec)
    wait_for_turn(spec.name)
    _wait_for_room(request, nodes, reporter)
    nodes.inspect()
    lease = folder.lease()
    running = start(_order(spec, folder, request, lease), reporter.note, doubt=doubt)
    asked(spec.name)
    waiting, hearts = _Waiting(spec, request, nodes, reporter, running), Hearts(folder.journal)
    try:
        while not ray.wait([running.end], timeout=1.0)[0]:
            halting.check()
            _check(folder, lease)
            nodes.look()
            if trouble := waiting.over() or hearts.hung(
                folder.attempt(), settings().worker_silence_s, time.monotonic()
            ):
                return trouble, False
        trouble = running.trouble()
    except RayActorError:
        return "the Ray Train controller died", True
    finally:
        running.release()
    _check(folder, lease)
    if trouble or folder.final.is_dir():
        return trouble, True
    return "the workers ended without a result", True


def _check(folder: RunFolder, lease: str) -> None:
    """Raise what a worker found that will not be better next time; the others are ended with it."""
    if failure := folder.failure(lease):
        raise _permanent(*failure)


def _order(spec: TrainingSpec, folder: RunFolder, request: Request, lease: str) -> "Order":
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from flows.training.controllers import mark
    from flows.training.orders import Order
    from flows.training.worker import work

    resources = {"CPU": request.cpus, **({"GPU": request.gpus} if request.gpus else {})}
    return Order(
        work,
        config={
            "spec": spec.model_dump_json(),
            "folder": str(folder.path),
            "lease": lease,
            "gpus": request.gpus,
            "submitted": time.time(),
        },
        scaling=ScalingConfig(
            num_workers=request.workers,
            use_gpu=bool(request.gpus),
            resources_per_worker={**resources, "memory": mark(lease)},
        ),
        run=RunConfig(
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
        TooSmall: they would not fit an idle cluster, and no node is waited for, or none came in time.
    """
    nodes.look()
    bring(_patience(request, nodes, reporter))
    wait(request, reporter)
    nodes.look()


def _patience(request: Request, nodes: Nodes, reporter: Reporter) -> Patience:
    """Return how long a cluster that is too small is waited for; longer where nodes were lost, which may come back."""
    seconds = settings().scale_s
    if not nodes.lost:
        return Patience(request, reporter, seconds)
    why = f"{' and '.join(nodes.lost)} lost"
    return Patience(request, reporter, max(seconds, LOST_NODE_S), why, GO_ON)


@dataclass
class _Waiting:
    """Says what workers wait for, and when that is over."""

    spec: TrainingSpec
    request: Request
    nodes: Nodes
    reporter: Reporter
    running: "Running"

    def __post_init__(self) -> None:
        self._told = time.monotonic()
        self._patience: Patience | None = None

    def over(self) -> str:
        """Return why other workers must be started in place of these; nothing while they may go on, or wait.

        Raises:
            TooSmall: no node came in time.
            flows.training.nodes.Unfit: one came that cannot take part.
        """
        short = self.request.short
        late = time.monotonic() - self._told > NOTE_EVERY_S
        if not (short or late) or not self.running.is_waiting:
            if self._patience is not None:
                self._patience = None
                self.nodes.inspect()  # what came starts its workers now
            return ""
        if short is not None:
            fewer = _request(self.spec)
            self._patience = self._patience or _patience(self.request, self.nodes, self.reporter)
            if fewer.workers < self.request.workers and fewer.short is None:
                workers = f"{fewer.workers} in place of {self.request.workers} workers"
                return f"{self._patience.why}: {workers}"
            self._patience.spend(short)
        elif late:
            self._told = time.monotonic()
            self.reporter.note(f"waiting for room: {self.request.free}")
        return ""


def _permanent(kind: str, why: str) -> Exception:
    from flows.training.loop import PERMANENT

    return next((cls for cls in PERMANENT if cls.__name__ == kind), TrainingFailed)(why)
