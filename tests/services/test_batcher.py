"""Whoever works on a batch is stopped, lost, slow or called off: each request is answered once, no answer lost."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from infra.jobs.jobs import MOST_TRIES, Jobs
from infra.jobs.leases import LeaseLost
from services.api import files as api
from services.batches import batcher as batching
from services.batches import lines
from services.batches.batcher import Batcher
from services.batches.work import Work, file_id
from services.jobs.store import Store
from services.pipelines.payload import Embedded, EmbedWork, Refused
from services.routing.endpoints import Endpoints
from tests.infra.jobs_kit import LEASE_S, Clock
from tests.services.batches_kit import (
    CHAT,
    EMBEDDINGS,
    IMAGES,
    VIDEOS,
    answers,
    batch_of,
    idle_client,
    opened,
    requests,
    sent,
    store_of,
    turn,
)
from tests.services.served_kit import listening


@pytest.fixture(scope="module")
def house(own_workshop: Any) -> Iterator[Any]:
    with opened(own_workshop) as house:
        yield house


@pytest.fixture
def idle(house: Any) -> Iterator[OpenAI]:
    with idle_client(house) as client:
        yield client


def test_a_line_that_no_request_may_hold_is_answered_so_and_the_others_are_made(
    house: Any, idle: OpenAI
) -> None:
    jobs, store = house.workshop.jobs, store_of(house)
    odd = [{**turn("a"), "temperature": float("nan")}, turn("\ud800"), turn("a")]
    batch = batch_of(idle, CHAT, *odd)
    asyncio.run(Batcher(jobs, store, house.app._app).work(jobs.claim("one", kind="batch")))
    over = idle.batches.retrieve(batch.id)
    assert (over.status, over.errors) == ("completed", None)
    assert over.output_file_id is not None
    assert over.error_file_id is not None
    assert list(answers(idle, over.output_file_id)) == ["r2"]
    for one in answers(idle, over.error_file_id).values():
        assert one["response"]["status_code"] == 400


def test_a_batch_that_was_taken_before_its_lines_were_refused_goes_on(
    house: Any, idle: OpenAI
) -> None:
    """As at an upgrade: links were refused later, so its row is written as it was then."""
    jobs, body = house.workshop.jobs, {"model": "small", "prompt": "a", "steps": 1}
    file = sent(idle, requests(IMAGES, body, {**body, "response_format": "url"}, body))
    work = Work(endpoint=IMAGES, input_file_id=file.id, total=3)
    owner = jobs.get(file.id).owner
    batch = jobs.submit(
        "batch", work.model_dump(mode="json"), owner=owner, pipeline="", digests={}, seed=0
    )
    asyncio.run(
        Batcher(jobs, store_of(house), house.app._app).work(jobs.claim("one", kind="batch"))
    )
    over = idle.batches.retrieve(batch.id)
    assert (over.status, over.errors) == ("completed", None)
    assert over.output_file_id is not None
    assert list(answers(idle, over.output_file_id)) == ["r0", "r1", "r2"]


def test_clips_of_a_cancelled_or_late_batch_are_cancelled_with_it(house: Any, idle: OpenAI) -> None:
    jobs, store = house.workshop.jobs, store_of(house)
    clip = {"model": "moving", "prompt": "a red circle"}

    async def until_asked(lease: Any, end: str) -> Any:
        working = asyncio.create_task(Batcher(jobs, store, house.app._app).work(lease))
        while len(found := open_clips(lease.job.owner)) < 2:
            await asyncio.sleep(0.01)
        jobs.delete(found[1].id)  # its owner may
        if end == "given up":
            working.cancel()
        elif end == "cancelled":
            jobs.cancel(lease.job.id)
        else:
            lease.job = replace(lease.job, deadline=time.time())
        await asyncio.wait({working})
        return found[0].id

    def open_clips(owner: str) -> Any:
        return [one for one in jobs.page(owner, "video", limit=2).jobs if not one.over]

    for end in ("cancelled", "expired", "given up"):
        batch = batch_of(idle, VIDEOS, clip, clip)
        lease = jobs.claim("one", kind="batch")
        video = asyncio.run(until_asked(lease, end))
        if end == "given up":  # by a gateway that ended; another one is told of the cancel
            assert idle.batches.cancel(batch.id).status == "cancelling"
            asyncio.run(Batcher(jobs, store, house.app._app).work(jobs.claim("two", kind="batch")))
            end = "cancelled"
        assert idle.batches.retrieve(batch.id).status == end
        assert jobs.get(video).state == "cancelled"
    jobs.retry(batch.id)  # makes what was called off
    assert asyncio.run(until_asked(jobs.claim("one", kind="batch"), "cancelled")) != video


def test_a_line_that_is_refused_since_its_batch_is_called_off_stays_unanswered(
    house: Any, idle: OpenAI
) -> None:
    """As where the cancel came while it was sent: a batch that is tried again asks for it anew."""
    jobs, store = house.workshop.jobs, store_of(house)
    batch = batch_of(idle, CHAT, turn("a"))

    async def called_off(scope: Any, receive: Any, send: Any) -> None:
        jobs.cancel(batch.id)
        start = {"type": "http.response.start", "status": 409, "headers": []}
        await send(start)
        await send({"type": "http.response.body", "body": b'{"error": {"code": "batch_over"}}'})

    asyncio.run(Batcher(jobs, store, called_off).work(jobs.claim("one", kind="batch")))
    over = idle.batches.retrieve(batch.id)
    assert (over.status, over.output_file_id, over.error_file_id) == ("cancelled", None, None)
    jobs.retry(batch.id)
    asyncio.run(Batcher(jobs, store, house.app._app).work(jobs.claim("two", kind="batch")))
    done = idle.batches.retrieve(batch.id)
    assert done.output_file_id is not None
    assert list(answers(idle, done.output_file_id)) == ["r0"]


def test_who_goes_on_sends_nothing_again_and_a_cancel_keeps_what_is_there(
    house: Any, idle: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "PART", 1)
    jobs, store = house.workshop.jobs, store_of(house)
    sent_on: list[str] = []

    def app_until(count: int) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if len(sent_on) == count:
                await asyncio.Event().wait()  # for ever, as far as this one knows
            sent_on.append(scope["request_id"])
            await house.app._app(scope, receive, send)

        return app

    async def until(count: int, then: Any) -> None:
        lease = jobs.claim("one", kind="batch")
        working = asyncio.create_task(Batcher(jobs, store, app_until(count)).work(lease))
        while len(jobs.stages(lease.job.id)) < count:
            await asyncio.sleep(0.01)
        then(lease, working)
        await asyncio.wait({working})

    batch = batch_of(idle, CHAT, *(turn(one) for one in "abab"))
    asyncio.run(until(1, lambda _, working: working.cancel()))
    counts = idle.batches.retrieve(batch.id).request_counts
    assert counts is not None
    assert (counts.total, counts.completed) == (4, 1)
    asyncio.run(until(3, lambda lease, _: jobs.cancel(lease.job.id)))
    assert sent_on == [f"{batch.id}-{number}" for number in range(3)]
    over = idle.batches.retrieve(batch.id)
    assert over.status == "cancelled"
    assert over.output_file_id is not None
    assert list(answers(idle, over.output_file_id)) == ["r0", "r1", "r2"]
    jobs.retry(batch.id)
    asyncio.run(Batcher(jobs, store, house.app._app).work(jobs.claim("two", kind="batch")))
    assert list(answers(idle, over.output_file_id)) == ["r0", "r1", "r2", "r3"]
    assert "file" not in {one.kind for one in jobs.page().jobs}
    uploads = [*idle.files.list(purpose="batch")]
    monkeypatch.setattr(api, "MOST", len(uploads) + 1)  # what batches made does not count
    sent(idle, b"{}")
    with pytest.raises(openai.BadRequestError, match="files of this key are kept"):
        sent(idle, b"{}")


def test_what_is_committed_while_its_batch_is_called_off_is_in_its_files(
    house: Any, idle: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it were counted as answered and nowhere to be had."""
    monkeypatch.setattr(batching, "BEAT_S", 0.01)
    jobs, heard = house.workshop.jobs, threading.Event()
    batch = batch_of(idle, CHAT, turn("a"))
    lease = jobs.claim("one", kind="batch")
    beat = lease.beat

    class CalledOff(Store):
        def put(self, job: str, name: str, content: bytes) -> tuple[str, str]:
            jobs.cancel(batch.id)
            assert heard.wait(5)
            return super().put(job, name, content)

    def told(progress: float) -> bool:
        found: bool = beat(progress)
        if found:
            heard.set()
        return found

    lease.beat = told
    store = CalledOff(str(house.workshop.folder / "files" / "jobs"))
    asyncio.run(Batcher(jobs, store, house.app._app).work(lease))
    over = idle.batches.retrieve(batch.id)
    assert over.status == "cancelled"
    assert over.request_counts is not None
    assert over.request_counts.completed == 1
    assert over.output_file_id is not None
    assert list(answers(idle, over.output_file_id)) == ["r0"]


