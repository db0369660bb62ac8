"""/v1/videos: ask for a clip, see how far it is, fetch it, forget it; remixes, edits and extensions."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from infra.jobs.jobs import NotFound
from infra.jobs.table import Job
from services.api.edits import FORM, read_form
from services.api.served import Body, parts_of, read_order
from services.gateway.openapi import ANYWHERE, OF_MODELS, STREAM, Routes, answers
from services.routing.request_session import event, of_a_batch
from services.videos import content
from services.videos.answers import Video, VideoDeleted, VideoList, ending, shown
from services.videos.asking import again, ask, job_of, owner_of
from services.videos.requests import VideoEditOrder, VideoExtensionOrder, VideoOrder, VideoRemix
from services.videos.work import KIND

POLL_MS: Final = 500  # after which a client may ask again
LOOK_S: Final = 0.2  # how often the database is asked meanwhile
LONGEST_WAIT_S: Final = 60
PING_S: Final = 15.0
LARGEST: Final = 16 * 2**20  # bytes of a clip that is sent
WAIT: Final = re.compile(r"wait=([0-9]{1,4})")
JSON: Final = "application/json"
MADE: Final = (*OF_MODELS, 409, 410, 422)
FOUND: Final = (*ANYWHERE, 404)
BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
FILES: Final = dict.fromkeys(("video/mp4", "image/gif", "image/webp", "image/jpeg"), BINARY)

routes = Routes()


@routes.takes("/v1/videos", VideoOrder, Video, None, FORM, JSON, errors=MADE)
async def create(request: Request) -> Response:
    """Ask for a clip."""
    order, files = await _read(request, VideoOrder, "input_reference")
    return await _asked(request, await ask(request, order, files))


@routes.takes("/v1/videos/edits", VideoEditOrder, Video, None, FORM, JSON, errors=MADE)
async def edit(request: Request) -> Response:
    """Ask for a clip that is made from another one."""
    order, files = await _read(request, VideoEditOrder, "video")
    return await _asked(request, await ask(request, order, files, "alter"))


@routes.takes("/v1/videos/extensions", VideoExtensionOrder, Video, None, FORM, JSON, errors=MADE)
async def extend(request: Request) -> Response:
    """Ask for a clip that goes on from another one."""
    order, files = await _read(request, VideoExtensionOrder, "video")
    return await _asked(request, await ask(request, order, files, "extend"))


@routes.takes("/v1/videos/{video_id}/remix", VideoRemix, Video, None, FORM, JSON, errors=MADE)
async def remix(request: Request, video_id: str) -> Response:
    """Ask for a clip again, of another prompt."""
    order, _ = await _read(request, VideoRemix, "")
    return await _asked(
        request, await again(request, await job_of(request, video_id), order.prompt)
    )


@routes.get("/v1/videos", response_model=None, responses=answers(VideoList, [*FOUND]))
async def listed(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """List the clips of this key, the newest first unless asked otherwise."""
    if after is not None:
        await job_of(request, after)
    page = await asyncio.to_thread(
        parts_of(request).jobs.page, owner_of(request), KIND, after, limit, order
    )
    data = [shown(job) for job in page.jobs]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    body = {"first_id": None, "last_id": None, **ends, "has_more": page.has_more}
    return JSONResponse({"object": "list", "data": data, **body})


@routes.get("/v1/videos/{video_id}", response_model=None, responses=answers(Video, [*FOUND]))
async def retrieve(request: Request, video_id: str) -> Response:
    """Say how far a clip is."""
    return await _told(request, await job_of(request, video_id))


@routes.delete(
    "/v1/videos/{video_id}", response_model=None, responses=answers(VideoDeleted, [*FOUND])
)
async def delete(request: Request, video_id: str) -> Response:
    """Forget a clip; one that is being made is cancelled at its next step."""
    job = await job_of(request, video_id)
    with suppress(NotFound):  # somebody was faster: gone is gone
        await asyncio.to_thread(parts_of(request).jobs.delete, job.id)
    return JSONResponse({"id": job.id, "object": "video.deleted", "deleted": True})


@routes.get(
    "/v1/videos/{video_id}/content",
    response_class=Response,
    response_model=None,
    responses=answers(None, [*FOUND, 409, 410, 416], FILES),
)
async def download(request: Request, video_id: str, variant: content.Variant = "video") -> Response:
    """Return a clip, a picture of it or a sheet of its frames."""
    return await content.content(request, await job_of(request, video_id), variant)


@routes.get(
    "/v1/videos/{video_id}/events",
    response_class=Response,
    response_model=None,
    responses=answers(None, [*FOUND], STREAM),
)
async def events(request: Request, video_id: str) -> Response:
    """Tell how far a clip is as it goes on: server-sent events until it is completed or failed."""
    job = await job_of(request, video_id)
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    lines = _events(request, job)
    return StreamingResponse(lines, media_type="text/event-stream", headers=headers)


async def _read(request: Request, kind: type[Body], file: str) -> tuple[Body, dict[str, bytes]]:
    """Return the body, a form or JSON, and its file."""
    if request.headers.get("content-type", "").lower().startswith(FORM):
        return await read_form(request, kind, {file: False} if file else {}, LARGEST)
    return await read_order(request, kind), {}


async def _asked(request: Request, job: Job) -> Response:
    """Return a job that was just written down; with `Prefer: wait=N` once it is over or N seconds have passed."""
    found = WAIT.search(request.headers.get("prefer", ""))
    if found is None:
        return await _told(request, job)
    until = time.monotonic() + min(int(found[1]), LONGEST_WAIT_S)
    while not job.over and time.monotonic() < until:
        await asyncio.sleep(LOOK_S)
        job = await job_of(request, job.id)
    answer = await _told(request, job)
    answer.headers["preference-applied"] = f"wait={min(int(found[1]), LONGEST_WAIT_S)}"
    return answer


async def _told(request: Request, job: Job) -> Response:
    headers = {} if job.over else {"openai-poll-after-ms": str(POLL_MS)}
    return JSONResponse(await _whole(request, job), headers=headers)


async def _whole(request: Request, job: Job) -> dict[str, Any]:
    """Return a job with its finished stages, and where its file can be had without a key."""
    parts = parts_of(request)
    stages = await asyncio.to_thread(parts.jobs.stages, job.id)
    body = {**shown(job), "stages": list(stages)}
    if job.result is not None and not of_a_batch(request):  # a link opens for an hour alone
        address = parts.arguments.public_url or str(request.base_url).rstrip("/")
        body["url"] = f"{address}{parts.files.link(f'{job.id}.{ending(job)}')}"
    return body


async def _events(request: Request, job: Job) -> AsyncIterator[bytes]:
    before: dict[str, Any] = {}
    silent_since = time.monotonic()
    while True:
        body = await _whole(request, job)
        news = {name: body[name] for name in ("status", "progress", "stages")}
        if news != before:
            kind = body["status"] if job.over else "progress"
            yield event({"type": f"video.{kind}", **body}, f"video.{kind}")
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
            gone = {"type": "video.deleted", "id": job.id}
            yield event(gone, "video.deleted")
            return
