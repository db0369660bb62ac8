"""Connections of Serve's proxy: the head of a request has its own time, and an address only so many that are coming.

uvicorn waits for a head for ever. Its table of protocols is where a server that somebody else starts (Serve) finds
ours; of what is no HTTP it tells in plain text, here in the envelope.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any, ClassVar, Final

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.errors import ApiError

HEAD_S: Final = 10.0  # for a head to come
MOST_HEAD: Final = 2**16  # bytes
MOST_OF_ONE: Final = 256  # heads of one address that are coming; one more ends the oldest
YOUNG_S: Final = 2.0  # until it has to: a crowd may come at once


class Connection(HttpToolsProtocol):
    """A connection over HTTP/1.1."""

    _coming: ClassVar[dict[str, dict["Connection", asyncio.TimerHandle]]] = {}
    """By address, the connections whose next head is not there, oldest first, and when their time is up."""
    _head = 0  # bytes of the next head that are there

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what comes; from the first byte of a head on, the rest of it has its time."""
        super().data_received(data)
        cycle: Any = self.cycle  # None until a first head is there
        coming = cycle is None or cycle.response_complete
        if self.transport.is_closing() or self.transport.get_protocol() is not self or not coming:
            self._settle()
            return
        self._wait()
        self._head += len(data)
        if self._head > MOST_HEAD:
            most = f"the headers are larger than {MOST_HEAD} bytes"
            self._refuse(ApiError(431, most, code="headers_too_large"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._settle()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Say that this is no HTTP, in the envelope."""
        self._refuse(ApiError(400, msg, code="invalid_http"))

    def _wait(self) -> None:
        mine = self._coming.setdefault(self._address, {})
        if self in mine:
            return
        if len(mine) >= MOST_OF_ONE:
            oldest, timer = next(iter(mine.items()))
            if timer.when() - self.loop.time() <= HEAD_S - YOUNG_S:
                oldest._late()
        self._coming.setdefault(self._address, {})[self] = self.loop.call_later(HEAD_S, self._late)

    def _settle(self) -> None:
        self._head = 0
        mine = self._coming.get(self._address, {})
        timer = mine.pop(self, None)
        if timer is not None:
            timer.cancel()
        if not mine:
            self._coming.pop(self._address, None)

    def _late(self) -> None:
        if self._head:
            message = "the headers were not there in time; send all of them at once"
            self._refuse(ApiError(408, message, code="headers_timeout"))
        else:
            self._settle()
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        self._settle()
        body = json.dumps(error.body).encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""


def install() -> None:
    """Have every server that this process starts from now on use these connections."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"