class Slow(Store):
    """A store where something happens `meanwhile`, before a batch's file is written."""

    def __init__(self, house: Any, meanwhile: Callable[[], None]) -> None:
        super().__init__(str(house.workshop.folder / "files" / "jobs"))
        self._meanwhile = meanwhile

    def put_blocks(self, job: str, name: str, blocks: Iterable[bytes]) -> tuple[str, str, int]:
        def written() -> Iterator[bytes]:
            yield from blocks
            if job.startswith("file_"):
                self._meanwhile()

        return super().put_blocks(job, name, written())


def test_a_batch_whose_files_take_long_to_write_is_nobody_else_s(
    house: Any, idle: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "BEAT_S", 0.01)
    batch, others = batch_of(idle, CHAT, turn("a")), list[Any]()
    clock, beats = Clock(), threading.Semaphore(0)
    clock.now = time.time()
    with Jobs(house.workshop.database, clock=clock) as jobs:
        lease: Any = jobs.claim("one", kind="batch")
        beat = lease.beat

        def counted(progress: float) -> bool:
            found: bool = beat(progress)
            beats.release()
            return found

        def meanwhile() -> None:
            for _ in range(3):
                clock.now += 0.6 * LEASE_S
                while beats.acquire(blocking=False):
                    pass
                for _ in range(2):  # one may have begun before
                    others.append(None if beats.acquire(timeout=5) else "no beat")
            others.append(jobs.claim("two", kind="batch"))

        lease.beat = counted
        asyncio.run(Batcher(jobs, Slow(house, meanwhile), house.app._app).work(lease))
    assert others == [None] * 7
    assert idle.batches.retrieve(batch.id).status == "completed"


