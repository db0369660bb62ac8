"""The pipelines of sound and of text: one stage speaks or writes. And of any version: the pipeline of its modality."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from infra.pipelines import Pipeline
from services.media.codecs import sound
from services.pipelines.payload import Event, Piece, Refused, Sounded, Work, Written, named
from services.pipelines.request import Complete, Drawing, Maker, Progress, StageOf, refusal
from services.pipelines.text_to_image import TextToImage


class OneStage:
    """Speaks or writes with the only stage of a pipeline."""

    def __init__(self, stage_of: StageOf) -> None:
        self._stage_of = stage_of

    async def draw(self, pipeline: Pipeline, drawing: Drawing) -> Complete:
        """Return the sounds or texts; errors as in `Maker`."""
        stage = self._stage_of(pipeline.stages[0])
        return _complete(await stage.draw(_work(pipeline, drawing, pieces=False)), drawing)

    async def watch(self, pipeline: Pipeline, drawing: Drawing) -> AsyncGenerator[Progress]:
        """Yield pieces of text as they are written, then the whole; errors as in `Maker`."""
        work = _work(pipeline, drawing, pieces=pipeline.modality == "text")
        async with aclosing(self._stage_of(pipeline.stages[0]).watch(work)) as events:
            async for event in events:
                yield event if isinstance(event, Piece) else _complete(event, drawing)


class Pipelines:
    """Makes pictures, sounds and texts, each by its own pipeline."""

    def __init__(self, stage_of: StageOf) -> None:
        one = OneStage(stage_of)
        painter: Maker = TextToImage(stage_of)
        self._makers: dict[str, Maker] = {"image": painter, "audio": one, "text": one}

    async def draw(self, pipeline: Pipeline, drawing: Drawing) -> Complete:
        """Return the samples; errors as in `Maker`."""
        return await self._makers[pipeline.modality].draw(pipeline, drawing)

    def watch(self, pipeline: Pipeline, drawing: Drawing) -> AsyncGenerator[Progress]:
        """Yield what is seen on the way, then the samples; errors as in `Maker`."""
        return self._makers[pipeline.modality].watch(pipeline, drawing)


def _work(pipeline: Pipeline, drawing: Drawing, *, pieces: bool) -> Work:
    stage = pipeline.stages[0]
    return Work(
        pin=stage.pin,
        seeds=drawing.seeds,
        prompts=drawing.prompts,
        prompt_tokens=drawing.prompt_tokens,
        dialogues=drawing.dialogues,
        seconds=drawing.seconds,
        max_tokens=drawing.max_tokens,
        temperature=drawing.temperature,
        top_k=drawing.top_k,
        top_p=drawing.top_p,
        stop=drawing.stop,
        logprobs=drawing.logprobs,
        echo=drawing.echo,
        pieces=pieces,
        within_s=drawing.within_s,
        ahead=drawing.ahead,
        once=drawing.once,
    )


def _complete(answer: Event, drawing: Drawing) -> Complete:
    if isinstance(answer, Refused):
        asked = "messages" if drawing.dialogues else "prompt"
        param = answer.param or named(answer.message) or asked
        raise refusal(replace(answer, param=param))
    if isinstance(answer, Sounded):
        made = [sound(one, answer.sample_rate) for one in answer.sounds]
        return Complete(made, warnings=answer.warnings)
    assert isinstance(answer, Written)
    return Complete(answer.texts, answer.prompt_tokens, answer.echoes, answer.warnings)
