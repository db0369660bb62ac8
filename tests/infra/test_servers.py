import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.stack.probes import beats
from tests.command_kit import begun

CHILD = "import time\nprint('begun', flush=True)\ntime.sleep(600)\n"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def prefect() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/health"
        server.shutdown()


def test_a_killed_worker_is_started_again_within_seconds_and_nicely(
    tmp_path: Path, prefect: str
) -> None:
    (tmp_path / "working.py").write_text(CHILD)
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"
    command = ["-m", "infra.stack.servers", "worker", "--module", "working", "--after", prefect]
    with begun(
        [sys.executable, *command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, text=True,
    ) as supervisor:  # fmt: skip
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "begun\n"
        (first,) = psutil.Process(supervisor.pid).children()
        assert first.nice() == psutil.Process().nice() + 5
        began = time.monotonic()
        first.kill()
        assert "ended with -9" in supervisor.stdout.readline()
        assert supervisor.stdout.readline() == "begun\n"
        assert time.monotonic() - began < 5
        (second,) = psutil.Process(supervisor.pid).children()
        supervisor.terminate()
        assert supervisor.wait(5) != 0
        second.kill()


def test_a_worker_beats_while_its_file_is_young(tmp_path: Path) -> None:
    path = tmp_path / "beat"
    assert not beats(path)
    path.touch()
    assert beats(path)
    os.utime(path, (time.time() - 16, time.time() - 16))
    assert not beats(path)
    os.utime(path, (time.time() + 3600, time.time() + 3600))  # and its clock was set back since
    assert not beats(path)
