"""/v1/webhook_endpoints: who is told of the ends of a key's jobs, in OpenAI's words."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import httpx
from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from infra.jobs.idempotency import Conflict
from infra.jobs.webhooks import TooMany, WebhookEndpoint, WebhookError, Webhooks
from services.api.answers import Body
from services.api.requests import Strict
from services.api.served import parts_of, read_order
from services.gateway.errors import ApiError, invalid
from services.gateway.openapi import ANYWHERE, Routes, answers
from services.jobs.idempotency import conflict, key_of
from services.jobs.webhooks import Unwelcome, address_of, secret_of, tell

Event = Literal[
    "video.completed",
    "video.failed",
    "mesh.completed",
    "mesh.failed",
    "batch.completed",
    "batch.failed",
    "batch.cancelled",
]
EVENTS: Final[tuple[Event, ...]] = get_args(Event)
FOUND: Final = (*ANYWHERE, 404)
TAKEN: Final = (*ANYWHERE, 404, 415)
ONCE: Final = (*TAKEN, 422)
TESTED: Final = "00000000000000000000000000"  # the id, behind its kind, of no job
HINT: Final = 4  # last signs of a secret that are shown
T = TypeVar("T")

Name = Annotated[
    str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")
]  # Postgres keeps no NUL
Url = Annotated[str, Field(max_length=500)]
Events = Annotated[list[Event], Field(min_length=1, max_length=10)]


class WebhookOrder(Strict):
    """An address that is to be told of events."""

    name: Name
    url: Url
    event_types: Events


class WebhookChange(Strict):
    """What is to be different; null or left out stays."""

    name: Name | None = None
    url: Url | None = None
    event_types: Events | None = None


class WebhookRotation(Strict):
    """Another secret, perhaps beside the old one for a day."""

    keep_old_secret_active_for_24_hours: bool | None = False


class WebhookTest(Strict):
    """One event that is sent now."""

    event_type: Event


class Webhook(Body):
    """An address that is told of events; `signing_secret` only where it is new."""

    id: str
    object: Literal["webhook_endpoint"]
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int
    signing_secret_hint: str
    signing_secret: str | None = None


class WebhookList(Body):
    """The addresses of one key."""

    object: Literal["list"]
    data: list[Webhook]
    first_id: str | None
    last_id: str | None
    has_more: bool


class WebhookDeleted(Body):
    """That an address is told nothing more."""

    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: bool


class WebhookTested(Body):
    """What an address answered to a test."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: bool


class EventTypes(Body):
    """What can be told."""

    object: Literal["list"]
    data: list[str]


routes = Routes()
PATH: Final = "/v1/webhook_endpoints"
ONE: Final = f"{PATH}/{{webhook_endpoint_id}}"


@routes.get("/v1/webhook_event_types", response_model=None, responses=answers(EventTypes, ANYWHERE))
async def event_types() -> Response:
    """List the events that can be told."""
    return JSONResponse({"object": "list", "data": list(EVENTS)})


@routes.takes(PATH, WebhookOrder, Webhook, errors=ONCE)
async def create(request: Request) -> Response:
    """Tell an address of events from now on; its secret is shown this once."""
    order, key = await read_order(request, WebhookOrder), key_of(request)
    await _welcome(request, order.url)
    given = (order.name, order.url, order.event_types, key)
    try:
        made = await _asked(request, lambda webhooks, owner: webhooks.create(owner, *given))
    except TooMany as error:
        raise invalid(str(error), "url") from None
    return JSONResponse(_shown(request, made, new=True))


