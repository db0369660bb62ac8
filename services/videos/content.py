"""What came of a job, as bytes: the clip whole or a range of it (RFC 9110, section 14), or what is made of it."""

import asyncio
import re
from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

import fsspec
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from infra.jobs.table import Job, Result
from infra.media.clips import ClipError, ClipFile, decode, spritesheet, thumbnail
from services.gateway.errors import ApiError, invalid
from services.videos.work import read

Variant: TypeAlias = Literal["video", "thumbnail", "spritesheet"]
BLOCK: Final = 2**18
RANGE: Final = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")


def result_of(job: Job) -> Result:
    """Return where a completed job's clip is.

    Raises:
        ApiError: 409, there is none yet, or never will be; 410, it was kept for its time.
    """
    if job.state == "expired" and job.error is None:
        message = f"{job.id} was kept for its time and is gone; ask for it again with its seed"
        raise ApiError(410, message, code="video_expired", retry=False)
    if job.result is None:
        state = "failed" if job.state in {"cancelled", "expired"} else job.state
        message = f"{job.id} is {state}, not completed: there is no clip to be had"
        raise ApiError(409, message, code="video_not_completed", retry=False)
    return job.result


async def content(request: Request, job: Job, variant: Variant = "video") -> Response:
    """Return a job's clip or what is made of it, by whole or by range.

    Raises:
        ApiError: as `result_of`; 400, the clip cannot be read; 416, there are no such bytes.
    """
    result = result_of(job)
    tag = f'"{result.digest}"' if variant == "video" else f'"{result.digest}-{variant}"'
    common = {"etag": tag, "cache-control": "private, max-age=3600", "accept-ranges": "bytes"}
    if tag in _tags(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=common)
    if variant == "video":
        return _ranged(request, result, common)
    made = await asyncio.to_thread(_made, result, variant)
    common.pop("accept-ranges")
    return Response(made.content, media_type=made.media_type, headers=common)


def _tags(header: str) -> set[str]:
    return {one.strip().removeprefix("W/") for one in header.split(",")}


def _made(result: Result, variant: Variant) -> ClipFile:
    try:
        clip = decode(read(result.uri))
    except ClipError as error:
        message = f"variant: there is no {variant} of this clip: {error}; take the video itself"
        raise invalid(message, "variant") from None
    return thumbnail(clip) if variant == "thumbnail" else spritesheet(clip)


def _ranged(request: Request, result: Result, common: dict[str, str]) -> Response:
    asked = request.headers.get("range", "")
    if request.headers.get("if-range", common["etag"]) != common["etag"]:
        asked = ""  # of another clip: all of this one
    span = _span(asked, result.bytes)
    start, end = span or (0, result.bytes)
    headers = {**common, "content-length": str(end - start)}
    if span is not None:
        headers["content-range"] = f"bytes {start}-{end - 1}/{result.bytes}"
    return StreamingResponse(
        _blocks(result.uri, start, end),
        status_code=200 if span is None else 206,
        media_type=result.media_type,
        headers=headers,
    )


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


def _blocks(uri: str, start: int, end: int) -> Iterator[bytes]:
    with fsspec.open(uri, "rb") as file:
        file.seek(start)
        while start < end and (block := file.read(min(BLOCK, end - start))):
            start += len(block)
            yield block
