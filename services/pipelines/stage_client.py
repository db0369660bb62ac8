"""A stage behind a Serve handle: a replica that dies is no failure of a request that another replica can draw."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from services.gateway.errors import ApiError
from services.pipelines.by_reference import stored
from services.pipelines.payload import (
    Embedded,
    EmbedWork,
    Event,
    Made,
    PipelineTask,
    Refused,
    Scored,
    ScoreWork,
    StageTask,
)
from services.pipelines.request import Complete

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

logger = logging.getLogger("ray.serve")

ATTEMPTS: Final = 6  # one for work that is not to be done again
TTask = TypeVar("TTask", StageTask, PipelineTask)


class Remote:
    """Calls a stage's replicas; drawing is repeatable, since a seed fixes the picture.

    The caller's own time-out bounds all attempts together.
    """

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._handle = handle
        self._methods: dict[str, Any] = {}  # a handle each, made once: Serve makes one a look-up

    async def draw(self, task: StageTask) -> Made | Refused:
        """Return all samples of `task`, or why there are none; a lost replica's work is done again."""
        lifted = await _lifted(task)
        answer: Made | Refused = await self._ask("draw", lifted, once=task.spec.once)
        return answer

    async def draw_through(self, task: PipelineTask) -> Complete | Refused:
        """Return all samples of a pipeline whose stages this pool holds, in one hop; otherwise as `draw`."""
        lifted = await _lifted(task)
        answer: Complete | Refused = await self._ask("draw_through", lifted, once=task.spec.once)
        return answer

    async def check(self, task: StageTask) -> Refused | None:
        """Return why a task would be refused, whatever the stages before it made; None where it would not be."""
        answer: Refused | None = await self._ask("check", task)
        return answer

    async def embed(self, work: EmbedWork) -> Embedded | Refused:
        """Return an embedding an input, or why there is none."""
        answer: Embedded | Refused = await self._ask("embed", work)
        return answer

    async def score(self, works: Sequence[ScoreWork]) -> tuple[Scored, ...] | Refused:
        """Return a likelihood an input, or why one has none; a hop for all of them."""
        answer: tuple[Scored, ...] | Refused = await self._ask("score", works)
        return answer

    async def _ask(self, method: str, work: Any, *, once: bool = False) -> Any:
        from ray.exceptions import RayActorError, RayError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        for attempt in range(1 if once else ATTEMPTS):
            call: Any = self._method(method).remote(work)
            try:
                answer = await call
            except asyncio.CancelledError:
                call.cancel()  # Serve goes on with a call that nobody waits for
                raise
            except BackPressureError as error:
                return _full(error)
            except (RayActorError, DeploymentUnavailableError) as error:
                logger.warning("a replica was lost (%s), attempt %d", type(error).__name__, attempt)
            except RayError as error:
                logger.error("a stage failed", exc_info=error)
                return Refused("failed", "the stage raised")
            else:
                if not (isinstance(answer, Refused) and answer.kind == "stopped"):
                    return answer
            await _pause(attempt)
        return Refused("stopped", "no replica could be reached")

    async def watch(self, task: StageTask) -> AsyncGenerator[Event]:
        """Yield what is seen on the way, then the samples; begun again only while nothing was shown.

        Raises:
            ApiError: 503, the replica was lost after something had been shown.
        """
        from ray.exceptions import RayActorError, RayError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        task = await _lifted(task)
        for attempt in range(1 if task.spec.once else ATTEMPTS):
            begun = False
            events: Any = self._method("watch", stream=True).remote(task)
            try:
                async for event in events:
                    if isinstance(event, Refused) and event.kind == "stopped":
                        break
                    begun = True
                    yield event
                else:
                    return
            except (asyncio.CancelledError, GeneratorExit):
                events.cancel()
                raise
            except BackPressureError as error:
                yield _full(error)
                return
            except (RayActorError, DeploymentUnavailableError) as error:
                logger.warning("a replica was lost (%s), attempt %d", type(error).__name__, attempt)
            except RayError as error:
                logger.error("a stage failed", exc_info=error)
                yield Refused("failed", "the stage raised")
                return
            if begun:
                message = "the replica was lost while drawing; ask again"
                raise ApiError(503, message, code="interrupted", retry_after_s=1)
            await _pause(attempt)
        yield Refused("stopped", "no replica could be reached")

    def _method(self, name: str, *, stream: bool = False) -> Any:
        if name not in self._methods:
            self._methods[name] = getattr(self._handle.options(stream=stream), name)
        return self._methods[name]

    async def statuses(self, timeout_s: float = 5.0) -> list[dict[str, Any]]:
        """Return every replica's status; empty where none answers in time."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            answer = self._handle.broadcast("status")
            found: list[dict[str, Any]] = await asyncio.wait_for(answer.results_async(), timeout_s)
        except (TimeoutError, RayError, RayServeException) as error:
            logger.warning("a stage does not answer: %s", type(error).__name__)
            return []
        return found


def _full(error: Any) -> Refused:
    return Refused("full", "too many requests wait for a replica", error.retry_after_s or 1.0)


async def _lifted(task: TTask) -> TTask:
    """Return a task with large inputs (an uploaded picture) by reference."""
    if not task.spec.given:
        return task
    given = {name: await stored(array) for name, array in task.spec.given.items()}
    return replace(task, spec=replace(task.spec, given=given))


async def _pause(attempt: int) -> None:
    """Wait 0.1 to 3 s, longer each time and never two callers alike."""
    await asyncio.sleep(min(3.0, 0.2 * 2**attempt) * random.uniform(0.5, 1.0))
