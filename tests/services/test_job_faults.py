"""What goes wrong in a job, or is called off, ends the job and nothing else: the engine goes on, people go first."""

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from torch import Tensor

from infra.jobs.table import Job
from models.diffusion.ddpm import DDPM
from models.family import Rows
from models.request import Request
from services.jobs import working as working_of_jobs
from services.jobs.runner import Runner
from services.jobs.working import Working
from services.stages.deployment import Stage
from services.stages.engine import Engine
from services.stages.scheduler import Finished
from services.stages.shares import BEHIND_COSTS
from tests.databases_kit import Databases
from tests.services.conftest import WORDS
from tests.services.served_kit import with_toys
from tests.services.test_jobs import House

ENDLESS = 7  # steps


class Moody(DDPM):
    """A small DDPM that wants too much memory for what is large, and never ends with seven steps."""

    def begin(self, request: Request) -> Rows:
        if any("large" in prompt for prompt in request.prompts):
            torch.empty(2**45)
        return super().begin(request)

    def done(self, rows: Rows) -> Tensor:
        return super().done(rows) & (rows["count"] != ENDLESS)


@pytest.fixture(scope="module")
def moody(own_workshop: Any) -> Iterator[Any]:
    """A workshop with a pipeline of a moody model."""
    import models

    with with_toys():
        table: Any = models.FAMILIES
        table["toy-moody"] = f"{__name__}:Moody"
        tiny = dataclasses.replace(DDPM.presets["tiny"], vocabulary=WORDS)
        own_workshop.publish_wired("moody", {"base": Moody(tiny).eval()})
        yield own_workshop


@pytest.fixture
def house(moody: Any, databases: Databases, tmp_path: Path) -> Iterator[House]:
    made = House(moody, databases.migrated("sqlite").url, tmp_path, "moody")
    yield made
    made.jobs.close()
    made.ledger.close()


@pytest.fixture
def stage(moody: Any) -> Iterator[Stage]:
    made = moody.stage()
    yield made
    made.close()


def working(house: House, stage: Stage, act: Callable[[Runner], Awaitable[None]]) -> dict[str, Any]:
    """Let a runner work meanwhile; return the stage's status at the end."""

    async def both() -> dict[str, Any]:
        runner = house.runner(lambda _: stage)
        runner.start()
        await act(runner)
        await runner.stop()
        return await stage.status()

    return asyncio.run(both())


async def ended(house: House, *jobs: Job) -> None:
    while not all(house.jobs.get(job.id).over for job in jobs):
        await asyncio.sleep(0.02)


def test_want_of_memory_fails_the_job_and_the_next_succeeds_in_the_same_replica(
    house: House, stage: Stage
) -> None:
    hungry = house.submit(1, prompt="a large red circle", options={"steps": 2})

    async def act(_: Runner) -> None:
        for _ in range(3):
            while (
                house.jobs.get(hungry.id).state == "in_progress"
                or not house.jobs.get(hungry.id).causes
            ):
                await asyncio.sleep(0.02)
            if house.jobs.get(hungry.id).over:
                break
            house.later_s += 30  # the pause before the next attempt is over
            tried = house.jobs.get(hungry.id).attempt
            while house.jobs.get(hungry.id).attempt == tried:
                await asyncio.sleep(0.02)
        await ended(house, hungry)
        modest = house.submit(2, prompt="a small red circle", options={"steps": 2})
        await ended(house, modest)
        assert house.jobs.get(modest.id).state == "completed"

    working(house, stage, act)
    failed = house.jobs.get(hungry.id)
    assert (failed.state, failed.causes) == ("failed", {"out_of_memory": 3})
    assert failed.error is not None
    assert failed.error.code == "out_of_memory"


@pytest.mark.parametrize("by", ["cancel", "delete", "deadline", "stop"])
def test_what_is_called_off_leaves_the_engine(house: House, stage: Stage, by: str) -> None:
    made = house.submit(1, prompt="a red circle", options={"steps": ENDLESS})

    async def act(_: Runner) -> None:
        while not (await stage.status())["drawing"]:
            await asyncio.sleep(0.02)
        if by == "cancel":
            house.jobs.cancel(made.id)
            await ended(house, made)
        if by == "delete":
            house.jobs.delete(made.id)
            while not house.jobs.leftovers():
                await asyncio.sleep(0.02)
        while by in {"cancel", "delete"} and (await stage.status())["drawing"]:
            await asyncio.sleep(0.02)

    if by == "deadline":
        house.jobs.cancel(made.id)
        made = house.submit(1, deadline=house.now() + 1, options={"steps": ENDLESS})
    working(house, stage, act if by != "deadline" else lambda _: ended(house, made))
    if by == "delete":
        assert house.jobs.leftovers() == [made.id]
        house.runner(lambda _: stage).sweep()
        assert not (house.folder / "made" / made.id).exists()
        assert not house.jobs.leftovers()
        return
    expected = {"cancel": "cancelled", "deadline": "failed", "stop": "queued"}
    found = house.jobs.get(made.id)
    assert found.state == expected[by]
    assert not found.causes if by == "stop" else found.over


