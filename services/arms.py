"""Drawing while a rollout runs: a canary's challenger answers its share, a shadow's is drawn beside and compared.

A challenger costs nobody an answer: whatever it does wrong, the champion draws instead and the fault is counted.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np

from infra.rollouts import Arm, Tally, bucket
from services.endpoints import Endpoint, Rollout, Route
from services.errors import ApiError, logger
from services.media import Bitmap
from services.rollout import Observer, asked, look
from services.text_to_image import Complete, Drawing, Progress, TextToImage

MIRRORED: Final = 4  # shadow requests under way; more are left out
FAULTS: Final = (ApiError, RuntimeError, ValueError, TypeError, LookupError, OSError)

Planning: TypeAlias = Callable[[Endpoint], Drawing]
"""What a request wants of a version; raises 400 where the version cannot."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happened, and which version did it."""

    endpoint: Endpoint
    drawing: Drawing
    progress: Progress


class _Defective(Exception):
    """The challenger's pictures are not to be shown; counted already."""


class Arms:
    """Draws with the version that a route names, or with its rollout's challenger."""

    def __init__(self, painter: TextToImage, observer: Observer, timeout_s: float) -> None:
        self._painter = painter
        self._observer = observer
        self._patience_s = timeout_s / 2  # with a challenger: the rest is the champion's
        self._mirrored: set[asyncio.Task[None]] = set()

    async def draw(self, route: Route, planning: Planning) -> tuple[Step, list[Bitmap]]:
        """Return the finished pictures and who drew them; errors are the champion's."""
        async with aclosing(self.watch(route, planning, whole=True)) as steps:
            async for step in steps:
                if isinstance(step.progress, Complete):
                    return step, step.progress.pictures
        raise AssertionError("a drawing ends with pictures or an error")

    async def watch(
        self, route: Route, planning: Planning, *, whole: bool = False
    ) -> AsyncGenerator[Step]:
        """Yield sketches and then the pictures, with `whole` the pictures alone; errors are the champion's."""
        rollout = route.rollout
        if rollout is not None and self._observer.stopped(rollout):
            rollout = None
        if rollout is not None and rollout.place == "canary" and route.chosen:
            steps = self._canary(rollout, route, planning, whole)
        else:
            steps = self._champion(rollout, route, planning, whole)
        async with aclosing(steps):
            async for step in steps:
                yield step

    async def _champion(
        self, rollout: Rollout | None, route: Route, planning: Planning, whole: bool
    ) -> AsyncGenerator[Step]:
        if rollout is not None and rollout.place == "shadow" and not route.chosen:
            rollout = None  # counted where both arms draw
        drawing, began = planning(route.endpoint), time.perf_counter()
        try:
            async with aclosing(self._progress(route.endpoint, drawing, whole)) as events:
                async for progress in events:
                    step = Step(route.endpoint, drawing, progress)
                    if rollout is not None and isinstance(progress, Complete):
                        seconds = time.perf_counter() - began if whole else None
                        if rollout.place == "shadow":
                            self._mirror(rollout, route, planning, step, progress.pictures, seconds)
                        else:
                            pictures = progress.pictures
                            await self._saw(rollout, "champion", drawing, pictures, seconds)
                    yield step
        except ApiError as error:
            if rollout is not None and error.status >= 500:
                self._failed(rollout, "champion", error)
            raise

    async def _canary(
        self, rollout: Rollout, route: Route, planning: Planning, whole: bool
    ) -> AsyncGenerator[Step]:
        """Yield what the challenger draws or, where it fails, what the champion does."""
        sketched, refusal = False, None
        try:
            async with aclosing(
                self._challenger(rollout, route.challenger, planning, whole)
            ) as steps:
                async for step in steps:
                    sketched = True
                    yield step
                return
        except _Defective:
            pass
        except FAULTS as error:
            if isinstance(error, ApiError) and error.status < 500:
                refusal = error  # no fault where the champion refuses it too
            else:
                self._failed(rollout, "challenger", error)

        def again(endpoint: Endpoint) -> Drawing:
            drawing = planning(endpoint)  # sketches that were shown stay the only ones
            return replace(drawing, previews=0) if sketched else drawing

        async with aclosing(self._champion(None, route, again, whole)) as steps:
            async for step in steps:
                if isinstance(step.progress, Complete) and refusal and refusal.status != 429:
                    self._failed(rollout, "challenger", refusal)
                yield step

    async def _challenger(
        self, rollout: Rollout, endpoint: Endpoint | None, planning: Planning, whole: bool
    ) -> AsyncGenerator[Step]:
        if endpoint is None:
            raise ApiError(503, "the challenger's files cannot be had", code="unavailable")
        drawing, began = replace(planning(endpoint), once=True), time.perf_counter()
        until = asyncio.get_running_loop().time() + self._patience_s
        async with aclosing(self._progress(endpoint, drawing, whole)) as events:
            while True:
                async with asyncio.timeout_at(until):
                    progress = await anext(events, None)
                if progress is None:
                    return
                if isinstance(progress, Complete):
                    seconds = time.perf_counter() - began if whole else None
                    if await self._saw(rollout, "challenger", drawing, progress.pictures, seconds):
                        raise _Defective
                yield Step(endpoint, drawing, progress)

    async def _progress(
        self, endpoint: Endpoint, drawing: Drawing, whole: bool
    ) -> AsyncGenerator[Progress]:
        if whole:
            yield Complete(await self._painter.draw(endpoint.plan, drawing))
            return
        async for progress in self._painter.watch(endpoint.plan, drawing):
            yield progress

    def _mirror(
        self,
        rollout: Rollout,
        route: Route,
        planning: Planning,
        step: Step,
        pictures: list[Bitmap],
        seconds: float | None,
    ) -> None:
        """Let the challenger draw what the champion drew, later and beside; left out where too many are under way."""
        if len(self._mirrored) >= MIRRORED:
            self._observer.count(rollout, "challenger", Tally(dropped=1))
            return

        async def compare() -> None:
            await self._saw(rollout, "champion", step.drawing, pictures, seconds)
            try:
                async for other in self._challenger(rollout, route.challenger, planning, True):
                    assert isinstance(other.progress, Complete)
                    apart = await asyncio.to_thread(difference, pictures, other.progress.pictures)
                    tally = Tally(compared=1, difference=apart)
                    self._observer.count(rollout, "challenger", tally)
            except _Defective:
                pass
            except FAULTS as error:
                if isinstance(error, ApiError) and error.status == 429:
                    self._observer.count(rollout, "challenger", Tally(dropped=1))
                else:
                    self._failed(rollout, "challenger", error)

        task = asyncio.create_task(compare())
        self._mirrored.add(task)
        task.add_done_callback(self._mirrored.discard)

    async def _saw(
        self,
        rollout: Rollout,
        arm: Arm,
        drawing: Drawing,
        pictures: list[Bitmap],
        seconds: float | None,
    ) -> bool:
        """Count an arm's pictures; returns whether they are not to be shown."""
        looks = await asyncio.to_thread(lambda: [look(pixels) for pixels in pictures])
        wanted = [asked(seed, drawing.prompt) for seed in drawing.seeds]
        flat = any(one.flat for one in looks)
        repeated = self._observer.repeated(rollout, arm, looks, wanted)
        tally = Tally(requests=1, flat=flat, repeated=repeated)
        if seconds is not None:
            tally.latencies = {shape(drawing): {bucket(seconds): 1}}
        self._observer.count(rollout, arm, tally)
        return flat or repeated

    def _failed(self, rollout: Rollout, arm: Arm, error: BaseException) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        logger.warning("the %s in %s of %s failed: %s", arm, rollout.place, rollout.name, text)
        broken = isinstance(error, ApiError) and error.code == "not_finite"
        self._observer.count(rollout, arm, Tally(requests=1, failures=1, not_finite=broken))


def shape(drawing: Drawing) -> str:
    """Return what makes a request longer than another, whichever version draws: "4 pictures, 20 steps"."""
    count = len(drawing.seeds)
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    return pictures if drawing.steps is None else f"{pictures}, {drawing.steps} steps"


def difference(ours: Sequence[Bitmap], theirs: Sequence[Bitmap]) -> float:
    """Return the mean absolute difference of two lists of pictures, 0 to 1; 1 where their shapes differ."""
    if [one.shape for one in ours] != [one.shape for one in theirs]:
        return 1.0
    apart = [
        np.abs(one.astype(np.int16) - other).mean() for one, other in zip(ours, theirs, strict=True)
    ]
    return float(np.mean(apart)) / 255
