"""Integration tests speak to the run's own stack, through the clients that a user has."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.project_kit import Workshop, make_project


@pytest.fixture(scope="session")
def ray_driver(stack: Mapping[str, float]) -> Iterator[str]:
    """This process joined to the run's Ray cluster; gives its address."""
    import ray

    from infra.settings import settings
    from infra.stack.cluster import connect

    yield connect(settings().ray_url)
    ray.shutdown()


@pytest.fixture(scope="session")
def dvc_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run's projects keep what DVC made: what one has prepared, another takes from there."""
    return tmp_path_factory.mktemp("dvc")


@pytest.fixture(scope="session")
def workshop(
    stack: Mapping[str, float], dvc_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workshop:
    """A project with a ledger of its own on the run's stack, whose data is prepared by the first that asks."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, dvc_cache)
    environment = {
        **os.environ,
        "ATELIER_PROJECT": str(folder),
        "ATELIER_DATABASE_URL": f"sqlite:///{folder / 'atelier.db'}",
        "COLUMNS": "200",
    }
    return Workshop(folder, environment)
