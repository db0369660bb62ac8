"""Two gateways of one stack on one database, of which one or the other is killed -9 while clips are made.

python -m benchmarks.two_gateways                # 200 clips of ten keys
python -m benchmarks.two_gateways --clips 40 --postgres    # jobs, ledger and keys on Postgres in place of SQLite

Each gateway's process has a runner; Make-A-Video's six stages, untrained and small, are apart. Of four clips one is
asked for at the front without an idempotency key, as a stranger would, and three at one gateway's own socket by a key,
then at the other one's. Meanwhile a gateway that has a clip under way is killed, again and again, once both are there.
In the end both have to tell the same. Exit code 1 where a clip was lost, doubled or stuck, a finished stage was made
again, a key gave another job, the gateway that was left did not answer, or a clip's bytes differ from gateway to
gateway or from those of the same seed.
"""

import argparse
import io
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import sqlalchemy as sa

from benchmarks.soak import TITLES, leave, own_stack, row, running
from data.makers.moving import CAPTIONS
from infra import serving
from infra.database import open_engine, reading
from infra.jobs.table import JOBS
from infra.keys import Keys
from infra.receipts.clip_receipts import rest_sha256
from infra.stack.spec import ray_folder
from tests.databases_kit import Databases
from tests.integration.cascade_kit import CLIPS, Seen, publish_clips, seen
from tests.integration.serving_kit import House, wait_for

PLACEMENT: Final = "layout: staged\ngateway: {replicas: {min: 2, max: 2}}\n"
STEPS: Final = {"decoder": 8, "interpolation": 2, "upsampler": 2, "frames": 4}
OF_A_KEY: Final = 20  # jobs that may be open
LIMIT_S: Final = 900.0
PAUSE_S: Final = 3.0  # at most, from when both are there to the next kill
AT_FRONT: Final = 4  # one of so many clips
PAGE: Final = 7  # clips of a list


@dataclass
class Tally:
    """What happened meanwhile."""

    killed: set[int] = field(default_factory=set)  # processes
    in_mid_clip: int = 0
    again: int = 0  # requests that were sent once more, since their gateway was killed
    failures: list[str] = field(default_factory=list)
    runners: set[str] = field(default_factory=set)  # that had a job
    slowest_s: float = 0.0  # of the answers of gateways that lived
    before: dict[str, Seen] = field(default_factory=dict)  # by job: as it was at the last kill


