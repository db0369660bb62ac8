"""The worker, `python -m flows.scheduling.worker`: runs what Prefect schedules, and does the house's chores beside it.

It may be killed at any time. What it ran goes on without it or is taken up by the next one; `infra.stack.servers`
starts that within seconds.
"""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import PrefectException
from prefect.workers.process import ProcessWorker
from sqlalchemy.exc import SQLAlchemyError

from data.params import CatalogError
from flows.scheduling.crash_recovery import bury_the_dead, take_up_again
from flows.scheduling.dataset_watch import Watch
from flows.scheduling.deployments import register
from flows.scheduling.jobs import make_worker
from flows.scheduling.schedules import watched
from infra.settings import settings
from infra.stack.spec import POOL, beat_file
from infra.stack.workers import SHOWN_S, name

AT_ONCE: Final = 8  # runs; a run that waits for approval or for its turn in Prefect is none
BEAT_S: Final = 2.0
LONGEST_S: Final = 60.0

log = logging.getLogger("atelier.worker")


@dataclass(frozen=True, slots=True)
class Chore:
    """Something done again and again, in a thread of its own; what goes wrong is said and tried again later."""

    every_s: float
    do: Callable[[SyncPrefectClient], object]

    def forever(self) -> None:
        """Do it every `every_s`; after an error less and less often."""
        wait = self.every_s
        with get_client(sync_client=True) as client:
            while True:
                try:
                    self.do(client)
                    wait = self.every_s
                except (
                    *(httpx.HTTPError, PrefectException, SQLAlchemyError),
                    *(OSError, ValueError, RuntimeError, LookupError),
                ) as error:
                    wait = min(LONGEST_S, 2 * wait)
                    name, why = getattr(self.do, "__name__", "chore"), " ".join(str(error).split())
                    log.warning("%s: %s: %s", name, type(error).__name__, why)
                time.sleep(wait)


def reconcile(_: SyncPrefectClient) -> None:
    """Finish or undo promotions whose holder is gone, and bring replicas in line with the ledger."""
    from flows.promotion.reconcile import reconcile as finish

    for line in finish():
        log.info("reconciled: %s", line)


def resume(client: SyncPrefectClient) -> None:
    """Find killed runs and take them up again."""
    for line in (*bury_the_dead(client, name()), *take_up_again(client)):
        log.warning("%s", line)


class Lookout:
    """The watches of every dataset that a schedule waits for."""

    def __init__(self) -> None:
        self.watches: dict[str, Watch] = {}

    def __call__(self, client: SyncPrefectClient) -> None:
        """Look at each once."""
        names = watched(client)
        project = settings().project
        self.watches = {one: self.watches.get(one) or Watch(one, project) for one in names}
        look_at(self.watches.values(), client)


def look_at(watches: Iterable[Watch], client: SyncPrefectClient) -> None:
    """Look at each dataset once; one that cannot be looked at keeps nobody from the others, and rests."""
    for watch in watches:
        try:
            told = watch.look(client)
        except (CatalogError, OSError) as error:
            watch.rest(LONGEST_S)
            log.warning("%s cannot be watched: %s", watch.dataset, " ".join(str(error).split()))
            continue
        if told:
            log.info("%s has changed", watch.dataset)


def show(client: SyncPrefectClient) -> None:
    """Show in the pool that this worker lives, also where its runs are another's."""
    client.send_worker_heartbeat(POOL, name(), SHOWN_S)


async def work() -> None:
    """Do the chores, and take runs from the pool, until the process ends; a cluster's pool has its own worker."""
    with get_client(sync_client=True) as client:
        register(client)
        here = client.read_work_pool(POOL).type == ProcessWorker.type
    chores = (Chore(2, reconcile), Chore(5, resume), Chore(10, Lookout()), Chore(SHOWN_S, show))
    for chore in chores:
        threading.Thread(target=chore.forever, daemon=True).start()
    worker = make_worker(name(), POOL, AT_ONCE)
    async with asyncio.TaskGroup() as group:
        group.create_task(beat())
        if here:
            group.create_task(worker.start(printer=log.info))


async def beat() -> None:
    """Show that the loop runs."""
    path = beat_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        path.touch()
        await asyncio.sleep(BEAT_S)


def main() -> None:
    """Run the worker."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    gc.freeze()  # the imports' million objects
    asyncio.run(work())


if __name__ == "__main__":
    main()
