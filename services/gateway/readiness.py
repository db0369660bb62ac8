"""Whether the gateway can answer: the ledger is there and the stages hold what is served."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol

from services.routing.endpoints import Endpoints


class Reporting(Protocol):
    """A stage that tells of its replicas."""

    async def statuses(self) -> list[dict[str, Any]]:
        """Return every replica's status."""
        ...


class Readiness:
    """Whether the stages have loaded what the ledger serves; asked at most twice a second."""

    def __init__(self, stages: Mapping[str, Reporting], endpoints: Endpoints) -> None:
        self._stages = stages
        self._endpoints = endpoints
        self._lock = asyncio.Lock()
        self._asked = -1e9
        self._statuses: list[list[dict[str, Any]]] = []

    async def report(self, wanted: list[str]) -> tuple[bool, dict[str, Any]]:
        """Return whether the gateway can answer and, of the `wanted` digests, which are not loaded and why."""
        async with self._lock:
            if time.monotonic() - self._asked > 0.5:
                self._statuses = [await stage.statuses() for stage in self._stages.values()]
                self._asked = time.monotonic()
            statuses = self._statuses
        ledger = await asyncio.to_thread(self._endpoints.reachable)
        replicas = [replica for stage in statuses for replica in stage]
        missing = {
            digest: next(
                (r["problems"][digest] for r in replicas if digest in r["problems"]), "not loaded"
            )
            for digest in wanted
            if not _loaded_everywhere(digest, replicas)
        }
        ready = ledger and all(statuses) and not missing
        document: dict[str, Any] = {"status": "ready" if ready else "not ready", "ledger": ledger}
        document["stages"] = all(statuses)
        if wanted:
            document["missing"] = missing
        return ready, document


def _loaded_everywhere(digest: str, replicas: list[dict[str, Any]]) -> bool:
    holds = [digest in replica["loaded"] for replica in replicas]
    others = [digest in replica["not_ours"] for replica in replicas]
    return any(holds) and all(held or other for held, other in zip(holds, others, strict=True))
