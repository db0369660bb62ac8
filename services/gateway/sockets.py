"""The short way from Serve's proxy to a gateway of the same machine: HTTP over a Unix socket.

Serve's own way costs three calls of actors a request: the proxy calls the replica, which calls back for the body and
once more to learn of a client that goes. Here every gateway's replica opens a socket in a folder that is closed to
others, and the front (`services.gateway.front`), which lives in the proxy, asks there. Where there is no socket, as on
a cluster whose nodes name no folder, or none that answers, a request goes Serve's way, which knows of replicas that
start.

A socket is there from the replica's start to its end, and what has begun is then answered to its end.
"""

import asyncio
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from services.gateway.errors import logger

if TYPE_CHECKING:
    import aiohttp
    from multidict import CIMultiDict

FOLDER: Final = "ATELIER_GATEWAY_SOCKETS"
"""The variable that names the folder, for Serve's processes alone; the stack sets it."""
SHORT_WAY: Final = "atelier.short_way"
"""In the scope of a request that came by a socket, which Serve gave no id."""
BACKLOG: Final = 1024
LAST_S: Final = 20.0  # for what has begun when a replica ends, as `graceful_shutdown_timeout_s`
ENDING: Final = ".sock"
CONNECT_S: Final = 2.0
BODY_S: Final = 0.05  # for a body to be there with its head
WHOLE: Final = (
    2**20
)  # bytes of a body that goes this way, and of an answer that is passed on in one piece
IDLE_S: Final = 30.0  # until the front closes a connection; a gateway keeps it longer
HOP: Final = frozenset(
    {
        *(b"connection", b"expect", b"keep-alive", b"proxy-authenticate", b"proxy-authorization"),
        *(b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
"""Headers of one connection (RFC 9110, section 7.6.1)."""
TOLD: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})  # by the front, of the client


def folder() -> Path | None:
    """Return where the sockets are, None where nobody said."""
    named = os.environ.get(FOLDER)
    return Path(named) if named else None


class Listening:
    """ASGI middleware around the gateway: between startup and shutdown it answers at a socket, too."""

    def __init__(self, app: ASGIApp, place: Path) -> None:
        self._app = app
        self._path = place / f"{os.getpid()}{ENDING}"
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open and close the socket as the server that runs the gateway starts and ends."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self._open()
                except OSError as error:
                    logger.warning(
                        "no socket at %s, requests go Serve's way: %s", self._path, error
                    )
            elif message["type"] == "lifespan.shutdown":
                await self._close()
            return message

        await self._app(scope, heard, send)

    async def _open(self) -> None:
        config = uvicorn.Config(
            Attentive(self._app),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            forwarded_allow_ips="*",  # the front alone comes here, and says who asked it
            timeout_keep_alive=round(2.5 * IDLE_S),
        )
        config.load()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        making = self._path.with_suffix(".tmp")  # nobody finds it before it listens
        making.unlink(missing_ok=True)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: HttpToolsProtocol(config, self._state, {}), str(making), backlog=BACKLOG
        )
        making.chmod(0o600)
        making.rename(self._path)

    async def _close(self) -> None:
        """Take no more, and answer what has begun."""
        if self._server is None:
            return
        self._path.unlink(missing_ok=True)
        self._server.close()
        for connection in tuple(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(tuple(self._state.tasks), timeout=LAST_S)


class Attentive:
    """ASGI middleware that ends a request whose client has gone, as Serve does; the server itself does not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for as long as somebody waits."""
        answering = asyncio.current_task()
        assert answering is not None
        watching: asyncio.Task[None] | None = None
        gone = ended = False

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            if not ended:
                gone = True
                answering.cancel()

        async def heard() -> Message:
            nonlocal watching
            message = await receive()
            whole = message["type"] == "http.request" and not message.get("more_body", False)
            if whole and watching is None:
                watching = asyncio.create_task(watch())
            return message

        async def told(message: Message) -> None:
            nonlocal ended
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app({**scope, SHORT_WAY: True}, heard, told)
        except asyncio.CancelledError:
            if not gone:
                raise
            answering.uncancel()
        finally:
            if watching is not None:
                watching.cancel()


class Gateways:
    """The gateways of this machine, as the front asks them."""

    def __init__(self, place: Path | None) -> None:
        self._place = place
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def ask(self, scope: Scope, again: Callable[[], Receive], send: Send) -> bool:
        """Ask a gateway, or return False where none can be asked; one that is lost with a request sends nothing more.

        A body that is not there yet goes Serve's way: the gateway reads it, and has its time for that.

        Args:
            scope: The request's.
            again: Returns a channel that gives its body from the start.
            send: Where the answer goes.
        """
        from aiohttp import ClientConnectorError

        names = self._names()
        if not names or not _plain(scope) or not await _there(again()):
            return False
        random.shuffle(names)
        for name in names:
            try:
                await Attentive(partial(self._forward, name))(scope, again(), send)
            except ClientConnectorError as error:
                if isinstance(error.os_error, ConnectionRefusedError | FileNotFoundError):
                    await self._forget(name)
            else:
                return True
        return False

    async def _forward(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to a socket and its answer back.

        Raises:
            aiohttp.ClientConnectorError: nobody answers there.
        """
        import aiohttp
        from yarl import URL

        body = await _body(receive)
        path, query = scope["raw_path"].decode("ascii"), scope["query_string"].decode("ascii")
        url = URL(f"http://gateway{path}{f'?{query}' if query else ''}", encoded=True)
        begun = False
        try:
            async with self._session(name).request(
                scope["method"],
                url,
                headers=_headers(scope),
                data=body or None,
                allow_redirects=False,
            ) as answer:
                whole = (answer.content_length or WHOLE + 1) <= WHOLE
                content = await answer.read() if whole else b""
                kept = [pair for pair in answer.raw_headers if _of_answer(*pair)]
                begun = True
                await send(
                    {"type": "http.response.start", "status": answer.status, "headers": kept}
                )
                if not whole:
                    async for part in answer.content.iter_any():
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": content})
        except aiohttp.ClientConnectorError:
            if not begun:
                raise
        except aiohttp.ClientError:
            return  # lost; the front sees that the answer has not ended

    def _session(self, name: str) -> "aiohttp.ClientSession":
        import aiohttp

        assert self._place is not None
        if name not in self._sessions:
            self._sessions[name] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(
                    str(self._place / name), limit=0, keepalive_timeout=IDLE_S
                ),
                timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_S),
                skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._sessions[name]

    def _names(self) -> list[str]:
        if self._place is None:
            return []
        try:
            return [path.name for path in self._place.iterdir() if path.suffix == ENDING]
        except FileNotFoundError:
            return []

    async def _forget(self, name: str) -> None:
        """Take away the socket of a replica that is gone."""
        assert self._place is not None
        session = self._sessions.pop(name, None)
        if session is not None:
            await session.close()
        (self._place / name).unlink(missing_ok=True)


def _plain(scope: Scope) -> bool:
    """Return whether a head can be written as it was read, and its body is small enough to be kept."""
    headers = dict(scope["headers"])
    spelled = (scope["raw_path"], scope["query_string"], *headers.values())
    length = headers.get(b"content-length", b"0")
    small = b"transfer-encoding" not in headers and length.isdigit() and int(length[:20]) <= WHOLE
    return small and all(one.isascii() for one in spelled)


async def _there(receive: Receive) -> bool:
    """Return whether a body is there."""
    more = True
    try:
        async with asyncio.timeout(BODY_S):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return False
                more = message.get("more_body", False)
    except TimeoutError:
        return False
    return True


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message["body"])
        more = message.get("more_body", False)
    return b"".join(parts)


def _headers(scope: Scope) -> "CIMultiDict[str]":
    """Return a request's headers, and who sent it: only the front knows."""
    from multidict import CIMultiDict

    kept = CIMultiDict(
        (name.decode("ascii"), value.decode("ascii"))
        for name, value in scope["headers"]
        if name not in HOP and name not in TOLD
    )
    kept["x-forwarded-proto"] = scope["scheme"]
    if scope.get("client"):
        kept["x-forwarded-for"] = scope["client"][0]
    return kept


def _of_answer(name: bytes, value: bytes) -> bool:
    """Return whether the client gets a header; that its connection is to end, too."""
    return name not in HOP or (name == b"connection" and value == b"close")
