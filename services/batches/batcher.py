"""The batcher: sends the requests of batches to the gateway that it runs in, beside what people ask.

A batch is a job. Its requests are sent some at a time, after all that people wait for; what a part of them was
answered is sealed and committed like a stage, so that whoever goes on after a kill sends only the last part again. A
clip or mesh is asked for under a key that is its line's, so that it is made once, and cancelled where the batch is.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count, islice
from typing import Any, Final

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.database import DatabaseError
from infra.documents import parse_json
from infra.jobs.jobs import Jobs
from infra.jobs.leases import Lease, LeaseLost
from infra.jobs.table import CANCELLED, Error, Job, Output, Result
from infra.ledger.leases import new_holder
from services.batches import files, lines
from services.batches.lines import Answer, Line
from services.batches.work import KIND, Work, file_id, node, parts, work_of
from services.gateway.errors import ApiError
from services.jobs.runner import BROKEN
from services.jobs.store import Store
from services.jobs.working import beaten, ended, lasting

logger = logging.getLogger("ray.serve")

TOGETHER: Final = 8  # requests that are sent at a time
PART: Final = 32  # that are committed together
BEAT_S: Final = 0.2
LOOK_S: Final = 0.5
OVER: Final = "batch_over"  # the code where a batch is called off
LATE: Final = Error("deadline_exceeded", "it was not done by its deadline")
BROKE: Final = Error("internal_error", "the server failed while answering it")
LATER: Final = frozenset({429, 503, 504})  # what is asked again
BUSY: Final = LATER | {500}  # what says nothing of a job that is under way
LONGEST_PAUSE_S: Final = 30.0


class Batcher:
    """Works on the batches of one database, one at a time, as long as it runs."""

    def __init__(self, jobs: Jobs, store: Store, app: ASGIApp) -> None:
        self._jobs, self._store, self._app = jobs, store, app
        self._name = new_holder()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work, in the event loop that runs now."""
        self._task = self._task or asyncio.create_task(lasting(self._working, "the batcher"))

    async def stop(self) -> None:
        """Work no more; what is under way is given back."""
        if self._task is not None:
            await ended(self._task)
            self._task = None

    async def _working(self) -> None:
        while True:
            lease = None
            try:
                lease = await asyncio.to_thread(self._jobs.claim, self._name, kind=KIND)
                if lease is not None:
                    await self.work(lease)
            except LeaseLost as lost:
                logger.warning("a batch is given up: %s", lost)
            except DatabaseError as error:
                logger.warning("batches wait: %s", error)
            if lease is None:
                await asyncio.sleep(LOOK_S)

    async def work(self, lease: Lease) -> None:
        """Send a batch's requests, all that are not answered yet, and write its files."""
        working: asyncio.Task[Any] = asyncio.create_task(self._sent(lease))
        try:
            why = await self._watched(lease, working)
            await ended(working)
            working = asyncio.create_task(asyncio.to_thread(self._gathered, lease))
            while not working.done():
                await beaten(lease, lease.job.progress)
                await asyncio.wait({working}, timeout=BEAT_S)
            await asyncio.to_thread(_end, lease, working.result(), why)
        except (LeaseLost, DatabaseError):
            raise
        except BROKEN as error:
            await asyncio.to_thread(_end, lease, None, _broke(lease, error))
        except asyncio.CancelledError:  # the gateway ends
            with suppress(LeaseLost, DatabaseError):
                await asyncio.to_thread(lease.release)
            raise
        finally:
            await ended(working)

    async def _watched(self, lease: Lease, sending: "asyncio.Task[None]") -> Error | None:
        """Keep the lease while requests are sent; return why no more are to be, None where all were."""
        while not sending.done():
            if await beaten(lease, lease.job.progress):
                return CANCELLED
            if lease.job.deadline is not None and time.time() > lease.job.deadline:
                return LATE
            await asyncio.wait({sending}, timeout=BEAT_S)
        try:
            sending.result()
        except ApiError as error:  # its requests are gone
            return Error(error.code, error.message)
        except DatabaseError:
            raise
        except BROKEN as error:
            return _broke(lease, error)
        return lease.lost

    async def _sent(self, lease: Lease) -> None:
        """Send what is not answered yet, a part after the other; nothing where too many were lost over it."""
        if lease.lost is not None:
            return
        work = work_of(lease.job)
        asked = await asyncio.to_thread(self._asked, lease, work)
        done = parts(await asyncio.to_thread(lease.stages))
        gate = asyncio.Semaphore(TOGETHER)
        transport = httpx.ASGITransport(_As(self._app, lease.job), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for start in count(0, PART):
                part = await asyncio.to_thread(lambda: [*islice(asked, PART)])
                if not part:
                    return
                if start in done:
                    continue
                tasks = [
                    asyncio.create_task(self._one(client, gate, lease, start + place, line))
                    for place, line in enumerate(part)
                ]
                try:
                    answers = await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                sealing = asyncio.create_task(
                    asyncio.to_thread(self._commit, lease, start, answers)
                )
                try:
                    await asyncio.shield(sealing)
                finally:  # before anybody gathers: what counts as answered is in the batch's files
                    await asyncio.wait({sealing})

    def _asked(self, lease: Lease, work: Work) -> Iterator[Line]:
        file = files.file_of(self._jobs, lease.job.owner, work.input_file_id, "input_file_id")
        return (line for _, line in lines.read(files.rows_of(self._store, file)))

    async def _one(
        self,
        client: httpx.AsyncClient,
        gate: asyncio.Semaphore,
        lease: Lease,
        number: int,
        line: Line,
    ) -> Answer:
        """Return what one request is answered with, when there is room for it."""
        batch = lease.job.id
        headers = {"idempotency-key": f"{batch}/{number}", "content-type": "application/json"}
        sent = json.dumps(line.body)  # as it came: what no request may hold is refused there
        async with gate:
            told = await client.post(line.url, content=sent, headers=headers, timeout=None)
            while told.status_code in LATER:
                pause = float(told.headers.get("retry-after", 1))
                await asyncio.sleep(min(pause, LONGEST_PAUSE_S))
                told = await client.post(line.url, content=sent, headers=headers, timeout=None)
            if told.status_code == 409 and _body(told)["error"]["code"] == OVER:
                # called off: the next beat ends this, and the line stays unanswered
                await asyncio.Future()
            if told.status_code == 200 and line.url in lines.JOBS:
                told = await _over(client, line.url, told)
        identity = f"{batch}-{number}"
        return lines.answer(batch, number, line, told.status_code, identity, told.content)

    def _commit(self, lease: Lease, start: int, answers: Sequence[Answer]) -> None:
        """Seal what a part was answered with."""
        right = sum(one.right for one in answers)
        name = node(start, right, len(answers) - right)
        name_of_file = f"{start}-{lease.fence}.jsonl"
        digest, uri = self._store.put(lease.job.id, name_of_file, lines.sealed(answers))
        try:
            lease.stage_done(name, digest, uri)
        except LeaseLost:
            self._store.remove(uri)
            raise

    def _gathered(self, lease: Lease) -> Result | None:
        """Write the files of what was answered; return what is in the first of them, None where nothing was."""
        sealed = lease.stages()
        counts = parts(sealed)
        ordered = [sealed[node(start, *counts[start])] for start in sorted(counts)]
        kept: list[Job] = []
        for right, which in ((True, "output"), (False, "errors")):
            if sum(one[not right] for one in counts.values()):
                id = file_id(lease.job.id, "output" if right else "errors")
                kept.append(files.keep(
                    self._jobs, self._store, self._rows(ordered, right), id=id, owner=lease.job.owner,
                    name=f"{lease.job.id}_{which}.jsonl", purpose="batch_output", lease=lease,
                ))  # fmt: skip
        return kept[0].result if kept else None

    def _rows(self, sealed: Sequence[Output], right: bool) -> Iterator[bytes]:
        """Yield the lines of what went right, or wrong, a part at a time."""
        for output in sealed:
            yield lines.unsealed(self._store.get(output.uri, output.digest), right)


async def _over(client: httpx.AsyncClient, url: str, told: httpx.Response) -> httpx.Response:
    """Wait until a job that is asked for is over; return what is told of it then."""
    place = f"{url}/{_body(told)['id']}"
    while told.status_code in BUSY or _body(told).get("status") in {"queued", "in_progress"}:
        await asyncio.sleep(LOOK_S)
        told = await client.get(place)
    return told


def _body(told: httpx.Response) -> dict[str, Any]:
    return dict(parse_json(told.content, "an answer"))


def _broke(lease: Lease, error: BaseException) -> Error:
    logger.error("batch %s failed", lease.job.id, exc_info=error)
    return BROKE


def _end(lease: Lease, result: Result | None, why: Error | None) -> None:
    """End a batch whose files are written, or its attempt where the server broke."""
    if why == CANCELLED:
        lease.cancelled()
    elif why is not None:
        lease.fail(why.code, why.message, why == BROKE)
    else:
        assert result is not None  # a batch has a request at least
        lease.finish(result)


class _As:
    """The gateway behind its door, as a batch's owner who came in: its requests wait for everybody else's."""

    def __init__(self, app: ASGIApp, batch: Job) -> None:
        self._app, self._batch = app, batch
        left_s = math.inf if batch.deadline is None else batch.deadline - time.time()
        self._until = time.monotonic() + left_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a request on."""
        headers = dict(scope["headers"])
        identity = headers.get(b"idempotency-key", b"").decode().replace("/", "-")
        of = {"owner": self._batch.owner, "batch": self._batch.id, "request_id": identity}
        await self._app({**scope, **of, "house": False, "behind": self._until}, receive, send)
