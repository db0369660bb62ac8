"""The bodies of answers of /v1/videos, in OpenAI's words; `seed`, `version`, `stages` and `url` are ours."""

from typing import Any, Final, Literal

from infra.jobs.table import CANCELLED, Job
from services.api.answers import Body
from services.videos.work import work_of

ENDING: Final = {"video/mp4": "mp4", "image/gif": "gif", "image/webp": "webp"}


class VideoError(Body):
    """Why there is no clip."""

    code: str
    message: str


class Video(Body):
    """A clip that is asked for: how far it is, and what it is of."""

    id: str
    object: Literal["video"]
    model: str
    version: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str
    seconds: str
    size: str
    seed: int
    output_format: Literal["mp4", "gif", "webp"]
    remixed_from_video_id: str | None
    error: VideoError | None
    stages: list[str] | None = None  # those that are finished
    url: str | None = None  # opens for an hour, without a key


class VideoList(Body):
    """A part of the clips of one key."""

    object: Literal["list"]
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(Body):
    """That a clip is gone, and is not made any more."""

    id: str
    object: Literal["video.deleted"]
    deleted: bool


def shown(job: Job) -> dict[str, Any]:
    """Return a job as OpenAI's clients know it: cancelled is failed to them, and what expired was completed."""
    work = work_of(job)
    status = {"cancelled": "failed", "expired": "failed" if job.error else "completed"}
    error = CANCELLED if job.state == "cancelled" else job.error
    return {
        "id": job.id,
        "object": "video",
        "model": work.model,
        "version": work.version,
        "status": status.get(job.state, job.state),
        "progress": int(job.progress),
        "created_at": int(job.created),
        "completed_at": int(job.ended) if job.ended and error is None else None,
        "expires_at": int(job.expires) if job.expires else None,
        "prompt": work.prompt,
        "seconds": f"{work.seconds:g}",
        "size": work.size,
        "seed": job.seed,
        "output_format": work.output_format,
        "remixed_from_video_id": work.remixed_from,
        "error": None if error is None else {"code": error.code, "message": error.message},
    }


def ending(job: Job) -> str:
    """Return what the name of a job's file ends with."""
    assert job.result is not None
    return ENDING[job.result.media_type.partition(";")[0]]
