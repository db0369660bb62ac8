"""The bodies of answers of /v1/videos, in OpenAI's words; `seed`, `version`, `stages` and `url` are ours."""

from typing import Any, Final, Literal

from infra.jobs.table import Job
from services.jobs import resource
from services.jobs.resource import Deleted, Resource, Shown, ShownList
from services.videos.work import KIND, work_of


class Video(Shown):
    """A clip that is asked for: how far it is, and what it is of."""

    object: Literal["video"]
    seconds: str
    size: str
    output_format: Literal["mp4", "gif", "webp"]
    remixed_from_video_id: str | None


class VideoList(ShownList):
    """A part of the clips of one key."""

    data: list[Video]


class VideoDeleted(Deleted):
    """That a clip is gone, and is not made any more."""

    object: Literal["video.deleted"]


def shown(job: Job) -> dict[str, Any]:
    """Return a job as OpenAI's clients know it."""
    work = work_of(job)
    return {
        **resource.shown(job, work),
        "seconds": f"{work.seconds:g}",
        "size": work.size,
        "output_format": work.output_format,
        "remixed_from_video_id": work.remixed_from,
    }


VIDEOS: Final = Resource(KIND, "/v1/videos", shown)