def test_who_was_taken_for_dead_while_he_wrote_a_batch_s_files_leaves_his_successor_s(
    house: Any, idle: OpenAI
) -> None:
    batch, made = batch_of(idle, CHAT, turn("a")), list[Any]()
    clock = Clock()
    clock.now = time.time()
    with Jobs(house.workshop.database, clock=clock) as jobs:

        def meanwhile() -> None:
            if made:
                return
            made.append(None)
            clock.now += 2 * LEASE_S
            successor = Batcher(jobs, store, house.app._app)
            asyncio.run(successor.work(jobs.claim("two", kind="batch")))  # type: ignore[arg-type]
            made[0] = jobs.get(file_id(batch.id, "output"))
            clock.now += 1

        store = Slow(house, meanwhile)
        with pytest.raises(LeaseLost):
            asyncio.run(Batcher(jobs, store, house.app._app).work(jobs.claim("one", kind="batch")))  # type: ignore[arg-type]
        assert jobs.get(made[0].id) == made[0]
    assert list(answers(idle, made[0].id)) == ["r0"]
    folder = house.workshop.folder / "files" / "jobs" / made[0].id
    assert len(list(folder.iterdir())) == 1


def test_what_was_answered_is_in_the_files_of_a_batch_whose_gateways_were_lost_too_often(
    house: Any, idle: OpenAI
) -> None:
    """As by a request that kills each: nobody sends it again, and what was answered before is not lost with it."""
    batch, store, clock = batch_of(idle, CHAT, turn("a")), store_of(house), Clock()
    clock.now = time.time()
    with Jobs(house.workshop.database, clock=clock) as jobs:
        lease: Any = jobs.claim("one", kind="batch")
        told = lines.answer(
            batch.id, 0, lines.Line(custom_id="r0", url=CHAT, body={}), 200, "x", b"{}"
        )
        digest, uri = store.put(batch.id, "0-1.jsonl", lines.sealed([told]))
        lease.stage_done("from 0: 1 right, 0 wrong", digest, uri)
        for _ in range(MOST_TRIES):
            clock.now += 2 * LEASE_S
            lease = jobs.claim("next", kind="batch")
        asyncio.run(Batcher(jobs, store, scripted()).work(lease))
        assert jobs.claim("next", kind="batch") is None
    over = idle.batches.retrieve(batch.id)
    assert over.status == "failed"
    assert over.errors is not None
    assert over.errors.data is not None
    assert (over.errors.data[0].code, over.output_file_id is not None) == ("lost", True)
    assert list(answers(idle, over.output_file_id or "")) == ["r0"]


