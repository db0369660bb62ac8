"""GET /v1/files/NAME: a picture that was answered by url, or what came of a job; by a signed link, from any replica."""

import asyncio
import re
from typing import Final

from fastapi import Request
from fastapi.responses import Response

from infra.jobs.jobs import NotFound
from services.api.served import parts_of
from services.gateway.openapi import ANYWHERE, Routes, answers
from services.media.result_store import gone
from services.videos.content import content

OF_A_JOB: Final = re.compile(r"(video_[0-9A-Z]{26})\.(mp4|gif|webp)")
BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
KINDS: Final = ("image/png", "image/gif", "image/webp", "video/mp4")

routes = Routes()


@routes.get(
    "/v1/files/{name}",
    response_class=Response,
    response_model=None,
    responses=answers(None, [*ANYWHERE, 403, 404, 409, 410, 416], dict.fromkeys(KINDS, BINARY)),
)
async def file(request: Request, name: str, expires: str = "", signature: str = "") -> Response:
    """Return a file: its link opens for an hour, without a key."""
    parts = parts_of(request)
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
