"""What stands before Serve's proxy: a request goes the short way to a gateway of this machine, where there is one.

One that a lost replica of the gateway had is held and asked again.

Headers that Serve would obey are refused, and those that it could not read left out, before it sees them.

Where a replica dies with a request, Serve answers nothing or in plain text; a drawing may be asked for twice, since
nothing of the first was shown, and a job is found by the key that a request without one gets here. What cannot be had
in time is a 503 in the envelope. Serve's own routes (`/-/routes`, `/-/healthz`) answer nobody: they would name every
application to whoever asks, and the gateway has /healthz. Ray's head names `services.gateway.front.middlewares` to the
proxy (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`).
"""

import asyncio
import json
import time
import uuid
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway import connections, sockets
from services.gateway.errors import ApiError
from services.gateway.headers import refusal_of, without_unreadable
from services.gateway.sockets import Gateways

OURS: Final = "/v1/"
HEALTH: Final = frozenset({"/healthz", "/readyz"})
OWN: Final = "/-/"  # Serve's
MARK: Final = (
    "x-content-type-options"  # the gateway puts it on every answer, Serve on none of its own
)
HELD_S: Final = 30.0  # the gateway's start takes seconds, on a busy machine more
LOSSES: Final = 3  # a request that kills its replica is not given to everyone
MOST_HELD: Final = 512
MOST_KEPT: Final = 2**20  # bytes of a body, the most that the gateway takes
PAUSE_S: Final = 0.25
KEY: Final = b"idempotency-key"


class Front:
    """ASGI middleware around Serve's proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._gateways = Gateways(sockets.folder())
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through without what only Serve would read in it; hold it where the gateway is away."""
        path = scope.get("path", "")
        if scope["type"] == "http" and path.startswith(OWN):
            closed = "Serve's own routes are closed; the gateway has /healthz\n"
            await PlainTextResponse(closed, 403)(scope, receive, send)
            return
        if path not in HEALTH and not path.startswith(OURS):  # another team's, on a cluster
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await _refuse_socket(send)
            return
        scope = without_unreadable(scope)
        if (refused := refusal_of(Headers(scope=scope))) is not None:
            await _refuse(refused, scope, receive, send)
        elif path in HEALTH:
            await self._app(scope, receive, send)
        else:
            await self._answered(scope, receive, send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask for a request until it has an answer."""
        scope = _named(scope)
        body, deadline, losses = _Body(receive), time.monotonic() + HELD_S, 0
        while True:
            answer = _Answer(send)
            if not await self._gateways.ask(scope, body.again, answer):
                await self._app(scope, body.again(), answer)
            if answer.ended or body.gone:
                return
            if answer.begun:
                await answer.cut()
                return
            losses += answer.refused is None
            problem = self._problem(answer, body)
            if problem is None and losses <= LOSSES and time.monotonic() < deadline:
                await self._pause()
                continue
            await _refuse(problem or _away(), scope, receive, send)
            return

    async def _pause(self) -> None:
        self._held += 1
        try:
            await asyncio.sleep(PAUSE_S)
        finally:
            self._held -= 1

    def _problem(self, answer: "_Answer", body: "_Body") -> ApiError | None:
        """Return why a request is not asked again, None where it may be."""
        if answer.refused == 408:
            return ApiError(504, "the request took too long; ask for less", code="timeout")
        if self._held >= MOST_HELD or not body.whole:
            return _away()
        return None


class _Body:
    """A request's body, kept as it comes so that it can be read again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._size = 0
        self.whole = True
        self.gone = False  # the client

    def again(self) -> Receive:
        """Return a channel that gives the body from its start, and goes on with what the client sends."""
        kept = iter(tuple(self._messages))

        async def receive() -> Message:
            message = next(kept, None)
            if message is None:
                message = await self._receive()
                self._keep(message)
            return message

        return receive

    def _keep(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self.gone = True
            return
        self._size += len(message.get("body", b""))
        if self._size > MOST_KEPT:
            self.whole = False
            self._messages.clear()
        if self.whole:
            self._messages.append(message)


class _Answer:
    """What comes back: the gateway's is passed on, Serve's own is not."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.ended = False
        self.refused: int | None = None  # the status of Serve's own answer
        self._events = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            if MARK not in headers:
                self.refused = message["status"]
                return
            self.begun = True
            self._events = headers.get("content-type", "").startswith("text/event-stream")
        if not self.begun:
            return
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended = True

    async def cut(self) -> None:
        """End a stream whose replica was lost by an error; any other body stays short, which HTTP tells."""
        if not self._events:
            return
        error = ApiError(503, "the replica was lost; ask again", code="interrupted")
        line = f"data: {json.dumps(error.body)}\n\n".encode()
        await self._send({"type": "http.response.body", "body": line})


def _named(scope: Scope) -> Scope:
    """Return a request with a name: what a lost replica has written down of it is found, and not done twice."""
    if scope["method"] != "POST" or any(name == KEY for name, _ in scope["headers"]):
        return scope
    name = (KEY, f"front-{uuid.uuid4().hex}".encode())
    return {**scope, "headers": [*scope["headers"], name]}


def middlewares() -> list[Middleware]:
    """Return what Serve puts around its proxy, whose server is about to start."""
    connections.install()
    return [Middleware(Front)]


def _away() -> ApiError:
    return ApiError(503, "the gateway is starting; try again", code="unavailable", retry_after_s=2)


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    answer = error.response()
    answer.headers["cache-control"] = "no-store"
    answer.headers[MARK] = "nosniff"
    answer.headers["x-request-id"] = Headers(scope=scope).get("x-request-id", uuid.uuid4().hex)
    await answer(scope, receive, send)


async def _refuse_socket(send: Send) -> None:
    """Answer a handshake as any other request is answered."""
    error = ApiError(400, "there are no websockets here; send a request", code="no_websockets")
    headers = [(b"content-type", b"application/json"), (MARK.encode(), b"nosniff")]
    start = {"type": "websocket.http.response.start", "status": error.status, "headers": headers}
    await send(start)
    body = json.dumps(error.body).encode()
    await send({"type": "websocket.http.response.body", "body": body})
