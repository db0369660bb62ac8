import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.stack.daemons import Daemon, memory_of, recall, remember, start, taken

PARENT = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("child", child.pid, flush=True)
{more}
signal.pause()
"""
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str], Daemon]]:
    """Start a Python text as a daemon whose log is `tmp_path / "log"`; all are ended with the test."""
    begun: list[Daemon] = []

    def begin(text: str) -> Daemon:
        daemon = start([sys.executable, "-c", text], os.environ, tmp_path / "log")
        begun.append(daemon)
        return daemon

    yield begin
    for daemon in begun:
        daemon.stop(grace_s=0)


def gone(process: psutil.Process) -> bool:
    """Whether it ended; an orphan may wait for the system to collect it."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_for_line(log: Path, daemon: Daemon) -> str:
    """Return the first whole line of the log."""
    while daemon.alive:
        if log.exists() and (text := log.read_text()).endswith("\n"):
            return text
    raise AssertionError(f"the daemon ended: {log.read_text()}")


@pytest.mark.parametrize("more", ["", DEAF], ids=["polite", "deaf"])
def test_stopping_leaves_no_offspring_even_in_other_sessions(
    run: Callable[[str], Daemon], tmp_path: Path, more: str
) -> None:
    daemon = run(PARENT.format(more=more))
    child = psutil.Process(int(wait_for_line(tmp_path / "log", daemon).split()[1]))
    assert {process.pid for process in daemon.offspring()} == {daemon.pid, child.pid}
    assert memory_of(daemon.offspring()) > 2**20

    daemon.stop(grace_s=0.5)

    assert not daemon.alive
    assert gone(child)
    assert not daemon.offspring()


def test_a_killed_parent_s_offspring_are_still_found_and_stopped(
    run: Callable[[str], Daemon], tmp_path: Path
) -> None:
    daemon = run(PARENT.format(more=""))
    child = psutil.Process(int(wait_for_line(tmp_path / "log", daemon).split()[1]))
    psutil.Process(daemon.pid).kill()

    daemon.stop()

    assert gone(child)


def test_a_recycled_pid_is_neither_alive_nor_killed(
    run: Callable[[str], Daemon], tmp_path: Path
) -> None:
    stranger = run("import signal; print('up', flush=True); signal.pause()")
    wait_for_line(tmp_path / "log", stranger)  # a child that is just being started shows no mark
    before = Daemon(stranger.pid, "the mark of a process that ended long ago")

    assert not before.alive
    before.stop()

    assert stranger.alive


def test_a_daemon_holds_no_descriptor_of_its_parent(
    run: Callable[[str], Daemon], tmp_path: Path
) -> None:
    with (tmp_path / "lock").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        daemon = run("import os; print(sorted(os.listdir('/dev/fd')), flush=True); os.read(0, 1)")
        log = tmp_path / "log"
        while daemon.alive:
            pass
    assert log.read_text() == "['0', '1', '2', '3']\n"  # 3 is the listing itself


def test_a_pid_file_gives_the_daemon_back_and_a_torn_one_nothing(
    run: Callable[[str], Daemon], tmp_path: Path
) -> None:
    daemon = run("import signal; signal.pause()")
    remember(tmp_path / "one.json", daemon)
    assert recall(tmp_path / "one.json") == daemon

    (tmp_path / "torn.json").write_text('{"pid": 1')
    assert recall(tmp_path / "torn.json") is None
    assert recall(tmp_path / "absent.json") is None


def test_the_log_before_is_kept(run: Callable[[str], Daemon], tmp_path: Path) -> None:
    for word in ("first", "second"):
        daemon = run(f"print({word!r})")
        while daemon.alive:
            pass
    assert (tmp_path / "log").read_text() == "second\n"
    assert (tmp_path / "log.1").read_text() == "first\n"


def test_a_port_is_free_taken_by_a_process_or_nothing_to_listen_on() -> None:
    local, setting = "127.0.0.1", "ATELIER_RAY_PORT"
    with socket.create_server((local, 0)) as server:
        port = server.getsockname()[1]
        owner = f"{psutil.Process().name()} (pid {os.getpid()})"
        assert taken(port, local, setting) == (
            f"port {port} on {local} is taken by {owner}",
            "end it, or choose another with ATELIER_RAY_PORT",
        )
        assert taken(port, "::1", setting) is None
    assert taken(port, local, setting) is None
    here = "set ATELIER_HOST to an address of this machine"
    said, way_out = taken(port, "no.such.invalid", setting) or ("", "")
    assert said.startswith("nothing can listen on no.such.invalid: ")
    assert "Unknown" not in said
    assert way_out == here
    assert taken(port, "192.0.2.1", setting) == (  # an address of nobody (RFC 5737)
        f"nothing can listen on port {port} of 192.0.2.1: Cannot assign requested address",
        here,
    )
