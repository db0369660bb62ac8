"""Drawing while a rollout runs: a canary's challenger answers its share, a shadow's is drawn beside and compared.

A challenger costs nobody an answer: whatever it does wrong, the champion draws instead and the fault is counted.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infra.ledger.rollout_rules import Arm, Tally, bucket
from infra.media.clips import Clip
from services.gateway.errors import ApiError, logger
from services.media.codecs import Bitmap, Sound, Volume
from services.pipelines.payload import GenerationSpec, Piece, Text
from services.pipelines.request import Complete, Maker, One, Progress, Said
from services.routing.endpoints import Endpoint, Rollout, Route
from services.routing.observer import AWRY, Observer, asked, look

MIRRORED: Final = 4  # shadow requests under way; more are left out
FAULTS: Final = (ApiError, *AWRY)

Planning: TypeAlias = Callable[[Endpoint], Awaitable[GenerationSpec]]
"""What a request wants of a version; raises 400 where the version cannot."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happened, and which version did it."""

    endpoint: Endpoint
    spec: GenerationSpec
    progress: Progress


class _Defective(Exception):
    """The challenger's pictures are not to be shown; counted already."""


class Arms:
    """Draws with the version that a route names, or with its rollout's challenger."""

    def __init__(self, maker: Maker, observer: Observer, timeout_s: float) -> None:
        self._maker = maker
        self._observer = observer
        self._patience_s = timeout_s / 2  # with a challenger: the rest is the champion's
        self._mirrored: set[asyncio.Task[None]] = set()

    async def draw(self, route: Route, planning: Planning) -> tuple[Step, Complete]:
        """Return the finished samples and who drew them; errors are the champion's."""
        async with aclosing(self.watch(route, planning, whole=True)) as steps:
            async for step in steps:
                if isinstance(step.progress, Complete):
                    return step, step.progress
        raise AssertionError("a drawing ends with samples or an error")

    async def watch(
        self, route: Route, planning: Planning, *, whole: bool = False
    ) -> AsyncGenerator[Step]:
        """Yield what is seen on the way and then the samples, with `whole` these alone; errors are the champion's."""
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
        spec, began = await planning(route.endpoint), time.perf_counter()
        try:
            async with aclosing(self._steps(route.endpoint, spec, whole)) as steps:
                async for step in steps:
                    if rollout is not None and isinstance(step.progress, Complete):
                        seconds, made = (
                            time.perf_counter() - began if whole else None,
                            step.progress.made,
                        )
                        if rollout.place == "shadow":
                            self._mirror(rollout, route, planning, step, made, seconds)
                        else:
                            await self._saw(rollout, "champion", step, made, seconds)
                    yield step
        except ApiError as error:
            if rollout is not None and error.status >= 500:
                self._failed(rollout, "champion", error)
            raise

    async def _canary(
        self, rollout: Rollout, route: Route, planning: Planning, whole: bool
    ) -> AsyncGenerator[Step]:
        """Yield what the challenger draws or, where it fails, what the champion does.

        Text and speech are not shown before all of it was seen to be good: what was read cannot be taken back.
        """
        sketched, refusal = False, None
        written: list[Step] = []
        try:
            async with aclosing(
                self._challenger(rollout, route.challenger, planning, whole)
            ) as steps:
                async for step in steps:
                    if isinstance(step.progress, Piece | Said):
                        written.append(step)
                        continue
                    for piece in written:
                        yield piece
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

        async def again(endpoint: Endpoint) -> GenerationSpec:
            spec = await planning(endpoint)  # sketches that were shown stay the only ones
            return replace(spec, previews=0) if sketched else spec

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
        until = time.monotonic() + self._patience_s
        spec = replace(await planning(endpoint), once=True, until=until)
        began = time.perf_counter()  # as of the champion
        async with aclosing(self._steps(endpoint, spec, whole)) as steps:
            while True:
                async with asyncio.timeout_at(until):  # asyncio's clock is the monotonic one
                    step = await anext(steps, None)
                if step is None:
                    return
                if isinstance(step.progress, Complete):
                    seconds, made = (
                        time.perf_counter() - began if whole else None,
                        step.progress.made,
                    )
                    if await self._saw(rollout, "challenger", step, made, seconds):
                        raise _Defective
                yield step

    async def _steps(
        self, endpoint: Endpoint, spec: GenerationSpec, whole: bool
    ) -> AsyncGenerator[Step]:
        """Yield what happens; the last step's spec is that of the samples which were kept."""
        if whole:
            yield _told(endpoint, spec, await self._maker.draw(endpoint.pipeline, spec))
            return
        async with aclosing(self._maker.watch(endpoint.pipeline, spec)) as seen:
            async for progress in seen:
                yield _told(endpoint, spec, progress)

    def _mirror(
        self,
        rollout: Rollout,
        route: Route,
        planning: Planning,
        step: Step,
        made: Sequence[One],
        seconds: float | None,
    ) -> None:
        """Let the challenger draw what the champion drew, later and beside; left out where too many are under way."""
        if len(self._mirrored) >= MIRRORED:
            self._observer.count(rollout, "challenger", Tally(dropped=1))
            return

        async def compare() -> None:
            await self._saw(rollout, "champion", step, made, seconds)
            try:
                async for other in self._challenger(rollout, route.challenger, planning, True):
                    assert isinstance(other.progress, Complete)
                    apart = await asyncio.to_thread(difference, made, other.progress.made)
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
        step: Step,
        made: Sequence[One],
        seconds: float | None,
    ) -> bool:
        """Count an arm's samples; returns whether they are not to be shown."""
        looks, spec = await asyncio.to_thread(lambda: [look(one) for one in made]), step.spec
        varies = step.endpoint.pipeline.varies(spec.options)
        seeds = spec.seeds if varies else (0,) * len(made)
        wanted = [asked(seed, spec.asked(row)) for row, seed in enumerate(seeds)]
        nothing_asked = spec.options.get("max_tokens") == 0  # of text
        flat = not nothing_asked and any(one.flat for one in looks)
        own = (
            spec.entrance == "generate"
        )  # an edit may rightly leave a picture as it was, whoever asks
        repeated = own and self._observer.repeated(rollout, arm, looks, wanted)
        tally = Tally(requests=1, flat=flat, repeated=repeated)
        if seconds is not None:
            tally.latencies = {shape(spec): {bucket(seconds): 1}}
        self._observer.count(rollout, arm, tally)
        return flat or repeated

    def _failed(self, rollout: Rollout, arm: Arm, error: BaseException) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        logger.warning("the %s in %s of %s failed: %s", arm, rollout.place, rollout.name, text)
        broken = isinstance(error, ApiError) and error.code == "not_finite"
        self._observer.count(rollout, arm, Tally(requests=1, failures=1, not_finite=broken))


