"""The worker that somebody else's Prefect needs: seen where it lives, missed where it does not."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from infra.settings import settings
from infra.stack import workers


@pytest.fixture
def prefect_elsewhere(
    stack: Mapping[str, float], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The run's Prefect by another name: somebody else's."""
    monkeypatch.setenv("PREFECT_API_URL", f"http://localhost:{settings().prefect_port}/api")
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.cluster
def test_a_worker_that_lives_is_seen(prefect_elsewhere: None) -> None:
    deadline = time.monotonic() + 600
    while workers.missing() is not None:  # its imports take seconds
        assert time.monotonic() < deadline, workers.missing()
        time.sleep(0.2)
    assert workers.living() == [workers.name()]


@pytest.mark.cluster
def test_where_no_worker_lives_a_line_names_the_service(
    prefect_elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "POOL", "nobody-works-here")
    line = workers.missing()
    assert line is not None
    assert "no worker lives" in line
    assert "atelier worker" in line


@pytest.mark.parametrize(
    ("address", "line"),
    [
        (None, "`atelier up` keeps the local stack's worker"),
        ("http://127.0.0.1:9/api", "http://127.0.0.1:9/api does not answer"),
    ],
)
def test_the_worker_s_verb_says_why_it_does_not_run(
    private_home: Path, address: str | None, line: str
) -> None:
    environment = {**os.environ, **({"PREFECT_API_URL": address} if address else {})}
    environment = {
        key: value for key, value in environment.items() if address or key != "PREFECT_API_URL"
    }
    done = subprocess.run(
        [sys.executable, "-m", "flows", "worker"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert line in done.stderr
    assert "Traceback" not in done.stderr
