"""The pipeline of pictures: the first stage draws, each further one enlarges what came before.

Seeds are the same at every stage; steps and guidance that a request asks for are those of the first.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from infra.pipelines import PinnedStage, Pipeline
from services.gateway.errors import ApiError
from services.media.codecs import bitmap, enlarged
from services.pipelines.payload import Drawn, Event, Preview, Refused, Work
from services.pipelines.request import Complete, Drawing, Progress, Sketch, StageOf, refusal


class TextToImage:
    """Draws with the stages that a pipeline names."""

    def __init__(self, stage_of: StageOf) -> None:
        self._stage_of = stage_of

    async def draw(self, pipeline: Pipeline, drawing: Drawing) -> Complete:
        """Return the pictures; errors as in `Maker`."""
        first, *further = pipeline.stages
        drawn = await self._stage_of(first).draw(_work(first, drawing))
        return await self._enlarge(pipeline, further, drawing, _pictures(drawn))

    async def watch(self, pipeline: Pipeline, drawing: Drawing) -> AsyncGenerator[Progress]:
        """Yield sketches as the first stage draws, then the pictures; errors as in `Maker`."""
        first, *further = pipeline.stages
        assert pipeline.image_size is not None
        width, height = pipeline.image_size
        async with aclosing(self._stage_of(first).watch(_work(first, drawing))) as events:
            async for event in events:
                if isinstance(event, Preview):
                    pixels = enlarged(bitmap(event.picture), width, height)
                    yield Sketch(event.row, event.index, pixels)
                else:
                    yield await self._enlarge(pipeline, further, drawing, _pictures(event))

    async def _enlarge(
        self, pipeline: Pipeline, stages: list[PinnedStage], drawing: Drawing, drawn: Drawn
    ) -> Complete:
        pictures = drawn.pictures
        for stage in stages:
            work = Work(
                pin=stage.pin,
                seeds=drawing.seeds,
                prompts=_prompts(stage, drawing),
                steps=stage.steps,
                guidance=stage.guidance,
                low=pictures,
                within_s=drawing.within_s,
                ahead=drawing.ahead,
                once=drawing.once,
            )
            pictures = _pictures(await self._stage_of(stage).draw(work)).pictures
        found = [bitmap(picture) for picture in pictures]
        if pipeline.image_size is None or found[0].shape[:2] != pipeline.image_size[::-1]:
            raise ApiError(
                500, "the last stage drew another size than promised", code="internal_error"
            )
        return Complete(found, warnings=drawn.warnings)


def _work(stage: PinnedStage, drawing: Drawing) -> Work:
    return Work(
        pin=stage.pin,
        seeds=drawing.seeds,
        prompts=_prompts(stage, drawing),
        steps=stage.steps if drawing.steps is None else drawing.steps,
        guidance=stage.guidance if drawing.guidance is None else drawing.guidance,
        previews=drawing.previews,
        within_s=drawing.within_s,
        ahead=drawing.ahead,
        once=drawing.once,
    )


def _prompts(stage: PinnedStage, drawing: Drawing) -> tuple[str, ...]:
    return drawing.prompts if stage.accepts.prompt == "text" else ()


def _pictures(answer: Event) -> Drawn:
    if isinstance(answer, Refused):
        raise refusal(answer)
    assert isinstance(answer, Drawn)
    return answer
