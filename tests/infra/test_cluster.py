"""Somebody else's Ray: who may join it, and what a client that may not is told."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra import serving
from infra.settings import Settings, settings
from infra.stack import cluster
from infra.stack.doctor import Check, doctor

Told = Callable[[Any], Any]


@contextmanager
def dashboard(nodes: list[dict[str, str]], token: str) -> Iterator[str]:
    """A Ray dashboard that shows these nodes to the bearer of a token."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.headers["authorization"] == f"Bearer {token}"
            body = {"data": {"result": {"result": nodes}}} if good else {"error": "bad token"}
            self.send_response(200 if good else 403)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def elsewhere(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """Settings of a Ray elsewhere: its address and dashboard are a page of this test."""
    with dashboard([{"node_ip": "192.0.2.7", "state": "ALIVE"}], "good") as place:
        token = private_home.parent / "token"
        token.write_text("good")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", f"http://{place}")
        monkeypatch.setenv("ATELIER_RAY_ADDRESS", place)
        settings.cache_clear()
        yield token.write_text


def test_a_client_that_is_no_node_gets_one_line_with_the_way_out(elsewhere: Told) -> None:
    with pytest.raises(cluster.Unreachable) as refusal:
        cluster.connect(settings().ray_url)
    line = str(refusal.value)
    assert "\n" not in line
    assert "is no node of the Ray cluster" in line
    assert "192.0.2.7" in line
    assert "ATELIER_RAY_ADDRESS=ray://127.0.0.1:10001" in line


def test_a_port_that_is_no_ray_client_s_is_one_line_with_the_way_out(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("INITIAL_TIMEOUT_SEC", "MAX_TIMEOUT_SEC"):  # of three tries
        monkeypatch.setattr(f"ray.util.client.worker.{limit}", 0.01)
    with dashboard([], "good") as place, pytest.raises(cluster.Unreachable) as refusal:
        cluster.connect(f"ray://{place}")
    line = str(refusal.value)
    assert line.startswith(f"Ray at ray://{place} refused: ")
    assert "\n" not in line
    assert "10001" in line
    assert "RAY_AUTH_TOKEN_PATH" in line


def test_this_machine_s_addresses_have_interfaces() -> None:
    assert cluster.addresses()["127.0.0.1"].startswith("lo")


def checks() -> dict[str, Check]:
    return {one.name: one for one in doctor()}


def test_the_doctor_shows_the_token_to_somebody_else_s_dashboard(elsewhere: Told) -> None:
    found = checks()
    assert found["ray dashboard"].verdict == "ok", found["ray dashboard"]
    assert found["storage"].advice == "set ATELIER_STORAGE_URI to a mount of all nodes"
    elsewhere("wrong")
    refused = checks()["ray dashboard"]
    assert refused.verdict == "fail"
    assert "403" in refused.found
    assert "RAY_AUTH_TOKEN_PATH" in refused.advice


def test_the_doctor_names_a_mount_that_is_not_there(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_STORAGE_URI", str(private_home / "mount"))
    settings.cache_clear()
    found = checks()["storage"]
    assert found.verdict == "fail"
    assert "mount is not there" in found.found


@pytest.mark.parametrize(
    ("address", "page"),
    [("ray://head:10001", "http://head:8265"), ("10.0.0.5:6379", "http://10.0.0.5:8265")],
)
def test_a_cluster_s_dashboard_is_looked_for_on_its_head(
    address: str, page: str, tmp_path: Path
) -> None:
    mine = Settings(project=tmp_path, ray_address=address, dashboard_port=8265)
    assert mine.dashboard_url == page


def test_a_dashboard_that_nobody_answers_at_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:9")
    why = serving.refused(Settings(project=tmp_path))
    assert why is not None
    assert "RAY_DASHBOARD_ADDRESS" in why
