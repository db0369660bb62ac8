"""A stage: holds versions of models on one device, samples, embeds and scores.

Each pool of the placement is this class, as a deployment of its own or in the gateway's process. torch is imported
with the first object, not with this module, so that a gateway apart from its stages starts without it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from infra.pipelines import Pin
from infra.placement import BATCHES
from services.pipelines.by_reference import LostError, fetched, stored
from services.pipelines.executor import walked
from services.pipelines.payload import (
    Drawn,
    Embedded,
    EmbedWork,
    Event,
    GenerationSpec,
    Made,
    Piece,
    PipelineTask,
    Preview,
    Prompt,
    Refused,
    Scored,
    ScoreWork,
    Sounded,
    StageTask,
    Text,
    Written,
    named,
)
from services.pipelines.request import Complete
from services.stages.asked import blank, letters, recalls, request_of, rows_of, unfit, unread

if TYPE_CHECKING:
    from infra.registry.registry import Registry
    from models.request import Request
    from services.stages.loader import Held
    from services.stages.scheduler import Failed, Result, Ticket

logger = logging.getLogger("ray.serve")

LOADS: Final = 2  # versions that are loaded at a time
SHORT: Final = 2000  # characters that are looked through at once, not in a thread: 0.1 ms
TEvent = TypeVar("TEvent", bound=Event)


class StageArguments(BaseModel):
    """What a stage is built with; JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tracking_uri: str
    cache: Path
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1, le=64)  # of one step
    buckets: tuple[int, ...] = BATCHES  # tried; see services.stages.batch_invariance
    max_waiting: int = Field(default=256, ge=1)  # rows
    max_bytes: int = Field(default=4 * 2**30, ge=1)  # of loaded versions
    apart: bool = False  # from the gateway: large arrays go to another stage by reference
    gpu_share: float = Field(default=1, ge=0, le=1)  # of the GPU's memory, where there is one
    unknown_words: Literal["refuse", "map"] = "refuse"


