"""From a request to a job: what of it a pipeline can make, and what is written down for whoever makes it."""

import asyncio
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from fastapi import Request

from infra.jobs.jobs import Conflict, Full, NotFound
from infra.jobs.table import Job
from infra.pipelines import Pipeline
from services.api.images import caption
from services.api.served import Parts, parts_of
from services.gateway.errors import ApiError, invalid
from services.routing.endpoints import Endpoint
from services.videos.content import result_of
from services.videos.requests import Sampling, VideoEditOrder, VideoExtensionOrder, VideoOrder
from services.videos.work import KIND, Input, Work, kept, opened_clip, opened_picture, read, work_of

KEY: Final = re.compile(r"[\x21-\x7e]{1,200}")
CLOSE: Final = 0.005  # s or frames a second by which what is asked for may miss what is made


def owner_of(request: Request) -> str:
    """Return whose jobs a request may see and make: its key's, or everybody's while there is no key."""
    return str(request.scope["owner"])


async def job_of(request: Request, id: str) -> Job:
    """Return a clip of whoever asks.

    Raises:
        ApiError: 404, there is none, or it is another key's.
    """
    try:
        job = await asyncio.to_thread(parts_of(request).jobs.get, id)
    except NotFound:
        raise _unknown(id) from None
    if job.owner != owner_of(request) or job.kind != KIND:
        raise _unknown(id)
    return job


def _unknown(id: str) -> ApiError:
    shown = id if len(id) <= 60 else f"{id[:60]}..."
    message = f"there is no video {shown!r} of this key, or not any more; GET /v1/videos lists them"
    return ApiError(404, message, code="video_not_found", param="video_id")


async def ask(
    request: Request, order: Sampling, files: Mapping[str, bytes], entrance: str = "generate"
) -> Job:
    """Write down a job for what is asked, after checking what depends on the version that answers.

    Raises:
        ApiError: 400 that names the parameter; as `submit`.
    """
    parts, seed = parts_of(request), order.seed
    seed = secrets.randbelow(2**32) if seed is None else seed
    source = await _source(request, order)
    route = await asyncio.to_thread(
        parts.endpoints.route, order.model or _model(source), order.user or order.prompt
    )
    work = await asyncio.to_thread(
        _planned, parts, route.endpoint, order, files, entrance, seed, source
    )
    return await submit(request, work, route.endpoint, seed)


async def _source(request: Request, order: Sampling) -> Job | None:
    """Return the clip that an edit or extension names."""
    if not isinstance(order, VideoEditOrder) or order.video is None:
        return None
    source = await job_of(request, order.video.id)
    result_of(source)
    return source


def _model(source: Job | None) -> str | None:
    return None if source is None else work_of(source).model


def _planned(
    parts: Parts,
    endpoint: Endpoint,
    order: Sampling,
    files: Mapping[str, bytes],
    entrance: str,
    seed: int,
    source: Job | None,
) -> Work:
    """Return what is to be made."""
    pipeline = endpoint.pipeline
    endpoint.must("videos")
    options = {**order.options, **_rate(order, endpoint)}
    prompt = "".join(caption(order.prompt, (seed,), endpoint))
    frames = (pipeline.frames or 0) - (entrance == "extend")  # of which the first one is given
    length = frames / (pipeline.rate(options) or 1)
    if isinstance(order, VideoOrder | VideoExtensionOrder):
        _check_length(order, endpoint, frames, length)
    if isinstance(order, VideoOrder):
        _check_size(order, endpoint)
    inputs: dict[str, Input] = {}
    address = parts.arguments.made
    if isinstance(order, VideoEditOrder):
        endpoint.must("extensions" if entrance == "extend" else "alterations")
        inputs, before = _clip(address, files, source, pipeline, entrance, options)
        length += before if entrance == "extend" else 0
    elif files or (isinstance(order, VideoOrder) and order.input_reference):
        entrance = "animate"
        endpoint.must("animations")
        content = files.get("input_reference") or _within(order)
        opened_picture(content, pipeline)
        inputs = {"image": kept(address, content)}
    return Work(
        model=endpoint.model,
        version=endpoint.ref,
        place=endpoint.stage,
        epoch=endpoint.epoch,
        prompt=prompt,
        entrance=entrance,
        options=options,
        seconds=length,
        size=pipeline.size or "",
        output_format=order.output_format or "mp4",
        inputs=inputs,
    )


def _within(order: Sampling) -> bytes:
    assert isinstance(order, VideoOrder)
    assert order.input_reference is not None
    return order.input_reference.content()


def _clip(
    address: str,
    files: Mapping[str, bytes],
    source: Job | None,
    pipeline: Pipeline,
    entrance: str,
    options: Mapping[str, Any],
) -> tuple[dict[str, Input], float]:
    """Return the clip that is given, and how long it is in seconds."""
    if ("video" in files) == (source is not None):
        message = "video: send one clip, as a file or by the id of one that was made here"
        raise invalid(message, "video", "missing_required_parameter")
    content = files["video"] if source is None else read(result_of(source).uri)
    clip = opened_clip(content, pipeline, entrance, options)
    return {"clip": kept(address, content)}, len(clip.frames) / clip.frame_rate


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


def _check_size(order: VideoOrder, endpoint: Endpoint) -> None:
    size = endpoint.pipeline.size
    if order.size not in {None, "auto", size}:
        message = f"size: {endpoint.name} makes {size}, got {order.size!r}; leave it out"
        raise invalid(message, "size")


async def again(request: Request, source: Job, prompt: str) -> Job:
    """Write down a job like another one, of another prompt: by the same version, from the same noise.

    Raises:
        ApiError: as `submit`; 503, its version cannot be had.
    """
    parts, work = parts_of(request), work_of(source)
    digest = source.digests[source.pipeline]
    endpoint = await asyncio.to_thread(parts.endpoints.pinned, source.pipeline, digest)
    asked = replace(endpoint, model=work.model)
    said = "".join(caption(prompt, (source.seed,), asked))
    remix = work.model_copy(update={"prompt": said, "remixed_from": source.id})
    return await submit(request, remix, asked, source.seed)


async def submit(request: Request, work: Work, endpoint: Endpoint, seed: int) -> Job:
    """Write a job down; the same idempotency key and request give the same one.

    Raises:
        ApiError: 429, the key's quota or the queue is full; 422, the idempotency key names another request.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not KEY.fullmatch(key):
        message = f"idempotency-key: 1 to 200 visible ASCII characters, got {len(key)}"
        raise ApiError(400, message, code="header", param="idempotency-key")
    digests = {endpoint.ref: endpoint.digest}
    digests |= {one.pin.ref: one.sha256 for one in endpoint.pipeline.stages}
    try:
        return await asyncio.to_thread(
            parts_of(request).jobs.submit,
            KIND,
            work.model_dump(mode="json"),
            owner=owner_of(request),
            pipeline=endpoint.ref,
            digests=digests,
            seed=seed,
            idempotency_key=key,
        )
    except Full as error:
        raise ApiError(
            429, str(error), code="queue_full", retry_after_s=error.retry_after_s
        ) from None
    except Conflict as error:
        message = str(error)
        raise ApiError(422, message, code="idempotency_conflict", param="idempotency-key") from None
