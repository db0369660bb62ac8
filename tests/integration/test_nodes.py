"""A cluster of two nodes: what one lacks is named, what one brings is used, and the loss of one is survived."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from flows.recipe import Resources
from flows.scheduling.concurrency import processors
from flows.training import supervisor
from flows.training.journal import Progress
from flows.training.nodes import Unfit
from flows.training.ray_train import Trained, fit
from flows.training.run_folder import RunFolder
from flows.training.spec import TrainingSpec
from flows.tuning import asha
from flows.tuning.plan import plan
from flows.tuning.space import Search
from infra.settings import settings
from infra.stack.cluster import TooSmall, alive, connect
from infra.storage import IntegrityError
from tests.flows.training_kit import prepare, spec_of, wait_until

pytestmark = pytest.mark.cluster
BUDGET = {"max_steps": 8, "grace_steps": 4, "validate_every": 4}
RATE = "training.optimizers.model.learning_rate"
OWN = Path("/proc/self/cwd")
"""Leads a process to the folder where its node was started: what two nodes see at one path may differ."""
LOST_SOON = {"health_check_period_ms": 500, "health_check_failure_threshold": 2}  # 15 s in Ray


@dataclass
class Nodes:
    """Two nodes on this machine with a CPU each, both on loopback: the head, and a second that comes and goes."""

    root: Path
    cluster: Cluster = field(init=False)

    def __post_init__(self) -> None:
        for folder in (self.first, self.second):
            folder.mkdir()
        head = {
            "num_cpus": 1,
            "include_dashboard": False,
            "no_monitor": True,
            "temp_dir": str(self.root / "ray"),
            "_system_config": LOST_SOON,
        }
        with contextlib.chdir(self.first):
            # Ray notes the address there, and makes the folder only where it has no other for its files
            (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray").mkdir(exist_ok=True)
            self.cluster = Cluster(initialize_head=True, head_node_args=head)

    @property
    def first(self) -> Path:
        """The head's own folder, and the driver's."""
        return self.root / "first"

    @property
    def second(self) -> Path:
        """The second node's own folder."""
        return self.root / "second"

    def add(self) -> None:
        """Start the second node where it does not run."""
        if not self.cluster.worker_nodes:
            with contextlib.chdir(self.second):
                self.cluster.add_node(num_cpus=1)

    def lose(self) -> str:
        """Kill every process of the second node at once; returns its name."""
        (node,) = self.cluster.worker_nodes
        name = alive()[node.node_id]
        self.cluster.remove_node(node, allow_graceful=False)
        return name

    def leave_one(self) -> None:
        """Have the head alone, and known to be alone."""
        if self.cluster.worker_nodes:
            self.lose()
        wait_until(lambda: len(alive()) == 1)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """This process joined to a cluster of its own; afterwards to the one that it was joined to before."""
    before = ray.get_runtime_context().gcs_address if ray.is_initialized() else None
    ray.shutdown()
    with tempfile.TemporaryDirectory(prefix="atelier-nodes-", ignore_cleanup_errors=True) as folder:
        found = Nodes(Path(folder))
        try:
            connect(found.cluster.address)
            yield found
        finally:
            ray.shutdown()
            found.cluster.shutdown()
    if before:
        connect(before)


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Return a function that sets how long an autoscaler's nodes are waited for."""

    def wait(seconds: float) -> None:
        monkeypatch.setenv("ATELIER_RAY_SCALE_S", str(seconds))
        settings.cache_clear()

    yield wait
    monkeypatch.undo()
    settings.cache_clear()


def on_each_node(prepared: Path, **training: int) -> TrainingSpec:
    """A training of two workers that do not fit one node."""
    spec = spec_of(prepared, **training)
    resources = Resources(num_workers=2, gpus_per_worker=0)
    return spec.model_copy(update={"resources": resources})


@dataclass
class Training:
    """One training on the nodes, and what was told of it."""

    nodes: Nodes
    spec: TrainingSpec
    notes: list[str] = field(default_factory=list)

    @property
    def folder(self) -> RunFolder:
        """Its folder, which both nodes see."""
        return RunFolder(self.nodes.root / "runs" / self.spec.prepared.name / self.spec.identity)

    def fit(self) -> Trained:
        """Train to the end."""
        address = self.nodes.cluster.address
        return fit(
            self.spec,
            run_id=None,
            tracking_uri=None,
            runs=self.folder.path.parent,
            ray_url=address,
            on_progress=self._tell,
        )

    def _tell(self, now: Progress) -> None:
        self.notes += [now.note] if now.note else []


