"""Long-lived processes of ours: in a session of their own, known by a mark, stopped with all their offspring."""

import errno
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from infra.documents import read_json
from infra.storage import write_json

MARK: Final = "ATELIER_MARK"
"""The variable that a started process and its offspring carry; a recycled pid does not have it."""

POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process that we started: its pid, and the mark that tells it from a later owner of that pid."""

    pid: int
    mark: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        running_child = _reap(self.pid)
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.Error:
            return False
        mark = _mark_of(process)  # a child that is just being started shows none yet
        return mark == self.mark or (mark is None and running_child)

    def offspring(self) -> list[psutil.Process]:
        """Return every living process that carries the mark or shares a session with one that does.

        A process that rewrites its title (`ray::...`) loses its readable environment but not its session;
        one that makes a session of its own (a Ray job) keeps the mark.
        """
        living = [process for process in psutil.process_iter() if process.pid != os.getpid()]
        marked = [process for process in living if _mark_of(process) == self.mark]
        sessions = {_session_of(process) for process in marked} - {None}
        found = [
            process for process in living if process in marked or _session_of(process) in sessions
        ]
        return [process for process in found if _status_of(process) != psutil.STATUS_ZOMBIE]

    def stop(self, grace_s: float = 8) -> None:
        """End the process and its offspring: SIGTERM to the first, SIGKILL to whoever is left after `grace_s`.

        Raises:
            TimeoutError: a process survived SIGKILL for ten seconds (it hangs in the kernel).
        """
        if self.alive:
            _signal(self.pid, signal.SIGTERM)
        term_ends = time.monotonic() + grace_s
        kill_ends = term_ends + 10
        while left := self.offspring():
            _reap(self.pid)
            now = time.monotonic()
            if now > kill_ends:
                pids = ", ".join(str(process.pid) for process in left)
                raise TimeoutError(f"processes {pids} survived SIGKILL; look at them with ps")
            if now > term_ends or not self.alive:
                for process in left:
                    _signal(process.pid, signal.SIGKILL)
            time.sleep(POLL_S)
        _reap(self.pid)


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Daemon:
    """Start `command` in a session of its own with both outputs in `log`; the log before it is kept as `*.1`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))
    mark = uuid.uuid4().hex
    pid = os.posix_spawn(
        command[0],
        list(command),
        {**environment, MARK: mark},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inherited()),
        ],
        setsid=True,
    )
    return Daemon(pid, mark)


def remember(path: Path, daemon: Daemon) -> None:
    """Write the daemon's pid file."""
    write_json(path, asdict(daemon))


def recall(path: Path) -> Daemon | None:
    """Return the daemon of a pid file, alive or not; None without a readable file."""
    try:
        document = read_json(path)
        return Daemon(int(document["pid"]), str(document["mark"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def memory_of(processes: Sequence[psutil.Process]) -> int:
    """Return the bytes that the processes hold together; pages that they share count once (where the system tells)."""
    total = 0
    for process in processes:
        try:
            facts = process.memory_full_info()
        except psutil.Error:
            continue
        total += getattr(facts, "pss", None) or facts.uss
    return total


def taken(port: int, host: str, setting: str) -> tuple[str, str] | None:
    """Say who has a TCP port that `setting` names, and the way out; None where one could listen.

    "port 8000 on 127.0.0.1 is taken by python (pid 12)", "end it, or choose another with ATELIER_GATEWAY_PORT".
    """
    other, elsewhere = (
        f"choose another with {setting}",
        "set ATELIER_HOST to an address of this machine",
    )
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except socket.gaierror as error:
        return f"nothing can listen on {host}: {error.strerror}", elsewhere
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            who = _listener(port) or "another process"
            return f"port {port} on {host} is taken by {who}", f"end it, or {other}"
        said = f"nothing can listen on port {port} of {host}: {os.strerror(error.errno or 0)}"
        return said, elsewhere if error.errno == errno.EADDRNOTAVAIL else other
    return None


def _listener(port: int) -> str | None:
    """Say who listens on a TCP port of this machine, "python (pid 12)"; None if nobody visible does."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or tuple(connection.laddr)[1:2] != (port,):
            continue
        if connection.pid is None:
            return "another user's process"
        try:
            return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
        except psutil.Error:
            return f"pid {connection.pid}"
    return None


def _inherited() -> list[int]:
    """Return the descriptors that a child would get; a daemon must hold nobody's lock, pipe or terminal."""
    found = []
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - names, and Path.iterdir gives no number
        try:
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:
            continue  # the descriptor of this very listing
    return found


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None


def _session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def _status_of(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.Error:
        return psutil.STATUS_ZOMBIE


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        print(f"cannot end process {pid}: {error.strerror}", file=sys.stderr)  # noqa: T201


def _reap(pid: int) -> bool:
    """Collect a child that ended, so that it does not stay a zombie; say whether `pid` is a child that runs."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False
