"""Bodies of requests, read whole before a request counts as under way: one half-sent holds up nobody.

A body has its own time, and a client (by its key, else by its address) only so many that are being read: one more ends
the oldest of them, unless that is young: a crowd may come at once, but a body that is really sent is there soon. A
large one lies on disk until its request is answered.
"""

import asyncio
from contextlib import ExitStack
from tempfile import SpooledTemporaryFile
from typing import IO, Final

from starlette.types import Message, Receive

from services.gateway.errors import ApiError

LONGEST_S: Final = 20.0  # for a body to come, beside the time that its length takes
SLOWEST: Final = 2**20  # bytes a second
IN_MEMORY: Final = 2**20  # bytes of a body; of a larger one all are on disk
MOST_ON_DISK: Final = 2**32  # bytes of all bodies together
BLOCK: Final = 2**18  # bytes that a route receives at a time
YOUNG_S: Final = 5.0  # until it has to make room
MOST_OF_ONE: Final = (
    256  # bodies of one client that are being read: two hundred users may share a key
)
MOST: Final = 512  # of all clients together


class Bodies:
    """The bodies that are being read."""

    def __init__(self, longest_s: float = LONGEST_S) -> None:
        self._longest_s = longest_s
        self._reading: dict[str, dict[asyncio.Timeout, float]] = {}  # since when; oldest first
        self._on_disk: dict[IO[bytes], int] = {}  # bytes of large bodies, read or being read

    async def read(self, client: str, receive: Receive, most: int, length: int = 0) -> IO[bytes]:
        """Return a whole body, of at most so many bytes, at its start; who asks closes it.

        Args:
            client: whose it is.
            receive: where it comes from.
            most: bytes that are taken.
            length: bytes that it says it has, 0 where it does not say.

        Raises:
            ApiError: 408, it did not come in time or newer ones took its place; 413, it is too large; 429, there is no
                room for it beside other large ones.
        """
        self._make_room(client)
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._longest_s + length / SLOWEST) as timer:
                mine = self._reading.setdefault(client, {})
                mine[timer] = began
                try:
                    return await self._whole(receive, most)
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
        now = asyncio.get_running_loop().time()
        if oldest.when() is None or now - self._reading[client][oldest] < YOUNG_S:
            return False
        del self._reading[client][oldest]
        oldest.reschedule(now)
        return True

    async def _whole(self, receive: Receive, most: int) -> IO[bytes]:
        with ExitStack() as undo:
            body: IO[bytes] = undo.enter_context(SpooledTemporaryFile(IN_MEMORY))
            size, more = 0, True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _unfinished(0)  # nobody reads it
                size += len(message.get("body", b""))
                if size > most:
                    raise too_large(most)
                if size > IN_MEMORY:
                    self._make_room_on_disk(body, size)
                body.write(message.get("body", b""))
                more = message.get("more_body", False)
            body.seek(0)
            undo.pop_all()  # who asks closes it
        return body

    def _make_room_on_disk(self, body: IO[bytes], size: int) -> None:
        """Count a body that grows beyond what is kept in memory; those that were closed count no more."""
        self._on_disk = {one: many for one, many in self._on_disk.items() if not one.closed}
        self._on_disk[body] = size
        if sum(self._on_disk.values()) > MOST_ON_DISK:
            message = f"bodies of {MOST_ON_DISK} bytes are under way, no more fit; try again"
            raise _closing(ApiError(429, message, code="queue_full", retry_after_s=5))


def again(body: IO[bytes], receive: Receive) -> Receive:
    """Return what a route receives: the body that was read, block by block, and then what comes of the client."""
    told = False

    async def next_message() -> Message:
        nonlocal told
        if told:
            return await receive()
        block = body.read(BLOCK)
        told = len(block) < BLOCK
        return {"type": "http.request", "body": block, "more_body": not told}

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
