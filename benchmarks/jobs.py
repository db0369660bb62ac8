"""What a durable job costs beside its work, and whether any is lost: runners over stages that cost nothing.

python -m benchmarks.jobs                    # submit to first step, a finished job's writes, at 10 and 10,000 jobs
python -m benchmarks.jobs --url postgresql://user@host/empty
python -m benchmarks.jobs --fire 200         # two runners on one database, killed at random, until all is done
python -m benchmarks.jobs --beside 40        # a person's pictures alone, and beside a job that never ends
python -m benchmarks.jobs --file 200         # a batch's file of so many MiB, sent to a gateway, and its batch made
"""

import argparse
import asyncio
import collections
import dataclasses
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import sqlalchemy as sa

from infra.database import open_engine, writing
from infra.jobs.ids import new_id
from infra.jobs.jobs import Jobs
from infra.jobs.table import JOBS, Result
from infra.ledger.ledger import Ledger
from infra.pipelines import PIPELINE, PinnedStage, Pipeline, chained
from infra.storage import seal
from services.batches.lines import MOST
from services.pipelines.payload import Drawn, StageTask
from tests.services.jobs_kit import Counted, calls, runner

ROOT: Final = Path(__file__).parents[1]
TRIES: Final = 30
REF: Final = "cascade:1"


def published(folder: Path) -> str:
    """Put a cascade of two stages into the cache of a folder; return its digest."""
    ports: dict[str, dict[str, Any]] = {
        "base": {"inputs": {"text": "text?"}, "outputs": {"pixels": "pixels 3x8x8"}},
        "up": {"inputs": {"pixels": "pixels 3x8x8"}, "outputs": {"pixels": "pixels 3x16x16"}},
    }
    stages = tuple(
        PinnedStage(stage=name, name=f"cascade.{name}", version=1, sha256=f"{number}" * 64, family="toy", **one)
        for number, (name, one) in enumerate(ports.items())
    )  # fmt: skip
    pipeline = Pipeline(
        endpoint="cascade",
        stages=stages,
        entrances={"generate": chained(stages)},
        image_size=(16, 16),
    )
    making = folder / "making"
    making.mkdir()
    (making / PIPELINE).write_text(json.dumps(pipeline.model_dump(mode="json")))
    digest = seal(making, {"kind": "pipeline", "name": "cascade"})
    (folder / "versions").mkdir()
    making.rename(folder / "versions" / digest)
    return digest


def submit(jobs: Jobs, digest: str, seed: int) -> str:
    """Submit one job of an owner of its own."""
    given: dict[str, Any] = {"pipeline": REF, "digests": {REF: digest}, "seed": seed}
    return jobs.submit("image", {"prompt": "a circle"}, owner=f"owner-{seed}", **given).id


class First(Counted):
    """A stage that notes when it is first asked."""

    at: float | None = None

    async def draw(self, task: StageTask) -> Drawn:
        """Return the stage's pictures."""
        if First.at is None:
            First.at = time.perf_counter()
        return await super().draw(task)


async def to_first_step(jobs: Jobs, url: str, folder: Path, digest: str) -> list[float]:
    """Return the seconds from a submit to its first step, by a runner that has nothing else to do."""
    took = []
    ledger = Ledger(url)
    worker = runner(jobs, ledger, folder, lambda pinned: First(pinned, folder / "calls"))
    worker.start()
    for seed in range(TRIES):
        await asyncio.sleep(random.uniform(0.1, 0.4))
        First.at, began = None, time.perf_counter()
        id = await asyncio.to_thread(submit, jobs, digest, 10**6 + seed)
        while not jobs.get(id).over:
            await asyncio.sleep(0.01)
        assert First.at is not None
        took.append(First.at - began)
    await worker.stop()
    ledger.close()
    return took


def of_writes(jobs: Jobs, digest: str) -> dict[str, list[float]]:
    """Return the seconds of each thing that a job of two stages writes down."""
    took: dict[str, list[float]] = collections.defaultdict(list)

    def timed(what: str, act: Any, *given: Any) -> Any:
        began = time.perf_counter()
        found = act(*given)
        took[what].append(time.perf_counter() - began)
        return found

    for seed in range(TRIES):
        timed("submit", submit, jobs, digest, 2 * 10**6 + seed)
        lease = timed("claim", jobs.claim, "bench")
        timed("beat that writes", lease.beat, 50.0)
        timed("beat that reads", lease.beat, 50.0)
        for node in ("base", "up"):
            timed("stage", lease.stage_done, node, "e" * 64, "file:///x")
        timed("finish", lease.finish, Result("d" * 64, "file:///x", "image/png", 1))
        timed("an owner's page", jobs.page, f"owner-{seed}")
        timed("look for work, none there", jobs.claim, "bench")
    return took


