"""The one shape of every error: {"error": {"message", "type", "param", "code"}}, as OpenAI's clients expect it.

    ApiError
    ├── invalid_request_error: another request would be answered
    │   ├── 400 unknown_parameter, missing_required_parameter, invalid_type, invalid_value, unsupported_value,
    │   │       integer_above_max_value, integer_below_min_value, invalid_json, too_long,
    │   │       unsupported_capability: the body
    │   │       header, invalid_http, no_websockets: the rest of it
    │   ├── 401 invalid_api_key, 403 link_expired, 421 misdirected_request: the door
    │   ├── 404 model_not_found, file_not_found, video_not_found, mesh_not_found, batch_not_found,
    │   │       webhook_not_found, unknown_url, 405 method_not_allowed, http_error: where it went
    │   ├── 408 headers_timeout, body_timeout, 413 body_too_large, 431 headers_too_large: how it came
    │   ├── 409 video_not_completed, mesh_not_completed, batch_over, file_in_use, 410 video_expired, mesh_expired,
    │   │       416 range_not_satisfiable, 422 idempotency_conflict: jobs
    │   ├── mesh_empty: a job whose volume has no surface
    │   ├── 413 answer_too_large: a line of a batch
    │   ├── 415 unsupported_media_type
    │   └── unknown_kind: a job that no gateway here makes
    ├── rate_limit_error: the same request later, after `retry-after`
    │   └── 429 queue_full
    └── server_error
        ├── 500 model_failed, not_finite, out_of_memory, internal_error
        ├── 503 unavailable, interrupted: the same request later
        └── 504 timeout

A stage does not raise: it returns `Refused`, of which `services.pipelines.request.refusal` makes one of these.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from infra.database import DatabaseError

logger = logging.getLogger("ray.serve")

CODES: Final[Mapping[str, str]] = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "less_than_equal": "integer_above_max_value",
    "greater_than_equal": "integer_below_min_value",
    "less_than": "integer_above_max_value",
    "greater_than": "integer_below_min_value",
    "unsupported": "unsupported_value",
}
"""Pydantic's kinds of error by OpenAI's codes; types that end in _type are invalid_type, the rest invalid_value."""


class ApiError(Exception):
    """An answer that is an error; nothing in it names a path, a key or a traceback."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
        retry: bool = True,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers: dict[str, str] = {}
        if retry_after_s is not None:
            self.headers["retry-after"] = str(max(1, round(retry_after_s)))
        if not retry:
            self.headers["x-should-retry"] = "false"
        if status == 401:
            self.headers["www-authenticate"] = 'Bearer realm="atelier"'

    @property
    def body(self) -> dict[str, Any]:
        """The envelope."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Return the answer to a request that is wrong, whoever sends it."""
    return ApiError(400, message, code=code, param=param)


def from_validation(error: ValidationError | RequestValidationError) -> ApiError:
    """Return the answer that names the first wrong field."""
    first = error.errors()[0]
    kind = str(first["type"])
    param = ".".join(str(part) for part in first["loc"] if part not in {"body", "query"}) or None
    code = CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    message = str(first["msg"]).removeprefix("Value error, ")
    named, colon, rest = message.partition(": ")
    if param is None and colon and named.isidentifier():  # a rule about several fields names one
        param, message = named, rest
    param = param or "body"
    if code == "unknown_parameter":
        message = f"unknown parameter {param!r}"
    else:
        message = f"{param}: {message}{_shown(first.get('input'))}"
    return invalid(message, param, code)


def unavailable(message: str) -> ApiError:
    """Return the answer to what may be asked again in a moment."""
    return ApiError(503, f"{message}; try again", code="unavailable", retry_after_s=5)


def install(app: FastAPI) -> None:
    """Make `app` answer every error in this shape."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(DatabaseError, _database_error)
    app.add_exception_handler(Exception, _unknown_error)


def _shown(value: Any) -> str:
    """Return ", got ..." for a short plain value."""
    if isinstance(value, str | int | float | bool):
        text = json.dumps(value)
        return f", got {text}" if len(text) <= 60 else ""
    return ""


async def _api_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return ApiError(404, f"unknown url {_path(request)}", code="unknown_url").response()
    if error.status_code == 405:
        message = f"{request.method} is not allowed on {_path(request)}"
        answer = ApiError(405, message, code="method_not_allowed")
        answer.headers.update(error.headers or {})
        return answer.response()
    param = "body" if error.status_code == 400 else None  # a form that cannot be read
    return ApiError(error.status_code, str(error.detail), code="http_error", param=param).response()


def _path(request: Request) -> str:
    path = request.url.path
    return path if len(path) <= 100 else f"{path[:100]}..."


async def _validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return from_validation(error).response()


async def _database_error(request: Request, error: Exception) -> JSONResponse:
    logger.warning("request %s: %s", request.scope.get("request_id"), error)
    return unavailable("the database cannot be used now").response()


async def _unknown_error(request: Request, error: Exception) -> JSONResponse:
    logger.error("request %s failed", request.scope.get("request_id"), exc_info=error)
    return ApiError(
        500, "the server failed; the log has this request's id", code="internal_error"
    ).response()
