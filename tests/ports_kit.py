"""Ports for servers that start later."""

import os
import random
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Final

from infra.stack.daemons import taken

PORTS: Final = ("GATEWAY", "MLFLOW", "PREFECT", "RAY", "DASHBOARD")
"""The stack's, as their settings are called."""


def own_ports() -> Iterator[int]:
    """Yield ports of this process alone, from anywhere between those of Ray's workers and those of outgoing calls.

    A port that the kernel names is one of the latter: until a server wants it, somebody else may have it.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(20_000 + worker, 32_768, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    first = random.SystemRandom().randrange(len(ports))  # another run's tests may be at work
    yield from cycle([*ports[first:], *ports[:first]])


OWN_PORTS: Final = own_ports()


def free_ports(count: int) -> list[int]:
    """Return free ports, all different."""
    return list(islice((port for port in OWN_PORTS if not taken(port, "127.0.0.1", "")), count))