def overhead(url: str, counts: list[int]) -> None:
    """Print what jobs cost beside so many others, ended ones."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest = published(folder)
        address = url or f"sqlite:///{folder / 'jobs.db'}"
        with Jobs(address, most_queued=10**6) as jobs:
            there = 0
            for count in counts:
                _fill(jobs, address, digest, range(there, count))
                there = count
                first = asyncio.run(to_first_step(jobs, address, folder, digest))
                print(f"{count} jobs: submit to first step {_told(first)}")
                writes = of_writes(jobs, digest)
                for what, took in writes.items():
                    print(f"  {what}: {_told(took)}")
                middle = {what: statistics.median(took) for what, took in writes.items()}
                whole = sum(middle[what] for what in ("submit", "claim", "finish"))
                print(f"  a finished job's writes: {1000 * (whole + 2 * middle['stage']):.1f} ms")


def _fill(jobs: Jobs, url: str, digest: str, seeds: range) -> None:
    """Put ended jobs into the table: one that is made, and copies of it."""
    made = submit(jobs, digest, seeds[0])
    lease = jobs.claim("bench")
    assert lease is not None
    lease.finish(Result("d" * 64, "file:///x", "image/png", 1))
    engine = open_engine(url)
    with writing(engine) as connection:
        row = connection.execute(sa.select(JOBS).where(JOBS.c.id == made)).mappings().one()
        copies = [
            {**row, "id": new_id("image", row["created"] - seed), "owner": f"owner-{seed}"}
            for seed in seeds[1:]
        ]
        connection.execute(sa.insert(JOBS), copies)
    engine.dispose()


def _told(took: list[float]) -> str:
    ordered = sorted(1000 * one for one in took)
    return f"{statistics.median(ordered):.2f} ms (p95 {ordered[int(0.95 * len(ordered))]:.2f})"


def fire(url: str, count: int) -> None:
    """Work off jobs by two runners that are killed at random; print what was lost, doubled or stuck."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest = published(folder)
        address = url or f"sqlite:///{folder / 'jobs.db'}"
        began, kills = time.monotonic(), 0
        with Jobs(address, most_queued=10**6) as jobs:
            ids = [submit(jobs, digest, seed) for seed in range(count)]
            alive = [_runner(address, folder) for _ in range(2)]
            while not all(jobs.get(id).over for id in ids):
                time.sleep(random.uniform(0.5, 4.0))
                victim = alive.pop(random.randrange(2))
                victim.kill()
                victim.wait()
                kills += 1
                alive.append(_runner(address, folder))
            for one in alive:
                one.kill()
                one.wait()
            ended = [jobs.get(id) for id in ids]
        states = collections.Counter(one.state for one in ended)
        lost = sum(one.causes.get("lost", 0) for one in ended)
        digests = {one.result.digest for one in ended if one.result}
        drawn = collections.Counter(calls(folder / "calls"))
        again = sum(drawn.values()) - len(drawn)
        print(f"{count} jobs, {kills} kills, {time.monotonic() - began:.0f} s: {dict(states)}")
        print(f"  attempts lost {lost}, stages drawn {sum(drawn.values())}, again {again}")
        print(
            f"  results {len(digests)} of {count} distinct; of a stage at most {max(drawn.values())} drawings"
        )


def _runner(address: str, folder: Path) -> "subprocess.Popen[bytes]":
    kit = ROOT / "tests/services/jobs_kit.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(kit), address, str(folder), "0", "100000"]
    return subprocess.Popen(command, env=environment)


