"""Load and faults on a whole stack of its own, `make soak`: a table in ten minutes at most, loopback alone.

A private Prefect, MLflow, Ray and worker with two tiny networks. Rates are shares of a capacity that is measured first.
Five thousand small requests, with every process's memory before and after; 512 bodies half-sent and held; two hundred
users at once; and kill -9 of each process under a steady load, until it is back. Exit code 1 where a request was not
answered (but for a full queue of two hundred users, and while Serve's proxy is away) or a process stayed away.
"""

import argparse
import asyncio
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

import httpx
import psutil

from infra.keys import Keys
from infra.ledger.ledger import Ledger
from infra.registry.registry import Registry
from infra.settings import Settings
from infra.stack import daemons, stack
from infra.stack.spec import beat_file
from tests.integration.serving_kit import NAME, PROMPT, House, publish
from tests.ports_kit import PORTS, free_ports

SMALL: Final = 5000
HALF_SENT: Final = 512
PICTURES: Final = 5  # of so many small requests one is a picture, the others ask what is served
USERS: Final = 200
EACH: Final = 3
SHARE: Final = 0.3  # of the capacity: what the steady load asks for
HELD_S: Final = 25.0
LIMIT_S: Final = 570.0  # of everything
AWAY_S: Final = 60.0  # a process that is not back by then stays away
TITLES: Final = {
    "gateway replica": "ray::ServeReplica:atelier:Gateway",
    "stage replica": "ray::ServeReplica:atelier:stages",
    "Serve proxy": "ray::ProxyActor",
    "Serve controller": "ray::ServeController",
}
NO_ANSWER: Final = "no answer"
FULL: Final = "429 queue_full"
BODY: Final = {"model": NAME, "prompt": PROMPT, "steps": 2}


@dataclass
class Tally:
    """What was answered: how long it took, by what came of it."""

    took: dict[str, list[float]] = field(default_factory=dict)
    failed_at: list[float] = field(default_factory=list)  # when those were sent that failed

    def add(self, kind: str, sent: float) -> None:
        """Note an answer to what was sent then."""
        self.took.setdefault(kind, []).append(time.monotonic() - sent)
        if kind != "200":
            self.failed_at.append(sent)

    @property
    def counts(self) -> str:
        """How many answers of each kind."""
        return ", ".join(f"{len(took)} x {kind}" for kind, took in sorted(self.took.items()))

    @property
    def outage_s(self) -> float:
        """From the first failure's sending to the last one's."""
        return max(self.failed_at) - min(self.failed_at) if self.failed_at else 0.0

    @property
    def seconds(self) -> str:
        """The median, the 99th percentile and the slowest of the good answers."""
        good = sorted(self.took.get("200", ()))
        if not good:
            return "-"
        p99 = good[int(0.99 * (len(good) - 1))]
        return f"{statistics.median(good):.2f} / {p99:.2f} / {good[-1]:.2f}"

    def well(self, *also: str) -> bool:
        """Whether every answer was a good one, or of a kind that may be here."""
        return self.took.keys() <= {"200", *also}


async def ask(client: httpx.AsyncClient, tally: Tally, seed: int, *, draw: bool = True) -> None:
    """Draw one small picture, or ask what is served, and note what came of it."""
    sent = time.monotonic()
    try:
        if draw:
            answer = await client.post("/images/generations", json={**BODY, "seed": seed % 97})
        else:
            answer = await client.get("/models")
    except httpx.HTTPError:
        tally.add(NO_ANSWER, sent)
        return
    try:
        said = answer.json()
        kind = (
            "200" if answer.status_code == 200 else f"{answer.status_code} {said['error']['code']}"
        )
    except (ValueError, KeyError, TypeError):
        kind = f"plain {answer.status_code}"
    tally.add(kind, sent)


def http(house: House) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {house.key}"}
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(
        base_url=house.url, headers=headers, timeout=60, limits=limits, trust_env=False
    )


