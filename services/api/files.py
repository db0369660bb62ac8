"""/v1/files: what is uploaded for batches, and what they make; and what a signed link opens, from any replica.

A link's name is that of a picture that was answered by url, or of what came of a job.
"""

import asyncio
import re
import time
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict

from infra.jobs.idempotency import Conflict
from infra.jobs.ids import new_id
from infra.jobs.jobs import JobError, NotFound
from infra.jobs.table import FILE
from services.api.answers import listing
from services.api.edits import FORM, form_of
from services.api.requests import Strict
from services.api.served import parts_of
from services.batches import files
from services.batches.files import JSONL, LARGEST, MOST, FileDeleted, FileList, FileObject
from services.gateway.errors import invalid
from services.gateway.openapi import ANYWHERE, BINARY, Routes, answers
from services.jobs.content import ENDINGS, content
from services.jobs.idempotency import conflict, key_of
from services.jobs.store import Store
from services.media.result_store import gone

OF_A_JOB: Final = re.compile(rf"([a-z]+_[0-9A-Z]{{26}})\.({'|'.join(ENDINGS.values())})")
BLOCK: Final = 2**20  # bytes that are kept at a time
KINDS: Final = ("image/png", *ENDINGS)

routes = Routes()


FOUND: Final = (*ANYWHERE, 404)


def _with_file(schema: dict[str, Any]) -> None:
    schema["properties"] |= {"file": BINARY["schema"]}
    schema["required"] = [*schema.get("required", ()), "file"]


class FileOrder(Strict):
    """A file of requests, one a line."""

    model_config = ConfigDict(json_schema_extra=_with_file)

    purpose: Literal["batch"]


@routes.takes("/v1/files", FileOrder, FileObject, None, FORM, errors=(*ANYWHERE, 415, 422))
async def upload(request: Request) -> Response:
    """Keep a file for thirty days, for batches."""
    parts, owner, key = parts_of(request), str(request.scope["owner"]), key_of(request)
    async with form_of(request, FileOrder, {"file": True}, LARGEST) as (_, sent):
        name = str(sent["file"].filename or "batch.jsonl")[:200]
        blocks = iter(partial(sent["file"].file.read, BLOCK), b"")
        try:
            kept = await asyncio.to_thread(
                files.keep, parts.jobs, Store(parts.arguments.made), blocks,
                id=new_id(FILE, time.time()), owner=owner, name=name, purpose="batch", most=MOST,
                idempotency_key=key,
            )  # fmt: skip
        except JobError as error:
            raise invalid(f"file: {error}", "file") from None
        except Conflict as error:
            raise conflict(error) from None
    return JSONResponse(files.shown(kept))


@routes.get("/v1/files", response_model=None, responses=answers(FileList, FOUND))
async def listed(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> Response:
    """List the files of this key that are kept, the newest first unless asked otherwise."""
    parts, owner = parts_of(request), str(request.scope["owner"])
    last = None
    if after is not None:
        last = await asyncio.to_thread(files.file_of, parts.jobs, owner, after, "after")
    found = await asyncio.to_thread(
        files.page, parts.jobs, owner, last, limit, order, purpose=purpose
    )
    return JSONResponse(listing(*found))


@routes.get(
    "/v1/files/{name}/content",
    response_class=Response,
    response_model=None,
    responses=answers(None, [*FOUND, 410, 416], {JSONL: BINARY}),
)
async def download(request: Request, name: str) -> Response:
    """Return what is in a file of this key, by whole or by range."""
    parts, owner = parts_of(request), str(request.scope["owner"])
    return await content(request, await asyncio.to_thread(files.file_of, parts.jobs, owner, name))


@routes.delete(
    "/v1/files/{name}", response_model=None, responses=answers(FileDeleted, [*FOUND, 409])
)
async def delete(request: Request, name: str) -> Response:
    """Remove a file of this key, unless a batch that is not over has its requests there."""
    parts, owner = parts_of(request), str(request.scope["owner"])
    job = await asyncio.to_thread(files.file_of, parts.jobs, owner, name)
    await asyncio.to_thread(files.remove, parts.jobs, job)
    return JSONResponse({"id": job.id, "object": "file", "deleted": True})


@routes.get(
    "/v1/files/{name}",
    response_class=Response,
    response_model=None,
    responses=answers(
        FileObject, [*ANYWHERE, 403, 404, 409, 410, 416], dict.fromkeys(KINDS, BINARY)
    ),
)
async def file(request: Request, name: str, expires: str = "", signature: str = "") -> Response:
    """Say what a file of this key is; or return what a link opens, for an hour and without a key."""
    parts = parts_of(request)
    if name.startswith(f"{FILE}_") and not signature:
        owner = str(request.scope["owner"])
        return JSONResponse(
            files.shown(await asyncio.to_thread(files.file_of, parts.jobs, owner, name))
        )
    left_s = parts.files.check(name, expires, signature)
    if (found := OF_A_JOB.fullmatch(name)) is not None:
        try:
            job = await asyncio.to_thread(parts.jobs.get, found[1])
        except NotFound:
            raise gone() from None
        return await content(request, job)
    png = await asyncio.to_thread(parts.files.read, name)
    headers = {"cache-control": f"private, max-age={left_s}, immutable"}
    return Response(png, media_type="image/png", headers=headers)
