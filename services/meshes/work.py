"""What a job for a mesh says, in its row, and the file that is cut from what is drawn for it."""

from functools import partial
from typing import Final, Literal

from infra.jobs.table import Job
from infra.media.meshes import EmptyMeshError, encoded, mesh_of
from infra.pipelines import Pipeline
from infra.receipts.signing import Signing
from services.gateway.errors import ApiError
from services.jobs.runner import File, Kind
from services.jobs.work import Work
from services.media.codecs import Volume
from services.pipelines.payload import GenerationSpec
from services.pipelines.request import Complete
from services.routing.endpoints import Endpoint

KIND: Final = "mesh"


class MeshWork(Work):
    """The request of a job for a mesh."""

    output_format: Literal["glb", "obj"]


def work_of(job: Job) -> MeshWork:
    """Return what a job asks for."""
    return MeshWork.model_validate(dict(job.request))


def spec_of(job: Job, pipeline: Pipeline) -> GenerationSpec:
    """Return what is to be drawn for a job."""
    return work_of(job).spec(pipeline, job.seed)


def meshes(signing: Signing) -> Kind:
    """Return how jobs for meshes are made: `spec_of`, and then `finished` with this key."""
    return Kind(spec_of, partial(finished, signing))


def finished(signing: Signing, job: Job, endpoint: Endpoint, complete: Complete) -> File:
    """Return the file of a job: the surface of the volume that was drawn, with its receipt inside.

    Raises:
        ApiError: 400 mesh_empty, the volume has none.
    """
    work = work_of(job)
    [volume] = complete.made
    assert isinstance(volume, Volume)
    try:
        mesh = mesh_of(volume.levels)
    except EmptyMeshError as error:
        message = f"what was drawn has no surface ({error}); try another seed, or more steps"
        raise ApiError(400, message, code="mesh_empty") from None
    return work.stamped(signing, job, endpoint, encoded(mesh, work.output_format))
