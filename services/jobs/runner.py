"""The runner: claims jobs and makes them, a task in every gateway's process, beside the requests that it answers.

There the executor is that answers pictures: of the fused layout with the stages in the same process, of the staged one
with their handles. So two gateways are two runners, and where a gateway is lost another claims what it had.

A job's stages are sealed and committed one by one; who claims it next goes on behind them. While it is made its lease
is renewed, and a cancel or a deadline is looked for, ten times a second: the task is then cancelled, as a request is
whose client has gone, and its rows leave the engine at the next step boundary. What goes wrong ends the attempt, never
the runner.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from infra.database import DatabaseError
from infra.jobs.ids import made_at
from infra.jobs.jobs import Jobs
from infra.jobs.leases import Lease, LeaseLost
from infra.jobs.table import BATCH, Job, Output, Result
from infra.ledger.leases import new_holder
from infra.pipelines import Pipeline
from services.gateway.errors import ApiError
from services.jobs.outputs import Outputs
from services.jobs.progress import Progress
from services.jobs.store import Store
from services.jobs.working import beaten, ended, lasting
from services.pipelines.executor import Executor
from services.pipelines.payload import GenerationSpec
from services.pipelines.request import Complete
from services.routing.endpoints import Endpoint, Endpoints

logger = logging.getLogger("ray.serve")

AT_ONCE: Final = 2  # jobs of one runner: while one is encoded or moved, another has the engine
LOOK_S: Final = 0.2  # between two looks for a job
BEAT_S: Final = 0.1  # between two looks for a cancel
SWEEP_S: Final = 30.0
STRAY_S: Final = 3600.0  # after which a folder without a job is nobody's; and between two looks
BROKEN: Final = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, AssertionError, OSError, EOFError, MemoryError),
)


@dataclass(frozen=True, slots=True)
class File:
    """What a job's result is, as it is kept and answered."""

    content: bytes
    media_type: str
    ending: str  # of its name: "mp4"


@dataclass(frozen=True, slots=True)
class Kind:
    """How jobs of one kind are made: what is drawn, and the file that comes of it.

    `spec` may raise ApiError (400) for what cannot be drawn. Both run in a thread.
    """

    spec: Callable[[Job, Pipeline], GenerationSpec]
    file: Callable[[Job, Endpoint, Complete], File]


