"""From a request to a job: what of it a pipeline can make, and what is written down for whoever makes it."""

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from fastapi import Request

from infra.jobs.idempotency import Conflict
from infra.jobs.ids import new_id
from infra.jobs.jobs import BatchOver, Full, NotFound
from infra.jobs.table import Job
from infra.media.clips import Clip, ClipError, check_readable
from infra.pipelines import Pipeline
from services.api.edits import digests
from services.api.images import caption
from services.api.served import Parts, parts_of
from services.gateway.errors import ApiError, invalid
from services.jobs.idempotency import conflict, key_of
from services.jobs.store import Store
from services.pipelines.executor import Executor
from services.pipelines.payload import GenerationSpec
from services.routing.endpoints import Endpoint
from services.videos.content import result_of
from services.videos.requests import Sampling, VideoEditOrder, VideoExtensionOrder, VideoOrder
from services.videos.work import KIND, Input, Work, opened_clip, opened_picture, read, work_of

LONGEST_S: Final = 24 * 3600  # until a deadline
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
    said = {
        "entrance": entrance,
        **order.model_dump(mode="json", exclude_defaults=True),
        "files": await asyncio.to_thread(digests, files),
    }
    if (earlier := await _earlier(request, said)) is not None:
        return earlier
    parts, seed = parts_of(request), order.seed
    seed = secrets.randbelow(2**32) if seed is None else seed
    source = await _source(request, order)
    route = await asyncio.to_thread(
        parts.endpoints.route, order.model or _model(source), order.user or order.prompt
    )
    work, given = await asyncio.to_thread(
        _planned, route.endpoint, order, files, entrance, seed, source
    )
    await _check(parts, work, route.endpoint)
    return await submit(request, work, given, route.endpoint, seed, said)


async def _check(parts: Parts, work: Work, endpoint: Endpoint) -> None:
    """Refuse what a stage would refuse once the job is under way."""
    pipeline = endpoint.pipeline
    prompts = (work.prompt,) if pipeline.reads_text else ()
    spec = GenerationSpec(seeds=(0,), prompts=prompts, entrance=work.entrance, options=work.options)
    await Executor(parts.stage_of).check(pipeline, spec)


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
    endpoint: Endpoint,
    order: Sampling,
    files: Mapping[str, bytes],
    entrance: str,
    seed: int,
    source: Job | None,
) -> tuple[Work, dict[str, bytes]]:
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
    work = Work(
        model=endpoint.model,
        version=endpoint.ref,
        place=endpoint.stage,
        epoch=endpoint.epoch,
        prompt=prompt,
        entrance=entrance,
        options=options,
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
    content = files["video"] if source is None else read(result_of(source).uri)
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
    if (earlier := await _earlier(request, asked)) is not None:
        return earlier
    parts, work = parts_of(request), work_of(source)
    digest = source.digests[source.pipeline]
    endpoint = await asyncio.to_thread(parts.endpoints.pinned, source.pipeline, digest)
    endpoint = replace(endpoint, model=work.model)
    said = "".join(caption(prompt, (source.seed,), endpoint))
    remix = work.model_copy(update={"prompt": said, "remixed_from": source.id})
    await _check(parts, remix, endpoint)
    try:
        given = {name: await asyncio.to_thread(read, one.uri) for name, one in work.inputs.items()}
    except OSError:
        message = (
            f"{source.id} was made of a file that is not kept any more; ask anew with the file"
        )
        raise ApiError(410, message, code="video_expired", retry=False) from None
    return await submit(request, remix, given, endpoint, source.seed, asked)


async def _earlier(request: Request, asked: Mapping[str, Any]) -> Job | None:
    """Return the job that this request was answered with before, whatever has been promoted since.

    Raises:
        ApiError: 400, no idempotency key; 422, it names another request.
    """
    try:
        return await asyncio.to_thread(
            parts_of(request).jobs.earlier,
            KIND,
            asked,
            owner=owner_of(request),
            idempotency_key=key_of(request),
        )
    except Conflict as error:
        raise conflict(error) from None


async def submit(
    request: Request,
    work: Work,
    given: Mapping[str, bytes],
    endpoint: Endpoint,
    seed: int,
    asked: Mapping[str, Any],
) -> Job:
    """Write a job down, with the files that it is made of; the same idempotency key and request give the same one.

    Raises:
        ApiError: 429, the key's quota or the queue is full; 422, the idempotency key names another request; 409, the
            batch that asks is called off.
    """
    digests = {endpoint.ref: endpoint.digest}
    digests |= {one.pin.ref: one.sha256 for one in endpoint.pipeline.stages}
    id = new_id(KIND, time.time())
    facts = {
        "id": id if given else None,
        "owner": owner_of(request),
        "pipeline": endpoint.ref,
        "digests": digests,
        "seed": seed,
        "idempotency_key": key_of(request),
        "asked": asked,
        "deadline": _deadline(request),
        "batch": request.scope.get("batch"),
    }
    try:
        return await asyncio.to_thread(_submitted, parts_of(request), work, given, id, facts)
    except Full as error:
        raise ApiError(
            429, str(error), code="queue_full", retry_after_s=error.retry_after_s
        ) from None
    except Conflict as error:
        raise conflict(error) from None
    except BatchOver as error:
        raise ApiError(409, str(error), code="batch_over", retry=False) from None


def _submitted(
    parts: Parts, work: Work, given: Mapping[str, bytes], id: str, facts: Mapping[str, Any]
) -> Job:
    """Keep a job's files under its id, where they go with it, and write it down."""
    if not given:
        return parts.jobs.submit(KIND, work.model_dump(mode="json"), **facts)
    store, inputs, job = Store(parts.arguments.made), {}, None
    try:
        for name, content in given.items():
            digest, uri = store.put(id, f"given-{name}", content)
            inputs[name] = Input(uri=uri, sha256=digest)
        whole = work.model_copy(update={"inputs": inputs})
        job = parts.jobs.submit(KIND, whole.model_dump(mode="json"), **facts)
        return job
    finally:
        if job is None or job.id != id:  # refused, or the same key was faster
            store.clear(id)


def _deadline(request: Request) -> float | None:
    """Return when a job is not wanted any more, in Unix seconds, as the header Cancel-After says."""
    said = request.headers.get("cancel-after")
    if said is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", said) or not 1 <= int(said) <= LONGEST_S:
        message = f"cancel-after: whole seconds, 1 to {LONGEST_S}, got {said[:40]!r}"
        raise ApiError(400, message, code="header", param="cancel-after")
    return time.time() + int(said)