class Stage:
    """Draws pictures with pinned versions; a plain class, so that tests need no cluster."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        registry: "Registry | None" = None,
    ) -> None:
        import torch

        from infra.registry.registry import Registry
        from services.gateway.listening import listen_on_the_node
        from services.stages.engine import Engine
        from services.stages.loader import Versions

        listen_on_the_node()
        given = StageArguments.model_validate(arguments)
        device = given.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and 0 < given.gpu_share < 1:  # Ray's fraction alone is book-keeping
            torch.cuda.set_per_process_memory_fraction(given.gpu_share)
        self._engine = Engine(max_waiting=given.max_waiting, threads=given.threads)
        self._versions = Versions(
            registry or Registry(given.tracking_uri, given.cache),
            device=device,
            max_bytes=given.max_bytes,
            buckets=given.buckets,
            threads=given.threads,
        )
        # threads of their own: whoever waits for a download is not to keep others from the event loop's
        self._loads = ThreadPoolExecutor(LOADS, thread_name_prefix="loads")
        self._loading: dict[str, Future[Held]] = {}  # by digest
        self._apart = given.apart
        self._unknown_words = given.unknown_words
        self._problems: dict[str, str] = {}

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Load the listed versions beside those that run; one that cannot be loaded is reported, not fatal.

        An exception here would make Serve stop this replica and the next ones, with all that they serve.
        """
        pins = [
            Pin(name=version["name"], number=version["number"], digest=version["digest"])
            for version in user_config["versions"]
        ]
        self._versions.pin({pin.digest for pin in pins})
        self._problems = {}
        for pin in pins:
            await self._load(pin)

    async def draw(self, task: StageTask) -> Made | Refused:
        """Return the samples of `task`, or why there are none."""
        if task.entry:
            return await self._handed_on(task, await self._entered(task))
        ready = await self._ready(task)
        if isinstance(ready, Refused):
            return ready
        made = await self._told(ready, await self._drawn(ready))
        return await self._handed_on(task, ready.with_warnings(made))

    async def draw_through(self, task: PipelineTask) -> Complete | Refused:
        """Return the samples of a pipeline all of whose stages are held here, or why there are none."""
        return await walked(lambda _: self, task.pipeline, task.here, apart=False)

    async def check(self, task: StageTask) -> Refused | None:
        """Return why a task would be refused, whatever the stages before it made; None where it would not be."""
        held = await self._load(task.pin)
        if held is None:
            return self._missing(task.pin)
        from services.stages.unknown_words import understood

        known = await asyncio.to_thread(understood, held.model, task, self._unknown_words)
        if isinstance(known, Refused):
            return known
        task, _ = known
        if task.entry:
            return unread(held, task.spec.prompts)
        given = blank(held.model.inputs, len(task.spec.seeds))
        return unfit(held, task, request_of(held, task.spec, given))

    async def watch(self, task: StageTask) -> AsyncGenerator[Event]:
        """Yield previews or pieces of text as they come, then the samples or why there are none."""
        ready = await self._ready(task)
        if isinstance(ready, Refused):
            yield ready
            return
        for echo in ready.echoes if task.pieces else ():
            if echo.text or echo.logprobs:
                yield echo
        events = self._follow(ready)
        async with aclosing(events):  # at once when the client goes
            async for event in events:
                told = await self._told(ready, event)
                yield await self._handed_on(task, ready.with_warnings(told))

    async def _entered(self, task: StageTask) -> Drawn | Refused:
        """Return what an entry of a model makes of its inputs, between two sampler steps."""
        held = await self._load(task.pin)
        if held is None:
            return self._missing(task.pin)
        from services.stages.scoring import enter
        from services.stages.unknown_words import understood

        known = await asyncio.to_thread(understood, held.model, task, self._unknown_words)
        if isinstance(known, Refused):
            return known
        task, warnings = known
        try:
            given = {name: await fetched(array) for name, array in task.spec.given.items()}
        except LostError as error:
            return Refused("lost", str(error))
        ports = held.entries[task.entry].inputs
        rows = rows_of(given, ports)
        call = partial(enter, held.model, task.entry, rows, task.spec.prompts)
        found = await self._ask(call, task.spec.ahead, task.spec.behind)
        return found if isinstance(found, Refused) else Drawn(found, warnings)

    async def _told(self, ready: "_Ready", event: TEvent) -> TEvent | Refused:
        """Return sounds with the recordings that they are made of, where their family puts any together."""
        from models.family import Family

        model = ready.held.model
        if not isinstance(event, Sounded) or type(model).sources is Family.sources:
            return event
        spec = ready.task.spec
        found = await self._ask(partial(model.sources, ready.request), spec.ahead, spec.behind)
        if isinstance(found, Refused):
            return found
        return replace(event, sources=tuple(map(tuple, found)))

    async def _handed_on(self, task: StageTask, event: TEvent) -> TEvent:
        """Return what goes to another pool by reference, where it is large."""
        if not task.onward or not self._apart:
            return event
        if isinstance(event, Drawn):
            return replace(event, pictures=await stored(event.pictures))
        if isinstance(event, Sounded):
            return replace(event, sounds=await stored(event.sounds))
        return event

    async def _ready(self, task: StageTask) -> "_Ready | Refused":
        """Return what a request needs before it may wait for the engine, or why it must not."""
        held = await self._load(task.pin)
        if held is None:
            return self._missing(task.pin)
        from services.stages.unknown_words import understood

        read = partial(understood, held.model, task, self._unknown_words)
        known = read() if letters(task.spec) <= SHORT else await asyncio.to_thread(read)
        if isinstance(known, Refused):
            return known
        task, warnings = known
        try:
            given = {name: await fetched(array) for name, array in task.spec.given.items()}
            request = request_of(held, task.spec, given)
        except LostError as error:
            return Refused("lost", str(error))
        except ValueError as error:
            return Refused("invalid", str(error), param=named(str(error)))
        if wrong := unfit(held, task, request):
            return wrong
        echoes = await self._echoed(held, task.spec)
        if isinstance(echoes, Refused):
            return echoes
        return _Ready(held, task, request, echoes, warnings)

    async def _echoed(self, held: "Held", spec: GenerationSpec) -> tuple[Piece, ...] | Refused:
        """Return the prompts of a text, one a seed, with how likely their tokens are where that is asked for."""
        from services.stages.scoring import recall
        from services.stages.token_logprobs import echoes

        prompts: tuple[Prompt, ...] = spec.prompts or spec.prompt_tokens
        logprobs = spec.options.get("logprobs")
        recalled: dict[Prompt, Any] = {}
        if recalls(spec):
            known = tuple(dict.fromkeys(prompts))
            call = partial(next, recall(held.model, known))
            rows = await self._ask(call, spec.ahead, spec.behind)
            if isinstance(rows, Refused):
                return rows
            recalled = {} if logprobs is None else dict(zip(known, rows, strict=True))
        if not spec.echo:
            return ()
        return await asyncio.to_thread(echoes, held.model, prompts, recalled, logprobs or 0)

    async def embed(self, work: EmbedWork) -> Embedded | Refused:
        """Return an embedding an input, or why there are none; some at a time, between two sampler steps."""
        held = await self._load(work.pin)
        if held is None:
            return self._missing(work.pin)
        import numpy as np

        from services.stages.scoring import TOGETHER, embed, see
        from services.stages.unknown_words import readable

        known = await asyncio.to_thread(
            readable, held.model, work.texts, self._unknown_words, "input"
        )
        if isinstance(known, Refused):
            return known
        texts, warnings = known
        starts = range(0, len(texts), TOGETHER)
        calls = [partial(embed, held.model, texts[start : start + TOGETHER]) for start in starts]
        if (pixels := work.pixels) is not None:
            starts = range(0, len(pixels), TOGETHER)
            calls += [
                partial(see, held.model, pixels[start : start + TOGETHER]) for start in starts
            ]
        found: list[Embedded] = []
        for call in calls:
            answer = await self._ask(call, work.ahead, work.behind)
            if isinstance(answer, Refused):
                return answer
            size = answer.vectors.shape[1]
            if work.dimensions not in {None, size}:
                message = f"dimensions: this model gives {size} numbers an input; send {size} or leave it out"
                return Refused("invalid", f"{message}, got {work.dimensions}", param="dimensions")
            found.append(answer)
        vectors = np.concatenate([one.vectors for one in found])
        return Embedded(vectors, tuple(count for one in found for count in one.tokens), warnings)

    async def score(self, works: Sequence[ScoreWork]) -> tuple[Scored, ...] | Refused:
        """Return log p of each input, one after another so that each has its own bits, or why one has none."""
        found: list[Scored] = []
        for work in works:
            one = await self._scored(work)
            if isinstance(one, Refused):
                return one
            found.append(one)
        return tuple(found)

    async def _scored(self, work: ScoreWork) -> Scored | Refused:
        held = await self._load(work.pin)
        if held is None:
            return self._missing(work.pin)
        from services.stages.engine import BROKEN
        from services.stages.scoring import decoded, score
        from services.stages.unknown_words import known_part, read

        texts = [work.caption] if work.caption else [text for _, text in work.record]
        param = "caption" if work.caption else "input"
        warnings = await asyncio.to_thread(read, held.model, texts, self._unknown_words, param)
        if isinstance(warnings, Refused):
            return warnings
        if warnings and work.caption:
            work = replace(work, caption=known_part(held.model, work.caption))
        try:
            batch, numbers, left_out = await asyncio.to_thread(decoded, held.model, work)
        except BROKEN as error:
            wrong = isinstance(error, ValueError)  # the input, not the model
            return Refused("invalid" if wrong else "failed", " ".join(str(error).split()))
        nats: float | Refused = await self._ask(
            partial(next, score(held.model, batch, work.seed)), work.ahead
        )
        warnings += (left_out,) if left_out else ()
        return nats if isinstance(nats, Refused) else Scored(nats, numbers, warnings)

    async def status(self) -> dict[str, Any]:
        """Return what is loaded, what could not be, and how many rows wait and are under way."""
        return {
            "loaded": self._versions.digests,
            "problems": dict(self._problems),
            "waiting": self._engine.waiting,
            "drawing": self._engine.drawing,
        }

    async def statuses(self) -> list[dict[str, Any]]:
        """Return the status of this one replica, as a stage behind a handle does of all of its."""
        return [await self.status()]

    def check_health(self) -> None:
        """Tell Serve to replace this replica when its engine has died.

        Raises:
            RuntimeError: it has.
        """
        if not self._engine.alive:
            raise RuntimeError("the step engine has stopped")

    def close(self) -> None:
        """Stop the engine; what is under way fails as `stopped`."""
        self._engine.close()
        self._loads.shutdown(wait=False)

    async def _load(self, pin: Pin) -> "Held | None":
        from services.stages.loader import Unloadable

        if (held := self._versions.held(pin.digest)) is not None:
            return held
        try:
            held = await asyncio.shield(asyncio.wrap_future(self._loaded(pin)))
        except Unloadable as error:
            logger.warning("%s", error)
            self._problems[pin.digest] = str(error)
            return None
        self._problems.pop(pin.digest, None)
        return held

    def _loaded(self, pin: Pin) -> "Future[Held]":
        """Return a version that is being loaded, for all who ask for it meanwhile."""
        loading = self._loading.get(pin.digest)
        if loading is None:
            loading = self._loads.submit(self._versions.load, pin)
            self._loading[pin.digest] = loading
            loading.add_done_callback(lambda _: self._loading.pop(pin.digest, None))
        return loading

    def _missing(self, pin: Pin) -> Refused:
        why = self._problems.get(pin.digest, "it is not loaded")
        return Refused("missing", f"{pin.ref}: {why}")

    async def _ask(self, call: Callable[[], Any], ahead: bool, behind: bool = False) -> Any:
        """Return what a call in the engine's thread returns, or why it does not."""
        from services.stages.scheduler import Failed, Full

        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Any] = asyncio.Queue()

        def deliver(found: Any) -> None:
            loop.call_soon_threadsafe(told.put_nowait, found)

        try:
            question = self._engine.ask(call, deliver, ahead=ahead, behind=behind)
        except Full as full:
            return Refused("full", str(full), full.retry_after_s)
        except RuntimeError as error:
            return Refused("stopped", str(error))
        try:
            found = await told.get()
        finally:
            self._engine.cancel(question)
        return Refused(found.kind, found.message) if isinstance(found, Failed) else found

    async def _drawn(self, ready: "_Ready") -> Made | Refused:
        """Return a request's samples; they are put together in the engine's thread, and told of once."""
        from services.stages.scheduler import Failed, Finished

        held, spec = ready.held, ready.task.spec
        if spec.options.get("max_tokens") == 0:  # the prompt alone
            return _prompts_alone(held, spec)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Failed | None] = loop.create_future()
        made: dict[int, Any] = {}

        def settle(failed: "Failed | None") -> None:
            if not answer.done():
                answer.set_result(failed)

        def deliver(result: "Result") -> None:
            if isinstance(result, Finished):
                made[result.row] = result.made
                if len(made) == len(spec.seeds):
                    loop.call_soon_threadsafe(settle, None)
            elif isinstance(result, Failed):
                loop.call_soon_threadsafe(settle, result)

        ticket = self._submit(ready, deliver)
        if isinstance(ticket, Refused):
            return ticket
        try:
            failed = await answer
        finally:
            self._engine.cancel(ticket)  # the client has gone, or it is over anyway
        if failed is not None:
            return _refused(held, spec, failed)
        return _together(held, spec, [made[row] for row in range(len(spec.seeds))])

    async def _follow(self, ready: "_Ready") -> AsyncGenerator[Event]:
        from services.stages.scheduler import Failed, Finished, all_there

        held, spec = ready.held, ready.task.spec
        if spec.options.get("max_tokens") == 0:  # the prompt alone
            yield _prompts_alone(held, spec)
            return
        loop = asyncio.get_running_loop()
        results: asyncio.Queue[Result] = asyncio.Queue()

        def deliver(result: "Result") -> None:
            loop.call_soon_threadsafe(results.put_nowait, result)

        ticket = self._submit(ready, deliver)
        if isinstance(ticket, Refused):
            yield ticket
            return
        made: dict[int, Any] = {}
        try:
            while len(made) < len(spec.seeds):
                for result in await all_there(results):
                    if isinstance(result, Failed):
                        yield _refused(held, spec, result)
                        return
                    if isinstance(result, Finished):
                        made[result.row] = result.made
                    else:
                        yield _on_the_way(result)
            yield _together(held, spec, [made[row] for row in range(len(spec.seeds))])
        finally:
            self._engine.cancel(ticket)  # the client has gone, or it is over anyway

    def _submit(self, ready: "_Ready", deliver: "Callable[[Result], None]") -> "Ticket | Refused":
        """Queue a request's rows, or return why they may not be queued."""
        from services.stages.scheduler import Full, TooLong

        task, spec = ready.task, ready.task.spec
        try:
            return self._engine.submit(
                ready.held.model,
                ready.request,
                deliver,
                previews=spec.previews,
                pieces=task.pieces,
                stops=spec.stop,
                buckets=ready.held.buckets,
                within_s=task.within_s,
                ahead=spec.ahead,
                behind=spec.behind,
            )
        except Full as full:
            return Refused("full", str(full), full.retry_after_s)
        except TooLong as long:
            return _too_long(ready.held, spec, str(long))
        except RuntimeError as error:
            return Refused("stopped", str(error))


