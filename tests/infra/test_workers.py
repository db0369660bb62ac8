"""The worker that somebody else's Prefect needs: seen where it lives, missed where it does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


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
