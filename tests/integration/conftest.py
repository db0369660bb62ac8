"""Integration tests speak to the run's own stack, through the clients that a user has."""

from collections.abc import Iterator, Mapping

import pytest


@pytest.fixture(scope="session")
def ray_driver(stack: Mapping[str, float]) -> Iterator[str]:
    """This process joined to the run's Ray cluster; gives its address."""
    import ray

    from infra.settings import settings
    from infra.stack.cluster import connect

    yield connect(settings().ray_url)
    ray.shutdown()
