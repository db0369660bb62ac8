"""How workers learn where rank 0 of theirs listens; Ray's controller imports it, so it must not import torch."""

import os
import socket
from typing import Any

from ray.train.backend import Backend, BackendConfig
from ray.util import get_node_ip_address


class Rendezvous(BackendConfig):
    """Stands for a TorchConfig, whose class makes the controller import torch (1.6 s of CPU)."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that runs in the controller."""
        return RendezvousBackend


class RendezvousBackend(Backend):
    """Has rank 0 find a port, and tells the others."""

    share_cuda_visible_devices = True  # so that NCCL can reach a neighbour's GPU directly

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002
        """Note address and port in every worker's environment."""
        if len(worker_group) > 1:
            address, port = worker_group.execute_single(0, _free_port)
            worker_group.execute(_note, address, port)


def _free_port() -> tuple[str, int]:
    """Return this node's address and a port of it that is free now."""
    address = get_node_ip_address()
    family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
    with socket.create_server((address, 0), family=family) as server:
        return address, server.getsockname()[1]


def _note(address: str, port: int) -> None:
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