@dataclass(frozen=True, slots=True)
class _Ready:
    """A request that may wait for the engine."""

    held: "Held"
    task: StageTask
    request: "Request"
    echoes: tuple[Piece, ...]
    warnings: tuple[str, ...]

    def with_warnings(self, event: TEvent) -> TEvent:
        """Return the samples with what of the request was not read, and of a text its prompts."""
        if isinstance(event, Written):
            return replace(event, echoes=self.echoes, warnings=self.warnings)
        if isinstance(event, Drawn | Sounded) and self.warnings:
            return replace(event, warnings=self.warnings)
        return event


def _refused(held: "Held", spec: GenerationSpec, failed: "Failed") -> Refused:
    if failed.kind == "too_long":
        return _too_long(held, spec, failed.message)
    return Refused(failed.kind, failed.message)


def _prompts_alone(held: "Held", spec: GenerationSpec) -> Made:
    """Return the answer to who asks for no token."""
    return _together(held, spec, [Text("", 0, "length")] * len(spec.seeds))


def _too_long(held: "Held", spec: GenerationSpec, why: str) -> Refused:
    """Refuse what takes too long, by the parameter that makes it so."""
    count = f"{len(spec.seeds)} x " if len(spec.seeds) > 1 else ""
    config = held.model.config
    for param in ("seconds", "steps"):
        value = spec.options.get(param) or getattr(config, param, None)
        if value is not None:
            message = f"{param}: {count}{value:g} is too much, {why}; ask for less"
            return Refused("too_long", message, param=param)
    return Refused("too_long", f"n: {len(spec.seeds)} is too much, {why}", param="n")


