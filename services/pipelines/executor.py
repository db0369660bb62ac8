"""The executor of a pipeline's graph: one stage after the other, each where `stage_of` says.

The walk is `models.ports.walk`, as it is where a version is judged. A pool apart that holds all the stages walks by
itself, so that a pipeline costs one hop and not one a stage; the gateway walks where something is kept or watched.
What a request asks for beside its inputs (options, previews, text as it is written) is asked of the first node; the
others draw as the pipeline pins them.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np

from infra.pipelines import NEGATIVE, PinnedStage, Pipeline
from models.ports import REQUEST, Call, Port, Source, salted, walk
from services.gateway.errors import ApiError
from services.media.codecs import Sound, Volume, bitmap, clip, enlarged, sound
from services.media.speech import at_speed, growing, joined, parted
from services.pipelines.by_reference import LostError, Reference
from services.pipelines.payload import (
    EmbedWork,
    Event,
    GenerationSpec,
    Made,
    Pictures,
    Piece,
    PipelineTask,
    Preview,
    Refused,
    Sounded,
    StageTask,
    Written,
    named,
)
from services.pipelines.request import (
    Complete,
    Outputs,
    Progress,
    Said,
    Sketch,
    StageOf,
    refusal,
)
from services.pipelines.stage_client import Remote

READ: Final = {f"{REQUEST}.other": "blend.prompt", f"{REQUEST}.{NEGATIVE}": "negative_prompt"}
"""What a text is called in a request that is not the prompt, by the wire that brings it."""


class Executor:
    """Makes what pipelines name; `stage_of` returns who runs a pinned stage, in this process or behind a handle."""

    def __init__(self, stage_of: StageOf) -> None:
        self._stage_of = stage_of

    async def draw(
        self, pipeline: Pipeline, spec: GenerationSpec, kept: Outputs | None = None
    ) -> Complete:
        """Return the samples; errors as in `Maker`. What was lost on the way is drawn once more from the start.

        What is `kept` is not drawn again, and what is drawn is kept.
        """
        try:
            return await self._drawn(pipeline, spec, kept)
        except LostError as error:
            if spec.once:
                raise refusal(Refused("lost", str(error))) from None
            return await self.draw(pipeline, replace(spec, once=True), kept)

    async def check(self, pipeline: Pipeline, spec: GenerationSpec) -> None:
        """Refuse now what the stages that read a request would refuse later: words, options and their values.

        Raises:
            ApiError: 400 that names the parameter. A stage that cannot be asked refuses nothing.
        """
        entrance, lead = pipeline.entrances[spec.entrance], pipeline.lead_of(spec.entrance)
        for name, node in entrance.nodes.items():
            reads = node.wires.get("text") == f"{REQUEST}.text"
            if not reads and name != lead:
                continue
            stage = pipeline.stage(node.stage)
            mine = replace(
                spec,
                given={},
                options=pipeline.options_of(spec.entrance, name, spec.options),
                prompts=spec.prompts if reads else (),
            )
            task = StageTask(pin=stage.pin, spec=mine, entry=node.entry)
            refused = await self._stage_of(stage).check(task)
            if refused is not None and refused.kind == "invalid":
                param = refused.param or named(refused.message) or "prompt"
                raise refusal(replace(refused, param=param))

    async def _drawn(
        self, pipeline: Pipeline, spec: GenerationSpec, kept: Outputs | None
    ) -> Complete:
        if spec.parts:
            return await self._whole(pipeline, spec, kept)
        pool = None if kept else self._pool(pipeline, spec)
        if pool is None:
            made = await walked(self._stage_of, pipeline, spec, kept)
        else:
            task = PipelineTask(pipeline=pipeline, spec=spec, within_s=spec.within_s)
            made = await pool.draw_through(task)
        if isinstance(made, Refused):
            raise _raised(made)
        whole = await self._best(pipeline, spec, made)
        if spec.speed is None:
            return whole
        sounds = [one for one in whole.made if isinstance(one, Sound)]
        paced = await asyncio.to_thread(lambda: [at_speed(one, spec.speed) for one in sounds])
        return replace(whole, made=paced)

    def _pool(self, pipeline: Pipeline, spec: GenerationSpec) -> Remote | None:
        """Return the pool apart that holds all of several stages, so that one hop is enough; None where none does."""
        nodes = pipeline.entrances[spec.entrance].nodes
        first, *others = (self._stage_of(pipeline.stage(node.stage)) for node in nodes.values())
        together = others and all(other is first for other in others)
        return first if together and isinstance(first, Remote) else None

    async def _whole(
        self, pipeline: Pipeline, spec: GenerationSpec, kept: Outputs | None
    ) -> Complete:
        """Return the parts of a sound as one, all drawn together."""
        made = await self._drawn(pipeline, spec.saying(0, len(spec.parts)), kept)
        sounds = [one for one in made.made if isinstance(one, Sound)]
        return replace(made, made=[joined(sounds)], sources=_one(made.sources))

    async def _spoken(self, pipeline: Pipeline, spec: GenerationSpec) -> AsyncGenerator[Progress]:
        """Yield the parts of a sound in their order, each as soon as it is made, and then the whole.

        The first is made alone, and more and more at a time after it, while those before are heard.
        """
        groups = growing(len(spec.parts))
        draws = [partial(self.draw, pipeline, spec.saying(*group)) for group in groups]
        made: list[Sound] = []
        sources: list[tuple[Source, ...]] = []
        warnings: dict[str, None] = {}
        under_way = asyncio.create_task(draws[0]())
        try:
            for number in range(len(groups)):
                found = await under_way
                if number + 1 < len(groups):
                    under_way = asyncio.create_task(draws[number + 1]())
                warnings |= dict.fromkeys(found.warnings)
                sources += found.sources
                for one in found.made:
                    assert isinstance(one, Sound)
                    made.append(one)
                    yield Said(parted(one, len(made) - 1, len(spec.parts)))
        finally:
            under_way.cancel()
        yield Complete([joined(made)], warnings=tuple(warnings), sources=_one(sources))

    async def watch(self, pipeline: Pipeline, spec: GenerationSpec) -> AsyncGenerator[Progress]:
        """Yield what is seen on the way, then the samples; errors as in `Maker`."""
        try:
            async with aclosing(self._watched(pipeline, spec)) as steps:
                async for step in steps:
                    yield step
        except LostError:
            yield await self.draw(pipeline, replace(spec, once=True))

    async def _watched(self, pipeline: Pipeline, spec: GenerationSpec) -> AsyncGenerator[Progress]:
        if spec.speed is not None and not spec.parts:
            yield await self._drawn(pipeline, spec, None)
            return
        if spec.parts:
            async with aclosing(self._spoken(pipeline, spec)) as parts:
                async for part in parts:
                    yield part
            return
        run = _Run(pipeline, spec)
        while (call := run.call) is not None:
            stages, task = self._stage_of(run.stage), run.task(call, watched=True)
            made: Event | None = None
            if not run.leads:
                made = await stages.draw(task)
            else:
                async with aclosing(stages.watch(task)) as events:
                    async for made in events:
                        if isinstance(made, Preview):
                            picture = await self._decoded(run, made)
                            yield await asyncio.to_thread(run.sketch, made, picture)
                        elif isinstance(made, Piece):
                            yield made
            if isinstance(made, Refused):
                raise _raised(run.refused(made))
            assert isinstance(made, Made)
            run.take(made)
        whole = await asyncio.to_thread(run.complete)
        yield await self._best(pipeline, spec, whole)

    async def _best(self, pipeline: Pipeline, spec: GenerationSpec, made: Complete) -> Complete:
        """Return of each picture's candidates the one with the highest cosine to its prompt."""
        if spec.best_of == 1:
            return made
        ranker = pipeline.ranker
        assert ranker is not None  # planned so
        takes = Port.parse(ranker.entries["pixels"].inputs["pixels"])
        pixels = await asyncio.to_thread(_seen, made.made, takes)
        prompts = spec.prompts[:: spec.best_of]
        order = {"ahead": spec.ahead, "behind": spec.behind}
        work = EmbedWork(pin=ranker.pin, texts=prompts, pixels=pixels, **order)
        found = await self._stage_of(ranker).embed(work)
        if isinstance(found, Refused):
            raise refusal(found)
        asked, shown = np.split(found.vectors, [len(prompts)])
        cosine = np.einsum("pe,pce->pc", asked, shown.reshape(len(prompts), spec.best_of, -1))
        rows = tuple(row * spec.best_of + int(best) for row, best in enumerate(cosine.argmax(1)))
        return replace(made, made=[made.made[row] for row in rows], rows=rows)

    async def _decoded(self, run: "_Run", preview: Preview) -> Any:
        """Return the picture that a preview is, or stands for."""
        rest = run.rest(preview)
        try:
            task = next(rest)
            while True:
                made = await self._stage_of(run.stage_of(task)).draw(task)
                if isinstance(made, Refused):
                    raise refusal(made)
                task = rest.send(made)
        except StopIteration as end:
            return end.value


