"""Jobs for pictures, and a runner of them in a process of its own: over stages that cost nothing and count their work.

`jobs_kit.py DATABASE FOLDER LATER LIFE` works until it is killed, or kills itself after LIFE seconds; its clock is
LATER seconds ahead, so that nobody waits until the leases of those that were killed before it are over.
"""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from infra.jobs.jobs import Jobs
from infra.jobs.table import Job
from infra.ledger.ledger import Ledger
from infra.pipelines import PinnedStage, Pipeline
from infra.registry.registry import Registry
from services.jobs.runner import File, Kind, Runner
from services.jobs.store import Store
from services.media.codecs import png
from services.pipelines.executor import Executor
from services.pipelines.payload import Drawn, Event, GenerationSpec, StageTask
from services.pipelines.request import Complete, StageOf
from services.routing.endpoints import Endpoint, Endpoints

WORK_S: Final = 0.02  # of a stage


def _spec(job: Job, pipeline: Pipeline) -> GenerationSpec:
    texts = (str(job.request["prompt"]),) if pipeline.reads_text else ()
    return GenerationSpec(seeds=(job.seed,), prompts=texts, options=job.request.get("options", {}))


def _file(_job: Job, _endpoint: Endpoint, complete: Complete) -> File:
    picture: Any = complete.made[0]
    return File(png(picture), "image/png", "png")


KINDS: Final = {"image": Kind(_spec, _file)}


class Counted:
    """A stage that gives noise of the seed and of what it is given, and writes down each call."""

    def __init__(self, pinned: PinnedStage, log: Path) -> None:
        self._pinned, self._log = pinned, log

    async def draw(self, task: StageTask) -> Drawn:
        with self._log.open("a") as file:
            print(json.dumps([self._pinned.stage, task.spec.seeds[0]]), file=file)
        await asyncio.sleep(WORK_S)
        _, _, shape = self._pinned.outputs["pixels"].partition(" ")
        channels, height, width = map(int, shape.split("x"))
        given = sum(float(np.sum(array)) for array in task.spec.given.values())
        seeds = [abs(task.spec.seeds[0]), int(1000 * given)]
        noise = np.random.default_rng(seeds).random((1, channels, height, width), np.float32)
        return Drawn(noise)

    async def watch(self, task: StageTask) -> AsyncGenerator[Event]:
        yield await self.draw(task)

    async def check(self, _task: StageTask) -> None:
        return None

    async def embed(self, _work: Any) -> Any:
        raise NotImplementedError

    async def score(self, _works: Any) -> Any:
        raise NotImplementedError


def calls(log: Path) -> list[tuple[str, int]]:
    """Return which stage was run with which seed, in order."""
    lines: Iterable[str] = log.read_text().splitlines() if log.exists() else ()
    return [tuple(json.loads(line)) for line in lines]


def counted(folder: Path) -> StageOf:
    """Return stages that write to `calls` of a folder."""
    return lambda pinned: Counted(pinned, folder / "calls")


def runner(jobs: Jobs, ledger: Ledger, folder: Path, stage_of: StageOf) -> Runner:
    """Return a runner over the versions in a folder's cache."""
    registry = Registry("http://127.0.0.1:9", folder / "versions")  # nothing is fetched
    endpoints = Endpoints(ledger, registry)
    return Runner(jobs, Store(str(folder / "made")), endpoints, Executor(stage_of), KINDS)


def ahead(later_s: float) -> Callable[[], float]:
    """Return a clock that is so many seconds ahead."""
    return lambda: time.time() + later_s


async def _work(database: str, folder: Path, later_s: float) -> None:
    jobs = Jobs(database, clock=ahead(later_s))
    runner(jobs, Ledger(database), folder, counted(folder)).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    threading.Timer(float(sys.argv[4]), os.kill, (os.getpid(), signal.SIGKILL)).start()
    asyncio.run(_work(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
