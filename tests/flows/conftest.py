import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows import context
from infra.registry.registry import Registry
from infra.settings import settings
from tests.flows.versions_kit import Installation


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without anything in it, which takes seconds to make: installations copy it."""
    folder = tmp_path_factory.mktemp("mlflow")
    Registry(f"sqlite:///{folder / 'mlflow.db'}", folder / "cache").names()
    return folder / "mlflow.db"


Install = Callable[[str], Installation]


@contextmanager
def installations(empty_mlflow: Path, folder: Path) -> Iterator[Install]:
    """Gives a function that makes an empty installation below a folder and enters it."""
    with pytest.MonkeyPatch.context() as patch:

        def make(name: str) -> Installation:
            home = folder / name
            home.mkdir()
            shutil.copy(empty_mlflow, home / "mlflow.db")
            return Installation(home, patch).enter()

        yield make
    for cached in (settings, context.registry, context.ledger):
        cached.cache_clear()


@pytest.fixture
def install(empty_mlflow: Path, tmp_path: Path) -> Iterator[Install]:
    """Return a function that makes an empty installation and enters it."""
    with installations(empty_mlflow, tmp_path) as make:
        yield make


@pytest.fixture
def here(install: Install) -> Installation:
    """This process's installation, empty."""
    return install("here")
