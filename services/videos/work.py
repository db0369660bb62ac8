"""What a job for a clip says, in its row; what is drawn for it, and the file that comes of it.

Whoever runs the job reads the row alone: versions by digest, uploads by where they are kept.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal

import numpy as np

from infra.jobs.table import Job
from infra.media.clips import Clip, ClipError, decode, encoded
from infra.media.pictures import PictureError
from infra.media.pictures import decode as decode_picture
from infra.pipelines import Pipeline
from infra.receipts.signing import Signing
from models.ports import Port
from services.gateway.errors import invalid
from services.jobs.content import read
from services.jobs.runner import File, Kind
from services.jobs.work import Input, Work
from services.pipelines.payload import GenerationSpec, Pictures
from services.pipelines.request import Complete
from services.routing.endpoints import Endpoint

KIND: Final = "video"


class ClipWork(Work):
    """The request of a job for a clip."""

    seconds: float
    size: str
    output_format: Literal["mp4", "gif", "webp"]
    remixed_from: str | None = None


def work_of(job: Job) -> ClipWork:
    """Return what a job asks for."""
    return ClipWork.model_validate(dict(job.request))


def spec_of(job: Job, pipeline: Pipeline) -> GenerationSpec:
    """Return what is to be drawn for a job.

    Raises:
        ApiError: 400, a file that was given cannot be read.
    """
    work = work_of(job)
    given = {name: _given(name, one, pipeline, work) for name, one in work.inputs.items()}
    return replace(work.spec(pipeline, job.seed), given=given)


def _given(name: str, given: Input, pipeline: Pipeline, work: ClipWork) -> Pictures:
    content = read(given.uri)
    if name == "image":
        return opened_picture(content, pipeline)[None]
    count = taken(pipeline, work.entrance, "clip").shape[0]
    frames = opened_clip(content, pipeline, work.entrance, work.options).frames
    last = frames if count is None else frames[-count:]
    found: Pictures = last.transpose(0, 3, 1, 2)[None].astype(np.float32) / np.float32(255)
    return found


def taken(pipeline: Pipeline, entrance: str, name: str) -> Port:
    """Return the port that takes what a request gives at an entrance under this name."""
    for called, node in pipeline.entrances[entrance].nodes.items():
        for port, wire in node.wires.items():
            if wire == f"request.{name}":
                return Port.parse(pipeline.ports(entrance, called).inputs[port])
    raise LookupError(f"{entrance}: nothing takes request.{name}")  # no such pipeline is published


def opened_picture(content: bytes, pipeline: Pipeline) -> Pictures:
    """Return an uploaded picture (C, H, W) in [0, 1] as a pipeline takes it.

    Raises:
        ApiError: 400, it cannot be read.
    """
    channels, side, _ = taken(pipeline, "animate", "image").shape
    try:
        pixels = decode_picture(content, side or 0, channels or 0).pixels
    except PictureError as error:
        raise invalid(f"input_reference: {error}", "input_reference") from None
    found: Pictures = pixels.transpose(2, 0, 1).astype(np.float32) / 255
    return found


def opened_clip(
    content: bytes, pipeline: Pipeline, entrance: str, options: Mapping[str, Any]
) -> Clip:
    """Return a clip that is given, at the size that an entrance takes and the rate of what it makes.

    Raises:
        ApiError: 400, it cannot be read, or is shorter than what the entrance takes.
    """
    count, channels, side, _ = taken(pipeline, entrance, "clip").shape
    clip = _decoded(content, pipeline, options, side or 0, channels or 0)
    if len(clip.frames) < (count or 1):
        found = f"{len(clip.frames)} frames at {clip.frame_rate:g} a second"
        message = f"video: {found}, {pipeline.endpoint} takes {count}; give a longer one"
        raise invalid(message, "video")
    return clip


def _decoded(
    content: bytes, pipeline: Pipeline, options: Mapping[str, Any], side: int, channels: int
) -> Clip:
    try:
        rate = pipeline.rate(options)
        return decode(content, image_size=side, channels=channels, frame_rate=rate)
    except ClipError as error:
        raise invalid(f"video: {error}", "video") from None


def clips(signing: Signing) -> Kind:
    """Return how jobs for clips are made: `spec_of`, and then `finished` with this key."""
    return Kind(spec_of, partial(finished, signing))


def finished(signing: Signing, job: Job, endpoint: Endpoint, complete: Complete) -> File:
    """Return the file of a job: what was drawn, after the clip that it extends if it does, with its receipt inside."""
    work, pipeline = work_of(job), endpoint.pipeline
    [clip] = complete.made
    assert isinstance(clip, Clip)
    if work.entrance == "extend":
        source, (side, _, channels) = read(work.inputs["clip"].uri), clip.frames.shape[1:]
        before = _decoded(source, pipeline, work.options, side, channels)
        clip = replace(clip, frames=np.concatenate([before.frames, clip.frames[1:]]))
    made = encoded(clip.frames, clip.frame_rate, work.output_format)
    shown = {"frames": len(clip.frames), "frame_rate": clip.frame_rate}
    return work.stamped(signing, job, endpoint, made, **shown)
