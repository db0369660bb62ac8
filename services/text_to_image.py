"""The pipeline: the first stage draws, each further one enlarges what came before.

Seeds are the same at every stage; steps and guidance that a request asks for are those of the first.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from services.endpoints import PinnedStage, Plan
from services.errors import ApiError, invalid
from services.media import Bitmap, bitmap, enlarged
from services.work import Drawn, Event, Pictures, Preview, Refused, Work


class Stages(Protocol):
    """A stage, in this process or behind a handle."""

    async def draw(self, work: Work) -> Drawn | Refused:
        """Return all pictures of `work`, or why there are none."""
        ...

    def watch(self, work: Work) -> AsyncIterator[Event]:
        """Yield previews, then the pictures or why there are none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What to draw."""

    prompt: str
    seeds: tuple[int, ...]
    steps: int | None = None
    guidance: float | None = None
    previews: int = 0
    once: bool = False  # see Work


@dataclass(frozen=True, slots=True)
class Sketch:
    """Preview `index` of picture `row`, at the pipeline's size."""

    row: int
    index: int
    pixels: Bitmap


@dataclass(frozen=True, slots=True)
class Complete:
    """All pictures, in the order of their seeds."""

    pictures: list[Bitmap]


Progress: TypeAlias = Sketch | Complete


class TextToImage:
    """Draws with the stages that a plan names."""

    def __init__(self, generate: Stages, upscale: Stages) -> None:
        self._generate = generate
        self._upscale = upscale

    async def draw(self, plan: Plan, drawing: Drawing) -> list[Bitmap]:
        """Return the pictures.

        Raises:
            ApiError: 429 when a stage's queue is full, 400 when the model cannot draw this, 500 or 503 otherwise.
        """
        first, *further = plan.stages
        drawn = await self._generate.draw(_work(first, drawing))
        return await self._enlarge(plan, further, drawing, _pictures(drawn))

    async def watch(self, plan: Plan, drawing: Drawing) -> AsyncIterator[Progress]:
        """Yield sketches as the first stage draws, then the pictures; errors as in `draw`."""
        first, *further = plan.stages
        width, height = plan.image_size
        async for event in self._generate.watch(_work(first, drawing)):
            if isinstance(event, Preview):
                pixels = enlarged(bitmap(event.picture), width, height)
                yield Sketch(event.row, event.index, pixels)
            else:
                yield Complete(await self._enlarge(plan, further, drawing, _pictures(event)))

    async def _enlarge(
        self, plan: Plan, stages: list[PinnedStage], drawing: Drawing, pictures: Pictures
    ) -> list[Bitmap]:
        for stage in stages:
            prompts = _prompts(stage, drawing)
            work = Work(
                pin=stage.pin,
                seeds=drawing.seeds,
                prompts=prompts,
                steps=stage.steps,
                guidance=stage.guidance,
                low=pictures,
                once=drawing.once,
            )
            pictures = _pictures(await self._upscale.draw(work))
        found = [bitmap(picture) for picture in pictures]
        if found[0].shape[:2] != plan.image_size[::-1]:
            raise ApiError(
                500, "the last stage drew another size than promised", code="internal_error"
            )
        return found


def _work(stage: PinnedStage, drawing: Drawing) -> Work:
    return Work(
        pin=stage.pin,
        seeds=drawing.seeds,
        prompts=_prompts(stage, drawing),
        steps=stage.steps if drawing.steps is None else drawing.steps,
        guidance=stage.guidance if drawing.guidance is None else drawing.guidance,
        previews=drawing.previews,
        once=drawing.once,
    )


def _prompts(stage: PinnedStage, drawing: Drawing) -> tuple[str, ...]:
    return (drawing.prompt,) * len(drawing.seeds) if stage.accepts.prompt == "text" else ()


def _pictures(answer: Drawn | Refused) -> Pictures:
    if isinstance(answer, Drawn):
        return answer.pictures
    if answer.kind == "full":
        raise ApiError(
            429,
            f"the queue is full: {answer.message}",
            code="queue_full",
            retry_after_s=answer.retry_after_s,
        )
    if answer.kind == "invalid":
        raise invalid(answer.message, answer.param)
    if answer.kind == "not_finite":
        raise ApiError(500, "the model gave numbers that are not finite", code="not_finite")
    if answer.kind == "failed":
        raise ApiError(500, "the model failed while drawing", code="model_failed")
    reason = "is not loaded" if answer.kind == "missing" else "is restarting"
    raise ApiError(503, f"the model {reason}; try again", code="unavailable", retry_after_s=5)
