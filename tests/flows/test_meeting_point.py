"""Where the ranks of a training meet."""

import psutil
import pytest

from flows.training import rendezvous


def test_ranks_meet_at_the_first_one_s_own_address_alone_whose_port_nobody_can_take_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendezvous, "get_node_ip_address", lambda: "127.0.0.1")
    address, port = rendezvous.listen()
    assert heard_at(port) == ["127.0.0.1"]
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", str(port))
    store = rendezvous.meeting_point(0, 1)
    store.set("rank", "0")
    assert rendezvous.meeting_point(1, 1).get("rank") == b"0"
    assert heard_at(port) == ["127.0.0.1"]


def heard_at(port: int) -> list[str]:
    """Return the addresses where this process listens on a port."""
    return [
        connection.laddr[0]
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1] == port
    ]
