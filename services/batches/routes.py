"""/v1/batches: create, retrieve, list, cancel. What they are made of and what they make is at /v1/files."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Final, Literal

from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from infra.jobs.idempotency import Conflict
from infra.jobs.jobs import Full, NotFound
from infra.jobs.table import Job
from services.api.answers import listing
from services.api.requests import Strict
from services.api.served import Parts, parts_of, read_order
from services.batches import files, lines
from services.batches.work import KIND, WINDOW_S, Batch, BatchList, Work, shown
from services.gateway.errors import ApiError
from services.gateway.openapi import ANYWHERE, Routes, answers
from services.jobs.idempotency import conflict, key_of
from services.jobs.store import Store

FOUND: Final = (*ANYWHERE, 404)
ONE: Final = "/v1/batches/{batch_id}"
COUNTING: Final = ThreadPoolExecutor(1, thread_name_prefix="counting")
"""Reads files of requests: seconds each, in which all else that waits for a thread would wait."""

routes = Routes()


class BatchOrder(Strict):
    """Requests that are answered some time in the next day."""

    input_file_id: Annotated[str, Field(max_length=60)]
    endpoint: Literal[
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/videos",
        "/v1/meshes",
    ]
    completion_window: Literal["24h"]
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None


@routes.takes("/v1/batches", BatchOrder, Batch, errors=(*FOUND, 415, 422))
async def create(request: Request) -> Response:
    """Answer all requests of a file, some time in the next day."""
    order = await read_order(request, BatchOrder)
    parts, owner, key = parts_of(request), str(request.scope["owner"]), key_of(request)
    try:
        asked = partial(_submitted, parts, owner, order, key)
        job = await asyncio.get_running_loop().run_in_executor(COUNTING, asked)
    except Full as error:
        wait = error.retry_after_s
        raise ApiError(429, str(error), code="queue_full", retry_after_s=wait) from None
    except Conflict as error:
        raise conflict(error) from None
    return await _told(request, job)


def _submitted(parts: Parts, owner: str, order: BatchOrder, key: str | None) -> Job:
    asked = order.model_dump(mode="json")
    earlier = parts.jobs.earlier(KIND, asked, owner=owner, idempotency_key=key)
    if earlier is not None:
        return earlier
    file = files.file_of(parts.jobs, owner, order.input_file_id, "input_file_id")
    rows = files.rows_of(Store(parts.arguments.made), file)
    work = Work(
        endpoint=order.endpoint,
        input_file_id=file.id,
        total=lines.count(rows, order.endpoint),
        metadata=order.metadata,
    )
    until, request = time.time() + WINDOW_S, work.model_dump(mode="json")
    parts.jobs.prolong(file.id, until)  # whoever goes on after a kill reads it again
    return parts.jobs.submit(
        KIND, request, owner=owner, pipeline="", digests={}, seed=0, deadline=until,
        idempotency_key=key, asked=asked,
    )  # fmt: skip


@routes.get("/v1/batches", response_model=None, responses=answers(BatchList, FOUND))
async def listed(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """List the batches of this key, the newest first."""
    last = None if after is None else await _of(request, after)
    parts, owner = parts_of(request), str(request.scope["owner"])
    page = await asyncio.to_thread(parts.jobs.page, owner, KIND, last, limit)
    data = await asyncio.to_thread(shown, parts.jobs, page.jobs)
    return JSONResponse(listing(data, page.has_more))


@routes.get(ONE, response_model=None, responses=answers(Batch, FOUND))
async def retrieve(request: Request, batch_id: str) -> Response:
    """Say how far a batch is."""
    return await _told(request, await _of(request, batch_id))


@routes.post(f"{ONE}/cancel", response_model=None, responses=answers(Batch, FOUND))
async def cancel(request: Request, batch_id: str) -> Response:
    """Send no more of a batch's requests; what is answered already can be fetched."""
    job = await _of(request, batch_id)
    return await _told(request, await asyncio.to_thread(parts_of(request).jobs.cancel, job.id))


async def _of(request: Request, id: str) -> Job:
    try:
        job = await asyncio.to_thread(parts_of(request).jobs.get, id)
    except NotFound:
        raise _unknown(id) from None
    if job.owner != request.scope["owner"] or job.kind != KIND:
        raise _unknown(id)
    return job


def _unknown(id: str) -> ApiError:
    message = f"there is no batch {id[:60]!r} of this key, or not any more"
    return ApiError(404, message, code="batch_not_found", param="batch_id")


async def _told(request: Request, job: Job) -> Response:
    [told] = await asyncio.to_thread(shown, parts_of(request).jobs, [job])
    return JSONResponse(told)