def test_a_cluster_without_gpus_has_a_slot_a_cpu_and_a_machine_of_its_own_has_one(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert processors() == (0, 1)
    monkeypatch.setenv("ATELIER_RAY_ADDRESS", nodes.cluster.address)
    settings.cache_clear()
    try:
        nodes.add()
        assert processors() == (0, 2)
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_a_node_without_the_data_is_named_before_any_worker_starts(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nodes.first)
    nodes.add()
    training = Training(nodes, on_each_node(prepare(OWN / "hidden")))
    lacks = r"cannot read /proc/self/cwd/hidden/dataset.json \(No such file or directory\): every node must"
    with pytest.raises(Unfit, match=rf"^node {os.uname().nodename} \(127.0.0.1, \w+\) {lacks}"):
        training.fit()
    assert training.folder.attempt() == 0


def test_a_rank_that_fails_for_good_ends_the_others_with_its_reason(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged shard has the right size: its own node alone finds it, when it reads it."""
    monkeypatch.chdir(nodes.first)
    nodes.add()
    training = Training(nodes, on_each_node(prepare(OWN / "damaged")))
    shutil.copytree(nodes.first / "damaged", nodes.second / "damaged")
    shard = next((nodes.second / "damaged").glob("train-*.parquet"))
    content = shard.read_bytes()
    shard.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(IntegrityError, match=r"^worker [01] on \S+: \S+damaged/train-") as refusal:
        training.fit()
    assert "\n" not in str(refusal.value)
    assert training.folder.attempt() == 1, "nobody tried again"


def test_a_lost_node_is_named_and_its_work_done_by_the_one_that_is_left(
    nodes: Nodes, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes.add()
    spec = on_each_node(prepare(nodes.root / "shades"), steps=120, checkpoint_every=20)
    elastic = spec.resources.model_copy(update={"elastic": (1, 2)})
    training = Training(nodes, spec.model_copy(update={"resources": elastic}))
    with ThreadPoolExecutor(1) as beside:
        trained = beside.submit(training.fit)
        wait_until(lambda: training.folder.step() >= 20 or trained.done())
        name = nodes.lose()
        assert trained.result().steps == 120
    assert f"node {name} was lost" in training.notes
    went_on = next(note for note in training.notes if "in place of 2 workers" in note)
    assert went_on.startswith(f"{name} lost: 1 in place of 2 workers; going on from step ")
    assert int(went_on.rpartition(" ")[2]) >= 20
    assert "Raylet" not in "".join(capfd.readouterr()), "Ray has a page to say of it"


def test_a_cluster_that_does_not_scale_in_time_is_refused_with_what_was_waited_for(
    nodes: Nodes, scaling: Callable[[float], None]
) -> None:
    scaling(0.5)
    nodes.leave_one()
    training = Training(nodes, on_each_node(prepare(nodes.root / "too-large")))
    with pytest.raises(TooSmall, match=r"^waiting for nodes .* asked for 2 workers .*SCALE_S$"):
        training.fit()
    assert "waiting for nodes of the autoscaler" in training.notes[0]


@contextlib.contextmanager
def meanwhile(training: Training, refusal: type[Exception]) -> Iterator[Callable[[], str]]:
    """Train beside the block; gives a function that waits for the refusal and returns its one line."""
    with ThreadPoolExecutor(1) as beside:
        trained = beside.submit(training.fit)

        def line() -> str:
            with pytest.raises(refusal) as found:
                trained.result()
            assert "\n" not in str(found.value)
            return str(found.value)

        yield line


def test_a_search_asks_for_nodes_too_and_is_refused_when_none_comes(
    nodes: Nodes, tmp_path: Path, scaling: Callable[[float], None]
) -> None:
    scaling(0.5)
    spec = on_each_node(prepare(tmp_path / "shades", validation=8))
    large = spec.resources.model_copy(update={"num_workers": 0, "cpus_per_worker": 3})
    rules = Search.model_validate({"space": {RATE: {"choice": [1e-3]}}, **BUDGET})
    told: list[str] = []
    with pytest.raises(TooSmall, match=r"^waiting for nodes .* 1 workers x 3 CPUs .*SCALE_S$"):
        asha.run(
            plan(rules, 0, (spec.model_copy(update={"resources": large}),)),
            tmp_path / "search",
            {},
            lambda _, now: told.append(now.note),
            lambda trial: pytest.fail(f"{trial} ran"),
        )
    assert told[0].startswith("waiting for nodes of the autoscaler, ")


def test_a_node_that_comes_is_waited_for_and_looked_at_before_it_trains(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, scaling: Callable[[float], None]
) -> None:
    monkeypatch.chdir(nodes.first)
    nodes.leave_one()
    scaling(600)
    training = Training(nodes, on_each_node(prepare(OWN / "late")))
    with meanwhile(training, Unfit) as line:
        wait_until(lambda: any("nodes of the autoscaler" in note for note in training.notes))
        nodes.add()
        assert "cannot read /proc/self/cwd/late/dataset.json" in line()
    assert training.folder.attempt() == 0


def test_the_loss_of_a_node_that_is_needed_ends_in_one_line_when_it_does_not_come_back(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOST_NODE_S", 0.5)
    nodes.add()
    spec = on_each_node(prepare(nodes.root / "rigid"), steps=100_000, checkpoint_every=20)
    training = Training(nodes, spec)
    with meanwhile(training, TooSmall) as line:
        wait_until(lambda: training.folder.step() >= 20)
        name = nodes.lose()
        said = line()
    assert said.startswith(f"{name} lost: asked for 2 workers x 1 CPUs")
    assert said.endswith("The same command goes on from the last checkpoint")
    assert any(note.startswith(f"{name} lost, ") for note in training.notes), training.notes
