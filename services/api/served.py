"""What the routes have in common: the parts of the gateway that they use, and how a body becomes an exchange."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar, cast

from fastapi import Request
from pydantic import BaseModel, ValidationError

from infra.documents import parse_json
from infra.jobs.jobs import Jobs
from infra.jobs.webhooks import Webhooks
from infra.receipts.signing import Signing
from services.api.requests import Order, number
from services.gateway import errors
from services.gateway.errors import ApiError
from services.gateway.guard import KeyStore
from services.gateway.readiness import Readiness
from services.media.answer_log import Samples
from services.media.result_store import Files
from services.pipelines.payload import GenerationSpec
from services.pipelines.request import StageOf
from services.routing.canary import Arms
from services.routing.endpoints import Endpoint, Endpoints
from services.routing.request_session import Exchange
from services.settings import Arguments

SHORT: Final = 2**16  # bytes of a body that is read at once, not in a thread: some ms at most
MOST_BRACKETS: Final = 2**18
"""Of a body: each list or object is a piece of memory, and 9 MiB of them are seconds."""

Body = TypeVar("Body", bound=BaseModel)
Asked = TypeVar("Asked", bound=Order)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes use."""

    endpoints: Endpoints
    arms: Arms
    stage_of: StageOf
    files: Files
    jobs: Jobs
    webhooks: Webhooks
    samples: Samples
    signing: Signing
    keys: KeyStore
    readiness: Readiness
    arguments: Arguments


def parts_of(request: Request) -> Parts:
    """Return the parts of the gateway that a request came to."""
    return cast(Parts, request.app.state.parts)


async def read_order(request: Request, kind: type[Body]) -> Body:
    """Return the body.

    Raises:
        ApiError: 415, it is no JSON; 400 that names its first wrong field, or one that it says twice.
    """
    content = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content != "application/json":
        raise ApiError(415, "send the body as application/json", code="unsupported_media_type")
    body = await request.body()
    if body.count(b"[") + body.count(b"{") > MOST_BRACKETS:
        message = f"the body has more than {MOST_BRACKETS} lists and objects"
        raise errors.invalid(message, "body", "invalid_json")
    if len(body) <= SHORT:
        return _order(body, kind)
    return await asyncio.to_thread(_order, body, kind)


def _order(body: bytes, kind: type[Body]) -> Body:
    try:
        return kind.model_validate(parse_json(body.decode(), "the body", number=number))
    except ValidationError as error:
        raise errors.from_validation(error) from None
    except ValueError as error:
        raise errors.invalid(str(error), "body", "invalid_json") from None


async def exchange_of(
    request: Request,
    order: Asked,
    planning: Callable[[Asked, tuple[int, ...], Endpoint], GenerationSpec],
    *,
    opens: bool = False,
) -> Exchange:
    """Return the request with where it goes and what it wants there; `opens`: files are read for that."""
    parts, seeds = parts_of(request), order.seeds()
    session = order.session or str(seeds[0])  # who says nothing at all is somebody else each time
    return Exchange(
        arms=parts.arms,
        timeout_s=parts.arguments.timeout_s,
        request=request,
        route=await asyncio.to_thread(parts.endpoints.route, order.asked, session),
        planning=partial(planning, order, seeds),
        opens=opens,
        signing=parts.signing,
        public_url=parts.arguments.public_url,
    )
