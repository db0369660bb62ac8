"""Where a replica listens for the others: at its node's address, not at every address of the machine."""

import sys
from functools import partial
from typing import Any


def listen_on_the_node() -> None:
    """Have this replica's port opened on its node's own address alone; on one machine that is loopback.

    Serve opens it on [::] (Ray 2.60, ray/serve/_private/replica.py) and has no setting for it, so the function by which
    it does is given the node's address. A replica's constructor calls this, before Serve opens the port. Elsewhere, as
    in a test, there is no replica and nothing to do.
    """
    replica = sys.modules.get("ray.serve._private.replica")
    if replica is None:
        return
    from ray.util import get_node_ip_address

    names = vars(replica)
    if not isinstance(names["add_port_to_grpc_server"], partial):
        node = get_node_ip_address()
        names["add_port_to_grpc_server"] = partial(_open, names["add_port_to_grpc_server"], node)


def _open(add_port: Any, node: str, server: Any, address: str) -> Any:
    host = f"[{node}]" if ":" in node else node
    return add_port(server, f"{host}:{address.rpartition(':')[2]}")