@pytest.mark.parametrize(("end", "status"), [("removed", "failed"), ("altered", "validating")])
def test_what_was_answered_stays_where_the_requests_of_a_batch_are_gone(
    house: Any, idle: OpenAI, monkeypatch: pytest.MonkeyPatch, end: str, status: str
) -> None:
    """Also where the server broke, and the batch is tried again: perhaps it breaks until it is given up."""
    monkeypatch.setattr(batching, "PART", 1)
    jobs, store = house.workshop.jobs, store_of(house)
    batch = batch_of(idle, CHAT, turn("a"), turn("b"))

    async def until_one_is_answered() -> None:
        lease = jobs.claim("one", kind="batch")
        asked = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if asked:
                await asyncio.Event().wait()
            asked.append(scope["request_id"])
            await house.app._app(scope, receive, send)

        working = asyncio.create_task(Batcher(jobs, store, app).work(lease))
        while not jobs.stages(batch.id):
            await asyncio.sleep(0.01)
        working.cancel()
        await asyncio.wait({working})

    asyncio.run(until_one_is_answered())
    with pytest.raises(openai.ConflictError, match=f"{batch.id} has requests in it") as caught:
        idle.files.delete(batch.input_file_id)
    assert caught.value.code == "file_in_use"
    if end == "removed":
        jobs.delete(batch.input_file_id)
    else:
        store.put(batch.input_file_id, "content", b"other")
    asyncio.run(Batcher(jobs, store, house.app._app).work(jobs.claim("two", kind="batch")))
    over = idle.batches.retrieve(batch.id)
    assert over.status == status
    if over.errors is not None:
        assert over.errors.data is not None
        assert over.errors.data[0].code == "file_not_found"
    assert over.output_file_id is not None
    assert list(answers(idle, over.output_file_id)) == ["r0"]
    jobs.cancel(batch.id)
    jobs.claim("three", kind="batch")


def scripted(*answers: tuple[int, Any]) -> Any:
    """Return an application that gives these answers, one after the other."""
    left = iter(answers)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        status, body = next(left)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    return app


def test_a_clip_is_waited_for_while_nothing_can_be_told_of_it(
    house: Any, idle: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "LOOK_S", 0.01)
    jobs, clip = house.workshop.jobs, {"id": "video_1", "object": "video"}
    busy = [(status, {"error": {"code": "unavailable"}}) for status in (503, 500, 429, 504)]
    told = [(200, {**clip, "status": status}) for status in ("queued", "in_progress", "completed")]
    app = scripted(told[0], *busy, *told[1:])
    batch = batch_of(idle, VIDEOS, {"model": "moving", "prompt": "a"})
    asyncio.run(Batcher(jobs, store_of(house), app).work(jobs.claim("one", kind="batch")))
    over = idle.batches.retrieve(batch.id)
    assert over.output_file_id is not None
    assert answers(idle, over.output_file_id)["r0"]["response"]["body"] == told[-1][1]


