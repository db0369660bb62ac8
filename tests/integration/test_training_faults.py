"""kill -9 of any process of a training on Ray: it ends by itself, in one MLflow run, with an undisturbed one's bits."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.recipe import Resources
from flows.training.journal import Progress
from flows.training.ray_train import Trained, fit
from flows.training.run_folder import RunFolder
from flows.training.spec import TrainingSpec
from infra.stack.cluster import TooSmall
from tests.flows.training_kit import prepare, spec_of, train_without_ray, wait_until, weights_of

pytestmark = pytest.mark.cluster
STEPS, INTERVAL, LOG = 120, 20, 5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "shades")


@pytest.fixture(scope="module")
def spec(prepared: Path) -> TrainingSpec:
    return spec_of(prepared, workers=2, steps=STEPS, checkpoint_every=INTERVAL, log_every=LOG)


@pytest.fixture(scope="module")
def undisturbed(spec: TrainingSpec, tmp_path_factory: pytest.TempPathFactory) -> str:
    return weights_of(train_without_ray(spec, tmp_path_factory.mktemp("undisturbed")))


def rank(number: int) -> Callable[[RunFolder], int]:
    def pid(folder: RunFolder) -> int:
        path = folder.journal / f"{folder.attempt()}.rank{number}.json"
        return int(json.loads(path.read_bytes())["pid"])

    return pid


def controller(folder: RunFolder) -> int:
    """The process that Ray calls a TrainController, beside the worker below the same raylet."""
    raylet = psutil.Process(rank(0)(folder)).parent()
    assert raylet is not None
    names = {one.pid: " ".join(one.cmdline()) for one in raylet.children()}
    (found,) = (pid for pid, name in names.items() if "TrainController" in name)
    return found


def hide_a_name(monkeypatch: pytest.MonkeyPatch) -> str:
    """Take a name that the lean controller needs from Ray, in this process, which looks."""
    from ray.train.v2._internal.execution import scaling_policy

    monkeypatch.delattr(scaling_policy.ScalingPolicy, "_cancel_resource_request")
    return "_cancel_resource_request"


def have_it_die_at_its_start(monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the lean controller what it cannot work with, as a Ray would that has changed where nobody looks."""
    from flows.training import lean_trainer

    monkeypatch.setattr(lean_trainer, "NoAutoscaling", str)
    return "the Ray Train controller failed: Callback 'str'"


