"""Where the ranks of a training meet."""

import psutil
import pytest

from flows.training.worker import meeting_point
from tests.conftest import free_ports


def test_ranks_meet_at_the_first_one_s_own_address_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = free_ports(1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    store = meeting_point(0, 1)
    store.set("rank", "0")
    assert meeting_point(1, 1).get("rank") == b"0"
    heard = [
        connection.laddr[0]
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1] == port
    ]
    assert heard == ["127.0.0.1"]
