"""What goes from pool to pool by reference: fetched where it is read, and drawn again where it was lost."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from infra.pipelines import read_pipeline
from services.gateway.errors import ApiError
from services.pipelines.by_reference import LostError, Reference, fetched, stored
from services.pipelines.executor import Executor
from services.pipelines.payload import GenerationSpec, Refused

SPEC = GenerationSpec(seeds=(1, 2), prompts=("a small red circle",) * 2)


class Gone:
    """A reference whose owner died."""

    def __await__(self) -> Any:
        from ray.exceptions import ObjectLostError

        raise ObjectLostError("0" * 56, None, "")
        yield


class Losing:
    """A stage behind a handle that has lost what it is to start from, so many times."""

    def __init__(self, stage: Any, times: int) -> None:
        self._stage = stage
        self._left = times
        self.watch = stage.watch

    async def draw(self, task: Any) -> Any:
        if task.onward or not self._left:
            return await self._stage.draw(task)
        self._left -= 1
        return Refused("lost", "its replica is gone")


@pytest.fixture
def stage(workshop: Any) -> Any:
    found = workshop.stage()
    yield found
    found.close()


@pytest.fixture
def pipeline(workshop: Any, networks: Any) -> Any:
    version = workshop.publish_pipeline("shapes", networks("base"), networks("upscaler"))
    return read_pipeline(workshop.cache / version["digest"])


def test_a_small_array_travels_as_it_is() -> None:
    array = np.arange(12, dtype=np.float32)
    assert asyncio.run(stored(array)) is array
    assert asyncio.run(fetched(array)) is array


def test_an_array_whose_owner_died_is_lost() -> None:
    gone: Any = Gone()
    with pytest.raises(LostError):
        asyncio.run(fetched(Reference(gone)))


def test_what_was_lost_on_the_way_is_drawn_again_from_the_start(stage: Any, pipeline: Any) -> None:
    losing: Any = Losing(stage, 1)
    found = asyncio.run(Executor(lambda _: losing).draw(pipeline, SPEC))
    expected = asyncio.run(Executor(lambda _: stage).draw(pipeline, SPEC))
    np.testing.assert_array_equal(found.made, expected.made)


def test_a_stream_that_lost_something_on_the_way_ends_with_the_pictures(
    stage: Any, pipeline: Any
) -> None:
    losing: Any = Losing(stage, 1)

    async def watched() -> list[Any]:
        steps = Executor(lambda _: losing).watch(pipeline, replace(SPEC, previews=1))
        return [step async for step in steps]

    *sketches, complete = asyncio.run(watched())
    assert [sketch.index for sketch in sketches] == [0, 0]
    expected = asyncio.run(Executor(lambda _: stage).draw(pipeline, SPEC))
    np.testing.assert_array_equal(complete.made, expected.made)


@pytest.mark.parametrize(("times", "once"), [(2, False), (1, True)], ids=["twice", "a trial"])
def test_what_is_lost_again_or_is_not_to_be_tried_again_is_refused(
    stage: Any, pipeline: Any, times: int, once: bool
) -> None:
    losing: Any = Losing(stage, times)
    with pytest.raises(ApiError) as raised:
        asyncio.run(Executor(lambda _: losing).draw(pipeline, replace(SPEC, once=once)))
    assert (raised.value.status, raised.value.body["error"]["code"]) == (503, "unavailable")
