"""Jobs of one kind over HTTP: found by their owner, listed, awaited, watched and forgotten, whatever they make."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from infra.jobs.jobs import NotFound
from infra.jobs.table import CANCELLED, Job
from services.api.answers import Body, listing
from services.api.served import parts_of
from services.gateway.errors import ApiError
from services.gateway.openapi import ANYWHERE, OF_MODELS, STREAM, Routes, answers
from services.jobs.asking import owner_of
from services.jobs.content import ENDINGS
from services.jobs.work import Work
from services.routing.request_session import event, of_a_batch

POLL_MS: Final = 500  # after which a client may ask again
LOOK_S: Final = 0.2  # how often the database is asked meanwhile
LONGEST_WAIT_S: Final = 60
PING_S: Final = 15.0
WAIT: Final = re.compile(r"wait=([0-9]{1,4})")
MADE: Final = (*OF_MODELS, 409, 410, 422)
FOUND: Final = (*ANYWHERE, 404)


class JobFailure(Body):
    """Why nothing came of a job."""

    code: str
    message: str


class Shown(Body):
    """How far a job is."""

    id: str
    model: str
    version: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str
    seed: int
    error: JobFailure | None
    stages: list[str] | None = None  # those that are finished
    url: str | None = None  # opens for an hour, without a key


class ShownList(Body):
    """A part of the jobs of one key."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(Body):
    """That what a job made is gone, and is not made any more."""

    id: str
    deleted: bool


def shown(job: Job, work: Work) -> dict[str, Any]:
    """Return what clients are told of every job: cancelled is failed to them, and what expired was completed."""
    status = {"cancelled": "failed", "expired": "failed" if job.error else "completed"}
    error = CANCELLED if job.state == "cancelled" else job.error
    return {
        "id": job.id,
        "object": job.kind,
        "model": work.model,
        "version": work.version,
        "status": status.get(job.state, job.state),
        "progress": int(job.progress),
        "created_at": int(job.created),
        "completed_at": int(job.ended) if job.ended and error is None else None,
        "expires_at": int(job.expires) if job.expires else None,
        "prompt": work.prompt,
        "seed": job.seed,
        "error": None if error is None else {"code": error.code, "message": error.message},
    }


