"""A server that uses our connections, over real sockets."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from services.gateway import connections
from services.gateway.connections import Connection

GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n"


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> tuple[int, bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r")[0])
        return int(head.split()[1]), await self.reader.readexactly(length)

    async def refusal(self) -> tuple[int, str]:
        status, body = await self.answer()
        error = json.loads(body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert await self.reader.read() == b""  # closed
        return status, error["code"]


Visit = Callable[[Callable[[], Awaitable[Client]]], Awaitable[Any]]


def served(visit: Visit) -> None:
    """Run a server and `visit` it, with a function that connects."""

    async def run() -> None:
        listener = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
        [socket] = listener.sockets
        config = uvicorn.Config(hello, http=Connection, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        own = socket.dup()
        listener.close()
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[own])

        async def connect() -> Client:
            client = Client(*await asyncio.open_connection(*own.getsockname()[:2]))
            clients.append(client)
            return client

        clients: list[Client] = []
        try:
            await asyncio.wait_for(visit(connect), 30)
        finally:
            for client in clients:
                client.writer.close()
            await server.shutdown(sockets=[own])

    asyncio.run(run())
    assert Connection._coming == {}


@pytest.mark.parametrize("sent", [GET, b"GE"])
def test_a_head_that_does_not_come_is_ended_in_the_envelope(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.01)

    async def visit(connect: Any) -> None:
        client = await connect()
        client.writer.write(sent)
        assert await client.refusal() == (408, "headers_timeout")

    served(visit)


def test_who_says_nothing_at_all_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.01)

    async def visit(connect: Any) -> None:
        assert await (await connect()).reader.read() == b""

    served(visit)


def test_the_time_of_a_head_is_not_that_of_a_body_or_of_an_idle_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.05)

    async def visit(connect: Any) -> None:
        slow, quick = await connect(), await connect()
        slow.writer.write(GET + b"content-length: 4\r\n\r\nab")
        assert await quick.ask(GET + b"\r\n") == (200, b"")
        late = await connect()
        assert await late.reader.read() == b""  # its time passed, and with it that of a head
        assert await quick.ask(GET + b"\r\n") == (200, b"")
        assert await slow.ask(b"cd") == (200, b"abcd")
        slow.writer.write(GET)
        assert await slow.refusal() == (408, "headers_timeout")

    served(visit)


def test_one_head_too_many_of_an_address_ends_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_OF_ONE", 8)
    monkeypatch.setattr(connections, "YOUNG_S", 0.0)

    async def visit(connect: Any) -> None:
        many = []
        for _ in range(9):
            many.append(client := await connect())
            client.writer.write(GET)
            await client.writer.drain()
        assert await many[0].refusal() == (408, "headers_timeout")
        assert await many[-1].ask(b"\r\n") == (200, b"")
        assert await (await connect()).ask(GET + b"\r\n") == (200, b"")

    served(visit)


def test_a_crowd_that_comes_at_once_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_OF_ONE", 2)

    async def visit(connect: Any) -> None:
        many = [await connect() for _ in range(20)]
        for client in many:
            assert await client.ask(GET + b"\r\n") == (200, b"")

    served(visit)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"\x00\x01nonsense\r\n\r\n", (400, "invalid_http")),
        (GET + b"a\x80\xffb: c\r\n\r\n", (400, "invalid_http")),
        (b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n", (400, "invalid_http")),
        (GET + b"x: " + b"y" * 70_000, (431, "headers_too_large")),
    ],
)
def test_what_is_no_request_is_told_in_the_envelope(sent: bytes, expected: tuple[int, str]) -> None:
    async def visit(connect: Any) -> None:
        client = await connect()
        client.writer.write(sent)
        assert await client.refusal() == expected

    served(visit)
