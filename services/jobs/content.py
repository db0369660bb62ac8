"""What came of a job, as bytes: whole, or a range of it (RFC 9110, section 14), or what is made of it."""

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import IO, Final, Protocol

import fsspec
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from infra.jobs.table import Job, Result
from services.gateway.errors import ApiError

ENDINGS: Final = {
    "video/mp4": "mp4",
    "image/gif": "gif",
    "image/webp": "webp",
    "model/gltf-binary": "glb",
    "model/obj": "obj",
}
"""What names end with, by the type of what jobs make."""
BLOCK: Final = 2**18
RANGE: Final = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")


class Made(Protocol):
    """A finished file, of whatever kind."""

    @property
    def content(self) -> bytes:
        """Its bytes."""
        ...

    @property
    def media_type(self) -> str:
        """What they are."""
        ...


def result_of(job: Job) -> Result:
    """Return where what a completed job made is.

    Raises:
        ApiError: 409, there is nothing yet, or never will be; 410, it was kept for its time.
    """
    if job.state == "expired" and job.error is None:
        raise _gone(job)
    if job.result is None:
        state = "failed" if job.state in {"cancelled", "expired"} else job.state
        message = f"{job.id} is {state}, not completed: there is no file to be had"
        raise ApiError(409, message, code=f"{job.kind}_not_completed", retry=False)
    return job.result


async def content(request: Request, job: Job) -> Response:
    """Return what a job made, whole or a range of it.

    Raises:
        ApiError: as `result_of`; 410, its file is not there any more; 416, there are no such bytes.
    """
    result = result_of(job)
    common = {**_headers(result.digest), "accept-ranges": "bytes"}
    if (unchanged := _unchanged(request, common)) is not None:
        return unchanged
    span, headers = _ranged(request, result, common)
    try:
        file = await asyncio.to_thread(_opened, result.uri)  # before the head leaves
    except FileNotFoundError:
        raise _gone(job) from None
    status = 206 if "content-range" in headers else 200
    blocks = _blocks(file, *span)
    return StreamingResponse(blocks, status, media_type=result.media_type, headers=headers)


async def made_of(
    request: Request, job: Job, name: str, making: Callable[[bytes], Made]
) -> Response:
    """Return what is made, in a thread, of what a job made: its variant `name`.

    Raises:
        ApiError: as `kept`; whatever `making` raises.
    """
    result = result_of(job)
    common = _headers(f"{result.digest}-{name}")
    if (unchanged := _unchanged(request, common)) is not None:
        return unchanged
    made = await asyncio.to_thread(lambda: making(kept(job)))
    return Response(made.content, media_type=made.media_type, headers=common)


def kept(job: Job) -> bytes:
    """Return what a job made, whole.

    Raises:
        ApiError: as `result_of`; 410, its file is not there any more.
    """
    try:
        return read(result_of(job).uri)
    except FileNotFoundError:
        raise _gone(job) from None


def read(uri: str) -> bytes:
    """Return a kept file's bytes."""
    with _opened(uri) as file:
        return file.read()


def _opened(uri: str) -> IO[bytes]:
    files, path = fsspec.url_to_fs(uri)
    found: IO[bytes] = files.open(path, "rb")
    return found


def _gone(job: Job) -> ApiError:
    message = f"{job.id} was kept for its time and is gone; ask for it again with its seed"
    return ApiError(410, message, code=f"{job.kind}_expired", retry=False)


def _headers(tag: str) -> dict[str, str]:
    return {"etag": f'"{tag}"', "cache-control": "private, max-age=3600"}


def _unchanged(request: Request, headers: dict[str, str]) -> Response | None:
    """Return the answer to who has these bytes already."""
    known = request.headers.get("if-none-match", "").split(",")
    if not {"*", headers["etag"]} & {one.strip().removeprefix("W/") for one in known}:
        return None
    return Response(status_code=304, headers=headers)


def _ranged(
    request: Request, result: Result, common: dict[str, str]
) -> tuple[tuple[int, int], dict[str, str]]:
    """Return from where up to where a file is asked for, and the headers of that."""
    asked = request.headers.get("range", "")
    if request.headers.get("if-range", common["etag"]) != common["etag"]:
        asked = ""  # of another file: all of this one
    span = _span(asked, result.bytes)
    start, end = span or (0, result.bytes)
    headers = {**common, "content-length": str(end - start)}
    if span is not None:
        headers["content-range"] = f"bytes {start}-{end - 1}/{result.bytes}"
    return (start, end), headers


def _span(asked: str, size: int) -> tuple[int, int] | None:
    """Return the one range that is asked for, from and up to; None: all, as where several are asked for."""
    found = RANGE.fullmatch(asked.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if found[1]:
        start, end = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
    else:
        start, end = max(0, size - int(found[2])), size
    if start >= size or end <= start:
        error = ApiError(416, f"there are {size} bytes, got {asked}", code="range_not_satisfiable")
        error.headers["content-range"] = f"bytes */{size}"
        raise error
    return start, end


def _blocks(file: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < end and (block := file.read(min(BLOCK, end - start))):
            start += len(block)
            yield block