@dataclass(frozen=True, slots=True)
class Resource:
    """The jobs of one kind: its name begins their ids, errors and events; `shown` is what is told of one."""

    kind: str  # "video"
    path: str  # "/v1/videos"
    shown: Callable[[Job], dict[str, Any]]

    async def job_of(self, request: Request, id: str) -> Job:
        """Return a job of whoever asks.

        Raises:
            ApiError: 404, there is none, or it is another key's.
        """
        try:
            job = await asyncio.to_thread(parts_of(request).jobs.get, id)
        except NotFound:
            raise self._unknown(id) from None
        if job.owner != owner_of(request) or job.kind != self.kind:
            raise self._unknown(id)
        return job

    def _unknown(self, id: str) -> ApiError:
        shown = id if len(id) <= 60 else f"{id[:60]}..."
        message = (
            f"there is no {self.kind} {shown!r} of this key, or not any more;"
            f" GET {self.path} lists them"
        )
        return ApiError(404, message, code=f"{self.kind}_not_found", param=f"{self.kind}_id")

    async def asked(self, request: Request, job: Job) -> Response:
        """Return a job that was just written down; with `Prefer: wait=N` once it is over or N seconds have passed."""
        found = WAIT.search(request.headers.get("prefer", ""))
        if found is None:
            return await self.told(request, job)
        wait_s = min(int(found[1]), LONGEST_WAIT_S)
        until = time.monotonic() + wait_s
        while not job.over and time.monotonic() < until:
            await asyncio.sleep(LOOK_S)
            job = await self.job_of(request, job.id)
        answer = await self.told(request, job)
        answer.headers["preference-applied"] = f"wait={wait_s}"
        return answer

    async def told(self, request: Request, job: Job) -> Response:
        """Return how far a job is."""
        headers = {} if job.over else {"openai-poll-after-ms": str(POLL_MS)}
        return JSONResponse(await self._whole(request, job), headers=headers)

    async def _whole(self, request: Request, job: Job) -> dict[str, Any]:
        """Return a job with its finished stages, and where its file can be had without a key."""
        parts = parts_of(request)
        stages = await asyncio.to_thread(parts.jobs.stages, job.id)
        body = {**self.shown(job), "stages": list(stages)}
        if job.result is not None and not of_a_batch(request):  # a link opens for an hour alone
            address = parts.arguments.public_url or str(request.base_url).rstrip("/")
            ending = ENDINGS[job.result.media_type.partition(";")[0]]
            body["url"] = f"{address}{parts.files.link(f'{job.id}.{ending}')}"
        return body

    async def _events(self, request: Request, job: Job) -> AsyncIterator[bytes]:
        before: dict[str, Any] = {}
        silent_since = time.monotonic()
        while True:
            body = await self._whole(request, job)
            news = {name: body[name] for name in ("status", "progress", "stages")}
            if news != before:
                kind = body["status"] if job.over else "progress"
                yield event({"type": f"{self.kind}.{kind}", **body}, f"{self.kind}.{kind}")
                before, silent_since = news, time.monotonic()
            elif time.monotonic() - silent_since > PING_S:
                yield b": ping\n\n"
                silent_since = time.monotonic()
            if job.over:
                return
            await asyncio.sleep(LOOK_S)
            try:
                job = await asyncio.to_thread(parts_of(request).jobs.get, job.id)
            except NotFound:
                gone = {"type": f"{self.kind}.deleted", "id": job.id}
                yield event(gone, f"{self.kind}.deleted")
                return

    def answer(
        self, routes: Routes, one: type[Shown], many: type[ShownList], gone: type[Deleted]
    ) -> None:
        """Answer who lists these jobs, looks at one, watches it or forgets it."""

        @routes.get(self.path, response_model=None, responses=answers(many, FOUND))
        async def listed(
            request: Request,
            after: str | None = None,
            limit: Annotated[int, Query(ge=0, le=100)] = 20,
            order: Literal["asc", "desc"] = "desc",
        ) -> Response:
            """List the jobs of this key, the newest first unless asked otherwise."""
            last = None if after is None else await self.job_of(request, after)
            page = await asyncio.to_thread(
                parts_of(request).jobs.page, owner_of(request), self.kind, last, limit, order
            )
            return JSONResponse(listing([self.shown(job) for job in page.jobs], page.has_more))

        self._answer_of_one(routes, one, gone)

    def _answer_of_one(self, routes: Routes, one: type[Shown], gone: type[Deleted]) -> None:
        place = f"{self.path}/{{{self.kind}_id}}"
        Id = Annotated[str, Path(alias=f"{self.kind}_id")]

        @routes.get(place, response_model=None, responses=answers(one, FOUND))
        async def retrieve(request: Request, id: Id) -> Response:
            """Say how far a job is."""
            return await self.told(request, await self.job_of(request, id))

        @routes.delete(place, response_model=None, responses=answers(gone, FOUND))
        async def delete(request: Request, id: Id) -> Response:
            """Forget a job; one that is being made is cancelled at its next step."""
            job = await self.job_of(request, id)
            with suppress(NotFound):  # somebody was faster: gone is gone
                await asyncio.to_thread(parts_of(request).jobs.delete, job.id)
            return JSONResponse({"id": job.id, "object": f"{self.kind}.deleted", "deleted": True})

        @routes.get(
            f"{place}/events",
            response_class=Response,
            response_model=None,
            responses=answers(None, FOUND, STREAM),
        )
        async def events(request: Request, id: Id) -> Response:
            """Tell how far a job is as it goes on: server-sent events until it is completed or failed."""
            job = await self.job_of(request, id)
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            lines = self._events(request, job)
            return StreamingResponse(lines, media_type="text/event-stream", headers=headers)
