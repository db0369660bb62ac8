"""A request that is sent again: `Idempotency-Key` names it, and the same key and words give the same job."""

import re
from typing import Final

from starlette.requests import Request

from infra.jobs.idempotency import Conflict
from services.gateway.errors import ApiError

KEY: Final = re.compile(r"[\x21-\x7e]{1,200}")


def key_of(request: Request) -> str | None:
    """Return the key that a request names, None where it names none.

    Raises:
        ApiError: 400, it is no key.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not KEY.fullmatch(key):
        message = f"idempotency-key: 1 to 200 visible ASCII characters, got {len(key)}"
        raise ApiError(400, message, code="header", param="idempotency-key")
    return key


def conflict(error: Conflict) -> ApiError:
    """Return the answer to a key that was used for another request."""
    return ApiError(422, str(error), code="idempotency_conflict", param="idempotency-key")
