"""POST /v1/images/generations: one JSON document, or server-sent events with previews."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from infra.media.clips import Clip
from infra.receipts.receipts import attach
from services.api.answers import Pictures
from services.api.requests import (
    LARGEST_COST,
    LONGEST_PROMPT,
    MOST_DRAWN,
    GenerationOrder,
    ImageOrder,
    PictureOrder,
)
from services.api.served import exchange_of, parts_of, read_order
from services.gateway.errors import ApiError, invalid
from services.gateway.openapi import STREAM, Routes
from services.media.answer_log import Samples
from services.media.codecs import Sound, Volume, png
from services.media.result_store import Files
from services.pipelines.payload import GenerationSpec, Text
from services.pipelines.request import Complete, One, Sketch
from services.routing.canary import Step
from services.routing.endpoints import Endpoint
from services.routing.request_session import Exchange, event


def plan_drawing(
    order: PictureOrder,
    seeds: tuple[int, ...],
    endpoint: Endpoint,
    entrance: str = "generate",
) -> GenerationSpec:
    """Return what to draw with a version, after checking what depends on it.

    Raises:
        ApiError: 400 that names the parameter.
    """
    pipeline = endpoint.pipeline
    endpoint.must("images")
    named = size_named(order, endpoint)
    options = order.options | ({"size": named} if named not in {None, pipeline.size} else {})
    prompts = caption(order.prompt, seeds, endpoint) if isinstance(order, ImageOrder) else ()
    steps = pipeline.options(order.options).get("steps")
    best_of = _candidates(order, endpoint)
    if steps is not None and order.drawn * steps > LARGEST_COST:
        raise invalid(
            f"steps: n x steps is at most {LARGEST_COST}, got {order.drawn} x {steps}", "steps"
        )
    if order.partial_images and not endpoint.pipeline.shows(entrance):
        message = f"{endpoint.name} has nothing to show before its pictures; leave it out"
        raise invalid(f"partial_images: {message}", "partial_images")
    return GenerationSpec(
        prompts=prompts,
        seeds=seeds,
        options=options,
        best_of=best_of,
        previews=order.partial_images or 0,
    )


def size_named(order: PictureOrder, endpoint: Endpoint) -> str | None:
    """Return which of the version's sizes is asked for; None where that is left open.

    Raises:
        ApiError: 400, it draws no such size.
    """
    if order.size in {None, "auto"}:
        return None
    known = endpoint.pipeline.sizes or (endpoint.pipeline.size,)
    if order.size not in known:
        draws = ", ".join(map(str, known))
        raise invalid(f"size: {endpoint.name} draws {draws}, got {order.size!r}", "size")
    return order.size


def plan_generation(
    order: GenerationOrder, seeds: tuple[int, ...], endpoint: Endpoint
) -> GenerationSpec:
    """Return what to draw with a version: of a prompt, or on the way from it to another one.

    Raises:
        ApiError: 400 that names the parameter.
    """
    if order.blend is None:
        return plan_drawing(order, seeds, endpoint)
    endpoint.must("blends")
    if (order.best_of or 1) > 1:
        message = "best_of: between two prompts there is none to be compared with; leave it out"
        raise invalid(message, "best_of")
    other = caption(order.blend.prompt, seeds, endpoint, "blend.prompt")[0]
    asked = plan_drawing(order, seeds, endpoint, "blend")
    return replace(asked, entrance="blend", blend=(other, order.blend.weight))


def _candidates(order: PictureOrder, endpoint: Endpoint) -> int:
    """Return how many candidates are drawn for each picture.

    Raises:
        ApiError: 400, they cannot be compared, are too many or to be shown.
    """
    if not isinstance(order, ImageOrder) or (order.best_of or 1) == 1:
        return 1
    if endpoint.pipeline.ranker is None or not endpoint.pipeline.reads_text:
        message = f"best_of: {endpoint.name} pins no CLIP that says which picture fits its prompt"
        raise invalid(f"{message}; leave it out", "best_of")
    if order.drawn > MOST_DRAWN:
        got = f"{order.count} x {order.best_of}"
        raise invalid(f"best_of: n x best_of is at most {MOST_DRAWN}, got {got}", "best_of")
    if order.partial_images:
        message = "partial_images: candidates are not shown; leave it out, or best_of"
        raise invalid(message, "partial_images")
    assert order.best_of is not None
    return order.best_of


def caption(
    prompt: str,
    seeds: tuple[int, ...],
    endpoint: Endpoint,
    name: str = "prompt",
    most: int = LONGEST_PROMPT,
) -> tuple[str, ...]:
    """Return the prompt of each seed: the same one, or none where the version reads no text.

    Raises:
        ApiError: 400, it is too long, or empty and must not be, or the other way round.
    """
    if not endpoint.pipeline.reads_text:
        if prompt:
            raise invalid(f"{name}: {endpoint.name} reads no text; send an empty one", name)
        return ()
    if not prompt:
        raise invalid(f"{name}: it is empty; say what is wanted", name)
    if len(prompt) > most:
        message = f"{name}: a caption has at most {most} characters, got {len(prompt)}"
        raise invalid(message, name)
    return (prompt,) * len(seeds)


class PictureAnswer:
    """One request for pictures being answered."""

    def __init__(
        self,
        exchange: Exchange,
        order: PictureOrder,
        files: Files,
        kept: Samples,
        kind: str = "image_generation",  # of a stream's events
    ) -> None:
        self._kind = kind
        self._exchange = exchange
        self._order = order
        self._files = files
        self._kept = kept

    async def whole(self) -> Response:
        """Return the finished pictures as one JSON document."""
        step, complete = await self._exchange.whole()
        entries = await asyncio.to_thread(self._entries, step, complete.made)
        return JSONResponse({**self._common("created", step), "data": entries, **complete.said})

    async def stream(self) -> Response:
        """Return sketches and then the pictures as server-sent events."""
        return await self._exchange.stream(self._events, _failed)

    def _events(self, step: Step) -> list[bytes]:
        common, progress = self._common("created_at", step), step.progress
        if isinstance(progress, Sketch):
            kind = f"{self._kind}.partial_image"
            body = {
                "type": kind,
                "b64_json": base64.b64encode(png(progress.pixels)).decode(),
                "partial_image_index": progress.index,
                "image_index": progress.row,
                **common,
            }
            return [event(body, kind)]
        assert isinstance(progress, Complete)
        usage = {
            "input_tokens": 0,
            "output_tokens": 0,
            "total_tokens": 0,
            "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
        }
        kind = f"{self._kind}.completed"
        return [
            event(
                {
                    "type": kind,
                    **entry,
                    "image_index": row,
                    **common,
                    "usage": usage,
                    **progress.said,
                },
                kind,
            )
            for row, entry in enumerate(self._entries(step, progress.made))
        ]

    def _entries(self, step: Step, made: Sequence[One]) -> list[dict[str, Any]]:
        """Return the answer's `data`: every picture with its receipt inside."""
        entries = []
        for row, seed in enumerate(step.spec.seeds):
            file = stamped_png(self._exchange, step, row, made[row])
            first = step.spec.entrance == "generate" and step.spec.best_of == 1  # as it is drawn
            if first and step.endpoint.stage == "production":
                self._kept.keep(step.endpoint.name, step.endpoint.pipeline.sample, file)
            entries.append({**self._deliver(file), "seed": seed})
        return entries

    def _deliver(self, file: bytes) -> dict[str, str]:
        if self._order.response_format != "url":
            return {"b64_json": base64.b64encode(file).decode()}
        return {"url": f"{self._exchange.address}{self._files.link(self._files.put(file))}"}

    def _common(self, when: str, step: Step) -> dict[str, Any]:
        return {
            when: int(self._exchange.created.timestamp()),
            "model": step.endpoint.ref,
            "size": step.endpoint.pipeline.size_of(step.spec.options),
            "quality": "auto",
            "background": "opaque",
            "output_format": "png",
        }


def stamped_png(exchange: Exchange, step: Step, row: int, made: One) -> bytes:
    """Return picture `row` as a PNG with its receipt."""
    assert not isinstance(made, Text | Sound | Clip | Volume)
    file = png(made)
    return attach(file, exchange.receipt(step, row, file))


def _failed(error: ApiError) -> bytes:
    return event(error.body, "error")


routes = Routes()


@routes.takes("/v1/images/generations", GenerationOrder, Pictures, STREAM)
async def generate(request: Request) -> Response:
    """Draw pictures."""
    order = await read_order(request, GenerationOrder)
    exchange = await exchange_of(request, order, plan_generation)
    parts = parts_of(request)
    answer = PictureAnswer(exchange, order, parts.files, parts.samples)
    return await (answer.stream() if order.stream else answer.whole())
