"""What nobody waits for any more is cancelled at the stage, too: Serve would go on with it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from infra.pipelines import Pin
from services.gateway.errors import ApiError
from services.pipelines.payload import GenerationSpec, StageTask
from services.pipelines.stage_client import Remote
from services.routing.request_session import Deadline

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field` is deprecated"  # Serve's, at its import
)
WORK = StageTask(pin=Pin(name="a.base", number=1, digest="0" * 64), spec=GenerationSpec(seeds=(1,)))


class Call:
    """A call as Serve's handle returns it: awaited or iterated, and ended by `cancel` alone."""

    def __init__(self, given: list[Any]) -> None:
        self._given = given
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def __await__(self) -> Any:
        return asyncio.Event().wait().__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        for one in self._given:
            yield one
        await asyncio.Event().wait()


class Handle:
    """A deployment handle whose every method returns the one call."""

    def __init__(self, *given: Any) -> None:
        self.call = Call([*given])
        self.draw = self.embed = self.score = self.watch = self

    def remote(self, _work: Any) -> Call:
        return self.call

    def options(self, **_options: Any) -> "Handle":
        return self


@pytest.mark.parametrize("method", ["draw", "embed", "score"])
def test_a_deadline_cancels_the_call(method: str) -> None:
    handle: Any = Handle()

    async def ask() -> None:
        async with Deadline(0.01):
            await getattr(Remote(handle), method)(WORK)

    with pytest.raises(ApiError, match=r"the answer was not ready within 0\.01 s"):
        asyncio.run(ask())
    assert handle.call.cancelled


def test_a_deadline_cancels_a_stream() -> None:
    handle: Any = Handle("a", "b")
    seen: list[Any] = []

    async def follow() -> None:
        async with Deadline(0.01), aclosing(Remote(handle).watch(WORK)) as events:
            async for event in events:
                seen.append(event)

    with pytest.raises(ApiError):
        asyncio.run(follow())
    assert seen == ["a", "b"]
    assert handle.call.cancelled


def test_who_leaves_a_stream_cancels_it() -> None:
    handle: Any = Handle("a", "b")

    async def leave() -> None:
        async with aclosing(Remote(handle).watch(WORK)) as events:
            async for _event in events:
                break

    asyncio.run(leave())
    assert handle.call.cancelled