async def walked(
    stage_of: StageOf,
    pipeline: Pipeline,
    spec: GenerationSpec,
    kept: Outputs | None = None,
    *,
    apart: bool = True,
) -> Complete | Refused:
    """Return what a pipeline's nodes make, one after the other, or why there is nothing.

    What is `kept` is not drawn again, and what is drawn is kept. Unless the stages may be `apart`, no array between
    them goes by reference.
    """
    run = _Run(pipeline, spec, apart=apart)
    while (call := run.call) is not None:
        made: Made | Refused | None = await kept.find(call.node) if kept else None
        if made is None:
            began = time.monotonic()
            made = await stage_of(run.stage).draw(run.task(call))
            if kept and not isinstance(made, Refused):
                await kept.keep(call.node, made, time.monotonic() - began)
        if isinstance(made, Refused):
            return run.refused(made)
        run.take(made)
    return await asyncio.to_thread(run.complete)  # a clip is seconds of arithmetic


class _Run:
    """One request on its way through a graph; `call` is what is to be run next, None at the end."""

    def __init__(self, pipeline: Pipeline, spec: GenerationSpec, *, apart: bool = True) -> None:
        self._pipeline, self._spec, self._apart = pipeline, spec, apart
        self._entrance = pipeline.entrances[spec.entrance]
        given: dict[str, Any] = {**spec.given, **({"text": spec.texts} if spec.texts else {})}
        if spec.blend is not None:
            (prompt, weight), count = spec.blend, len(spec.seeds)
            given["other"] = {"prompts": (prompt,) * count}
            given["weight"] = np.full(count, weight, np.float32)
        away = pipeline.negative_of(spec.entrance, spec.options)
        if away is not None:
            given[NEGATIVE] = {"prompts": (away,) * len(spec.seeds)}
        self._walk: Generator[Call, Mapping[str, Any], Any] = walk(
            self._entrance.wires,
            self._entrance.output,
            given,
            entries=self._entrance.entries,
        )
        self._lead, self._given = pipeline.lead_of(spec.entrance), given
        self._made: dict[str, Made] = {}
        self.call: Call | None = next(self._walk)

    @property
    def leads(self) -> bool:
        """Whether the next node is the one that the request's options are for."""
        assert self.call is not None
        return self.call.node == self._lead

    @property
    def stage(self) -> PinnedStage:
        """The next node's stage."""
        assert self.call is not None
        return self._pipeline.node(self._spec.entrance, self.call.node)

    def stage_of(self, task: StageTask) -> PinnedStage:
        """Return the stage that a task is for."""
        return next(one for one in self._pipeline.stages if one.sha256 == task.pin.digest)

    def task(self, call: Call, *, watched: bool = False) -> StageTask:
        """Return what the next node is to do; `watched` as it happens."""
        spec, node = self._spec, self._entrance.nodes[call.node]
        stage, leads = self._pipeline.stage(node.stage), call.node == self._lead
        inputs = {name: value for name, value in call.given.items() if name != "text"}
        texts = {"prompts": (), "prompt_tokens": (), "dialogues": (), **call.given.get("text", {})}
        mine = replace(
            spec,
            seeds=tuple(salted(seed, node.salt) for seed in spec.seeds),
            given=inputs,
            options=self._pipeline.options_of(spec.entrance, call.node, spec.options),
            previews=spec.previews if leads and watched else 0,
            **texts,
        )
        return StageTask(
            pin=stage.pin,
            spec=mine,
            entry=node.entry,
            pieces=watched and leads and self._pipeline.modality == "text",
            onward=self._apart and call.node != self._entrance.output.partition(".")[0],
            within_s=spec.within_s,
        )

    def take(self, made: Made) -> None:
        """Take what the next node made, and go on."""
        assert self.call is not None
        self._made[self.call.node] = made
        try:
            self.call = self._walk.send({self._output(self.call.node): _value(made)})
        except StopIteration:
            self.call = None

    def _output(self, node: str) -> str:
        return next(iter(self._pipeline.ports(self._spec.entrance, node).outputs))

    def rest(self, preview: Preview) -> Generator[StageTask, Made, Any]:
        """Yield what else is to be done for one preview, and be sent what came of it; returns the picture's row.

        Nothing where the lead draws pictures; where it draws what is only to be decoded, that.
        """
        nodes = self._entrance.wires
        later = list(nodes)[list(nodes).index(self._lead) + 1 :]
        if not later or not all(self._entrance.nodes[name].entry for name in later):
            return preview.picture[None]
        made = {f"{self._lead}.{self._output(self._lead)}": preview.picture[None]}
        given = {n: _row(value, preview.row) for n, value in self._given.items()}
        wires = {name: nodes[name] for name in later}
        steps = walk(wires, self._entrance.output, given, made)
        call = next(steps)
        while True:
            event = yield self.task(call)
            try:
                call = steps.send({self._output(call.node): _value(event)})
            except StopIteration as end:
                return end.value

    def refused(self, refused: Refused) -> Refused:
        """Return the next node's refusal with the parameter of the request that is why."""
        if refused.kind != "invalid":
            return refused
        texts = "messages" if self._spec.dialogues else "prompt"
        assert self.call is not None
        wire = self._entrance.wires[self.call.node].get("text")
        reads = self.leads or wire is not None
        param = refused.param or (named(refused.message) or texts if reads else None)
        if param == "prompt":  # several nodes read, each its own text
            param = READ.get(wire or "", param)
        return replace(refused, param=param)

    def sketch(self, preview: Preview, picture: Any) -> Sketch:
        """Return a preview at the pipeline's size."""
        sides = self._pipeline.sides_of(self._spec.options)
        assert sides is not None
        pixels = enlarged(bitmap(picture[0]), *sides)
        return Sketch(preview.row, preview.index, pixels)

    def complete(self) -> Complete:
        """Return what the last node made, as a caller sees it."""
        made = self._made[self._entrance.output.partition(".")[0]]
        warnings = tuple(
            dict.fromkeys(line for one in self._made.values() for line in one.warnings)
        )
        if isinstance(made, Written):
            return Complete(made.texts, made.prompt_tokens, made.echoes, warnings)
        if isinstance(made, Sounded):
            assert not isinstance(made.sounds, Reference)  # nothing comes after it
            lengths = made.lengths or [made.sounds.shape[1]] * len(made.sounds)
            return Complete(
                [
                    sound(one[:length], made.sample_rate)
                    for one, length in zip(made.sounds, lengths, strict=True)
                ],
                warnings=warnings,
                sources=made.sources,
            )
        assert not isinstance(made.pictures, Reference)
        size = self._pipeline.sides_of(self._spec.options)
        if self._pipeline.modality == "mesh":
            size = (self._pipeline.resolution or 0,) * 2
        if size is None or made.pictures.shape[-2:] != size[::-1]:
            raise ApiError(
                500, "the last stage drew another size than promised", code="internal_error"
            )
        if self._pipeline.modality == "clip":
            rate = self._pipeline.rate(self._spec.options)
            assert rate is not None
            return Complete([clip(one, rate) for one in made.pictures], warnings=warnings)
        if self._pipeline.modality == "mesh":  # cut from the volume by whoever writes its file
            return Complete([Volume(one) for one in made.pictures], warnings=warnings)
        return Complete([bitmap(picture) for picture in made.pictures], warnings=warnings)