class Doors:
    """The gateways' own sockets, each by the process that listens there."""

    def __init__(self, house: House, tally: Tally) -> None:
        self._tally = tally
        self._folder = ray_folder().parent / "gateway"
        self._front = house.url

    def listening(self) -> list[int]:
        """The processes of the gateways that listen."""
        found = [one.pid for one in running(TITLES["gateway replica"])]
        there = [pid for pid in found if (self._folder / f"{pid}.sock").exists()]
        return sorted(set(there) - self._tally.killed)

    def both(self) -> list[int]:
        """The two gateways, once there are two."""

        def look() -> list[int] | None:
            found = self.listening()
            return found if len(found) == 2 else None

        return wait_for("second gateway", look)

    def ask(self, pid: int | None, key: str, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask a gateway, or None: the front; where it is killed over it, another one, as a client would."""
        headers = {
            "authorization": f"Bearer {key}",
            "connection": "close",
            **more.pop("headers", {}),
        }
        ends = time.monotonic() + LIMIT_S
        while True:
            way = (
                None if pid is None else httpx.HTTPTransport(uds=str(self._folder / f"{pid}.sock"))
            )
            base = self._front if pid is None else "http://127.0.0.1/v1"
            began = time.monotonic()
            try:
                with httpx.Client(
                    transport=way, base_url=base, timeout=120, trust_env=False
                ) as client:
                    answer = client.request(method, path, headers=headers, **more)
                self._tally.slowest_s = max(self._tally.slowest_s, time.monotonic() - began)
                return answer
            except httpx.TransportError:
                if pid not in self._tally.killed or time.monotonic() > ends:
                    raise
                self._tally.again += 1
                pid = random.choice(wait_for("gateway", self.listening))


def killing(house: House, doors: Doors, tally: Tally, over: threading.Event) -> None:
    """Kill a gateway that works on a clip, once both are there, again and again; the other one has to answer."""
    while not over.is_set():
        gateways = doors.both()
        over.wait(random.uniform(0.5, PAUSE_S))
        held = _held(house)
        tally.runners |= set(held.values())
        victims = [pid for pid in gateways if any(f"/{pid}/" in one for one in held.values())]
        if over.is_set() or not victims:
            continue
        victim = random.choice(victims)
        mine = [job for job, holder in held.items() if f"/{victim}/" in holder]
        tally.killed.add(victim)
        os.kill(victim, signal.SIGKILL)
        at_kill = {job: seen(house, job) for job in mine}
        tally.in_mid_clip += sum(bool(one.stages) for one in at_kill.values())
        tally.before |= at_kill
        [left] = [pid for pid in gateways if pid != victim]
        answer = doors.ask(left, house.key, "GET", "/videos")
        if answer.status_code != 200:
            tally.failures.append(f"the gateway that was left answered {answer.status_code}")


def _held(house: House) -> dict[str, str]:
    """Who works on which job."""
    engine = open_engine(house.settings.database)
    with reading(engine) as connection:
        query = sa.select(JOBS.c.id, JOBS.c.holder).where(JOBS.c.state == "in_progress")
        found = {row.id: row.holder for row in connection.execute(query)}
    engine.dispose()
    return found


def asked(doors: Doors, tally: Tally, key: str, number: int, seed: int) -> str:
    """Ask for a clip: at the front, or at both gateways in turn under one key; returns its job."""
    body = {"model": CLIPS, "prompt": CAPTIONS[seed % 7], "seed": seed}
    if number % AT_FRONT == 0:
        return _job(doors.ask(None, key, "POST", "/videos", json=body))
    headers = {"idempotency-key": f"clip-{number}"}
    first, second = random.sample(doors.both(), 2)
    found = [
        _job(doors.ask(pid, key, "POST", "/videos", json=body, headers=headers))
        for pid in (first, second)
    ]
    if found[0] != found[1]:
        tally.failures.append(f"one key, two jobs: {found}")
    other = doors.ask(
        second, key, "POST", "/videos", json={**body, "seed": seed + 1}, headers=headers
    )
    if other.status_code != 422:
        tally.failures.append(f"one key, another body: {other.status_code}")
    return found[0]


def _job(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def listed(doors: Doors, pid: int, key: str) -> list[dict[str, Any]]:
    """The clips of a key as a gateway lists them, a page after the other, the oldest first."""
    found: list[dict[str, Any]] = []
    while True:
        after = {"after": found[-1]["id"]} if found else {}
        query = {"order": "asc", "limit": str(PAGE), **after}
        page = doors.ask(pid, key, "GET", "/videos", params=query).json()
        found += page["data"]
        if not page["has_more"]:
            return found


def content(doors: Doors, pid: int, key: str, job: str) -> tuple[str, str]:
    """The tag of a clip and the hash over its bytes, its receipt left out, as a gateway has them."""
    answer = doors.ask(pid, key, "GET", f"/videos/{job}/content")
    assert answer.status_code == 200, answer.text
    return answer.headers["etag"], rest_sha256(io.BytesIO(answer.content))


def under_fire(house: House, count: int) -> bool:
    """Have clips made while gateways are killed, and print what came of it; returns whether all is well."""
    tally, over = Tally(), threading.Event()
    doors, keys = Doors(house, tally), Keys(house.settings.database)
    owners = [keys.create(f"user-{number}") for number in range(-(-count // OF_A_KEY))]
    doors.both()
    began, jobs = time.monotonic(), {key: list[str]() for key in owners}
    killer = threading.Thread(target=killing, args=(house, doors, tally, over))
    killer.start()
    try:
        for number in range(count):
            key = owners[number % len(owners)]
            jobs[key].append(asked(doors, tally, key, number, number % max(1, count // 2)))
        wait_for("end of all clips", lambda: _over(house) or None)
    finally:
        over.set()
        killer.join()
    seconds = time.monotonic() - began
    return told(house, doors, tally, jobs, seconds)


def _over(house: House) -> bool:
    engine = open_engine(house.settings.database)
    with reading(engine) as connection:
        query = sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.due.is_not(None))
        left = connection.scalar(query)
    engine.dispose()
    return not left


def told(
    house: House, doors: Doors, tally: Tally, jobs: dict[str, list[str]], seconds: float
) -> bool:
    """Print what came of it, as both gateways tell; returns whether all is well."""
    pair = doors.both()
    lists = [{key: listed(doors, pid, key) for key in jobs} for pid in pair]
    alike = lists[0] == lists[1]
    there = {key: [one["id"] for one in found] for key, found in lists[0].items()}
    lost = sum(len(set(mine) - set(there[key])) for key, mine in jobs.items())
    doubled = sum(len(set(there[key]) - set(mine)) for key, mine in jobs.items())
    states = Counter(one["status"] for found in lists[0].values() for one in found)
    files = {
        job: [content(doors, pid, key, job) for pid in pair]
        for key, mine in jobs.items() for job in mine
    }  # fmt: skip
    by_seed: dict[tuple[int, str], set[str]] = {}
    for found in lists[0].values():
        for one in found:
            by_seed.setdefault((one["seed"], one["prompt"]), set()).add(files[one["id"]][0][1])
    ended = {job: seen(house, job) for mine in jobs.values() for job in mine}
    again = sum(ended[job].again(before) for job, before in tally.before.items())
    lost_attempts = sum(one.causes.get("lost", 0) for one in ended.values())
    equal = sum(a == b for a, b in files.values())
    same = sum(len(one) == 1 for one in by_seed.values())
    row("clips", "kills of a gateway", "s", "ended", "lost", "doubled", "attempts lost",
        "finished stages made again", "list and bytes equal at both", "seeds of equal bytes")  # fmt: skip
    row(*["---"] * 10)
    row(len(ended), f"{len(tally.killed)}, {tally.in_mid_clip} clips begun", f"{seconds:.0f}", dict(states), lost,
        doubled, lost_attempts, again, f"{alike}, {equal} of {len(files)}", f"{same} of {len(by_seed)}")  # fmt: skip
    print(
        f"\n{len(tally.runners)} runners had jobs; {tally.again} requests were sent once more, since their gateway was"
        f" killed; the slowest answer took {tally.slowest_s:.1f} s; load {os.getloadavg()[0]:.1f}"
    )
    for failure in tally.failures:
        print(failure)
    whole = states == {"completed": len(ended)} and same == len(by_seed) and equal == len(files)
    return (
        whole and alike and not (lost or doubled or again or tally.failures) and bool(tally.killed)
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--postgres", action="store_true")
    asked = parser.parse_args()
    began, well = time.monotonic(), False
    with tempfile.TemporaryDirectory() as name, closing(Databases(Path(name))) as databases:
        if asked.postgres:
            os.environ["ATELIER_DATABASE_URL"] = databases.migrated("postgresql").url
        with own_stack(PLACEMENT) as (house, folder):
            serving.deploy(house.settings, publish_clips(house, folder, STEPS), LIMIT_S)
            well = under_fire(house, asked.clips)
    leave(well, began)


if __name__ == "__main__":
    main()
