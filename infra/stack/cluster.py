"""The Ray cluster: join the one that runs, or start a private one for this process tree; say what it has."""

import atexit
import os
import shutil
import socket
import tempfile
import threading
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from infra.settings import QUIET, settings

NAMESPACE: Final = "atelier"
TOKEN_FILE: Final = "ray_token"
CONNECT_S: Final = 3.0
CLIENT_ADVICE: Final = (
    "; name the port of the head's Ray Client server, 10001 unless set,"
    " and its token in RAY_AUTH_TOKEN_PATH"
)

_connecting = threading.Lock()


class Unreachable(ConnectionError):
    """No Ray cluster answers at the address."""


class TooSmall(ValueError):
    """The whole cluster, were it idle, has less than what is asked."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a cluster has in all, and what of it is free now."""

    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    nodes: tuple[Mapping[str, float], ...] = field(default=())  # CPU and GPU of each node alive

    def room(self, cpus: float, gpus: float) -> int:
        """Return how many bundles it would have room for if it were idle."""
        return sum(_bundles(node, cpus, gpus) for node in self.nodes)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs on {len(self.nodes)} nodes"


def connect(url: str | None = None, *, cpus: int | None = None) -> str:
    """Join the cluster at `url`, or start a private one where it is None; returns the address. Again: the same.

    Args:
        url: host:port, or ray://host:port of a client server.
        cpus: how many CPUs a private cluster counts; None for the machine's.

    Raises:
        Unreachable: nothing answers at `url`; says how to start it.
    """
    with _connecting:
        if url is not None:
            _expect_listener(url)
            _expect_node(url)
        _authenticate(private=url is None)
        import ray
        from ray.exceptions import RaySystemError

        if not ray.is_initialized():
            try:
                _initialize(url, cpus)
            except (ConnectionError, RaySystemError, RuntimeError) as error:
                why = str(error).splitlines()[0]
                advice = CLIENT_ADVICE if (url or "").startswith("ray://") else ""
                raise Unreachable(
                    f"Ray at {url or 'this machine'} refused: {why}{advice}"
                ) from error
        address: str = ray.get_runtime_context().gcs_address
        return address


def capacity() -> Capacity:
    """Return what the joined cluster has and what is free."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    free = ray.available_resources()
    return Capacity(
        cpus=sum(node.get("CPU", 0.0) for node in nodes),
        gpus=sum(node.get("GPU", 0.0) for node in nodes),
        free_cpus=free.get("CPU", 0.0),
        free_gpus=free.get("GPU", 0.0),
        nodes=tuple({"CPU": n.get("CPU", 0.0), "GPU": n.get("GPU", 0.0)} for n in nodes),
    )


def require(workers: int, cpus: float, gpus: float) -> bool:
    """Return whether `workers` bundles fit beside what runs now.

    Raises:
        TooSmall: they would not fit an idle cluster; names what was asked and what there is.
    """
    if (short := too_small(workers, cpus, gpus)) is not None:
        raise short
    has = capacity()
    return has.free_cpus >= workers * cpus and has.free_gpus >= workers * gpus


def too_small(workers: int, cpus: float, gpus: float) -> TooSmall | None:
    """Return what is to be said of a cluster that could not hold `workers` bundles if it were idle, else None."""
    has = capacity()
    fit = has.room(cpus, gpus)
    if fit >= workers:
        return None
    biggest = max((node["CPU"] for node in has.nodes), default=0.0)
    return TooSmall(
        f"asked for {workers} workers x {cpus:g} CPUs and {gpus:g} GPUs, but the whole cluster has {has}"
        f" (at most {biggest:g} CPUs on one); room for {fit}: lower resources.num_workers or cpus_per_worker"
    )


def alive() -> dict[str, str]:
    """Return the names of the joined cluster's nodes by id: host, address, and the id's first letters."""
    import ray

    return {
        node[
            "NodeID"
        ]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
        for node in ray.nodes()
        if node["Alive"]
    }


def _bundles(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    fits = [
        int((node[name] + 1e-9) // asked) for name, asked in (("CPU", cpus), ("GPU", gpus)) if asked
    ]
    return min(fits, default=0)


def _expect_listener(url: str) -> None:
    address = url.removeprefix("ray://")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"no Ray cluster answers at {url} ({error}): start the local one with `atelier up`,"
            " or set ATELIER_RAY_ADDRESS"
        ) from None


def _expect_node(url: str) -> None:
    """Refuse to join a cluster's own address from a machine that is no node of it: Ray ends such a process natively.

    Raises:
        Unreachable: the cluster's dashboard names its nodes, and none is this machine.
    """
    from infra.serving import nodes

    if settings().ray_address != url or url.startswith("ray://"):
        return
    known = nodes(settings())
    if known and not addresses().keys() & known:
        host = url.rpartition(":")[0]
        raise Unreachable(
            f"this machine is no node of the Ray cluster at {url} (its nodes: {', '.join(sorted(known)[:5])}): set"
            f" ATELIER_RAY_ADDRESS=ray://{host}:10001, or run the command as a Ray Job on the cluster"
        )


def addresses() -> dict[str, str]:
    """Return this machine's network interfaces by their IP address."""
    return {
        address.address.partition("%")[0]: name
        for name, found in psutil.net_if_addrs().items()
        for address in found
        if address.family in {socket.AF_INET, socket.AF_INET6}
    }


def _initialize(url: str | None, cpus: int | None) -> None:
    import ray

    common: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": False,
        "logging_level": "error",
    }
    if url is not None:
        with warnings.catch_warnings():
            # of a client that is refused: said by `connect`
            warnings.filterwarnings("ignore", "Ray Client connection timed out", UserWarning)
            ray.init(address=url, **common)
        return
    folder = tempfile.mkdtemp(prefix="atelier-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=folder, **common)


def _authenticate(*, private: bool) -> None:
    """Let this process and its children show the cluster's token; a private cluster gets one of its own."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    token = settings().state / TOKEN_FILE
    if "RAY_AUTH_MODE" not in os.environ:
        if private and not token.is_file():
            token = _private_token()
        if token.is_file():
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")  # Ray reads its environment once, at its first import
    AuthenticationTokenLoader.instance().reset_cache()


def _private_token() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="atelier-token-"))  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / TOKEN_FILE
    path.touch(0o600)
    path.write_text(uuid.uuid4().hex)
    return path
