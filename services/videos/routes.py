"""/v1/videos: ask for a clip, look how far it is, list, fetch it, forget it; remixes, edits and extensions."""

from functools import partial
from typing import Final

from fastapi import Request
from fastapi.responses import Response

from services.api.edits import FORM, JSON, read_sent
from services.gateway.openapi import BINARY, Routes, answers
from services.jobs.content import content, made_of
from services.jobs.resource import FOUND, MADE
from services.videos.answers import VIDEOS, Video, VideoDeleted, VideoList
from services.videos.asking import again, ask
from services.videos.requests import VideoEditOrder, VideoExtensionOrder, VideoOrder, VideoRemix
from services.videos.variants import Variant, made

LARGEST: Final = 16 * 2**20  # bytes of a clip that is sent
FILES: Final = dict.fromkeys(("video/mp4", "image/gif", "image/webp", "image/jpeg"), BINARY)

routes = Routes()
VIDEOS.answer(routes, Video, VideoList, VideoDeleted)


@routes.takes("/v1/videos", VideoOrder, Video, None, FORM, JSON, errors=MADE)
async def create(request: Request) -> Response:
    """Ask for a clip."""
    order, files = await read_sent(request, VideoOrder, "input_reference", LARGEST)
    return await VIDEOS.asked(request, await ask(request, order, files))


@routes.takes("/v1/videos/edits", VideoEditOrder, Video, None, FORM, JSON, errors=MADE)
async def edit(request: Request) -> Response:
    """Ask for a clip that is made from another one."""
    order, files = await read_sent(request, VideoEditOrder, "video", LARGEST)
    return await VIDEOS.asked(request, await ask(request, order, files, "alter"))


@routes.takes("/v1/videos/extensions", VideoExtensionOrder, Video, None, FORM, JSON, errors=MADE)
async def extend(request: Request) -> Response:
    """Ask for a clip that goes on from another one."""
    order, files = await read_sent(request, VideoExtensionOrder, "video", LARGEST)
    return await VIDEOS.asked(request, await ask(request, order, files, "extend"))


@routes.takes("/v1/videos/{video_id}/remix", VideoRemix, Video, None, FORM, JSON, errors=MADE)
async def remix(request: Request, video_id: str) -> Response:
    """Ask for a clip again, of another prompt."""
    order, _ = await read_sent(request, VideoRemix)
    source = await VIDEOS.job_of(request, video_id)
    return await VIDEOS.asked(request, await again(request, source, order.prompt))


@routes.get(
    "/v1/videos/{video_id}/content",
    response_class=Response,
    response_model=None,
    responses=answers(None, [*FOUND, 409, 410, 416], FILES),
)
async def download(request: Request, video_id: str, variant: Variant = "video") -> Response:
    """Return a clip, a picture of it or a sheet of its frames."""
    job = await VIDEOS.job_of(request, video_id)
    if variant == "video":
        return await content(request, job)
    return await made_of(request, job, variant, partial(made, variant=variant))
