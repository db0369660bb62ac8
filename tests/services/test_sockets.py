"""The short way from the front to the gateway is Serve's way: the same answers, the same ends."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from services.gateway import sockets
from services.gateway.front import Front
from services.gateway.sockets import Gateways, Listening

NOSNIFF = (b"x-content-type-options", b"nosniff")


class Gateway:
    """Tells what it was asked, as JSON, a stream or never; Serve would ask it with an id."""

    def __init__(self) -> None:
        self.begun, self.cancelled = asyncio.Event(), asyncio.Event()
        self.may_end = asyncio.Event()
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.asked += 1
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.begun.set()
        try:
            await getattr(self, scope["path"].rpartition("/")[2])(scope, body, send)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def whole(self, scope: Scope, body: bytes, send: Send) -> None:
        told = {
            "method": scope["method"],
            "path": scope["raw_path"].decode(),
            "query": scope["query_string"].decode(),
            "client": scope["client"][0],
            "scheme": scope["scheme"],
            "headers": [[n.decode(), v.decode()] for n, v in scope["headers"]],
            "body": body.decode(),
            "short": sockets.SHORT_WAY in scope,
        }
        headers = [NOSNIFF, (b"content-type", b"application/json"), (b"x-a", b"1"), (b"x-a", b"2")]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})

    async def stream(self, _scope: Scope, _body: bytes, send: Send) -> None:
        headers = [NOSNIFF, (b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await self.may_end.wait()
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})

    async def slow(self, scope: Scope, body: bytes, send: Send) -> None:
        await self.may_end.wait()
        await self.whole(scope, body, send)


@asynccontextmanager
async def running(app: Any, place: Path) -> AsyncIterator[Callable[[], Any]]:
    """The gateway between startup and shutdown; yields what ends it."""
    heard: asyncio.Queue[Message] = asyncio.Queue()
    told: asyncio.Queue[Message] = asyncio.Queue()
    life = asyncio.create_task(Listening(app, place)({"type": "lifespan"}, heard.get, told.put))
    heard.put_nowait({"type": "lifespan.startup"})
    await told.get()

    async def end() -> None:
        heard.put_nowait({"type": "lifespan.shutdown"})
        await told.get()
        await life

    try:
        yield end
    finally:
        if not life.done():
            await end()


async def from_serve(scope: Scope, _receive: Receive, send: Send) -> None:
    """Serve's way, which these requests are not to go."""
    headers = [NOSNIFF, (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 418, "headers": headers})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(sockets.FOLDER, str(tmp_path / "s"))
    return tmp_path / "s"


def client(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=("10.0.0.7", 1))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")


async def closed(front: Front) -> None:
    for session in front._gateways._sessions.values():
        await session.close()


def test_a_request_and_its_answer_pass_as_they_are(place: Path) -> None:
    async def run() -> None:
        front = Front(from_serve)
        async with running(Gateway(), place), client(front) as user:
            headers = {"x-forwarded-for": "6.6.6.6", "x-forwarded-proto": "https", "te": "x"}
            url = "/v1/a%2Fb/whole?x=%20y&x=z"
            answer = await user.post(url, content="{}", headers=headers)
            told = answer.json()
            assert answer.status_code == 201
            assert answer.headers.get_list("x-a") == ["1", "2"]
            assert "transfer-encoding" not in answer.headers
            assert told["path"] == "/v1/a%2Fb/whole"
            assert (told["method"], told["query"]) == ("POST", "x=%20y&x=z")
            assert (told["client"], told["scheme"]) == ("10.0.0.7", "http")
            assert told["body"] == "{}"
            assert told["short"]
            names = [name for name, _ in told["headers"]]
            assert "te" not in names
            assert ["host", "localhost:8000"] in told["headers"]
            assert sorted({*names}) == sorted(names)  # nothing was put in twice
        await closed(front)
        assert [*place.iterdir()] == []
        assert place.stat().st_mode & 0o077 == 0

    asyncio.run(run())


