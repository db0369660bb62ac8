"""Where the ranks of a training meet; Ray's controller imports it, so it must not import torch at once."""

import os
import socket
from typing import Any, Final

from ray.train.backend import Backend, BackendConfig
from ray.util import get_node_ip_address

LISTENING: Final[list[socket.socket]] = []
"""Rank 0's socket, in its process, between `listen` and `meeting_point`."""


class Rendezvous(BackendConfig):
    """Stands for a TorchConfig, whose class makes the controller import torch (1.6 s of CPU)."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that runs in the controller."""
        return RendezvousBackend


class RendezvousBackend(Backend):
    """Has rank 0 listen, and tells the others where."""

    share_cuda_visible_devices = True  # so that NCCL can reach a neighbour's GPU directly

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002
        """Note address and port in every worker's environment."""
        if len(worker_group) > 1:
            address, port = worker_group.execute_single(0, listen)
            worker_group.execute(_note, address, port)


def listen() -> tuple[str, int]:
    """Listen at this node's address for the store to come; returns the address and the port.

    A port that was let go until torch is imported would be somebody else's by then, now and again.
    """
    address = get_node_ip_address()
    family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
    server = socket.create_server((address, 0), family=family)
    LISTENING.append(server)
    return address, server.getsockname()[1]


def meeting_point(rank: int, world: int) -> Any:
    """Return the store where the ranks find one another, served by rank 0 at MASTER_ADDR alone.

    Without a socket of ours torch would listen on every address of the machine, and the store asks for no credential.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from flows.training.ranks import PATIENCE

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listener = LISTENING.pop().detach() if rank == 0 else None
    return TCPStore(address, port, world, rank == 0, PATIENCE, master_listen_fd=listener)


def _note(address: str, port: int) -> None:
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
