"""From a request to a job: what of it a pipeline can make, and what is written down for whoever makes it."""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from fastapi import Request

from infra.jobs.table import Job
from infra.media.clips import Clip, ClipError, check_readable
from infra.pipelines import Pipeline
from services.api.edits import digests
from services.api.images import caption
from services.api.served import parts_of
from services.gateway.errors import ApiError, invalid
from services.jobs.asking import check, earlier, submit
from services.jobs.content import kept, read, result_of
from services.routing.endpoints import Endpoint
from services.videos.answers import VIDEOS
from services.videos.requests import Sampling, VideoEditOrder, VideoExtensionOrder, VideoOrder
from services.videos.work import KIND, ClipWork, opened_clip, opened_picture, work_of

CLOSE: Final = 0.005  # s or frames a second by which what is asked for may miss what is made


async def ask(
    request: Request, order: Sampling, files: Mapping[str, bytes], entrance: str = "generate"
) -> Job:
    """Write down a job for what is asked, after checking what depends on the version that answers.

    Raises:
        ApiError: 400 that names the parameter; as `submit`.
    """
    said = {
        "entrance": entrance,
        **order.model_dump(mode="json", exclude_defaults=True),
        "files": await asyncio.to_thread(digests, files),
    }
    if (before := await earlier(request, KIND, said)) is not None:
        return before
    parts, seed = parts_of(request), order.seed
    seed = secrets.randbelow(2**32) if seed is None else seed
    source = await _source(request, order)
    route = await asyncio.to_thread(
        parts.endpoints.route, order.model or _model(source), order.user or order.prompt
    )
    work, given = await asyncio.to_thread(
        _planned, route.endpoint, order, files, entrance, seed, source
    )
    await check(request, work, route.endpoint)
    return await submit(request, KIND, work, route.endpoint, seed, said, given)


async def _source(request: Request, order: Sampling) -> Job | None:
    """Return the clip that an edit or extension names."""
    if not isinstance(order, VideoEditOrder) or order.video is None:
        return None
    source = await VIDEOS.job_of(request, order.video.id)
    result_of(source)
    return source


def _model(source: Job | None) -> str | None:
    return None if source is None else work_of(source).model


def _planned(
    endpoint: Endpoint,
    order: Sampling,
    files: Mapping[str, bytes],
    entrance: str,
    seed: int,
    source: Job | None,
) -> tuple[ClipWork, dict[str, bytes]]:
    """Return what is to be made, and of which files."""
    pipeline = endpoint.pipeline
    endpoint.must("videos")
    options = {**order.options, **_rate(order, endpoint)}
    prompt = "".join(caption(order.prompt, (seed,), endpoint))
    frames = (pipeline.frames or 0) - (entrance == "extend")  # of which the first one is given
    rate = pipeline.rate(options) or 1.0
    if isinstance(order, VideoOrder | VideoExtensionOrder):
        _check_length(order, endpoint, frames, frames / rate)
    if isinstance(order, VideoOrder):
        _check_size(order, endpoint)
    given: dict[str, bytes] = {}
    if isinstance(order, VideoEditOrder):
        endpoint.must("extensions" if entrance == "extend" else "alterations")
        given["clip"], before = _clip(files, source, pipeline, entrance, options)
        frames += len(before.frames) if entrance == "extend" else 0
    elif files or (isinstance(order, VideoOrder) and order.input_reference):
        entrance = "animate"
        endpoint.must("animations")
        content = files["input_reference"] if files else _within(order)
        opened_picture(content, pipeline)
        given["image"] = content
    _check_whole(frames, rate, entrance)
    work = ClipWork.asked(
        endpoint,
        prompt,
        options,
        entrance=entrance,
        seconds=frames / rate,
        size=pipeline.size or "",
        output_format=order.output_format or "mp4",
    )
    return work, given


def _within(order: Sampling) -> bytes:
    assert isinstance(order, VideoOrder)
    assert order.input_reference is not None
    return order.input_reference.content()


def _clip(
    files: Mapping[str, bytes],
    source: Job | None,
    pipeline: Pipeline,
    entrance: str,
    options: Mapping[str, Any],
) -> tuple[bytes, Clip]:
    """Return the clip that is given, as a file and as it was read."""
    if ("video" in files) == (source is not None):
        message = "video: send one clip, as a file or by the id of one that was made here"
        raise invalid(message, "video", "missing_required_parameter")
    content = files["video"] if source is None else kept(source)
    return content, opened_clip(content, pipeline, entrance, options)


def _rate(order: Sampling, endpoint: Endpoint) -> dict[str, Any]:
    """Return the rate as an option, where another one than the pipeline's is asked for and it can be."""
    own = endpoint.pipeline.rate({})
    if order.fps is None or own is None or abs(order.fps - own) < CLOSE:
        return {}
    if "frame_rate" not in endpoint.pipeline.lead.options:
        message = (
            f"fps: {endpoint.name} makes {own:g} frames a second, got {order.fps:g}; leave it out"
        )
        raise invalid(message, "fps")
    return {"frame_rate": order.fps}


def _check_length(
    order: VideoOrder | VideoExtensionOrder, endpoint: Endpoint, frames: int, length: float
) -> None:
    rate = endpoint.pipeline.rate(_rate(order, endpoint))
    makes = f"{endpoint.name} makes {frames} frames at {rate:g} a second, {length:g} s"
    if order.seconds is not None and abs(float(order.seconds) - length) > CLOSE:
        raise invalid(f"seconds: {makes}, got {order.seconds}; leave it out", "seconds")
    asked = order.num_frames if isinstance(order, VideoOrder) else None
    if asked is not None and asked != frames:
        raise invalid(f"num_frames: {makes}, got {asked}; leave it out", "num_frames")


def _check_whole(frames: int, rate: float, entrance: str) -> None:
    """Refuse what could be made and then neither be shown nor be made from."""
    try:
        check_readable(frames, rate)
    except ClipError as error:
        name = "video" if entrance == "extend" else "fps"
        added = "with what is added " if entrance == "extend" else ""
        raise invalid(f"{name}: {added}{error}", name) from None


def _check_size(order: VideoOrder, endpoint: Endpoint) -> None:
    size = endpoint.pipeline.size
    if order.size not in {None, "auto", size}:
        message = f"size: {endpoint.name} makes {size}, got {order.size!r}; leave it out"
        raise invalid(message, "size")


async def again(request: Request, source: Job, prompt: str) -> Job:
    """Write down a job like another one, of another prompt: by the same version, from the same noise.

    Raises:
        ApiError: as `submit`; 503, its version cannot be had; 410, nor can the file that it was made of.
    """
    asked = {"remix": source.id, "prompt": prompt}
    if (before := await earlier(request, KIND, asked)) is not None:
        return before
    parts, work = parts_of(request), work_of(source)
    digest = source.digests[source.pipeline]
    endpoint = await asyncio.to_thread(parts.endpoints.pinned, source.pipeline, digest)
    endpoint = replace(endpoint, model=work.model)
    said = "".join(caption(prompt, (source.seed,), endpoint))
    remix = work.model_copy(update={"prompt": said, "remixed_from": source.id})
    await check(request, remix, endpoint)
    try:
        given = {name: await asyncio.to_thread(read, one.uri) for name, one in work.inputs.items()}
    except OSError:
        message = (
            f"{source.id} was made of a file that is not kept any more; ask anew with the file"
        )
        raise ApiError(410, message, code="video_expired", retry=False) from None
    return await submit(request, KIND, remix, endpoint, source.seed, asked, given)
