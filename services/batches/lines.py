"""The lines of a batch: requests of one endpoint, each under a name of its own, and what is answered to each."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.documents import parse_json
from services.gateway.errors import ApiError, from_validation, invalid

MOST: Final = 50_000  # requests of a batch
LONGEST: Final = 16 * 2**20  # bytes of one
LARGEST: Final = 64 * 2**20  # bytes of what one is answered with
JOBS: Final = frozenset({"/v1/videos", "/v1/meshes"})
"""Where what is asked for is a job, whose end is the answer."""
MARKS: Final = {True: b'{"right": true, ', False: b'{"right": false, '}
"""What a kept answer begins with."""


class Line(BaseModel):
    """One request of a batch."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"] = "POST"
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request was answered with: a line of the output file, or of that of errors."""

    right: bool
    row: bytes


def count(rows: Iterable[bytes], endpoint: str) -> int:
    """Return how many requests a new batch has, all of which may be sent.

    What may be sent is asked here alone: a batch that was taken before a rule came goes on.

    Raises:
        ApiError: 400 that names the first line that cannot be sent to the endpoint, and why.
    """
    names: set[bytes] = set()  # by their hashes: a name is as long as its sender likes
    for number, line in read(rows):
        if len(names) == MOST:
            raise _wrong(f"a batch has 1 to {MOST} requests, one a line, got more")
        if line.url != endpoint:
            raise _wrong(f"line {number}: url: this batch is for {endpoint}, got {line.url[:80]!r}")
        if line.body.get("stream"):
            raise _wrong(f"line {number}: body.stream: nobody listens; leave it out")
        if line.body.get("response_format") == "url":
            raise _wrong(
                f"line {number}: body.response_format: a link opens for an hour, answers are kept for 30 days;"
                " ask for b64_json"
            )
        name = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
        if name in names:
            raise _wrong(f"line {number}: custom_id: {line.custom_id[:80]!r} is taken by another")
        names.add(name)
    if not names:
        raise _wrong(f"a batch has 1 to {MOST} requests, one a line, got 0")
    return len(names)


def read(rows: Iterable[bytes]) -> Iterator[tuple[int, Line]]:
    """Yield the requests in a file's lines and the numbers of these, from 1, one at a time in memory.

    Raises:
        ApiError: 400 that names the first line that is no request, and why.
    """
    for number, row in enumerate(rows, 1):
        if row.strip():
            yield number, _line(number, row)


def _line(number: int, row: bytes) -> Line:
    if len(row) > LONGEST:
        raise _wrong(f"line {number}: a request has at most {LONGEST} bytes, got more")
    try:
        return Line.model_validate(parse_json(row.decode(), "a request"))
    except ValidationError as error:
        told = from_validation(error)
        raise _wrong(f"line {number}: {told.param}: {told.message}") from None
    except ValueError as error:
        raise _wrong(f"line {number}: no JSON: {error}") from None


def _wrong(message: str) -> ApiError:
    return invalid(f"input_file_id: {message}", "input_file_id")


def answer(batch: str, number: int, line: Line, status: int, identity: str, body: bytes) -> Answer:
    """Return the line of a request that was answered by this JSON.

    Where that may be large it is not parsed: 2048 embeddings have tens of MB, and all else would wait meanwhile.
    """
    if len(body) > LARGEST:
        told = f"the answer has {len(body)} bytes, at most {LARGEST} are kept of one; ask for less a request"
        wrong = ApiError(413, told, code="answer_too_large")
        status, body = wrong.status, bytes(wrong.response().body)
    if not body.isascii() or b"\n" in body:  # some split lines at more than a line feed
        body = json.dumps(parse_json(body, "an answer")).encode()
    failed = line.url in JOBS and parse_json(body, "a job").get("status") == "failed"
    response = {"status_code": status, "request_id": identity, "body": None}
    named = {"id": f"batch_req_{batch.partition('_')[2]}_{number}", "custom_id": line.custom_id}
    row = json.dumps({**named, "error": None, "response": response}).encode()
    return Answer(status == 200 and not failed, row.removesuffix(b"null}}") + body + b"}}")


def sealed(answers: Sequence[Answer]) -> bytes:
    """Return the answers of a part as they are kept until their batch ends."""
    return b"".join(MARKS[one.right] + one.row[1:] + b"\n" for one in answers)


def unsealed(content: bytes, right: bool) -> bytes:
    """Return the lines of those answers of a part that went right, or wrong."""
    mark = MARKS[right]
    rows = (row for row in content.split(b"\n") if row.startswith(mark))
    return b"".join(b"{" + row.removeprefix(mark) + b"\n" for row in rows)
