"""What stands before Serve's proxy, around a proxy whose gateway is lost in every way that Serve has."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from services.gateway import front
from services.gateway.front import Front

Way = Callable[[Scope, Receive, Send], Any]
NOSNIFF = [(b"x-content-type-options", b"nosniff"), (b"content-type", b"application/json")]


async def read(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    return body


async def answer(_scope: Scope, receive: Receive, send: Send) -> None:
    """The gateway's own answer: the body that it read."""
    body = await read(receive)
    await send({"type": "http.response.start", "status": 200, "headers": NOSNIFF})
    await send({"type": "http.response.body", "body": body})


async def lost(_scope: Scope, receive: Receive, _send: Send) -> None:
    """A replica that dies when it has the body: Serve sends nothing."""
    await read(receive)


def refused(status: int) -> Way:
    async def way(_scope: Scope, _receive: Receive, send: Send) -> None:
        plain = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": status, "headers": plain})
        await send({"type": "http.response.body", "body": b"from Serve"})

    return way


def begun(kind: bytes) -> Way:
    async def way(_scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        headers = [NOSNIFF[0], (b"content-type", kind)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})

    return way


class Proxy:
    """Serve's proxy: one way a call."""

    def __init__(self, *ways: Way) -> None:
        self.ways: Iterator[Way] = iter(ways)
        self.calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        await next(self.ways)(scope, receive, send)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "PAUSE_S", 0.001)


def ask(
    proxy: Proxy,
    path: str = "/v1/samples",
    body: bytes = b'{"seed": 1}',
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=Front(proxy))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, content=body, headers=headers)

    return asyncio.run(call())


@pytest.mark.parametrize("first", [lost, refused(404), refused(500), refused(503)])
def test_a_request_whose_gateway_is_lost_is_answered_by_the_next(first: Way) -> None:
    proxy = Proxy(first, first, answer)
    found = ask(proxy)
    assert (found.status_code, found.content, proxy.calls) == (200, b'{"seed": 1}', 3)


def test_a_request_has_one_name_however_often_it_is_asked() -> None:
    names: list[bytes] = []

    def noting(way: Way) -> Way:
        async def noted(scope: Scope, receive: Receive, send: Send) -> None:
            names.append(dict(scope["headers"])[b"idempotency-key"])
            await way(scope, receive, send)

        return noted

    for _ in range(2):
        assert ask(Proxy(noting(lost), noting(answer)), "/v1/videos").status_code == 200
    assert (names[0], names[2]) == (names[1], names[3])
    assert names[0] != names[2]
    ask(Proxy(noting(answer)), "/v1/videos", headers={"idempotency-key": "mine"})
    assert names[4] == b"mine"


def test_a_request_that_kills_every_replica_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(*[lost] * 10)
    found = ask(proxy)
    assert found.status_code == 503
    assert found.json()["error"]["code"] == "unavailable"
    assert found.headers["retry-after"]
    assert proxy.calls == front.LOSSES + 1


