"""Headers that Serve's proxy reads before the gateway does, and obeys."""

import re
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

from services.gateway.errors import ApiError

REFUSED: Final = ("x-request-timeout-", "x-request-disconnect-", "x-serve-", "serve_", "serve-")
"""How the names begin of those that change what Serve does: no time-out, no cancelling, another replica."""
DECODED: Final = frozenset({b"x-session-id", b"traceparent"})
"""Those that Serve takes for text; it breaks where they are none."""
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def refusal_of(headers: Headers) -> ApiError | None:
    """Return the answer to a request that has a header which is not taken."""
    for name in headers:
        if name.startswith(REFUSED):
            return ApiError(400, f"the header {name} is not taken", code="header", param=name)
    return None


def without_unreadable(scope: Scope) -> Scope:
    """Return a request without the headers that Serve could not read, or that are no request ids: it makes its own."""
    kept = [(name, value) for name, value in scope["headers"] if _readable(name.lower(), value)]
    return {**scope, "headers": kept}


def _readable(name: bytes, value: bytes) -> bool:
    if name == b"x-request-id":
        return REQUEST_ID.fullmatch(value.decode("latin-1")) is not None
    return name not in DECODED or value.isascii()
