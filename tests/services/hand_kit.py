"""A hand that works jobs off when a test says so, by what the gateway's runner would make them by."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.jobs.leases import Lease
from infra.jobs.table import Result
from services.application import kinds
from services.pipelines.executor import Executor
from services.routing.endpoints import Endpoints


class Hand:
    """Works jobs off one by one, when a test says so."""

    def __init__(self, workshop: Any, stage: Any, folder: Path) -> None:
        self._jobs, self._folder = workshop.jobs, folder
        self._endpoints = Endpoints(workshop.ledger, workshop.registry)
        self._executor = Executor(lambda _: stage)
        self._kinds = kinds(workshop.signing())

    def claim(self) -> Lease:
        lease = self._jobs.claim("hand")
        assert lease is not None
        return lease  # type: ignore[no-any-return]

    def finish(self, lease: Lease) -> None:
        job = lease.job
        endpoint = self._endpoints.pinned(job.pipeline, job.digests[job.pipeline])
        spec = self._kinds[job.kind].spec(job, endpoint.pipeline)
        complete = asyncio.run(self._executor.draw(endpoint.pipeline, spec))
        file = self._kinds[job.kind].file(job, endpoint, complete)
        path = self._folder / job.id
        path.write_bytes(file.content)
        lease.finish(Result("ab" * 32, str(path), file.media_type, len(file.content)))

    def work(self) -> None:
        self.finish(self.claim())

    @contextmanager
    def working(self) -> Iterator[None]:
        """Somebody works jobs off meanwhile."""
        over = threading.Event()

        def work() -> None:
            while not over.wait(0.02):
                lease = self._jobs.claim("hand")
                if lease is not None:
                    self.finish(lease)

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(work)
            try:
                yield
            finally:
                over.set()
                done.result()
