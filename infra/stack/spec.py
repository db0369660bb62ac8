"""The parts of the local stack: where each answers, how it is started, what its clients must be told.

A part whose address a setting names (`PREFECT_API_URL`, `ATELIER_TRACKING_URI`, `ATELIER_RAY_ADDRESS`) belongs to
somebody else: it is probed, never started or stopped.
"""

import hashlib
import html
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra.settings import QUIET, settings
from infra.stack import guard, probes
from infra.stack.daemons import Daemon, recall

POOL: Final = "atelier"
"""The Prefect work pool of scheduled and submitted flows."""
KEPT: Final = ("prefect", "mlflow", "worker")
"""The parts that the keeper starts again when they die; Ray's end is the end of what ran in it."""
PAGES: Final = ("prefect", "mlflow", "ray")
"""The parts with a page for people."""
FRONT: Final = "services.gateway.front.middlewares"
"""What Serve's proxy is to put before itself; named, for nothing here may import it."""
SOCKETS: Final = "ATELIER_GATEWAY_SOCKETS"
"""Names the folder where the gateway's replicas answer Serve's proxy; its path must be short, as Ray's folder's."""
SERVE: Final = {
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",  # .1 in Serve: a house at rest should rest
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": FRONT,
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",  # 100 in Serve; nothing collects them
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.25",  # the third that fails ends a proxy; 10 in Serve
}
"""How Serve runs: its processes have these from Ray's head, which starts them."""


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
    ports: Mapping[str, tuple[str, int]] = field(
        default_factory=dict
    )  # host and port, by the setting of the port
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
    def restarts(self) -> Path:
        """How often it died and was started again since `up`, and when last; removed by `down`."""
        return settings().state / "run" / f"{self.name}.restarts.json"

    @property
    def daemon(self) -> Daemon | None:
        """Its running process, if we started it and it lives."""
        found = recall(self.record)
        return found if found and found.alive else None


def parts() -> tuple[Part, ...]:
    """Return the parts as the settings want them; the worker belongs to a Prefect of ours alone.

    The keeper is the last to start and the first to stop: it would start again what `down` ends.
    """
    prefect, mlflow = _prefect(), _mlflow()
    worker = () if prefect.external else (_worker(),)
    keeper = () if prefect.external and mlflow.external else (_keeper(),)
    return prefect, mlflow, _ray(), *worker, *keeper


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
    if not _prefect_is_elsewhere():
        found |= {
            "PREFECT_API_AUTH_STRING": f"{guard.USER}:{secret()}",
            # most of its websockets send no other
            "PREFECT_CLIENT_CUSTOM_HEADERS": json.dumps(guard.basic(guard.USER, secret())),
        }
    if now.tracking_uri is None:
        found |= {"MLFLOW_TRACKING_USERNAME": guard.USER, "MLFLOW_TRACKING_PASSWORD": secret()}
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


def _prefect_is_elsewhere() -> bool:
    now = settings()
    local = (
        f"http://127.0.0.1:{now.prefect_port}/api"  # a client's child finds it in its environment
    )
    return now.prefect_url != local


