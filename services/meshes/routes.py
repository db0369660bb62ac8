"""/v1/meshes: ask for a shape in space, look how far it is, list, fetch it, forget it."""

import secrets
from asyncio import to_thread
from typing import Final, Literal

from fastapi import Request
from fastapi.responses import Response

from infra.jobs.table import Job
from infra.media.mesh_views import sheet
from infra.media.meshes import MeshError, MeshFile, decoded
from services.api.edits import FORM, JSON, read_sent
from services.api.images import caption
from services.api.served import parts_of
from services.gateway.errors import invalid
from services.gateway.openapi import BINARY, Routes, answers
from services.jobs.asking import check, earlier, submit
from services.jobs.content import content, made_of
from services.jobs.resource import FOUND, MADE
from services.meshes.answers import MESHES, Mesh, MeshDeleted, MeshList
from services.meshes.requests import MeshOrder
from services.meshes.work import KIND, MeshWork

FILES: Final = dict.fromkeys(("model/gltf-binary", "model/obj", "image/png"), BINARY)

routes = Routes()
MESHES.answer(routes, Mesh, MeshList, MeshDeleted)


@routes.takes("/v1/meshes", MeshOrder, Mesh, None, FORM, JSON, errors=MADE)
async def create(request: Request) -> Response:
    """Ask for a mesh."""
    order, _ = await read_sent(request, MeshOrder)
    return await MESHES.asked(request, await _ask(request, order))


@routes.get(
    "/v1/meshes/{mesh_id}/content",
    response_class=Response,
    response_model=None,
    responses=answers(None, [*FOUND, 409, 410, 416], FILES),
)
async def download(
    request: Request, mesh_id: str, variant: Literal["mesh", "preview"] = "mesh"
) -> Response:
    """Return a mesh, whole or a range of its bytes, or a picture of it from four sides."""
    job = await MESHES.job_of(request, mesh_id)
    if variant == "mesh":
        return await content(request, job)
    return await made_of(request, job, variant, _preview)


def _preview(file: bytes) -> MeshFile:
    try:
        return sheet(decoded(file))
    except MeshError as error:
        message = f"variant: there is no preview of this mesh: {error}; take the mesh itself"
        raise invalid(message, "variant") from None


async def _ask(request: Request, order: MeshOrder) -> Job:
    """Write down a job for what is asked, after checking what depends on the version that answers.

    Raises:
        ApiError: 400 that names the parameter; as `submit`.
    """
    asked = order.model_dump(mode="json", exclude_defaults=True)
    if (before := await earlier(request, KIND, asked)) is not None:
        return before
    parts = parts_of(request)
    seed = secrets.randbelow(2**32) if order.seed is None else order.seed
    session = order.user or order.prompt
    endpoint = (await to_thread(parts.endpoints.route, order.model, session)).endpoint
    endpoint.must("meshes")
    prompt = "".join(caption(order.prompt, (seed,), endpoint))
    work = MeshWork.asked(
        endpoint, prompt, order.options, output_format=order.output_format or "glb"
    )
    await check(request, work, endpoint)
    return await submit(request, KIND, work, endpoint, seed, asked)
