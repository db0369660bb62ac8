"""What works beside a gateway's requests goes on for as long as that does, whatever happens to it once."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from infra.jobs.jobs import Jobs
from infra.jobs.webhooks import Webhooks
from infra.receipts.signing import Signing
from services.batches.batcher import Batcher
from services.jobs import working
from services.jobs.runner import AT_ONCE, Runner
from services.jobs.store import Store
from services.jobs.webhooks import Courier


@pytest.mark.parametrize("kind", ["runner", "batcher", "courier"])
def test_what_breaks_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(working, "AGAIN_S", 0.0)
    claims = 0

    async def claimed() -> None:
        looked, loop = asyncio.Event(), asyncio.get_running_loop()

        def claim(*_: Any, **__: Any) -> None:
            nonlocal claims
            claims += 1
            if claims <= 2 * AT_ONCE:  # more often than jobs are made at once
                raise MemoryError
            loop.call_soon_threadsafe(looked.set)

        database, store = f"sqlite:///{tmp_path / 'a.db'}", Store(str(tmp_path / "made"))
        one: Any
        if kind == "courier":
            webhooks = Webhooks(database)
            monkeypatch.setattr(webhooks, "claim", claim)
            one = Courier(webhooks, Signing(tmp_path / "key"), private=True)
        else:
            jobs = Jobs(database)
            monkeypatch.setattr(jobs, "claim", claim)
            nothing: Any = None
            one = Batcher(jobs, store, nothing)
            if kind == "runner":
                one = Runner(jobs, store, nothing, nothing, {})
        one.start()
        async with asyncio.timeout(20):
            await looked.wait()
        await one.stop()

    asyncio.run(claimed())
