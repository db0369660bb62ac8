"""Bodies of requests, read whole before a request counts as under way: one half-sent holds up nobody.

A body has its own time, and a client (by its key, else by its address) only so many that are being read: one more ends
the oldest of them, unless that is young: a crowd may come at once, but a body that is really sent is there soon.
"""

import asyncio
from typing import Final

from starlette.types import Message, Receive

from services.gateway.errors import ApiError

LONGEST_S: Final = 20.0  # for a body to come
YOUNG_S: Final = 5.0  # until it has to make room
MOST_OF_ONE: Final = (
    256  # bodies of one client that are being read: two hundred users may share a key
)
MOST: Final = 512  # of all clients together


class Bodies:
    """The bodies that are being read."""

    def __init__(self, longest_s: float = LONGEST_S) -> None:
        self._longest_s = longest_s
        self._reading: dict[str, dict[asyncio.Timeout, None]] = {}  # by client, oldest first

    async def read(self, client: str, receive: Receive, most: int) -> bytes:
        """Return a whole body, of at most so many bytes.

        Raises:
            ApiError: 408, it did not come in time or newer ones took its place; 413, it is too large.
        """
        self._make_room(client)
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._longest_s) as timer:
                mine = self._reading.setdefault(client, {})
                mine[timer] = None
                try:
                    return await _whole(receive, most)
                finally:
                    mine.pop(timer, None)
                    if not mine:
                        self._reading.pop(client, None)
        except TimeoutError:
            passed = asyncio.get_running_loop().time() - began
            raise _unfinished(passed) from None

    def _make_room(self, client: str) -> None:
        """End the oldest body of a client that has too many; of too many in all, that of the client that has most."""
        while len(self._reading.get(client, ())) >= MOST_OF_ONE and self._end(client):
            pass
        while sum(map(len, self._reading.values())) >= MOST:
            if not self._end(max(self._reading, key=lambda one: len(self._reading[one]))):
                return

    def _end(self, client: str) -> bool:
        """End a client's oldest body; returns whether it was old enough."""
        oldest = next(iter(self._reading[client]))
        now, end = asyncio.get_running_loop().time(), oldest.when()
        if end is None or end - now > self._longest_s - YOUNG_S:
            return False
        del self._reading[client][oldest]
        oldest.reschedule(now)
        return True


async def _whole(receive: Receive, most: int) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _unfinished(0)  # nobody reads it
        size += len(message.get("body", b""))
        if size > most:
            raise too_large(most)
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def again(body: bytes, receive: Receive) -> Receive:
    """Return what a route receives: the body that was read, and then what comes of the client."""
    told = False

    async def next_message() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


def too_large(most: int) -> ApiError:
    """Return the answer to a body that is too large."""
    return _closing(ApiError(413, f"the body is larger than {most} bytes", code="body_too_large"))


def _unfinished(seconds: float) -> ApiError:
    message = f"the body was not there after {seconds:.0f} s; send all of it at once"
    return _closing(ApiError(408, message, code="body_timeout"))


def _closing(error: ApiError) -> ApiError:
    error.headers["connection"] = "close"  # what is left of the body would hold it open
    return error
