"""The parts of the local stack: where each answers, how it is started, what its clients must be told.

A part whose address a setting names (`PREFECT_API_URL`, `ATELIER_TRACKING_URI`, `ATELIER_RAY_ADDRESS`) belongs to
somebody else: it is probed, never started or stopped.
"""

import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra import probes
from infra.processes import Daemon, recall
from infra.settings import QUIET, settings

POOL: Final = "atelier"
"""The Prefect work pool of scheduled and submitted flows."""


class StackError(RuntimeError):
    """A part cannot be started or reached; one line a part, with the way out."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One server: where it answers, how it is started, how one sees that it is ready."""

    name: str
    address: str  # what clients are given
    page: str  # where a person looks
    probe: Callable[[], bool]
    external: str | None = None  # the setting that names somebody else's server; None: ours
    ports: Mapping[str, int] = field(default_factory=dict)  # by the setting that changes it
    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)  # of the server process alone
    starts: int = 1  # how often it may be tried
    waited_for: bool = True  # False: `up` starts it and goes on

    @property
    def record(self) -> Path:
        """Its pid file."""
        return settings().state / "run" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What it printed since its start; the start before it is in `*.1`."""
        return settings().state / "logs" / f"{self.name}.log"

    @property
    def daemon(self) -> Daemon | None:
        """Its running process, if we started it and it lives."""
        found = recall(self.record)
        return found if found and found.alive else None


def parts() -> tuple[Part, ...]:
    """Return the parts as the settings want them; the worker belongs to a Prefect of ours alone."""
    prefect = _prefect()
    worker = () if prefect.external else (_worker(),)
    return prefect, _mlflow(), _ray(), *worker


def environment() -> dict[str, str]:
    """Return the variables that every client of the stack needs before it imports Prefect, MLflow or Ray."""
    now = settings()
    found = {
        **QUIET,
        "MLFLOW_TRACKING_URI": now.mlflow_uri,
        "PREFECT_API_URL": now.prefect_url,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # its silence is how a killed flow is known
        "PREFECT_HOME": str(now.state / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(now.state / "prefect" / "results"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "RAY_ADDRESS": now.ray_url,
    }
    if now.ray_address is None:
        found |= {
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{now.dashboard_port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file()),
            "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{now.dashboard_port}",
            # "0": Ray takes 127.0.0.1 for this machine's address and listens there alone, on Linux too
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
    return found


def _prefect() -> Part:
    now = settings()
    page = now.prefect_url.removesuffix("/api")
    folder = now.state / "prefect"
    local = (
        f"http://127.0.0.1:{now.prefect_port}/api"  # a client's child finds it in its environment
    )
    return Part(
        name="prefect",
        address=now.prefect_url,
        page=page,
        probe=lambda: probes.answers(f"{now.prefect_url}/health"),
        external="PREFECT_API_URL" if now.prefect_url != local else None,
        ports={"ATELIER_PREFECT_PORT": now.prefect_port},
        options=("--port", str(now.prefect_port), "--folder", str(folder)),
        variables={
            "PREFECT_HOME": str(folder),
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": page,
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_UI_API_URL": now.prefect_url,
        },
    )


def _mlflow() -> Part:
    now = settings()
    folder = now.state / "mlflow"
    return Part(
        name="mlflow",
        address=now.mlflow_uri,
        page=now.mlflow_uri,
        probe=lambda: probes.tracking_answers(now.mlflow_uri),
        external="ATELIER_TRACKING_URI" if now.tracking_uri else None,
        ports={"ATELIER_MLFLOW_PORT": now.mlflow_port},
        options=("--port", str(now.mlflow_port), "--folder", str(folder)),
    )


def _ray() -> Part:
    now = settings()
    page = f"http://127.0.0.1:{now.dashboard_port}"
    if now.ray_address:
        address = now.ray_address
        return Part("ray", address, address, lambda: probes.accepts(address), "ATELIER_RAY_ADDRESS")
    return Part(
        name="ray",
        address=now.ray_url,
        page=page,
        probe=lambda: probes.ray_answers(page, token_file()),
        ports={"ATELIER_RAY_PORT": now.ray_port, "ATELIER_DASHBOARD_PORT": now.dashboard_port},
        options=(
            *("--port", str(now.ray_port), "--dashboard-port", str(now.dashboard_port)),
            *("--folder", str(ray_folder())),
        ),
        variables={
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "120",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # no other node could take the work
        },
        starts=3,  # Ray gives its node 30 s, which a busy machine misses
    )


def _worker() -> Part:
    """Return what runs scheduled flows: its module is named, for nothing here may import it."""
    now = settings()
    return Part(
        name="worker",
        address=f"work pool {POOL}",
        page=f"{now.prefect_url.removesuffix('/api')}/work-pools/work-pool/{POOL}",
        probe=lambda: probes.beats(beat_file()),
        options=("--module", "flows.worker", "--after", f"{now.prefect_url}/health"),
        variables={"PREFECT_WORKER_QUERY_SECONDS": "5"},  # how soon a submitted run starts
        waited_for=False,  # its imports take seconds, and nobody needs it at once
    )


def beat_file() -> Path:
    """Return the file that the worker touches for as long as it takes runs."""
    return settings().state / "run" / "worker.beat"


def state_folder() -> Path:
    """Return the state folder, made readable for its owner alone."""
    folder = settings().state
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def token_file(make: bool = True) -> Path:
    """Return the path of the file with Ray's token; made, 0600, where it is missing and `make` is true."""
    path = settings().state / "ray_token"
    if not make or path.exists():
        return path
    state_folder()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return path


def ray_folder(make: bool = False) -> Path:
    """Return Ray's session folder: in the state, or a private one in /tmp where its socket paths would be too long.

    Its parent is made, and checked to be private, where `make` is true. A Unix socket's path has at most 107
    characters, and Ray appends up to 66 to this folder's. Ray opens its folder to everybody; the one above it
    stays closed.

    Raises:
        StackError: the private folder in /tmp is somebody else's.
    """
    folder = settings().state / "ray"
    if len(str(folder)) <= 107 - 66:
        return folder
    key = hashlib.sha256(str(folder).encode()).hexdigest()[:10]
    private = Path(tempfile.gettempdir()) / f"atelier-{key}"
    if not make:
        return private / "ray"
    private.mkdir(mode=0o700, exist_ok=True)
    facts = private.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077 or not stat.S_ISDIR(facts.st_mode):
        raise StackError(f"{private} is not a private folder of yours; remove it or set TMPDIR")
    return private / "ray"