def _on_the_way(result: "Result") -> Preview | Piece:
    from services.stages.scheduler import Shown, Wrote

    if isinstance(result, Wrote):
        return Piece(result.row, result.text, result.logprobs)
    assert isinstance(result, Shown)
    return Preview(row=result.row, index=result.index, picture=result.picture)


def _sounded(held: "Held", made: Sequence[Any]) -> Sounded:
    """Return sounds, or mels, that last as long as they last: together, the shorter ones with silence behind."""
    import torch

    from models.parts.rows import lasting

    (port,) = held.model.outputs.values()
    rows = lasting([torch.from_numpy(one)[None] for one in made], port.kind).numpy()
    lengths = tuple(one.shape[-1] for one in made)
    return Sounded(rows, held.model.config.sample_rate, lengths=lengths)


def _together(held: "Held", spec: GenerationSpec, made: Sequence[Any]) -> Made:
    """Return a request's finished rows as one answer."""
    import numpy as np

    from services.stages.scoring import count_tokens

    modality = held.model.capabilities.modality
    if modality in {"image", "clip", "mesh"}:
        return Drawn(np.stack(made))
    if modality == "audio":
        return _sounded(held, made)
    texts: list[Text] = list(made)
    asked: list[tuple[Prompt, ...]] = [(prompt,) for prompt in spec.prompts or spec.prompt_tokens]
    asked += [tuple(text for _, text in dialogue) for dialogue in spec.dialogues]
    known: dict[tuple[Prompt, ...], int] = {}
    for one in asked:
        if one not in known:
            known[one] = sum(count_tokens(held.model, text) for text in one)
    counts = tuple(known[one] for one in asked) or (0,) * len(texts)
    return Written(tuple(texts), counts)
