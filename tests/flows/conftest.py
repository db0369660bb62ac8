import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows import workshop
from infra.registry import Registry
from infra.settings import settings
from tests.flows.versions_kit import Installation


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without anything in it, which takes seconds to make: installations copy it."""
    folder = tmp_path_factory.mktemp("mlflow")
    Registry(f"sqlite:///{folder / 'mlflow.db'}", folder / "cache").names()
    return folder / "mlflow.db"


@pytest.fixture
def install(
    empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Installation]]:
    """Return a function that makes an empty installation and enters it."""

    def make(name: str) -> Installation:
        home = tmp_path / name
        home.mkdir()
        shutil.copy(empty_mlflow, home / "mlflow.db")
        return Installation(home, monkeypatch).enter()

    yield make
    monkeypatch.undo()
    for cached in (settings, workshop.registry, workshop.ledger):
        cached.cache_clear()


@pytest.fixture
def here(install: Callable[[str], Installation]) -> Installation:
    """This process's installation, empty."""
    return install("here")
