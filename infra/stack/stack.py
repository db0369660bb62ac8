"""The local stack: Prefect, MLflow, Ray, a worker and a keeper, started together, probed, stopped without a trace.

Serve runs inside Ray and is deployed there later.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock, Timeout

from infra.documents import read_json
from infra.settings import settings
from infra.stack import probes
from infra.stack.daemons import Daemon, memory_of, recall, remember, start, taken
from infra.stack.spec import KEPT, Part, StackError, environment, parts, ray_folder, state_folder
from infra.storage import write_json
from infra.times import utc

PARTS: Final = ("prefect", "mlflow", "ray", "worker", "keeper")
OWN_ADDRESS: Final = {
    "prefect": "PREFECT_API_URL",
    "mlflow": "MLFLOW_TRACKING_URI",
    "ray": "RAY_ADDRESS",
}
"""What a client is told and the server itself must not be."""
START_LIMIT_S: Final = 300.0
LOCK_LIMIT_S: Final = 360.0
WORD_EVERY_S: Final = 15.0  # of a part that is slow to start
ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Event:
    """What just happened to a part."""

    part: str
    state: Literal["starting", "waiting", "again", "ready", "stopped"]
    seconds: float
    page: str
    said: str = ""  # the last line of its log

    def __str__(self) -> str:
        if self.state == "starting":
            return f"{self.part}: starting"
        if self.state in {"waiting", "again"}:
            said = f" (it says: {self.said})" if self.said else ""
            if self.state == "waiting":
                return f"{self.part}: still starting after {self.seconds:.0f} s{said}"
            return f"{self.part}: ended after {self.seconds:.0f} s, started once more{said}"
        where = f" at {self.page}" if self.state == "ready" else ""
        return f"{self.part}: {self.state} after {self.seconds:.1f} s{where}"


@dataclass(frozen=True, slots=True)
class Status:
    """How a part is now; `pid` and `memory_mb` are None where the part is not ours or not up."""

    part: str
    address: str
    pid: int | None
    health: Literal["healthy", "starting", "down", "unreachable"]
    memory_mb: int | None
    restarted: str | None = None  # how often it died and was started again, and when last


def up(on_event: Callable[[Event], None] | None = None) -> dict[str, float]:
    """Start every part that is missing or dead, all at once, and wait until each answers but the worker.

    Returns:
        Seconds from here to the answer, by part; only of parts that were not up already.

    Raises:
        StackError: a port is taken, a part died or did not answer in time, or somebody else's part is unreachable.
            Nothing is started where a port is taken; otherwise parts that did come up stay up.
    """
    tell = on_event or (lambda _: None)
    try:
        with FileLock(state_folder() / "stack.lock", timeout=LOCK_LIMIT_S):
            return _up(tell)
    except Timeout:
        raise StackError(
            f"another `atelier up` or `down` held {state_folder() / 'stack.lock'} for {LOCK_LIMIT_S:.0f} s;"
            " wait for it or end it"
        ) from None


def down(on_event: Callable[[Event], None] | None = None) -> list[Event]:
    """Stop every part that `up` started, with all its offspring; no process stays behind.

    Returns:
        One event a part that ran.

    Raises:
        StackError: another `up` or `down` is at work, or a process cannot be ended.
    """
    tell = on_event or (lambda _: None)
    stopped = []
    try:
        with FileLock(state_folder() / "stack.lock", timeout=LOCK_LIMIT_S):
            for part in reversed(parts()):
                daemon = recall(part.record)
                if daemon is None:
                    continue
                began = time.monotonic()
                daemon.stop()
                part.record.unlink(missing_ok=True)
                part.restarts.unlink(missing_ok=True)
                event = Event(part.name, "stopped", time.monotonic() - began, part.page)
                stopped.append(event)
                tell(event)
    except TimeoutError as error:
        raise StackError(f"the stack is not down: {error}") from None
    return stopped


def status() -> list[Status]:
    """Return how each part is, and the gateway that Serve runs inside Ray."""
    found = []
    for part in parts():
        daemon = part.daemon
        memory = memory_of(daemon.offspring()) >> 20 if daemon else None
        pid = daemon.pid if daemon else None
        found.append(Status(part.name, part.page, pid, health(part), memory, _restarted(part)))
    gateway = settings().gateway_url
    answers = probes.answers(f"{gateway.removesuffix('/v1')}/healthz")
    found.append(Status("gateway", gateway, None, "healthy" if answers else "down", None))
    return found


def health(part: Part) -> Literal["healthy", "starting", "down", "unreachable"]:
    """Return what a part's probe and its process say."""
    if part.external:
        return "healthy" if part.probe() else "unreachable"
    if part.daemon is None:
        return "down"
    return "healthy" if part.probe() else "starting"


def revive() -> list[str]:
    """Start every kept part again that has died since `up` started it; returns their names.

    While an `up` or `down` is at work it does nothing: they know better.
    """
    if not any(_died(part) for part in parts() if part.name in KEPT):
        return []
    try:
        with FileLock(state_folder() / "stack.lock", timeout=0):
            dead = [part for part in parts() if part.name in KEPT and _died(part)]
            for part in dead:
                _start(part)
                now = datetime.now().astimezone().isoformat(timespec="seconds")
                write_json(
                    part.restarts, {"times": _restarts(part).get("times", 0) + 1, "last": now}
                )
            return [part.name for part in dead]
    except Timeout:
        return []


