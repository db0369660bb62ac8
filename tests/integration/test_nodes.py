"""What is asked of a cluster that is too small, and how many trainings share one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.recipe import Resources, TrainingSpec
from flows.slots import processors
from flows.training.journal import Progress
from flows.training.ray_train import Trained, fit
from infra.cluster import TooSmall, capacity
from infra.settings import settings
from tests.flows.training_kit import prepare, spec_of

pytestmark = pytest.mark.cluster


def on_each_node(prepared: Path, **training: int) -> TrainingSpec:
    """A training of two workers that do not fit one node."""
    spec = spec_of(prepared, **training)
    resources = Resources(num_workers=2, cpus_per_worker=capacity().cpus, gpus_per_worker=0)
    return spec.model_copy(update={"resources": resources})


def train(
    spec: TrainingSpec, runs: Path, address: str, tell: Callable[[Progress], None] | None = None
) -> Trained:
    return fit(spec, run_id=None, tracking_uri=None, runs=runs, ray_url=address, on_progress=tell)


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Return a function that sets how long an autoscaler's nodes are waited for."""

    def wait(seconds: float) -> None:
        monkeypatch.setenv("ATELIER_RAY_SCALE_S", str(seconds))
        settings.cache_clear()

    yield wait
    monkeypatch.undo()
    settings.cache_clear()


def test_a_cluster_that_does_not_scale_in_time_is_refused_with_what_was_waited_for(
    ray_driver: str, tmp_path: Path, scaling: Callable[[float], None]
) -> None:
    scaling(0.5)
    spec = on_each_node(prepare(tmp_path / "shades"))
    told: list[str] = []
    with pytest.raises(TooSmall, match=r"^waiting for nodes .* asked for 2 workers .*SCALE_S$"):
        train(spec, tmp_path / "runs", ray_driver, lambda now: told.append(now.note))
    assert "waiting for nodes of the autoscaler" in told[0]


def test_a_cluster_without_gpus_has_a_slot_a_cpu_and_a_machine_of_its_own_has_one(
    ray_driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert processors() == (0, 1)
    monkeypatch.setenv("ATELIER_RAY_ADDRESS", ray_driver)
    settings.cache_clear()
    try:
        assert processors() == (0, capacity().cpus)
    finally:
        monkeypatch.undo()
        settings.cache_clear()
