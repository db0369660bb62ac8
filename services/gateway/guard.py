"""The door: what every request passes before a route sees it.

A request id, headers that may not come in, the key, the body, the number of requests under way. Closed unless opened:
only the two health routes answer without a key once there is one, and links that are signed. The platform itself, which
tries a version before it is promoted, is let in however many requests are under way; a key that has fewer than its even
share of them is, too, up to twice as many, so that no one key's flood keeps the others out.
"""

import asyncio
import hashlib
import re
import time
import uuid
from collections import Counter
from io import BytesIO
from typing import IO, Final, Literal, Protocol, TypeAlias

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.database import DatabaseError
from infra.keys import Key
from services.gateway.bodies import Bodies, again, too_large
from services.gateway.errors import ApiError, unavailable
from services.gateway.headers import REQUEST_ID, refusal_of
from services.gateway.sockets import SHORT_WAY

OPEN: Final = frozenset({"/healthz", "/readyz"})
LINKED: Final = "/v1/files/"  # whose route checks a link's signature (services.media.result_store)
LARGEST_UPLOADS: Final = {
    "/v1/content_provenance_checks": 65 * 2**20,
    "/v1/images/edits": 12 * 2**20,
    "/v1/images/variations": 5 * 2**20,
    "/v1/embeddings": 9 * 2**20,
    "/v1/videos": 9 * 2**20,
    "/v1/videos/edits": 17 * 2**20,
    "/v1/videos/extensions": 17 * 2**20,
    "/v1/files": 201 * 2**20,
}
"""Bytes of the bodies that may be larger than others: files as we answer them; a picture and its
mask; a picture; pictures as data URLs; a clip; the requests of a batch."""
ANYBODY: Final = "anybody"  # whose jobs are those that came while there was no key
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
REMEMBERED_S: Final = 1.0  # how long a verdict on a key holds


Admission: TypeAlias = Literal["house", "key", "open", "link", "no"]
"""By a key of the platform's own, by a person's, since nobody made one, by a signed link, or not at all."""


class KeyStore(Protocol):
    """Where keys are checked; both calls may block briefly."""

    def any(self) -> bool:
        """Return whether a key was ever made and not revoked."""
        ...

    def find(self, key: str) -> Key | None:
        """Return what is known of a key that is good."""
        ...


class Guard:
    """ASGI middleware around the whole gateway."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyStore,
        *,
        host: str,
        max_body: int,
        max_under_way: int,
        behind_proxy: bool = False,
    ) -> None:
        self._app = app
        self._keys = keys
        self._host = host
        self._max_body = max_body
        self._bodies = Bodies()
        self._max_under_way = max_under_way
        self._behind_proxy = (
            behind_proxy  # Serve's: it gives every request its id and answers with it
        )
        self._under_way: Counter[str] = Counter()  # of a client
        self._verdicts: dict[str, tuple[float, Admission, str]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through to the gateway, or answer why not."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        identity = asked if REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        named = self._behind_proxy and SHORT_WAY not in scope
        if named:
            identity = asked[:128]
        scope["request_id"] = identity

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                if not named:
                    out["x-request-id"] = identity
                out["x-content-type-options"] = "nosniff"
                out.setdefault("cache-control", "no-store")
            await send(message)

        try:
            client, body = await self._read(scope, headers, receive)
        except ApiError as error:
            await error.response()(scope, receive, answer)
            return
        self._under_way[client] += 1
        try:
            await self._app(scope, again(body, receive), answer)
        finally:
            self._under_way -= Counter([client])  # keeps those above 0
            body.close()

    async def _read(
        self, scope: Scope, headers: Headers, receive: Receive
    ) -> tuple[str, IO[bytes]]:
        """Return whose it is and the body, or raise why this request may not come in."""
        if (refused := refusal_of(headers)) is not None:
            raise refused
        scope["house"], scope["owner"] = False, ""
        if scope["path"] in OPEN:
            return "", BytesIO()
        key = _key(headers)
        linked = scope["path"].startswith(LINKED) and b"signature=" in scope["query_string"]
        admitted, scope["owner"] = ("link", "") if linked else await self._authorize(key, headers)
        scope["house"] = admitted == "house"
        most = max(self._max_body, LARGEST_UPLOADS.get(scope["path"], 0))
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > most:
            raise too_large(most)
        address, _ = scope.get("client") or ("", 0)
        client = address if admitted in {"open", "link"} else _hash(key)
        body = await self._bodies.read(client, receive, most, int(length))
        if admitted != "house" and (full := self._full(client)):
            body.close()
            raise ApiError(429, full, code="queue_full", retry_after_s=2)
        return client, body

    def _full(self, client: str) -> str:
        """Return why a client must wait: the gateway is full, and it has its even share of what fits; else nothing."""
        total, most = self._under_way.total(), self._max_under_way
        sharing = len(self._under_way.keys() | {client})
        if total < most or (total < 2 * most and self._under_way[client] < most // sharing):
            return ""
        return f"{total} requests are under way, at most {most} may be"

    async def _authorize(self, key: str, headers: Headers) -> tuple[Admission, str]:
        """Return how a request comes in, and whose jobs it may see."""
        admitted, owner = await self._verdict(key)
        if admitted == "open":
            _check_name(headers.get("host", ""))
        if admitted != "no":
            return admitted, owner
        message = (
            "incorrect API key; `atelier keys list` shows which are good"
            if key
            else "no API key; send Authorization: Bearer KEY"
        )
        raise ApiError(401, message, code="invalid_api_key", retry=False)

    async def _verdict(self, key: str) -> tuple[Admission, str]:
        """Return how the request may come in and whose it is, remembered for a second by the key's hash."""
        name = _hash(key)
        now = time.monotonic()
        found = self._verdicts.get(name)
        if found is not None and now - found[0] < REMEMBERED_S:
            return found[1:]
        try:
            good = await asyncio.to_thread(self._ask, key)
        except DatabaseError as error:
            raise unavailable("the keys cannot be read") from error
        if len(self._verdicts) >= 1000:
            self._verdicts.clear()
        self._verdicts[name] = (now, *good)
        return good

    def _ask(self, key: str) -> tuple[Admission, str]:
        if key and (known := self._keys.find(key)) is not None:
            return "house" if known.ours else "key", f"key {known.id}"
        admitted = self._host in LOOPBACK and not self._keys.any()
        return ("open", ANYBODY) if admitted else ("no", "")


def _key(headers: Headers) -> str:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _check_name(host: str) -> None:
    """Refuse a name that was bent to loopback (DNS rebinding): any web page could ask through a browser."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if name.strip("[]") not in LOOPBACK:
        message = "without an API key the gateway answers to localhost alone; make one with `atelier keys add`"
        raise ApiError(421, message, code="misdirected_request", param="host", retry=False)


def require_key_off_loopback(host: str, keys: KeyStore) -> None:
    """Refuse to listen to a network without a key.

    Raises:
        ValueError: there is no key and `host` is not this machine alone.
    """
    if host not in LOOPBACK and not keys.any():
        raise ValueError(
            f"the gateway listens on {host} but there is no API key: make one with `atelier keys add`"
        )