def _died(part: Part) -> bool:
    started = recall(part.record)
    return started is not None and not started.alive


def _restarts(part: Part) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(part.restarts)
    except (OSError, ValueError):
        return {}
    return found


def _restarted(part: Part) -> str | None:
    if not (found := _restarts(part)):
        return None
    last = utc(datetime.fromisoformat(found["last"]))
    return f"{found['times']} time{'s' * (found['times'] > 1)}, last at {last}"


def logs(part: str, follow: bool = False) -> Iterator[str]:
    """Yield a part's log lines, ends included; with `follow` go on until the part has ended.

    Raises:
        StackError: no such part, or it was never started here.
    """
    if part not in PARTS:
        raise StackError(f"no part {part!r}; choose one of {', '.join(PARTS)}")
    chosen = next((one for one in parts() if one.name == part), None)
    if chosen is None:
        raise StackError(f"no {part} runs here: the servers are somebody else's")
    if not chosen.log.exists():
        why = f"it is {chosen.external}'s" if chosen.external else "start it with `atelier up`"
        raise StackError(f"{part} has no log here; {why}")
    with chosen.log.open(errors="replace") as file:
        while True:
            yield from file
            if not follow or chosen.daemon is None:
                return
            time.sleep(POLL_S)


def _up(tell: Callable[[Event], None]) -> dict[str, float]:
    began = time.monotonic()
    missing = [part for part in parts() if not (part.probe() and (part.external or part.daemon))]
    _refuse(filter(None, (_port_problem(part) for part in missing)))
    waiting = {}
    for part in missing:
        daemon = part.daemon
        if daemon is None and not part.external:
            daemon = _start(part)
            tell(Event(part.name, "starting", 0, part.page))
        if part.waited_for:
            waiting[part] = daemon
    starts = dict.fromkeys(waiting, 1)
    told = dict.fromkeys(waiting, WORD_EVERY_S)
    seconds: dict[str, float] = {}
    problems = []
    while waiting:
        for part, daemon in list(waiting.items()):
            passed = time.monotonic() - began
            if part.probe():
                seconds[part.name] = passed
                tell(Event(part.name, "ready", passed, part.page))
            elif daemon and not daemon.alive and starts[part] < part.starts:
                starts[part] += 1
                tell(Event(part.name, "again", passed, part.page, _last_word(part)))
                waiting[part] = _start(part)
                continue
            elif problem := _problem(part, daemon, passed):
                problems.append(problem)
            else:
                if passed > told[part]:
                    told[part] = passed + WORD_EVERY_S
                    tell(Event(part.name, "waiting", passed, part.page, _last_word(part)))
                continue
            del waiting[part]
        time.sleep(POLL_S if waiting else 0)
    _refuse(problems)
    return seconds


def _refuse(problems: Iterable[str]) -> None:
    if lines := "\n".join(problems):
        raise StackError(lines)


def _start(part: Part) -> Daemon:
    _end_remains(part)
    if part.name == "ray":
        ray_folder(make=True)
    command = (sys.executable, "-m", "infra.stack.servers", part.name, *part.options)
    inherited = {**os.environ, **environment(), **part.variables}
    inherited.pop(OWN_ADDRESS.get(part.name, ""), None)
    daemon = start(command, inherited, part.log)
    remember(part.record, daemon)
    return daemon


def _problem(part: Part, daemon: Daemon | None, passed: float) -> str | None:
    """Return why waiting for a part is over, in one line; None while it may still come."""
    if part.external:
        if passed < probes.REMOTE_LIMIT_S:
            return None
        return f"{part.name}: {part.address} does not answer; start it or change {part.external}"
    assert daemon is not None
    if daemon.alive and passed < START_LIMIT_S:
        return None
    what = f"did not answer in {passed:.0f} s" if daemon.alive else "ended at its start"
    daemon.stop()
    part.record.unlink(missing_ok=True)
    last = " | ".join(tail(part.log, 3)) or "nothing"
    return f"{part.name} {what}; it said: {last} (more: `atelier logs {part.name}`)"


def _port_problem(part: Part) -> str | None:
    if part.daemon:
        return None  # its own ports are taken, by itself
    _end_remains(part)
    for setting, (host, port) in part.ports.items():
        if problem := taken(port, host, setting):
            return f"{part.name}: {'; '.join(problem)}"
    return None


def _end_remains(part: Part) -> None:
    """End what a killed server of ours left behind: its offspring may hold its ports."""
    if dead := recall(part.record):
        dead.stop()


def _last_word(part: Part) -> str:
    return " ".join(tail(part.log, 1))


def tail(log: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log that say something, without a terminal's escapes."""
    try:
        lines = ESCAPES.sub("", log.read_text(errors="replace")).splitlines()
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()][-count:]


__all__ = [
    "Event",
    "StackError",
    "Status",
    "down",
    "environment",
    "logs",
    "parts",
    "revive",
    "status",
    "up",
]