async def at_once(
    house: House, users: int, requests: int, pictures: int = 1
) -> tuple[Tally, float]:
    """Have `users` ask one after the other, `requests` together; returns what came of it and the seconds.

    One of `pictures` requests draws.
    """
    tally, numbers, began = Tally(), iter(range(requests)), time.monotonic()

    async def user(client: httpx.AsyncClient) -> None:
        for number in numbers:
            await ask(client, tally, number, draw=number % pictures == 0)

    async with http(house) as client:
        await asyncio.gather(*(user(client) for _ in range(users)))
    return tally, time.monotonic() - began


@asynccontextmanager
async def steady(house: House, per_s: float) -> AsyncIterator[Tally]:
    """Send requests at a rate beside the block, whatever the answers do; all are awaited at its end."""
    tally, over = Tally(), asyncio.Event()

    async def send() -> None:
        began = time.monotonic()
        async with http(house) as client, asyncio.TaskGroup() as group:
            number = 0
            while not over.is_set():
                group.create_task(ask(client, tally, number))
                number += 1
                with suppress(TimeoutError):
                    wait = max(0.0, began + number / per_s - time.monotonic())
                    await asyncio.wait_for(over.wait(), wait)

    task = asyncio.create_task(send())
    try:
        yield tally
    finally:
        over.set()
        await task


def running(title: str) -> list[psutil.Process]:
    """The processes of a Serve actor on this stack's Ray."""
    daemon = next(part for part in stack.parts() if part.name == "ray").daemon
    found = []
    for process in daemon.offspring() if daemon else ():
        with suppress(psutil.Error):
            if (process.cmdline() or [""])[0].startswith(title):
                found.append(process)
    return found


def daemon_of(name: str) -> list[psutil.Process]:
    """The process of a part; of the worker, the one that it keeps."""
    daemon = next(part for part in stack.parts() if part.name == name).daemon
    if daemon is None:
        return []
    process = psutil.Process(daemon.pid)
    return process.children() if name == "worker" else [process]


def finders() -> dict[str, Callable[[], list[psutil.Process]]]:
    """How each process is found, by what it is called in the table."""
    actors = {name: lambda title=title: running(title) for name, title in TITLES.items()}
    parts = {"Prefect": "prefect", "MLflow": "mlflow", "worker": "worker"}
    return {**actors, **{name: lambda part=part: daemon_of(part) for name, part in parts.items()}}


def answers(house: House, name: str, since: float) -> bool:
    """Whether what a process does is done again, after a time (unix seconds)."""
    parts = {part.name: part for part in stack.parts()}
    if name == "worker" and beat_file().stat().st_mtime < since:
        return False
    if name in {"Prefect", "MLflow", "worker"}:
        return parts[name.lower()].probe()
    from infra import serving

    found = serving.status(house.settings)
    return found is not None and found["status"] == "RUNNING" and serving.loaded(house.settings, [])


async def killed(house: House, name: str, per_s: float) -> tuple[Tally, float | None]:
    """Kill a process under a steady load; returns what was answered and when it was back, None if not in time."""
    find = finders()[name]
    async with steady(house, per_s) as tally:
        await asyncio.sleep(2)
        [victim, *_] = await asyncio.to_thread(find)
        began, since = time.monotonic(), time.time()
        os.kill(victim.pid, signal.SIGKILL)
        back = None
        while back is None and time.monotonic() - began < AWAY_S:
            found = await asyncio.to_thread(find)
            others = [one.pid for one in found if one.pid != victim.pid]
            if others and await asyncio.to_thread(answers, house, name, since):
                back = time.monotonic() - began
            await asyncio.sleep(0.2)
        await asyncio.sleep(2)
    return tally, back


async def half_sent(house: House, key: str, per_s: float) -> tuple[Tally, int]:
    """Hold 512 half-sent bodies of one client; returns what the others got, and how many were held to the end."""
    head = (
        "POST /v1/images/generations HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: 200\r\n\r\n{{"
    )
    place = ("127.0.0.1", house.settings.gateway_port)
    with ExitStack() as held:
        sockets = []
        for _ in range(HALF_SENT):
            one = held.enter_context(socket.create_connection(place, timeout=10))
            one.sendall(head.encode())
            one.setblocking(False)
            sockets.append(one)
        async with steady(house, per_s) as tally:
            await asyncio.sleep(HELD_S)
        return tally, sum(_waits(one) for one in sockets)


