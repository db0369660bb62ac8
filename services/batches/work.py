"""What a batch's row says, how far it is, and where its files are."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from infra.jobs.jobs import Jobs
from infra.jobs.table import BATCH, CANCELLED, Job
from services.api.answers import Body

KIND: Final = BATCH
WINDOW_S: Final = 24 * 3600.0
DONE: Final = re.compile(r"from ([0-9]+): ([0-9]+) right, ([0-9]+) wrong")


class Work(BaseModel):
    """The request of a batch, as its row has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str
    input_file_id: str
    total: int
    metadata: dict[str, str] | None = None


class Counts(Body):
    """How many requests are done."""

    total: int
    completed: int
    failed: int


class Batch(Body):
    """A batch, in OpenAI's words."""

    id: str
    object: Literal["batch"]
    endpoint: str
    input_file_id: str
    completion_window: Literal["24h"]
    status: Literal[
        "validating", "failed", "in_progress", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    errors: dict[str, Any] | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelled_at: int | None
    request_counts: Counts
    metadata: dict[str, str] | None


class BatchList(Body):
    """A part of the batches of one key."""

    object: Literal["list"]
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


def work_of(job: Job) -> Work:
    """Return what a batch asks for."""
    return Work.model_validate(dict(job.request))


def node(start: int, right: int, wrong: int) -> str:
    """Return the name of a finished part: where it begins, and how its requests went."""
    return f"from {start}: {right} right, {wrong} wrong"


def parts(nodes: Iterable[str]) -> dict[int, tuple[int, int]]:
    """Return the finished parts by where they begin: how many requests went right and wrong."""
    found = (DONE.fullmatch(one) for one in nodes)
    return {int(one[1]): (int(one[2]), int(one[3])) for one in found if one is not None}


def file_id(batch: str, which: Literal["output", "errors"]) -> str:
    """Return the id that a batch's file has, or will have."""
    return f"file_{batch.partition('_')[2]}_{which}"


def shown(jobs: Jobs, batches: Sequence[Job]) -> list[dict[str, Any]]:
    """Return batches as OpenAI's clients know them."""
    done = jobs.finished([one.id for one in batches])
    there = jobs.fetchable(
        [file_id(one.id, which) for one in batches for which in ("output", "errors")]
    )
    return [_shown(one, done.get(one.id, ()), there) for one in batches]


def _shown(job: Job, nodes: Iterable[str], there: Container[str]) -> dict[str, Any]:
    work, done = work_of(job), parts(nodes).values()
    output, wrong = file_id(job.id, "output"), file_id(job.id, "errors")
    status = _status(job)
    ended = int(job.ended) if job.ended else None
    errors = None
    if job.error is not None and status != "cancelled":
        data = [{"code": job.error.code, "message": job.error.message, "line": None, "param": None}]
        errors = {"object": "list", "data": data}
    return {
        **{"id": job.id, "object": "batch", "endpoint": work.endpoint, "status": status},
        "input_file_id": work.input_file_id,
        "completion_window": "24h",
        "output_file_id": output if output in there else None,
        "error_file_id": wrong if wrong in there else None,
        "errors": errors,
        "created_at": int(job.created),
        "in_progress_at": int(job.started) if job.started else None,
        "expires_at": int(job.deadline) if job.deadline else None,
        **{
            f"{end}_at": ended if status == end else None
            for end in ("completed", "failed", "expired", "cancelled")
        },
        "request_counts": {
            "total": work.total,
            "completed": sum(right for right, _ in done),
            "failed": sum(wrong for _, wrong in done),
        },
        "metadata": work.metadata,
    }


def _status(job: Job) -> str:
    if job.error is not None:
        ends = {"deadline_exceeded": "expired", CANCELLED.code: "cancelled"}
        return ends.get(job.error.code, "failed")
    if job.cancel:
        return "cancelling"
    known: Mapping[str, str] = {"queued": "validating", "expired": "completed"}
    return known.get(job.state, job.state)
