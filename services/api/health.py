"""GET /healthz and /readyz: whether the process answers, and whether it could draw; both without a key."""

from typing import Any

from fastapi import Query, Request
from fastapi.responses import JSONResponse

from services.api.answers import Health, ReadinessReport
from services.api.served import parts_of
from services.gateway.openapi import Routes, answers

routes = Routes()


unlocked: dict[str, Any] = {"response_model": None, "openapi_extra": {"security": []}}


@routes.get("/healthz", responses=answers(Health, [400]), **unlocked)
async def healthz() -> dict[str, str]:
    """Return that the process answers."""
    return {"status": "ok"}


report = answers(ReadinessReport, [400])
report[503] = {"model": ReadinessReport, "description": "Not ready."}


@routes.get("/readyz", responses=report, **unlocked)
async def readyz(
    request: Request,
    digest: list[str] = Query(default=[], max_length=200),  # noqa: B008 - FastAPI's form
) -> JSONResponse:
    """Return 200 when stages and ledger answer and every `digest` is loaded, else 503."""
    ready, document = await parts_of(request).readiness.report(digest)
    return JSONResponse(document, 200 if ready else 503)