@pytest.mark.parametrize(
    ("change", "killed"), [(hide_a_name, True), (have_it_die_at_its_start, False)]
)
def test_where_ray_has_changed_inside_its_plain_trainer_trains_the_same_bits(
    change: Callable[[pytest.MonkeyPatch], str],
    killed: bool,
    spec: TrainingSpec,
    undisturbed: str,
    ray_driver: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And ends with its controller, killed or not, so that the next can begin."""
    why = change(monkeypatch)
    folder = RunFolder(tmp_path / spec.identity)
    told: list[Progress] = []

    def kill() -> None:
        wait_until(lambda: folder.step() >= 2 * INTERVAL)
        os.kill(controller(folder), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    if killed:
        killer.start()
    trained = train(spec, tmp_path, ray_driver, told.append)
    if killed:
        killer.join()
    said = [now.note for now in told if "plain TorchTrainer" in now.note]
    assert why in said[0]
    assert trained.attempts == 1 + killed
    assert weights_of(trained.directory) == undisturbed


@pytest.mark.parametrize(
    "victim", [rank(0), rank(1), controller], ids=["rank0", "rank1", "controller"]
)
def test_a_killed_process_costs_an_interval_and_no_bit(
    victim: Callable[[RunFolder], int],
    spec: TrainingSpec,
    undisturbed: str,
    ray_driver: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from infra.registry.registry import Registry
    from infra.settings import settings

    registry = Registry(settings().mlflow_uri, tmp_path / "cache")
    run_id = registry.start_run("faults", f"{spec.identity}-{tmp_path.name}", {})
    folder = RunFolder(tmp_path / "runs" / spec.identity)
    told: list[Progress] = []
    killed: list[float] = []

    def kill() -> None:
        wait_until(lambda: folder.step() >= 2 * INTERVAL)
        os.kill(victim(folder), signal.SIGKILL)
        killed.append(time.monotonic())

    killer = threading.Thread(target=kill)
    killer.start()
    trained = fit(
        spec,
        run_id=run_id,
        tracking_uri=settings().mlflow_uri,
        runs=tmp_path / "runs",
        ray_url=ray_driver,
        on_progress=told.append,
    )
    killer.join()
    registry.end_run(run_id)
    with capsys.disabled():
        seconds = time.monotonic() - killed[0]
        print(f"\n{trained.repeated_steps} steps repeated, {seconds:.0f} s from kill to end")  # noqa: T201
    assert trained.attempts == 2
    assert trained.repeated_steps <= INTERVAL
    assert weights_of(trained.directory) == undisturbed
    assert [now.step for now in told if not now.note] == list(range(LOG, STEPS + 1, LOG))
    assert logged_steps(run_id) == list(range(LOG, STEPS + 1, LOG))


def test_a_worker_that_stands_still_is_told_from_its_heart_and_all_go_on(
    spec: TrainingSpec,
    undisturbed: str,
    ray_driver: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped, it neither works nor ends: the other one waits for it in a collective."""
    from infra.settings import settings

    monkeypatch.setenv("ATELIER_WORKER_SILENCE_S", "4")
    settings.cache_clear()
    folder = RunFolder(tmp_path / spec.identity)
    told: list[Progress] = []

    def stop() -> None:
        wait_until(lambda: folder.step() >= 2 * INTERVAL)
        os.kill(rank(1)(folder), signal.SIGSTOP)

    stopper = threading.Thread(target=stop)
    stopper.start()
    trained = train(spec, tmp_path, ray_driver, told.append)
    stopper.join()
    settings.cache_clear()
    assert any("rank1 has not been heard of for" in now.note for now in told)
    assert trained.attempts == 2
    assert weights_of(trained.directory) == undisturbed


def logged_steps(run_id: str) -> list[int]:
    from mlflow import MlflowClient

    from infra.settings import settings

    client = MlflowClient(settings().mlflow_uri)
    return [metric.step for metric in client.get_metric_history(run_id, "loss")]


def test_what_the_cluster_never_has_is_refused_at_once(
    spec: TrainingSpec, ray_driver: str, tmp_path: Path
) -> None:
    greedy = spec.model_copy(update={"resources": Resources(num_workers=512, gpus_per_worker=0)})
    greedy = greedy.model_copy(
        update={"training": spec.training.model_copy(update={"batch_size": 512})}
    )
    began = time.monotonic()
    with pytest.raises(
        TooSmall, match=r"asked for 512 workers x 1 CPUs .* whole cluster has \d+ CPUs"
    ):
        train(greedy, tmp_path, ray_driver)
    assert time.monotonic() - began < 5


def test_a_busy_cluster_is_waited_for_and_one_worker_gives_the_bits_of_none(
    prepared: Path, ray_driver: str, tmp_path: Path
) -> None:
    import ray

    from infra.stack.cluster import capacity

    holder = ray.remote(num_cpus=capacity().cpus)(Holder).remote()
    assert ray.get(holder.holds.remote())
    told: list[Progress] = []

    def tell(now: Progress) -> None:
        told.append(now)
        if "waiting for room: asked for 1 x 1 CPUs, free are 0 of" in now.note:
            ray.kill(holder)

    trained = train(spec_of(prepared, workers=1), tmp_path / "ray", ray_driver, tell)
    assert told[0].note.startswith("waiting for room")
    alone = train(spec_of(prepared, workers=0), tmp_path / "alone", None)
    assert weights_of(trained.directory) == weights_of(alone.directory)


class Holder:
    def holds(self) -> bool:
        return True


def train(
    spec: TrainingSpec,
    runs: Path,
    ray_url: str | None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Trained:
    return fit(
        spec, run_id=None, tracking_uri=None, runs=runs, ray_url=ray_url, on_progress=on_progress
    )
