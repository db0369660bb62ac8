"""One request for samples being answered: who makes them, until when, and the receipt of each."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from infra.receipts import provenance
from infra.receipts.receipts import GENERATOR, OPTIONS, Receipt, StageReceipt
from infra.receipts.signing import Signing
from services.gateway.errors import ApiError, logger
from services.pipelines.payload import GenerationSpec, Piece
from services.pipelines.request import Complete
from services.routing.canary import Arms, Step
from services.routing.endpoints import Endpoint, Route

UNSAID: Final = frozenset({"logprobs"})
"""Options that no receipt has: they change nothing of what is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request, where it goes, and what it wants of the version that answers."""

    arms: Arms
    timeout_s: float
    request: Request
    route: Route
    planning: Callable[[Endpoint], GenerationSpec]
    opens: bool  # files: not in the event loop
    signing: Signing
    public_url: str | None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.monotonic)

    @property
    def request_id(self) -> str:
        """The id that the answer's header has, too."""
        return str(self.request.scope["request_id"])

    @property
    def address(self) -> str:
        """Where the client finds what is answered by url."""
        return self.public_url or str(self.request.base_url).rstrip("/")

    async def whole(self) -> tuple[Step, Complete]:
        """Return who answered, and all samples."""
        async with self._deadline():
            return await self.arms.draw(self._way, self._planned)

    @property
    def _way(self) -> Route:
        """Where it goes; a batch's to the champion alone, since how long it waits says nothing of a challenger."""
        return Route(self.route.endpoint) if of_a_batch(self.request) else self.route

    def _deadline(self) -> "Deadline":
        return Deadline(self._patience_s, self.began)

    @property
    def _patience_s(self) -> float:
        return patience(self.request, self.timeout_s, self.began)

    async def _planned(self, endpoint: Endpoint) -> GenerationSpec:
        """Return what the request wants of a version, by when, and whether it goes before others."""
        until, ahead = self.began + self._patience_s, from_the_house(self.request)
        behind = of_a_batch(self.request)
        plan = partial(self.planning, endpoint)
        spec = await asyncio.to_thread(plan) if self.opens else plan()
        return replace(spec, until=until, ahead=ahead, behind=behind)

    async def stream(
        self,
        events: Callable[[Step], Iterable[bytes]],
        failed: Callable[[ApiError], bytes],
        end: bytes = b"",
        *,
        media_type: str = "text/event-stream",
        told: Callable[[Step], Mapping[str, str]] = lambda _: {},
    ) -> Response:
        """Return server-sent events, or parts of a file; what fails before the first one is still an ordinary error.

        Args:
            events: What is sent for a step.
            failed: What is sent when it breaks off; nothing comes after it. A file that cannot say so raises: the
                connection then breaks off, too.
            end: What is sent when all went well.
            media_type: What all of it is.
            told: Headers, by the first step.
        """
        steps = self.arms.watch(self._way, self._planned)
        async with self._deadline():
            first = await anext(steps)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **told(first)}
        lines = self._lines(first, steps, events, failed, end)
        return StreamingResponse(lines, media_type=media_type, headers=headers)

    async def _lines(
        self,
        first: Step,
        rest: AsyncIterator[Step],
        events: Callable[[Step], Iterable[bytes]],
        failed: Callable[[ApiError], bytes],
        end: bytes,
    ) -> AsyncIterator[bytes]:
        async def made(step: Step) -> list[bytes]:
            # files to write: not in the event loop
            quick = isinstance(step.progress, Piece)
            return [*events(step)] if quick else await asyncio.to_thread(lambda: [*events(step)])

        try:
            for line in await made(first):
                yield line
            async with self._deadline():
                async for step in rest:
                    for line in await made(step):
                        yield line
        except ApiError as error:
            yield failed(error)
        except (RuntimeError, ValueError, TypeError, LookupError, OSError) as error:
            logger.error("request %s failed", self.request_id, exc_info=error)
            yield failed(ApiError(500, "the server failed while drawing", code="internal_error"))
        else:
            if end:
                yield end

    def receipt(self, step: Step, row: int, made: bytes | str, *, beside: bool = False) -> Receipt:
        """Return the signed receipt of sample `row`: a file that it goes into, one that it lies beside, or a text."""
        named = facts(step.endpoint, step.spec, row, self.created, self.request_id)
        if isinstance(step.progress, Complete) and step.progress.sources:
            named = named.model_copy(update={"sources": step.progress.sources[row]})
        return provenance.sign(named, made, self.signing, beside=beside)


def facts(
    endpoint: Endpoint, spec: GenerationSpec, row: int, created: datetime, request_id: str
) -> Receipt:
    """Return the receipt of sample `row`, not signed yet."""
    drawn = endpoint.pipeline.options(spec.options)
    options = {name: value for name, value in drawn.items() if name not in UNSAID}
    return Receipt(
        endpoint=endpoint.name,
        version=endpoint.ref,
        digest=endpoint.digest,
        place=endpoint.stage,
        epoch=endpoint.epoch,
        stages=tuple(
            StageReceipt(name=stage.name, version=stage.version, sha256=stage.sha256)
            for stage in endpoint.pipeline.stages
        ),
        prompt=spec.prompts[row] if spec.prompts else "",
        prompt_tokens=spec.prompt_tokens[row] if spec.prompt_tokens else None,
        messages=spec.dialogues[row] if spec.dialogues else None,
        seed=spec.seeds[row],
        entrance=None if spec.entrance == "generate" else spec.entrance,
        blend=spec.blend,
        inputs=dict(spec.uploads) or None,
        generator=GENERATOR,
        size=endpoint.pipeline.size_of(spec.options),
        speed=spec.speed,
        **{name: value for name, value in options.items() if name in OPTIONS},
        options={k: v for k, v in options.items() if k not in OPTIONS} or None,
        stop=spec.stop or None,
        echo=spec.echo or None,
        sample_rate=endpoint.pipeline.sample_rate,
        created=created,
        request_id=request_id,
    )


class Deadline:
    """A block that ends with 504 so many seconds after a request began, by time.monotonic; None: now."""

    def __init__(self, seconds: float, began: float | None = None) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout_at((time.monotonic() if began is None else began) + seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            message = f"the answer was not ready within {self._seconds:g} s"
            raise ApiError(504, message, code="timeout", retry=False) from None


def from_the_house(request: Request) -> bool:
    """Return whether the platform itself asks, to try a version."""
    return bool(request.scope["house"])


def of_a_batch(request: Request) -> bool:
    """Return whether a batch asks, after all that people wait for."""
    return "behind" in request.scope


def patience(request: Request, timeout_s: float, began: float | None = None) -> float:
    """Return within how many seconds from when it began, by time.monotonic, or from now a request is to be answered.

    A batch's own has until the batch's deadline: all that people ask for comes before it.
    """
    if not of_a_batch(request):
        return timeout_s
    until: float = request.scope["behind"]
    return until - (time.monotonic() if began is None else began)


def event(body: Mapping[str, Any], kind: str = "") -> bytes:
    """Return a server-sent event."""
    name = f"event: {kind}\n" if kind else ""
    return f"{name}data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()
