"""/v1/openapi.json: what every operation takes, and every answer that it may give.

Bodies are read by the orders themselves (strictly, and 400 where FastAPI would say 422), so their schemas are put in
here; those of answers are FastAPI's own doing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from services.api.answers import Error

Route = TypeVar("Route", bound=Callable[..., Any])

SCHEMA: Final = "#/components/schemas/{model}"
REASONS: Final[Mapping[int, str]] = {
    400: "The request is not as its schema says, or its model cannot do it; `param` says what.",
    401: "There is no API key, or none that is good.",
    403: "The link has expired.",
    404: "There is no such model, file or url.",
    408: "The request did not arrive in time.",
    409: "What is asked for is not there yet, or never will be; `message` says which.",
    410: "What was made was kept for its time, and is gone.",
    413: "The body is too large.",
    415: "The body is of another type.",
    416: "There are no such bytes.",
    421: "Without a key the gateway answers to localhost alone, and the request named another host.",
    422: "The idempotency key was used for another request.",
    429: "Too much waits already; `retry-after` says when to come back.",
    500: "The model or the server failed.",
    503: "The model is being loaded, or a part of the server is restarting; ask again.",
    504: "The answer was not ready in time.",
}
ANYWHERE: Final = (400, 401, 408, 413, 421, 429, 500, 503)  # the door's, and what may break
OF_MODELS: Final = (*ANYWHERE, 404, 415, 504)
REQUEST_ID: Final = {"x-request-id": {"schema": {"type": "string"}}}
COME_BACK: Final = {"retry-after": {"schema": {"type": "string"}, "description": "seconds"}}
EVENT: Final = {
    "type": "object",
    "description": "An event: `data` is JSON, or [DONE] after the last piece of text.",
    "required": ["data"],
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
}
BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
STREAM: Final = {"text/event-stream": {"schema": EVENT}}
"""With stream: true."""


def answers(
    body: type[BaseModel] | None, errors: Iterable[int], media: Mapping[str, Any] | None = None
) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses`: 200 with a JSON body, other media types or both, and these errors."""
    good: dict[str, Any] = {"description": "As asked.", "headers": REQUEST_ID}
    if body is not None:
        good["model"] = body
    if media:
        good["content"] = dict(media)
    found: dict[int | str, dict[str, Any]] = {200: good}
    for status in sorted(errors):
        headers = {**REQUEST_ID, **(COME_BACK if status in {429, 503} else {})}
        found[status] = {"model": Error, "description": REASONS[status], "headers": headers}
    return found


class Routes(APIRouter):
    """Some routes and, by path, the bodies that they take."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: dict[str, type[BaseModel]] = {}

    def takes(
        self,
        path: str,
        order: type[BaseModel],
        body: type[BaseModel] | None,
        media: Mapping[str, Any] | None = None,
        *sent: str,
        errors: Iterable[int] = OF_MODELS,
        besides: Mapping[str, type[BaseModel]] | None = None,
    ) -> Callable[[Route], Route]:
        """Return the decorator of a POST route: the body that it takes (JSON, or as `sent`), and what it answers.

        `besides` are bodies of other types, each by its own.
        """
        self.orders[path] = order
        self.orders |= {f"{path} as {kind}": one for kind, one in (besides or {}).items()}
        taken = {**dict.fromkeys(sent or ("application/json",), order), **(besides or {})}
        content = {
            kind: {"schema": {"$ref": SCHEMA.format(model=one.__name__)}}
            for kind, one in taken.items()
        }
        return self.post(
            path,
            response_model=None,
            response_class=Response if body is None else JSONResponse,
            responses=answers(body, errors, media),
            openapi_extra={"requestBody": {"required": True, "content": content}},
        )


class Api(FastAPI):
    """The gateway's routes and their description."""

    def __init__(self) -> None:
        super().__init__(
            title="Atelier", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json"
        )
        self.orders: dict[str, type[BaseModel]] = {}  # by path

    def include(self, routes: Routes) -> None:
        """Answer these routes, too."""
        self.router.routes += (
            routes.routes
        )  # include_router would ask ten routers in turn: 60 us more
        self.orders |= routes.orders

    def openapi(self) -> dict[str, Any]:
        """Return the description, with the orders and the key, and without FastAPI's own 422, which is never sent."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            inputs = [(order, "validation") for order in self.orders.values()]
            _, taken = models_json_schema(inputs, ref_template=SCHEMA)  # type: ignore[arg-type]
            schemas.update(taken["$defs"])
            for operations in document["paths"].values():
                for operation in operations.values():
                    if "HTTPValidationError" in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
            scheme = {"type": "http", "scheme": "bearer"}
            document["components"]["securitySchemes"] = {"key": scheme}
            document["security"] = [{"key": []}]
        assert self.openapi_schema is not None
        return self.openapi_schema