class Runner:
    """Works on the jobs of one database, as long as it runs."""

    def __init__(
        self,
        jobs: Jobs,
        store: Store,
        endpoints: Endpoints,
        executor: Executor,
        kinds: Mapping[str, Kind],
    ) -> None:
        self._jobs, self._store = jobs, store
        self._endpoints, self._executor = endpoints, executor
        self._kinds = kinds
        self._name = new_holder()
        self._strayed: float | None = None  # when it last looked for what no job has
        self._free = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to work, in the event loop that runs now."""
        if not self._tasks:
            self._spawn(lasting(self._claiming, "claiming jobs"))
            self._spawn(lasting(self._sweeping, "sweeping jobs"))

    async def stop(self) -> None:
        """Work no more; what is under way is given back."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _claiming(self) -> None:
        while True:
            await self._free.acquire()
            lease = None
            try:
                lease = await asyncio.to_thread(self._jobs.claim, self._name, but=BATCH)
            except DatabaseError as error:
                logger.warning("no job can be claimed: %s", error)
            finally:
                if lease is None:
                    self._free.release()
            if lease is None:
                await asyncio.sleep(LOOK_S)
            else:
                self._spawn(self._worked(lease))

    async def _sweeping(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.sweep)
            except (DatabaseError, OSError) as error:
                logger.warning("jobs are not swept: %s", error)
            await asyncio.sleep(SWEEP_S)

    def sweep(self) -> None:
        """End and expire what is due, and remove the files that nobody can ask for any more."""
        self._jobs.sweep()
        for id in self._jobs.leftovers():
            if self._emptied(id):
                self._jobs.cleared(id)
        if self._strayed is None or time.monotonic() - self._strayed > STRAY_S:
            self._strayed = time.monotonic()
            self._clear_strays()

    def _clear_strays(self) -> None:
        """Remove what was kept for jobs that nobody wrote down after all: the gateway was killed in between."""
        made = {id: made_at(id) for id in self._store.jobs()}
        old = [id for id, at in made.items() if at is not None and at < time.time() - STRAY_S]
        for id in self._jobs.unknown(old):
            self._emptied(id)

    def _emptied(self, id: str) -> bool:
        """Remove a job's files; where one stays, say so, and keep nobody else's."""
        try:
            self._store.clear(id)
        except OSError as error:
            logger.warning("files of %s cannot be removed: %s", id, error)
            return False
        return True

    async def _worked(self, lease: Lease) -> None:
        try:
            await self.work(lease)
        finally:
            self._free.release()

    async def work(self, lease: Lease) -> None:
        """Make one job, or end its attempt by what went wrong."""
        progress = Progress()
        making = asyncio.create_task(self._made(lease, progress))
        try:
            await self._settle(lease, making, await self._watched(lease, making, progress))
        except LeaseLost as lost:
            logger.warning("a job is given up: %s", lost)
        except DatabaseError as error:
            logger.warning("job %s is left to its lease: %s", lease.job.id, error)
        except asyncio.CancelledError:  # the gateway ends
            await ended(making)
            with suppress(LeaseLost, DatabaseError):
                await asyncio.to_thread(lease.release)
            raise
        finally:
            await ended(making)

    async def _watched(
        self, lease: Lease, making: "asyncio.Task[Result]", progress: Progress
    ) -> str | None:
        """Keep the lease while a job is made; return why it is not to be made any more, None where it was."""
        deadline = lease.job.deadline
        while not making.done():
            await asyncio.wait({making}, timeout=BEAT_S)
            if making.done():
                break
            if await beaten(lease, progress.percent):
                return "cancelled"
            if deadline is not None and time.time() > deadline:
                return "deadline_exceeded"
        return None

    async def _settle(self, lease: Lease, making: "asyncio.Task[Result]", why: str | None) -> None:
        """Write down how an attempt ended."""
        if why is not None:
            await ended(making)
        if why == "cancelled":
            await asyncio.to_thread(lease.cancelled)
            return
        try:
            if why == "deadline_exceeded":
                raise ApiError(504, "it was not done by its deadline", code=why, retry=False)
            await asyncio.to_thread(self._finish, lease, making.result())
        except ApiError as error:
            await asyncio.to_thread(_fail, lease, error)
        except MemoryError:
            message = "the gateway ran out of memory"
            await asyncio.to_thread(lease.fail, "out_of_memory", message, True)
        except (LeaseLost, DatabaseError):
            raise
        except BROKEN as error:
            logger.error("job %s failed", lease.job.id, exc_info=error)
            message = "the server failed while making it"
            await asyncio.to_thread(lease.fail, "internal_error", message, True)

    async def _made(self, lease: Lease, progress: Progress) -> Result:
        """Return a job's result; stages that are finished are not made again."""
        job = lease.job
        kind = self._kinds.get(job.kind)
        if kind is None:
            raise ApiError(400, f"nobody here makes jobs of kind {job.kind!r}", code="unknown_kind")
        digest = job.digests[job.pipeline]
        endpoint = await asyncio.to_thread(self._endpoints.pinned, job.pipeline, digest)
        spec = await asyncio.to_thread(kind.spec, job, endpoint.pipeline)
        made, costs = await asyncio.to_thread(self._known, lease)
        progress.plan(list(endpoint.pipeline.entrances[spec.entrance].nodes), costs)
        outputs = Outputs(lease, self._store, made, progress)
        complete = await self._executor.draw(
            endpoint.pipeline, replace(spec, behind=True), kept=outputs
        )
        file = await asyncio.to_thread(kind.file, job, endpoint, complete)
        name = f"result-{lease.fence}.{file.ending}"
        digest, uri = await asyncio.to_thread(self._store.put, job.id, name, file.content)
        return Result(digest, uri, file.media_type, len(file.content))

    def _known(self, lease: Lease) -> tuple[dict[str, Output], dict[str, float]]:
        return lease.stages(), self._jobs.costs(lease.job.pipeline)

    def _finish(self, lease: Lease, result: Result) -> None:
        """Complete a job; what led there is of no use any more."""
        try:
            lease.finish(result)
        except LeaseLost:
            self._store.remove(result.uri)
            raise
        try:
            for output in lease.stages().values():
                self._store.remove(output.uri)
        except OSError as error:  # they go when the job expires
            logger.warning("outputs of %s stay: %s", lease.job.id, error)


def _fail(lease: Lease, error: ApiError) -> None:
    """End an attempt by what a client would be told: a full queue only puts it off, what is wrong stays so."""
    if error.status == 429:
        lease.release(after_s=float(error.headers.get("retry-after", LOOK_S)))
        return
    lease.fail(error.code, error.message, error.status >= 500 and error.status != 504)
