"""Whether a server answers: bounded questions that raise nothing and import no tool."""

import http.client
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from infra.documents import parse_json

TIMEOUT_S: Final = 2.0
BEAT_LIMIT_S: Final = 15.0
REMOTE_LIMIT_S: Final = 10.0
"""How long somebody else's server is given to answer."""


def get(
    url: str, headers: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S
) -> tuple[int, bytes] | None:
    """Return the status and body of one GET, past any proxy; None if nobody answers in time."""
    parsed = urlsplit(url)
    secure = parsed.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parsed.hostname or "", parsed.port, timeout=timeout_s)
    try:
        target = f"{parsed.path or '/'}?{parsed.query}" if parsed.query else parsed.path or "/"
        connection.request("GET", target, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether a GET of `url` is answered with 200."""
    answer = get(url, headers)
    return answer is not None and answer[0] == 200


def tracking_answers(uri: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether an MLflow tracking address works: its server's health, or a database address as it is."""
    return answers(f"{uri}/health", headers) if uri.startswith("http") else bool(uri)


def ray_answers(page: str, token: Path) -> bool:
    """Whether a Ray head's dashboard shows a living node to the bearer of the token."""
    try:
        bearer = {"Authorization": f"Bearer {token.read_text().strip()}"}
    except OSError:
        return False
    answer = get(f"{page}/api/v0/nodes?limit=100", bearer)
    if answer is None or answer[0] != 200:
        return False
    try:
        nodes = parse_json(answer[1], page)["data"]["result"]["result"]
        return any(node["state"] == "ALIVE" for node in nodes)
    except (ValueError, KeyError, TypeError):
        return False


def ray_gpus(page: str, token: Path) -> int:
    """Return how many GPUs a Ray head's living nodes have; 0 where it does not say."""
    try:
        bearer = {"Authorization": f"Bearer {token.read_text().strip()}"}
    except OSError:
        return 0
    answer = get(f"{page}/api/v0/nodes?limit=1000&detail=1", bearer)
    if answer is None or answer[0] != 200:
        return 0
    try:
        nodes = parse_json(answer[1], page)["data"]["result"]["result"]
        living = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
        return int(sum(resources.get("GPU", 0) for resources in living))
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


def beats(path: Path) -> bool:
    """Whether a process has touched its file lately, and not by a clock that was set back since."""
    try:
        return abs(time.time() - path.stat().st_mtime) < BEAT_LIMIT_S
    except OSError:
        return False


def accepts(address: str) -> bool:
    """Whether a TCP connection to `host:port` or `scheme://host:port` is accepted."""
    parsed = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        with socket.create_connection((parsed.hostname or "", parsed.port or 6379), TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False