def _waits(one: socket.socket) -> bool:
    """Whether nobody has answered or hung up."""
    try:
        one.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def memory() -> dict[str, int]:
    """MiB of each process."""
    return {name: daemons.memory_of(find()) >> 20 for name, find in finders().items()}


def row(*cells: object) -> None:
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


async def soak(house: House, other: str) -> bool:
    """Run every part and print the tables; returns whether all is well."""
    await at_once(house, 8, 200)  # warm
    _, seconds = await at_once(house, 8, 400)
    capacity = 400 / seconds
    rate = SHARE * capacity
    print(
        f"\ncapacity {capacity:.1f} requests/s, steady load {rate:.1f}/s; load {os.getloadavg()[0]:.1f}\n"
    )
    row("load", "answers", "p50 / p99 / slowest, s", "requests/s")
    row(*["---"] * 4)
    before = memory()
    tally, seconds = await at_once(house, 16, SMALL, PICTURES)
    after, well = memory(), tally.well()
    what = f"{SMALL} small requests of 16 users, {SMALL // PICTURES} pictures"
    row(what, tally.counts, tally.seconds, f"{SMALL / seconds:.1f}")
    tally, held = await half_sent(house, other, rate)
    well &= tally.well()
    row(f"steady, {HALF_SENT} bodies half-sent", tally.counts, tally.seconds, f"{rate:.1f}")
    tally, seconds = await at_once(house, USERS, EACH * USERS)
    well &= tally.well(FULL)
    row(f"{USERS} users at once", tally.counts, tally.seconds, f"{EACH * USERS / seconds:.1f}")
    print(f"\n{held} of the {HALF_SENT} were still held after {HELD_S:.0f} s\n")
    row("process", "MiB before", f"MiB after {SMALL} requests")
    row(*["---"] * 3)
    for name in before:
        row(name, before[name], after[name])
    print()
    row("kill -9 of", "back after, s", "answers", "failures over, s", "p50 / p99 / slowest, s")
    row(*["---"] * 5)
    for name in finders():
        tally, back = await killed(house, name, rate)
        row(
            name,
            "not" if back is None else f"{back:.1f}",
            tally.counts,
            f"{tally.outage_s:.1f}",
            tally.seconds,
        )
        well &= back is not None and tally.well(*([NO_ANSWER] if name == "Serve proxy" else []))
    return well


@contextmanager
def own_stack(placement: str = "layout: staged") -> Iterator[tuple[House, Path]]:
    """Start a private stack, on ports and in a folder of its own, with stages apart; gives that and room for files."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the stack is taken down all the same
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "placement.yaml").write_text(placement)
        os.environ |= {
            "ATELIER_HOME": name,
            "ATELIER_PLACEMENT": str(folder / "placement.yaml"),
            "OMP_NUM_THREADS": "1",
            "PREFECT_LOGGING_LEVEL": "ERROR",
        }
        for part, port in zip(PORTS, free_ports(len(PORTS)), strict=True):
            os.environ[f"ATELIER_{part}_PORT"] = str(port)
        os.environ |= stack.environment()
        try:
            stack.up(lambda event: print(event, file=sys.stderr))
            settings = Settings()
            key = Keys(settings.database).create("users")
            registry = Registry(settings.mlflow_uri, settings.state / "versions")
            (made := folder / "made").mkdir()
            yield House(settings, key, Ledger(settings.database), registry), made
        finally:
            stack.down()


def leave(well: bool, began: float) -> NoReturn:
    """Say whether all is well, after how long, and exit by that."""
    print(f"\n{'all well' if well else 'NOT WELL'} after {time.monotonic() - began:.0f} s")
    sys.exit(0 if well else 1)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    began, well = time.monotonic(), False
    with own_stack() as (house, folder):
        other = Keys(house.settings.database).create("other")
        publish(house, folder, 1)
        house.promote(1)
        left = LIMIT_S - (time.monotonic() - began)
        try:
            well = asyncio.run(asyncio.wait_for(soak(house, other), left))
        except TimeoutError:
            print(f"\nnot done in {LIMIT_S:.0f} s: the rest was not run")
    leave(well, began)


if __name__ == "__main__":
    main()