def test_an_answer_that_is_too_large_is_its_line_s_error_alone(
    house: Any, idle: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LARGEST", 3000)
    monkeypatch.setattr(batching, "TOGETHER", 1)
    jobs, app = house.workshop.jobs, scripted((200, {"a": "x" * 3000}), (200, {"a": "x"}))
    batch = batch_of(idle, CHAT, turn("a"), turn("b"))
    asyncio.run(Batcher(jobs, store_of(house), app).work(jobs.claim("one", kind="batch")))
    over = idle.batches.retrieve(batch.id)
    assert over.output_file_id is not None
    assert over.error_file_id is not None
    assert list(answers(idle, over.output_file_id)) == ["r1"]
    response = answers(idle, over.error_file_id)["r0"]["response"]
    assert (response["status_code"], response["body"]["error"]["code"]) == (413, "answer_too_large")


def test_an_answer_is_kept_as_it_came_and_on_one_line() -> None:
    line = lines.Line(custom_id='nu"ll}}\u2028', url=CHAT, body={})
    bodies = [b'{"a": [1e5, 0.10]}', '{"a": "\u2028\u00e9"}'.encode(), b'{\n"a": null}']
    made = [lines.answer("batch_1", 0, line, 200, "id", body) for body in bodies]
    assert bodies[0] in made[0].row
    wrong = lines.answer("batch_1", 1, line, 400, "id", b"{}")
    kept = lines.sealed([*made, wrong])
    rows = lines.unsealed(kept, right=True).decode().splitlines()
    told = [json.loads(row) for row in rows]
    assert [one["response"]["body"] for one in told] == [json.loads(body) for body in bodies]
    assert {one["custom_id"] for one in told} == {line.custom_id}
    assert [one["error"] for one in told] == [None] * 3
    assert json.loads(lines.unsealed(kept, right=False))["id"] == "batch_req_1_1"


def test_a_batch_has_its_window_for_what_people_are_told_is_late(house: Any, idle: OpenAI) -> None:
    app = house.workshop.gateway(house.stage, timeout_s=1e-6)
    jobs, picture = house.workshop.jobs, {"model": "shapes", "prompt": "a", "steps": 1}
    asked = [(CHAT, turn("a")), (EMBEDDINGS, {"model": "reader", "input": "a"}), (IMAGES, picture)]
    with listening(app) as address, httpx.Client(base_url=address) as person:
        for path, body in asked:
            headers = {"authorization": f"Bearer {house.keys[0]}"}
            assert person.post(path, json=body, headers=headers).status_code == 504
    for path, body in asked:
        batch = batch_of(idle, path, body)
        asyncio.run(Batcher(jobs, store_of(house), app._app).work(jobs.claim("one", kind="batch")))
        counts = idle.batches.retrieve(batch.id).request_counts
        assert counts is not None
        assert (counts.completed, counts.failed) == (1, 0), path


def test_embeddings_of_a_batch_are_no_part_of_people_s_queue(house: Any) -> None:
    stage, go = house.workshop.stage(max_waiting=1), threading.Event()
    endpoint = Endpoints(house.workshop.ledger, house.workshop.registry).resolve("reader")
    work = EmbedWork(pin=endpoint.pipeline.stages[0].pin, texts=("a",))

    async def asked() -> None:
        assert isinstance(await stage.embed(work), Embedded)
        began = threading.Event()
        stage._engine.ask(lambda: began.set() or go.wait(60), lambda _: None)
        await asyncio.to_thread(began.wait)
        stage._engine.ask(lambda: "waits", lambda _: None)
        refused = await stage.embed(work)
        assert isinstance(refused, Refused)
        assert refused.kind == "full"
        behind = asyncio.create_task(stage.embed(replace(work, behind=True)))
        await asyncio.wait({behind}, timeout=0.1)
        assert not behind.done()
        go.set()
        assert isinstance(await behind, Embedded)

    asyncio.run(asked())
    stage.close()