def beside(requests: int) -> None:
    """Print how long a picture of 12 steps takes alone, beside a job's rows and beside another person's, in turns."""
    import torch

    from models.diffusion.ddpm import DDPM
    from models.request import Request
    from services.stages.engine import Engine
    from services.stages.scheduler import Finished

    torch.manual_seed(0)
    tiny = dataclasses.replace(DDPM.presets["base"], vocabulary=("a", "red", "circle"))
    person, other, engine = DDPM(tiny).eval(), DDPM(tiny).eval(), Engine()
    picture = Request(seeds=(1,), prompts=("a red circle",), options={"steps": 12})
    long = Request(seeds=(2, 3, 4, 5), prompts=("a red circle",) * 4, options={"steps": 250})
    took: dict[str, list[float]] = {"alone": [], "a job": [], "a person": []}

    def one() -> float:
        inbox: queue.Queue[Any] = queue.Queue()
        began = time.perf_counter()
        engine.submit(person, picture, inbox.put)
        assert isinstance(found := inbox.get(), Finished), found
        return time.perf_counter() - began

    for _ in range(5):
        one()
    for _ in range(requests):
        took["alone"].append(one())
        for who in ("a job", "a person"):
            ticket = engine.submit(other, long, lambda _: None, behind=who == "a job")
            time.sleep(0.05)  # it has begun
            took[who].append(one())
            engine.cancel(ticket)
    engine.close()
    for who, seconds in took.items():
        print(f"{who if who == 'alone' else f'beside {who}'}: {_told(seconds)}")


def file(mib: int) -> None:
    """Print what a gateway's process holds while a file comes and a batch is made of it, and who waits meanwhile."""
    from tests.services.conftest import Workshop
    from tests.services.served_kit import listening

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "versions").mkdir()
        workshop, asked = Workshop(folder), folder / "asked.jsonl"
        text = "a" * (mib * 2**20 // MOST - 200)
        with asked.open("w") as lines:
            for number in range(MOST):
                body = {"model": "chat", "messages": [{"role": "user", "content": text}]}
                line = {"custom_id": str(number), "url": "/v1/chat/completions", "body": body}
                lines.write(json.dumps(line) + "\n")
        stage = workshop.stage()
        with (
            listening(workshop.gateway(stage)) as address,
            httpx.Client(base_url=address, timeout=600) as client,
        ):
            client.get("/v1/models")
            with asked.open("rb") as content, _watched(address, f"{mib} MiB sent, {MOST} lines"):
                sent = client.post("/v1/files", files={"file": content}, data={"purpose": "batch"})
            assert sent.status_code == 200, sent.text
            order = {
                "input_file_id": sent.json()["id"],
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            }
            with _watched(address, "its batch made"):
                made = client.post("/v1/batches", json=order)
            assert made.json()["request_counts"]["total"] == MOST, made.text
        stage.close()


@contextmanager
def _watched(address: str, what: str) -> Iterator[None]:
    """Print the seconds that the block takes, this process's memory meanwhile, and the longest that another waits."""
    process, over = psutil.Process(), threading.Event()
    before, most, waits = process.memory_info().rss, [0], [0.0]

    def look() -> None:
        while not over.wait(0.02):
            most.append(process.memory_info().rss)

    def ask() -> None:
        with httpx.Client(base_url=address, timeout=600) as client:
            while not over.wait(0.1):
                began = time.perf_counter()
                client.get("/v1/models")
                waits.append(time.perf_counter() - began)

    threads = [threading.Thread(target=one) for one in (look, ask)]
    for one in threads:
        one.start()
    began, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        over.set()
        for one in threads:
            one.join()
    held = [round(one / 2**20) for one in (before, max(most), process.memory_info().rss)]
    waits.sort()
    print(
        f"{what}: {seconds:.1f} s, {cpu:.1f} CPU-s; {held[0]} MiB before, {held[1]} at most, {held[2]} after;"
        f" another's request waits {1000 * statistics.median(waits):.0f} ms, {1000 * max(waits):.0f} at most"
    )


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="", help="an empty database; SQLite in a temporary folder")
    parser.add_argument("--jobs", type=int, nargs="+", default=[10, 10_000])
    parser.add_argument("--fire", type=int, default=0, metavar="JOBS")
    parser.add_argument("--beside", type=int, default=0, metavar="REQUESTS")
    parser.add_argument("--file", type=int, default=0, metavar="MIB")
    asked = parser.parse_args()
    if asked.beside:
        beside(asked.beside)
    elif asked.file:
        file(asked.file)
    elif asked.fire:
        fire(asked.url, asked.fire)
    else:
        overhead(asked.url, asked.jobs)


if __name__ == "__main__":
    main()