def _told(endpoint: Endpoint, spec: GenerationSpec, progress: Progress) -> Step:
    rows = progress.rows if isinstance(progress, Complete) else None
    return Step(endpoint, spec if rows is None else spec.kept(rows), progress)


def shape(spec: GenerationSpec) -> str:
    """Return what makes a request longer than another, whichever version answers: "4 samples, 20 steps"."""
    count = len(spec.seeds)
    parts = ["1 sample" if count == 1 else f"{count} samples"]
    if spec.best_of > 1:
        parts.append(f"best of {spec.best_of}")
    for name in ("steps", "seconds", "max_tokens"):
        if (value := spec.options.get(name)) is not None:
            parts.append(f"{value:g} {name.removeprefix('max_')}")
    return ", ".join(parts)


def difference(ours: Sequence[One], theirs: Sequence[One]) -> float:
    """Return how far two lists of samples are apart, 0 to 1: the mean over their pairs.

    Of pictures and sounds the mean absolute difference, 1 where their shapes differ; of texts 1 where they differ.
    """
    return float(np.mean([_apart(one, other) for one, other in zip(ours, theirs, strict=True)]))


def _apart(one: One, other: One) -> float:
    if isinstance(one, Text) or isinstance(other, Text):
        return float(one != other)
    a, b = (_levels(each) for each in (one, other))
    if a.shape != b.shape:
        return 1.0
    span = 65535 if isinstance(one, Sound) else 255
    return float(np.abs(a.astype(np.int32) - b).mean()) / span


def _levels(one: Bitmap | Clip | Sound | Volume) -> NDArray[Any]:
    assert not isinstance(one, Volume)  # a job's: no rollout compares them
    if isinstance(one, Sound):
        return one.levels
    return one.frames if isinstance(one, Clip) else one