def _one(sources: Sequence[tuple[Source, ...]]) -> tuple[tuple[Source, ...], ...]:
    """Return what parts are made of as what their whole is."""
    return (tuple(source for part in sources for source in part),) if sources else ()


def _raised(refused: Refused) -> LostError | ApiError:
    """Return what a refusal is raised as."""
    return LostError(refused.message) if refused.kind == "lost" else refusal(refused)


def _seen(pictures: Sequence[Any], takes: Port) -> Pictures:
    """Return pictures (N, C, H, W) in [0, 1] at the size that a port takes."""
    height, width = int(takes.shape[1] or 0), int(takes.shape[2] or 0)
    levels = np.stack([enlarged(one, width, height) for one in pictures])
    return (levels.transpose(0, 3, 1, 2) / 255).astype(np.float32)


def _row(value: Any, row: int) -> Any:
    """Return one row of what a request gives: of arrays, or of its texts in one of three forms."""
    if isinstance(value, Mapping):
        return {name: part[row : row + 1] for name, part in value.items()}
    return value if isinstance(value, Reference) else value[row : row + 1]


def _value(made: Made) -> Any:
    """Return what passes along the wires behind a stage."""
    if isinstance(made, Written):
        return {"prompts": tuple(text.text for text in made.texts)}
    return made.sounds if isinstance(made, Sounded) else made.pictures
