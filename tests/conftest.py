"""The run's own stack: private ports and folder, named in the environment before any tool is imported.

Nothing starts until a test asks for the fixture `stack`; it is stopped at the end, and nothing of it stays.
Three processes share the tests; each has a stack of its own if it needs one.
"""

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.command_kit import commands
from tests.databases_kit import KINDS, Database, Databases
from tests.ports_kit import PORTS, free_ports

hypothesis.settings.register_profile(
    "suite",
    deadline=None,  # a busy machine is no fault
    derandomize=True,  # the same examples at every run
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000, print_blob=True)

ROOT: Final = Path(__file__).parents[1]
OUTSIDE = ("ATELIER_TRACKING_URI", "ATELIER_RAY_ADDRESS", "PREFECT_API_URL", "RAY_ADDRESS")
LATER = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
"""Read by the tools at each use: set only once the stack is up, so that other tests are not drawn to it."""


TRAININGS: Final = {"test_lifecycle", "test_schedules", "test_tune"}
LONG: Final = {"test_densities", "test_nodes"}  # the latter has a cluster of its own
SERVERS_S: Final = (
    1800  # a test that takes three minutes here, on a machine of a tenth of the speed
)
LOTS: Final = ("trainings", "servers", "long")
"""They begin first, each in a process of its own, or the run would wait for one of them in the end."""


@cache
def lot(file: str) -> str | None:
    """Return the lot that a file's tests are of."""
    if (stem := Path(file).stem) in TRAININGS | LONG:
        return "trainings" if stem in TRAININGS else "long"
    return "servers" if "mark.cluster" in (ROOT / file).read_text() else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import with the garbage collector at rest: of a million objects most stay, and need not be looked at again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the lots first; what waits for servers may take long where the machine is slow."""
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.timeout(SERVERS_S))
    places = {one: place for place, one in enumerate((*LOTS, None))}
    known = {file: places[lot(file)] for file in {one.nodeid.partition("::")[0] for one in items}}
    items.sort(key=lambda item: known[item.nodeid.partition("::")[0]])


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
    for name in OUTSIDE:
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = "1"  # threads do not pay on what is so small
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own 15 starves beside other work
    folder = tempfile.mkdtemp(prefix="atelier-test-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    config.add_cleanup(commands.close)
    os.environ["ATELIER_HOME"] = folder
    for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True):
        os.environ[f"ATELIER_{name}_PORT"] = str(port)
    from infra.stack.stack import environment

    os.environ.update({k: v for k, v in environment().items() if k not in LATER})
    os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"


class Scheduling(LoadScopeScheduling):
    """Gives whole files to a process, so that a file's fixtures are made once; files that need the stack in two lots.

    Each lot has a stack of its own where it meets another process.
    """

    def _split_scope(
        self, nodeid: str
    ) -> str:  # where pytest-xdist has a scheduler say what belongs together
        file = nodeid.partition("::")[0]
        return lot(file) or file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    config.option.loadscopereorder = False  # not by the number of tests: the longest have few
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def servers() -> Iterator[ExitStack]:
    """What runs for this process's tests of the cluster, and ends with the last of them: it works at rest, too."""
    with ExitStack() as running:
        yield running


@pytest.fixture(scope="session")
def stack(servers: ExitStack) -> Mapping[str, float]:
    """One Prefect server, one MLflow server and one Ray head for this process's tests; gives their seconds to start."""
    return servers.enter_context(started())


@contextmanager
def started() -> Iterator[Mapping[str, float]]:
    from infra.stack import stack as local

    before = dict(os.environ)
    try:
        seconds = local.up()
        os.environ.update({name: local.environment()[name] for name in LATER})
        yield seconds
    finally:
        daemons = [part.daemon for part in local.parts() if part.daemon]
        os.environ.clear()
        os.environ.update(before)
        local.down()
        assert not [process for one in daemons for process in one.offspring()], "down left some"


@pytest.fixture(scope="module", autouse=True)
def apart(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    servers: ExitStack,
) -> Iterator[None]:
    """A file that asks for no stack is not drawn to the one that runs in its process for the files before it."""
    from infra.settings import settings

    own = [item for item in request.session.items if item.path == request.path]
    if any("stack" in getattr(item, "fixturenames", ()) for item in own):
        yield
        return
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()  # whoever is joined to a cluster is not asked to join another
    if lot(request.node.nodeid) is None:
        servers.close()  # the lots come first: no later file asks for it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATELIER_HOME", str(tmp_path_factory.getbasetemp() / "apart"))
        for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True):
            patch.setenv(f"ATELIER_{name}_PORT", str(port))
        for name in LATER:
            patch.delenv(name, raising=False)
        settings.cache_clear()
        yield
    settings.cache_clear()


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Makes databases on SQLite and Postgres; the server starts with the first that is asked for."""
    made = Databases(tmp_path_factory.mktemp("databases"))
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, databases: Databases) -> Iterator[Database]:
    """A migrated database without rows, once on each kind."""
    made = databases.migrated(request.param)
    yield made
    databases.drop(made)


@pytest.fixture
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Settings of this test's own: an empty state folder and free ports."""
    from infra.settings import settings

    home = tmp_path / "home"
    monkeypatch.setenv("ATELIER_HOME", str(home))
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True):
        monkeypatch.setenv(f"ATELIER_{name}_PORT", str(port))
    settings.cache_clear()
    yield home
    settings.cache_clear()