@routes.get(PATH, response_model=None, responses=answers(WebhookList, FOUND))
async def listed(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """List the addresses of this key, the oldest first."""
    found = [*await _asked(request, lambda webhooks, owner: webhooks.list(owner))]
    ids = [one.id for one in found]
    if after is not None and after not in ids:
        raise _unknown(after)
    rest = found[ids.index(after) + 1 if after is not None else 0 :]
    data = [_shown(request, one) for one in rest[:limit]]
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    body = {"first_id": ends[0], "last_id": ends[1], "has_more": len(rest) > limit}
    return JSONResponse({"object": "list", "data": data, **body})


@routes.get(ONE, response_model=None, responses=answers(Webhook, FOUND))
async def retrieve(request: Request, webhook_endpoint_id: str) -> Response:
    """Return one address."""
    found = await _asked(request, lambda webhooks, owner: webhooks.get(webhook_endpoint_id, owner))
    return JSONResponse(_shown(request, found))


@routes.takes(ONE, WebhookChange, Webhook, errors=TAKEN)
async def change(request: Request, webhook_endpoint_id: str) -> Response:
    """Change an address, its name or what it is told."""
    order = await read_order(request, WebhookChange)
    if order.url is not None:
        await _welcome(request, order.url)
    given: dict[str, Any] = {**{"name": order.name, "url": order.url, "events": order.event_types}}
    found = await _asked(
        request, lambda webhooks, owner: webhooks.update(webhook_endpoint_id, owner, **given)
    )
    return JSONResponse(_shown(request, found))


@routes.delete(ONE, response_model=None, responses=answers(WebhookDeleted, FOUND))
async def delete(request: Request, webhook_endpoint_id: str) -> Response:
    """Tell an address nothing more."""
    await _asked(request, lambda webhooks, owner: webhooks.delete(webhook_endpoint_id, owner))
    body = {"object": "webhook_endpoint.deleted", "deleted": True}
    return JSONResponse({"id": webhook_endpoint_id, **body})


@routes.takes(f"{ONE}/rotate_secret", WebhookRotation, Webhook, errors=ONCE)
async def rotate(request: Request, webhook_endpoint_id: str) -> Response:
    """Give an address another secret, which is shown this once."""
    order, key = await read_order(request, WebhookRotation), key_of(request)
    keep = bool(order.keep_old_secret_active_for_24_hours)
    found = await _asked(
        request,
        lambda webhooks, owner: webhooks.rotate(
            webhook_endpoint_id, owner, keep_old=keep, idempotency_key=key
        ),
    )
    return JSONResponse(_shown(request, found, new=True))


@routes.takes(f"{ONE}/test", WebhookTest, WebhookTested, errors=TAKEN)
async def test(request: Request, webhook_endpoint_id: str) -> Response:
    """Send an event to an address now, and say what it answered."""
    order = await read_order(request, WebhookTest)
    parts = parts_of(request)
    endpoint = await _asked(
        request, lambda webhooks, owner: webhooks.get(webhook_endpoint_id, owner)
    )
    try:
        private = parts.arguments.private_webhooks
        data = {"id": f"{order.event_type.partition('.')[0]}_{TESTED}"}
        status = await tell(parts.signing, endpoint, order.event_type, data, private=private)
    except (httpx.HTTPError, Unwelcome) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise invalid(f"url: the endpoint gave no answer: {why}", "url") from None
    body = {"webhook_endpoint_id": endpoint.id, "event_type": order.event_type}
    tested = {"object": "webhook_endpoint.test", "status_code": status}
    return JSONResponse({**body, **tested, "success": httpx.codes.is_success(status)})


async def _welcome(request: Request, url: str) -> None:
    """Check that an address may be called.

    Raises:
        ApiError: 400, it may not.
    """
    try:
        private = parts_of(request).arguments.private_webhooks
        await address_of(httpx.URL(url), private=private)
    except (httpx.InvalidURL, Unwelcome) as error:
        raise invalid(f"url: {error}", "url") from None


async def _asked(request: Request, question: Callable[[Webhooks, str], T]) -> T:
    """Return what the table of endpoints says to whoever asks.

    Raises:
        ApiError: 404, there is no such endpoint of this key; 422, the idempotency key names another request.
    """
    owner = str(request.scope["owner"])
    try:
        return await asyncio.to_thread(question, parts_of(request).webhooks, owner)
    except WebhookError as error:
        raise ApiError(404, str(error), code="webhook_not_found", param="id") from None
    except Conflict as error:
        raise conflict(error) from None


def _unknown(id: str) -> ApiError:
    message = f"there is no webhook endpoint {id[:60]!r} of this key"
    return ApiError(404, message, code="webhook_not_found", param="after")


def _shown(request: Request, endpoint: WebhookEndpoint, *, new: bool = False) -> dict[str, Any]:
    secret = secret_of(parts_of(request).signing, endpoint)
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": list(endpoint.events),
        "created_at": int(endpoint.created),
        "updated_at": int(endpoint.updated),
        "signing_secret_hint": f"whsec_...{secret[-HINT:]}",
        **({"signing_secret": secret} if new else {}),
    }
