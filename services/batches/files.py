"""Files that are uploaded, or that batches make: finished jobs of the kind "file", whose result they are.

So they lie in the artifact store, belong to a key, are listed and paged, expire and are swept as any job.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, Literal

from infra.jobs.idempotency import Conflict
from infra.jobs.jobs import JobError, Jobs, NotFound
from infra.jobs.leases import Lease, LeaseLost
from infra.jobs.table import BATCH, FILE, Job, Result
from services.api.answers import Body
from services.batches.lines import LONGEST
from services.batches.work import work_of
from services.gateway.errors import ApiError
from services.jobs.store import Store

KEPT_S: Final = 30 * 24 * 3600.0  # as OpenAI keeps those of batches
LARGEST: Final = 200 * 2**20  # bytes, as OpenAI takes them
MOST: Final = 200  # uploads of one key; what batches make is bounded by their work
JSONL: Final = "application/jsonl"


class FileObject(Body):
    """A file, in OpenAI's words."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]


class FileList(Body):
    """A part of the files of one key."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Body):
    """That a file is gone."""

    id: str
    object: Literal["file"]
    deleted: bool


def keep(
    jobs: Jobs,
    store: Store,
    blocks: Iterable[bytes],
    *,
    id: str,
    owner: str,
    name: str,
    purpose: str,
    most: int | None = None,
    lease: Lease | None = None,
    idempotency_key: str | None = None,
) -> Job:
    """Keep a file for its time, once for an idempotency key; a batch's under its `lease`, in place of an older one.

    Raises:
        LeaseLost: the batch is another's now; his file stays.
        JobError: the owner has `most` files already.
        Conflict: the key was used for another request.
    """
    place = "content" if lease is None else f"content-{lease.fence}"
    digest, uri, count = store.put_blocks(id, place, blocks)
    asked = {"filename": name, "purpose": purpose}
    result = Result(digest, uri, JSONL, count)
    try:
        job = jobs.record(
            asked, id=id, owner=owner, result=result, kept_s=KEPT_S, most=most, lease=lease,
            idempotency_key=idempotency_key,
        )  # fmt: skip
    except LeaseLost:
        store.remove(uri)
        raise
    except (JobError, Conflict):
        store.clear(id)
        raise
    if job.id != id:  # it is there already
        store.clear(id)
    return job


def file_of(jobs: Jobs, owner: str, id: str, param: str = "file_id") -> Job:
    """Return a file of an owner.

    Raises:
        ApiError: 404, there is none, it is another key's, or its time is over.
    """
    try:
        job = jobs.get(id)
    except NotFound:
        job = None
    if job is None or job.owner != owner or job.kind != FILE or job.result is None:
        message = f"there is no file {id[:60]!r} of this key, or not any more"
        raise ApiError(404, message, code="file_not_found", param=param)
    return job


def remove(jobs: Jobs, file: Job) -> None:
    """Remove a file, unless requests that are still to be sent are in it.

    Raises:
        ApiError: 409, a batch is not over that has its requests there.
    """
    for batch in jobs.unended(file.owner, BATCH):
        if work_of(batch).input_file_id == file.id and not batch.cancel:
            message = f"{batch.id} has requests in it that are not answered yet; cancel it, or wait"
            raise ApiError(409, message, code="file_in_use", param="file_id", retry=False)
    with suppress(NotFound):  # somebody was faster: gone is gone
        jobs.delete(file.id)


def page(
    jobs: Jobs,
    owner: str,
    after: Job | None,
    limit: int,
    order: Literal["asc", "desc"],
    *,
    purpose: str | None,
) -> tuple[list[dict[str, Any]], bool]:
    """Return a part of an owner's files, of one purpose where one is named, and whether there are more."""
    found, more = list[dict[str, Any]](), True
    while more and len(found) <= limit:  # a part without any of this purpose would end the list
        part = jobs.page(owner, FILE, after, max(limit, MOST), order)
        told = [shown(job) for job in part.jobs]
        found += [one for one in told if purpose in {None, one["purpose"]}]
        more, after = part.has_more, part.jobs[-1] if part.jobs else None
    return found[:limit], len(found) > limit


def rows_of(store: Store, job: Job) -> Iterator[bytes]:
    """Yield a file's lines, as they were kept."""
    assert job.result is not None
    return store.rows(job.result.uri, job.result.digest, LONGEST)


def shown(job: Job) -> dict[str, Any]:
    """Return a file as OpenAI's clients know it."""
    assert job.result is not None
    return {
        "id": job.id,
        "object": "file",
        "bytes": job.result.bytes,
        "created_at": int(job.created),
        "expires_at": int(job.expires) if job.expires else None,
        "filename": job.request["filename"],
        "purpose": job.request["purpose"],
        "status": "processed",
    }
