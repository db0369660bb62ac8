"""GET /v1/models: what is served, and one model by its name."""

import asyncio
from typing import Any

from fastapi import Request

from services.api.answers import Model, Models
from services.api.served import parts_of
from services.gateway.openapi import ANYWHERE, Routes, answers

routes = Routes()


@routes.get("/v1/models", response_model=None, responses=answers(Models, ANYWHERE))
async def list_models(request: Request) -> dict[str, Any]:
    """Return what is served."""
    found = await asyncio.to_thread(parts_of(request).endpoints.everything)
    return {"object": "list", "data": [endpoint.card() for endpoint in found]}


@routes.get(
    "/v1/models/{model:path}",
    response_model=None,
    responses=answers(Model, [*ANYWHERE, 404]),
)
async def retrieve_model(request: Request, model: str) -> dict[str, Any]:
    """Return one model: NAME, NAME@staging, NAME@production or NAME:7."""
    return (await asyncio.to_thread(parts_of(request).endpoints.resolve, model)).card()
