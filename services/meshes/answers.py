"""The bodies of answers of /v1/meshes, in SGLang's words; `seed`, `version`, `stages` and `expires_at` are ours."""

from typing import Any, Final, Literal

from infra.jobs.table import Job
from services.jobs import resource
from services.jobs.resource import Deleted, Resource, Shown, ShownList
from services.meshes.work import KIND, work_of


class Mesh(Shown):
    """A mesh that is asked for: how far it is, and what it is of."""

    object: Literal["mesh"]
    format: Literal["glb", "obj"]
    file_size_bytes: int | None
    inference_time_s: float | None  # all attempts together, and what they waited for


class MeshList(ShownList):
    """A part of the meshes of one key."""

    data: list[Mesh]


class MeshDeleted(Deleted):
    """That a mesh is gone, and is not made any more."""

    object: Literal["mesh.deleted"]


def shown(job: Job) -> dict[str, Any]:
    """Return a job as SGLang's clients know it."""
    work, done = work_of(job), job.started and job.ended and job.ended - job.started
    return {
        **resource.shown(job, work),
        "format": work.output_format,
        "file_size_bytes": None if job.result is None else job.result.bytes,
        "inference_time_s": round(done, 3) if done else None,
    }


MESHES: Final = Resource(KIND, "/v1/meshes", shown)