def test_a_gateway_that_stays_away_is_a_503_in_the_envelope(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(front, "HELD_S", 0.0)
    found = ask(Proxy(refused(404)))
    assert (found.status_code, found.json()["error"]["type"]) == (503, "server_error")


def test_serve_s_time_out_is_a_504_in_the_envelope_and_not_asked_again() -> None:
    proxy = Proxy(refused(408))
    found = ask(proxy)
    assert (found.status_code, found.json()["error"]["code"], proxy.calls) == (504, "timeout", 1)


def test_a_body_that_is_too_long_to_keep_passes_once() -> None:
    body = b"x" * (front.MOST_KEPT + 1)
    assert ask(Proxy(answer), body=body).content == body
    proxy = Proxy(lost)
    assert (ask(proxy, body=body).status_code, proxy.calls) == (503, 1)


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_another_team_s_application_gets_what_was_sent_to_it(kind: str) -> None:
    got: list[Scope] = []

    async def theirs(scope: Scope, _receive: Receive, _send: Send) -> None:
        got.append(scope)

    async def nothing(*_: Any) -> Any:
        """Neither sends nor receives."""

    scope = {"type": kind, "path": "/neighbour", "headers": [(b"serve-anything", b"\x80")]}
    asyncio.run(Front(theirs)(scope, nothing, nothing))
    assert got == [scope]


def test_health_is_never_held() -> None:
    proxy = Proxy(refused(503))
    assert (ask(proxy, "/readyz").status_code, proxy.calls) == (503, 1)


@pytest.mark.parametrize("path", ["/-/routes", "/-/healthz"])
def test_serve_s_own_routes_are_closed(path: str) -> None:
    proxy = Proxy(answer)
    assert (ask(proxy, path).status_code, proxy.calls) == (403, 0)


def run(proxy: Proxy) -> list[Message]:
    """The messages that a client gets."""
    sent: list[Message] = []
    incoming = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

    async def receive() -> Message:
        return next(incoming, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/chat/completions", "headers": []}
    asyncio.run(Front(proxy)(scope, receive, send))
    return sent


def test_a_stream_whose_gateway_is_lost_ends_with_an_error() -> None:
    proxy = Proxy(begun(b"text/event-stream; charset=utf-8"))
    last = run(proxy)[-1]
    assert not last.get("more_body", False)
    said = json.loads(last["body"].removeprefix(b"data: "))
    assert (said["error"]["code"], proxy.calls) == ("interrupted", 1)


def test_a_file_whose_gateway_is_lost_stays_short_and_is_not_begun_anew() -> None:
    proxy = Proxy(begun(b"audio/wav"))
    assert [message.get("more_body") for message in run(proxy)] == [None, True]
    assert proxy.calls == 1


def test_nobody_is_asked_again_for_a_client_that_has_left() -> None:
    async def left(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    proxy = Proxy(left)
    assert run(proxy) == []
    assert proxy.calls == 1


HEADERS = [(b"host", b"localhost"), (b"user-agent", b"M\xfcller")]


def given(*headers: tuple[bytes, bytes]) -> list[Message]:
    """The messages that a client gets for a request with these headers, and what the proxy saw of them."""
    sent: list[Message] = []

    async def seen(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        told = json.dumps(
            [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]]
        )
        await send({"type": "http.response.start", "status": 200, "headers": NOSNIFF})
        await send({"type": "http.response.body", "body": told.encode()})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [*HEADERS, *headers]}
    asyncio.run(Front(seen)(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    "header",
    [
        (b"x-request-id", b"\x80"),
        (b"x-request-id", b"a b"),
        (b"x-request-id", b"i" * 129),
        (b"x-session-id", b"\xff"),
        (b"traceparent", b"\xff"),
    ],
)
def test_what_serve_could_not_read_does_not_come_to_it(header: tuple[bytes, bytes]) -> None:
    start, body = given(header)
    assert start["status"] == 200
    assert json.loads(body["body"]) == [["host", "localhost"], ["user-agent", "M\xfcller"]]


def test_a_request_id_that_is_one_stays() -> None:
    _, body = given((b"X-Request-ID", b"mine-1"))
    assert ["X-Request-ID", "mine-1"] in json.loads(body["body"])


@pytest.mark.parametrize(
    "name",
    [
        "x-request-timeout-seconds",
        "x-request-disconnect-disabled",
        "serve_multiplexed_model_id",
        "serve-multiplexed-model-id",
    ],
)
def test_what_serve_would_obey_is_refused_in_the_envelope(name: str) -> None:
    start, body = given((name.encode(), b"0.001"))
    error = json.loads(body["body"])["error"]
    assert (start["status"], error["code"], error["param"]) == (400, "header", name)
    assert dict(start["headers"])[b"x-request-id"]


def test_a_websocket_is_refused_in_the_envelope() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        await Front(answer)({"type": "websocket", "path": "/v1/chat"}, asyncio.Event().wait, send)

    asyncio.run(run())
    start, body = sent
    assert start["status"] == 400
    assert json.loads(body["body"])["error"]["code"] == "no_websockets"
