"""From a request to a job's row: checked by the version that answers, written down once, bounded by owner."""

import asyncio
import re
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from fastapi import Request

from infra.jobs.idempotency import Conflict
from infra.jobs.ids import new_id
from infra.jobs.jobs import BatchOver, Full
from infra.jobs.table import Job
from services.api.served import Parts, parts_of
from services.gateway.errors import ApiError
from services.jobs.idempotency import conflict, key_of
from services.jobs.store import Store
from services.jobs.work import Input, Work
from services.pipelines.executor import Executor
from services.routing.endpoints import Endpoint
from services.routing.request_session import Deadline, patience

LONGEST_S: Final = 24 * 3600  # until a deadline


def owner_of(request: Request) -> str:
    """Return whose jobs a request may see and make: its key's, or everybody's while there is no key."""
    return str(request.scope["owner"])


async def check(request: Request, work: Work, endpoint: Endpoint) -> None:
    """Refuse what a stage would refuse once the job is under way.

    Raises:
        ApiError: 400 that names the parameter; 504, no stage said in time.
    """
    parts, spec = parts_of(request), work.spec(endpoint.pipeline, seed=0)
    async with Deadline(patience(request, parts.arguments.timeout_s)):
        await Executor(parts.stage_of).check(endpoint.pipeline, spec)


async def earlier(request: Request, kind: str, asked: Mapping[str, Any]) -> Job | None:
    """Return the job that this request was answered with before, whatever has been promoted since.

    Raises:
        ApiError: 400, no idempotency key; 422, it names another request.
    """
    try:
        return await asyncio.to_thread(
            parts_of(request).jobs.earlier,
            kind,
            asked,
            owner=owner_of(request),
            idempotency_key=key_of(request),
        )
    except Conflict as error:
        raise conflict(error) from None


async def submit(
    request: Request,
    kind: str,
    work: Work,
    endpoint: Endpoint,
    seed: int,
    asked: Mapping[str, Any],
    given: Mapping[str, bytes] = MappingProxyType({}),
) -> Job:
    """Write a job down, with the files that it is made of; the same idempotency key and request give the same one.

    Raises:
        ApiError: 429, the key's quota or the queue is full; 422, the idempotency key names another request; 409, the
            batch that asks is called off.
    """
    digests = {endpoint.ref: endpoint.digest}
    digests |= {one.pin.ref: one.sha256 for one in endpoint.pipeline.stages}
    facts = {
        "kind": kind,
        "id": new_id(kind, time.time()) if given else None,
        "owner": owner_of(request),
        "pipeline": endpoint.ref,
        "digests": digests,
        "seed": seed,
        "idempotency_key": key_of(request),
        "asked": asked,
        "deadline": _deadline(request),
        "batch": request.scope.get("batch"),
    }
    try:
        return await asyncio.to_thread(_submitted, parts_of(request), work, given, facts)
    except Full as error:
        raise ApiError(
            429, str(error), code="queue_full", retry_after_s=error.retry_after_s
        ) from None
    except Conflict as error:
        raise conflict(error) from None
    except BatchOver as error:
        raise ApiError(409, str(error), code="batch_over", retry=False) from None


def _submitted(
    parts: Parts, work: Work, given: Mapping[str, bytes], facts: Mapping[str, Any]
) -> Job:
    """Keep a job's files under its id, where they go with it, and write it down."""
    if not given:
        return parts.jobs.submit(request=work.model_dump(mode="json"), **facts)
    store, inputs, job, id = Store(parts.arguments.made), {}, None, facts["id"]
    try:
        for name, content in given.items():
            digest, uri = store.put(id, f"given-{name}", content)
            inputs[name] = Input(uri=uri, sha256=digest)
        whole = work.model_copy(update={"inputs": inputs})
        job = parts.jobs.submit(request=whole.model_dump(mode="json"), **facts)
        return job
    finally:
        if job is None or job.id != id:  # refused, or the same key was faster
            store.clear(id)


def _deadline(request: Request) -> float | None:
    """Return when a job is not wanted any more, in Unix seconds, as the header Cancel-After says."""
    said = request.headers.get("cancel-after")
    if said is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", said) or not 1 <= int(said) <= LONGEST_S:
        message = f"cancel-after: whole seconds, 1 to {LONGEST_S}, got {said[:40]!r}"
        raise ApiError(400, message, code="header", param="cancel-after")
    return time.time() + int(said)
