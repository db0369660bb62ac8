"""Whether the gateway can answer: the ledger is there and the pools hold what is served."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from infra.placement import Placement
from services.routing.endpoints import Endpoints


class Reporting(Protocol):
    """A stage that tells of its replicas."""

    async def statuses(self) -> list[dict[str, Any]]:
        """Return every replica's status."""
        ...


class Readiness:
    """Whether the pools have loaded what they were told to hold; asked at most twice a second."""

    def __init__(
        self, placement: Placement, stages: Mapping[str, Reporting], endpoints: Endpoints
    ) -> None:
        self._pools = {pool.name: pool for pool in placement.pools}
        self._placement = placement
        self._stages = stages
        self._endpoints = endpoints
        self._told: dict[str, str] = {}  # the pool that is to hold a digest
        self._lock = asyncio.Lock()
        self._asked = -1e9
        self._statuses: dict[str, list[dict[str, Any]]] = {}

    def expect(self, versions: Sequence[Mapping[str, Any]]) -> None:
        """Note which versions (name, number, digest, family) the pools are told to hold."""
        self._told = {
            version["digest"]: self._placement.pool_of(version["name"], version["family"]).name
            for version in versions
        }

    async def report(self, wanted: list[str]) -> tuple[bool, dict[str, Any]]:
        """Return whether the gateway can answer and, of the `wanted` digests, which are not loaded and why."""
        async with self._lock:
            if time.monotonic() - self._asked > 0.5:
                found = [await stage.statuses() for stage in self._stages.values()]
                self._statuses = dict(zip(self._stages, found, strict=True))
                self._asked = time.monotonic()
            statuses = self._statuses
        ledger = await asyncio.to_thread(self._endpoints.reachable)
        missing = {
            digest: why
            for digest in wanted
            if (why := self._missing(digest, statuses.get(self._told.get(digest, ""))))
        }
        stages = all(statuses[pool] or self._may_sleep(pool) for pool in statuses)
        ready = ledger and stages and not missing
        document: dict[str, Any] = {"status": "ready" if ready else "not ready", "ledger": ledger}
        document["stages"] = stages
        if wanted:
            document["missing"] = missing
        return ready, document

    def _may_sleep(self, pool: str) -> bool:
        return self._pools[pool].replicas.min == 0

    def _missing(self, digest: str, replicas: list[dict[str, Any]] | None) -> str | None:
        """Return why not every replica of its pool holds a version; one that sleeps loads it when it is asked."""
        if replicas is None:
            return "not loaded"
        for replica in replicas:
            if digest not in replica["loaded"]:
                return str(replica["problems"].get(digest, "not loaded"))
        return None if replicas or self._may_sleep(self._told[digest]) else "not loaded"