def test_without_a_gateway_there_a_request_goes_serves_way(place: Path) -> None:
    async def run() -> None:
        front = Front(from_serve)
        async with client(front) as user:
            assert (await user.post("/v1/whole", content="{}")).status_code == 418
            async with running(Gateway(), place):
                assert (await user.post("/v1/whole", content="{}")).status_code == 201
                assert (await user.get("/readyz")).status_code == 418  # asks whether Serve's works
                odd = await user.post("/v1/whole", content="{}", headers={"x-b": "é".encode()})
                assert odd.status_code == 418
                large = await user.post("/v1/whole", content="x" * (sockets.WHOLE + 1))
                assert large.status_code == 418
            dead = place / "1.sock"
            left = await asyncio.start_unix_server(lambda *_: None, str(dead))
            left.close()
            await left.wait_closed()
            dead.exists() or dead.touch()
            assert (await user.post("/v1/whole", content="{}")).status_code == 418
            assert not dead.exists()
        await closed(front)

    asyncio.run(run())


def test_a_gateway_that_cannot_open_its_socket_says_so_and_is_asked_serves_way(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        place.write_text("a file where the folder is to be")
        with caplog.at_level(logging.WARNING, "ray.serve"):
            async with running(Gateway(), place):
                pass
        assert f"no socket at {place}" in caplog.text

    asyncio.run(run())


def test_a_body_that_is_not_there_goes_serves_way(place: Path) -> None:
    async def run() -> None:
        gateways = Gateways(place)
        scope = {
            **{"type": "http", "method": "POST", "scheme": "http", "headers": []},
            **{"raw_path": b"/v1/whole", "query_string": b"", "path": "/v1/whole"},
        }
        never: asyncio.Queue[Message] = asyncio.Queue()
        half: asyncio.Queue[Message] = asyncio.Queue()
        half.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
        gateway = Gateway()
        async with running(gateway, place):
            for channel in (never, half):
                assert not await gateways.ask(scope, lambda one=channel: one.get, never.put)
        assert gateway.asked == 0

    asyncio.run(run())


def test_a_stream_comes_as_it_is_made(place: Path) -> None:
    async def run() -> None:
        gateway, parts = Gateway(), []
        front = Front(from_serve)

        async def send(message: Message) -> None:
            parts.append(message.get("body"))
            if message.get("body") == b"data: 1\n\n":
                gateway.may_end.set()  # it has not ended, and the first part is here

        scope = asked("/v1/stream")
        async with running(gateway, place):
            await front(scope, sender(), send)
        await closed(front)
        assert b"".join(part for part in parts if part) == b"data: 1\n\ndata: 2\n\n"

    asyncio.run(run())


def test_a_client_that_goes_ends_the_answering(place: Path) -> None:
    async def run() -> None:
        gateway, front = Gateway(), Front(from_serve)

        async def leave() -> Message:
            await gateway.begun.wait()
            return {"type": "http.disconnect"}

        async with running(gateway, place):
            await front(asked("/v1/slow"), sender(leave), unheard)
            async with asyncio.timeout(10):
                await gateway.cancelled.wait()
        await closed(front)

    asyncio.run(run())


def test_what_has_begun_is_answered_when_a_replica_ends(place: Path) -> None:
    async def run() -> None:
        gateway, front = Gateway(), Front(from_serve)
        async with running(gateway, place) as end, client(front) as user:
            answer = asyncio.create_task(user.post("/v1/slow", content="{}"))
            await gateway.begun.wait()
            ending = asyncio.create_task(end())
            while [*place.iterdir()]:
                await asyncio.sleep(0)
            assert (await user.post("/v1/whole", content="{}")).status_code == 418
            assert not ending.done()
            gateway.may_end.set()
            assert (await answer).status_code == 201
            await ending
        await closed(front)

    asyncio.run(run())


def asked(path: str) -> Scope:
    return {
        **{"type": "http", "method": "POST", "scheme": "http", "path": path},
        **{"raw_path": path.encode(), "query_string": b"", "headers": [(b"host", b"localhost")]},
        **{"client": ("10.0.0.7", 1), "http_version": "1.1"},
    }


def sender(then: Callable[[], Any] | None = None) -> Receive:
    """A channel with a whole body, and then what comes of the client."""
    first = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

    async def receive() -> Message:
        message = next(first, None)
        if message is not None:
            return message
        if then is not None:
            return await then()  # type: ignore[no-any-return]
        await asyncio.Event().wait()
        raise AssertionError

    return receive


async def unheard(_message: Message) -> None:
    """Nobody is there any more."""
