"""Who may train now: a Prefect global concurrency limit with a slot a GPU.

Without GPUs a cluster has a slot a CPU, and a machine of its own has one slot.
Slots are leased: the holder renews its lease, and what a killed holder had is free again after `LEASE_S`; at once
where whoever waits sees on its own machine that the holder's process is gone.
"""

import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final
from uuid import UUID

from flows import progress
from flows.training.spec import TrainingSpec
from infra.repeating import repeating
from infra.settings import settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

LIMIT: Final = "training"
LEASE_S: Final = 60.0  # Prefect's least
RENEW_S: Final = 15.0
WAIT_S: Final = 2.0
LEASE: Final = "atelier.lease"
PROCESS: Final = "atelier.process"


@contextmanager
def training_slots(specs: Sequence[TrainingSpec]) -> Iterator[None]:
    """Hold slots for these trainings, once they are free; none where there is nothing to train."""
    if not specs:
        yield
        return
    from prefect import get_client
    from prefect.runtime import flow_run

    run = UUID(flow_run.get_id() or "")
    with get_client(sync_client=True) as client:
        gpus, cpus = processors()
        slots = _slots(client, gpus or cpus)
        wanted = sum(slots_of(spec, on_gpus=gpus > 0) for spec in specs)
        lease = _acquire(client, run, min(slots, wanted))
        client.update_flow_run_labels(run, {LEASE: str(lease), PROCESS: _this_process()})
    try:
        with repeating(lambda: _renew(lease), RENEW_S, "training slots"):
            yield
    finally:
        with get_client(sync_client=True) as client:
            client.release_concurrency_slots_with_lease(lease)
            client.update_flow_run_labels(run, {LEASE: ""})


def slots_of(spec: TrainingSpec, *, on_gpus: bool) -> int:
    """Return how many slots a training takes: one a GPU, or a CPU where there are none; one at least."""
    asked = spec.resources
    gpus = 1.0 if asked.gpus_per_worker == "auto" else asked.gpus_per_worker
    _, most = asked.elastic or (0, asked.num_workers)
    return max(1, math.ceil((gpus if on_gpus else asked.cpus_per_worker) * most))


def _acquire(client: "SyncPrefectClient", run: UUID, count: int) -> UUID:
    """Return a lease on `count` slots, as soon as there is one."""
    import httpx
    from prefect.client.schemas.objects import ConcurrencyLeaseHolder

    holder = ConcurrencyLeaseHolder(type="flow_run", id=run)
    said = False
    while True:
        try:
            answer = client.increment_concurrency_slots_with_lease(
                [LIMIT], count, mode="concurrency", lease_duration=LEASE_S, holder=holder
            )
            return UUID(answer.json()["lease_id"])
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.LOCKED:
                raise
        if _release_the_dead(client):
            continue
        if not said:
            said = True
            wanted = "a training slot" if count == 1 else f"{count} training slots"
            progress.say(f"waits for {wanted}: another flow trains")
        time.sleep(WAIT_S)


def _renew(lease: UUID) -> None:
    """Renew a lease; where the server is away for a while, the training goes on without."""
    import httpx
    from prefect import get_client

    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        client.renew_concurrency_lease(lease, LEASE_S)


def _release_the_dead(client: "SyncPrefectClient") -> bool:
    """Release what runs hold whose process on this machine is gone; say whether there was any."""
    from prefect.client.schemas.sorting import FlowRunSort

    found = False
    for run in client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=50):
        lease, process = run.labels.get(LEASE), str(run.labels.get(PROCESS, ""))
        if lease and _is_gone(process):
            client.release_concurrency_slots_with_lease(UUID(str(lease)))
            client.update_flow_run_labels(run.id, {LEASE: ""})
            found = True
    return found


def _this_process() -> str:
    return f"{socket.gethostname()} {os.getpid()} {_began(os.getpid())}"


def _is_gone(process: str) -> bool:
    host, pid, began = [*process.split(" "), "", ""][:3]
    return host == socket.gethostname() and pid.isdigit() and _began(int(pid)) != began


def _began(pid: int) -> str:
    """Return when a process began, which tells it from a later owner of its pid; "" where there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return ""


def _slots(client: "SyncPrefectClient", processors: int) -> int:
    """Return how many slots there are; the limit is made where it is missing, and then left as people set it."""
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    try:
        return client.read_global_concurrency_limit_by_name(LIMIT).limit
    except ObjectNotFound:
        pass
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    wanted = GlobalConcurrencyLimitCreate(name=LIMIT, limit=processors)
    with suppress(ObjectAlreadyExists):
        client.create_global_concurrency_limit(wanted)
    return client.read_global_concurrency_limit_by_name(LIMIT).limit


def processors() -> tuple[int, int]:
    """Return how many GPUs there are, and how many trainings may share the CPUs: one on a machine of its own."""
    here = settings()
    if here.ray_address is not None:
        from infra.stack.cluster import capacity, connect

        connect(here.ray_url)
        has = capacity()
        return int(has.gpus), max(1, int(has.cpus))
    from infra.stack.probes import ray_gpus
    from infra.stack.spec import token_file

    return ray_gpus(f"http://127.0.0.1:{here.dashboard_port}", token_file()), 1