def _prefect() -> Part:
    now = settings()
    page = now.prefect_url.removesuffix("/api")
    folder = now.state / "prefect"
    elsewhere = _prefect_is_elsewhere()
    return Part(
        name="prefect",
        address=now.prefect_url,
        page=page,
        probe=lambda: probes.answers(f"{now.prefect_url}/health", _prefect_header()),
        external="PREFECT_API_URL" if elsewhere else None,
        ports={"ATELIER_PREFECT_PORT": ("127.0.0.1", now.prefect_port)},
        options=("--port", str(now.prefect_port), "--folder", str(folder), *_door()),
        variables={
            "PREFECT_HOME": str(folder),
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": page,
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
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
        probe=lambda: probes.tracking_answers(now.mlflow_uri, _mlflow_header()),
        external="ATELIER_TRACKING_URI" if now.tracking_uri else None,
        ports={"ATELIER_MLFLOW_PORT": ("127.0.0.1", now.mlflow_port)},
        options=("--port", str(now.mlflow_port), "--folder", str(folder), *_door()),
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
        ports={
            "ATELIER_RAY_PORT": ("127.0.0.1", now.ray_port),
            "ATELIER_DASHBOARD_PORT": ("127.0.0.1", now.dashboard_port),
            "ATELIER_GATEWAY_PORT": (now.host, now.gateway_port),  # Serve takes it later
        },
        options=(
            *("--port", str(now.ray_port), "--dashboard-port", str(now.dashboard_port)),
            *("--folder", str(ray_folder())),
        ),
        variables={
            "DASHBOARD_METRIC_PORT": "-1",  # none: that page and the next one ask for no token
            "RAY_enable_metrics_collection": "0",
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "120",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # no other node could take the work
            **SERVE,
            SOCKETS: str(ray_folder().parent / "gateway"),  # closed to others, as that folder is
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
        options=("--module", "flows.scheduling.worker", "--after", f"{now.prefect_url}/health"),
        variables={"PREFECT_WORKER_QUERY_SECONDS": "5"},  # how soon a submitted run starts
        waited_for=False,  # its imports take seconds, and nobody needs it at once
    )


def _keeper() -> Part:
    now = settings()
    beat = now.state / "run" / "keeper.beat"
    return Part(
        name="keeper",
        address=f"watches {', '.join(KEPT)}",
        page=str(now.state / "logs" / "keeper.log"),
        probe=lambda: probes.beats(beat),
        options=("--beat", str(beat)),
        waited_for=False,
    )


def beat_file() -> Path:
    """Return the file that the worker touches for as long as it takes runs."""
    return settings().state / "run" / "worker.beat"


def state_folder() -> Path:
    """Return the state folder, made readable for its owner alone.

    Raises:
        OSError: it cannot be made; names it and its variable.
    """
    folder = settings().state
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        why = f"cannot be made the folder of ATELIER_HOME: {error.strerror}"
        raise OSError(error.errno, why, str(folder)) from None
    if (facts := folder.stat()).st_mode & 0o077 and facts.st_uid == os.getuid():
        folder.chmod(0o700)  # another verb was first, and made it as the umask says
    return folder


def token_file(make: bool = True) -> Path:
    """Return the path of the file with Ray's token; made, 0600, where it is missing and `make` is true."""
    return _secret_file("ray_token", make)


def credential_file(make: bool = True) -> Path:
    """Return the path of the file with Prefect's and MLflow's credential; made, 0600, as Ray's token."""
    return _secret_file("stack_token", make)


def secret() -> str:
    """Return what Prefect and MLflow of this installation ask for.

    Raises:
        StackError: others may read it.
    """
    path = credential_file()
    if path.stat().st_mode & 0o077:
        raise StackError(f"{path} may be read by others: chmod 600 it, or remove it and start anew")
    return path.read_text().strip()


def link(part: str) -> str:
    """Return an address that opens a part's page in a browser, signed in where it is ours: once, within two minutes.

    Raises:
        StackError: there is no such page, or nothing that could sign a browser in.
    """
    pages = {one.name: one for one in parts() if one.name in PAGES}
    if part not in pages:
        raise StackError(f"no page {part!r}; choose one of {', '.join(PAGES)}")
    if pages[part].external:
        return pages[part].page
    doors = ("mlflow", "prefect") if part == "ray" else (part,)
    for door in (pages[name] for name in doors):
        if not door.external and door.probe():
            return guard.sign_in_link(door.page, secret(), part)
    raise StackError(f"no local {' or '.join(doors)} answers: start it with `atelier up`")


def private_page(part: str, address: str) -> Path:
    """Return a file that its owner alone reads and that sends a browser on to `address`."""
    path = state_folder() / "run" / f"open-{part}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f'<meta http-equiv="refresh" content="0;url={html.escape(address)}">')
    return path


def _door() -> tuple[str, str]:
    return "--secret", str(credential_file(make=False))


def _prefect_header() -> dict[str, str]:
    """Return what a probe shows: our credential, or to somebody else's server the environment's."""
    if not _prefect_is_elsewhere():
        return _own_header()
    user, colon, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    return guard.basic(user, password) if colon else {}


def _own_header() -> dict[str, str]:
    """Return the header with our credential; none before the first start, for a look makes no files."""
    return guard.basic(guard.USER, secret()) if credential_file(make=False).exists() else {}


def _mlflow_header() -> dict[str, str]:
    if settings().tracking_uri is None:
        return _own_header()
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return guard.basic(user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else {}


def _secret_file(name: str, make: bool) -> Path:
    path = settings().state / name
    if not make or path.exists():
        return path
    state_folder()
    making = path.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # another process was first: its secret counts
            os.link(making, path)
    finally:
        making.unlink(missing_ok=True)
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