def test_a_database_that_does_not_answer_for_a_while_ends_no_attempt(
    house: House, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a Postgres is started anew; a stage may be hours of work."""
    monkeypatch.setattr(working_of_jobs, "UNHEARD_S", 0.01)
    made = house.submit(1, prompt="a red circle", options={"steps": ENDLESS})
    unheard: list[str] = []

    def down(*event: Any) -> None:
        unheard.append(event[2])
        raise sa.exc.OperationalError(event[2], {}, Exception("the connection was closed"))

    async def act(_: Runner) -> None:
        while not (await stage.status())["drawing"]:
            await asyncio.sleep(0.02)
        sa.event.listen(sa.Engine, "before_cursor_execute", down)
        try:
            while len(unheard) < 8:
                await asyncio.sleep(0.02)
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", down)
        assert (await stage.status())["drawing"]
        house.jobs.cancel(made.id)
        await ended(house, made)

    working(house, stage, act)
    found = house.jobs.get(made.id)
    assert (found.state, found.attempt, found.causes) == ("cancelled", 1, {})


def test_a_lease_is_renewed_also_where_every_thread_of_requests_is_busy(house: House) -> None:
    house.submit(1)
    lease = house.jobs.claim("one")
    assert lease is not None

    async def renewed() -> bool:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        until = threading.Event()
        busy = asyncio.create_task(asyncio.to_thread(until.wait))
        await asyncio.sleep(0)
        try:
            return await asyncio.wait_for(working_of_jobs.beaten(lease, 0.0), 10)
        finally:
            until.set()
            await busy

    assert not asyncio.run(renewed())


def test_a_word_nobody_knows_is_not_tried_again(house: House, stage: Stage) -> None:
    made = house.submit(1, prompt="a zebra")
    working(house, stage, lambda _: ended(house, made))
    found = house.jobs.get(made.id)
    assert (found.state, found.attempt) == ("failed", 1)
    assert found.error is not None
    assert "zebra" in found.error.message


def test_a_runner_works_between_the_start_and_the_end_of_its_server(
    house: House, stage: Stage
) -> None:
    made = house.submit(1, options={"steps": 2})
    messages = ["lifespan.startup", "lifespan.shutdown"]

    async def inner(_scope: Any, receive: Any, _send: Any) -> None:
        for _ in range(2):
            await receive()

    async def receive() -> dict[str, str]:
        if len(messages) == 1:
            await ended(house, made)
        return {"type": messages.pop(0)}

    async def send(_message: Any) -> None: ...

    async def serve() -> None:
        app = Working(inner, house.runner(lambda _: stage))
        await app({"type": "lifespan"}, receive, send)

    asyncio.run(serve())
    assert house.jobs.get(made.id).state == "completed"


def test_people_go_before_jobs_and_jobs_come_forward_all_the_same() -> None:
    """Of one model, at a step's cost of one second each: what counts is whose turn it is, not the clock."""
    torch.manual_seed(0)
    tiny = dataclasses.replace(DDPM.presets["tiny"], vocabulary=WORDS)
    model, engine = Moody(tiny).eval(), Engine(max_waiting=1)
    over: list[str] = []
    all_there = threading.Event()

    def deliver(who: str) -> Callable[[Any], None]:
        def took(result: Any) -> None:
            assert isinstance(result, Finished)
            over.append(who)
            if len(over) == 4:
                all_there.set()

        return took

    def asked(steps: int, seed: int) -> Request:
        return Request(seeds=(seed,), prompts=("a red circle",), options={"steps": steps})

    engine.submit(model, asked(40, 0), deliver("job"), behind=True)
    engine.submit(model, asked(40, 1), deliver("job"), behind=True)
    assert engine.waiting == 0  # jobs keep nobody out
    for seed in (2, 3):
        engine.submit(model, asked(10, seed), deliver("person"), ahead=True)
    assert all_there.wait(60)
    engine.close()
    assert over == ["person", "person", "job", "job"]
    assert BEHIND_COSTS > 1
