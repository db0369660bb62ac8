"""How an order for pictures is answered: one JSON document, or server-sent events with previews."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from infra.receipts import Receipt, StageReceipt, attach
from services.arms import Arms, Planning, Step
from services.endpoints import Endpoint, Route
from services.errors import ApiError, invalid, logger
from services.files import Files
from services.media import Bitmap, png
from services.orders import LARGEST_COST, ImageOrder
from services.samples import Samples
from services.text_to_image import Complete, Drawing, Sketch


def plan_drawing(order: ImageOrder, seeds: tuple[int, ...], endpoint: Endpoint) -> Drawing:
    """Return what to draw with a version, after checking what depends on it.

    Raises:
        ApiError: 400 that names the parameter.
    """
    plan = endpoint.plan
    first = plan.stages[0]
    if order.size not in {None, "auto", plan.size}:
        raise invalid(f"size: {endpoint.name} draws {plan.size}, got {order.size!r}", "size")
    if plan.reads_text and not order.prompt:
        raise invalid("prompt: it is empty; say what to draw", "prompt")
    if not plan.reads_text and order.prompt:
        raise invalid(f"prompt: {endpoint.name} reads no text; send an empty prompt", "prompt")
    steps = order.sampler_steps if order.sampler_steps is not None else first.steps
    if steps is not None and order.count * steps > LARGEST_COST:
        raise invalid(
            f"steps: n x steps is at most {LARGEST_COST}, got {order.count} x {steps}", "steps"
        )
    return Drawing(
        prompt=order.prompt,
        seeds=seeds,
        steps=order.sampler_steps,
        guidance=order.scale,
        previews=order.partial_images or 0,
    )


class Answer:
    """One request being answered."""

    def __init__(
        self,
        arms: Arms,
        files: Files,
        samples: Samples,
        timeout_s: float,
        request: Request,
        order: ImageOrder,
        route: Route,
        planning: Planning,
    ) -> None:
        self._arms = arms
        self._files = files
        self._samples = samples
        self._timeout_s = timeout_s
        self._request = request
        self._order = order
        self._route = route
        self._planning = planning
        self._created = datetime.now(UTC)

    async def whole(self) -> Response:
        """Return the finished pictures as one JSON document."""
        async with _deadline(self._timeout_s):
            step, pictures = await self._arms.draw(self._route, self._planning)
            entries = await asyncio.to_thread(self._entries, step, pictures)
        return JSONResponse({**self._common("created", step), "data": entries})

    async def stream(self) -> Response:
        """Return server-sent events; what fails before the first one is still an ordinary error."""
        steps = self._arms.watch(self._route, self._planning)
        async with _deadline(self._timeout_s):
            first = await anext(steps)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        lines = self._lines(first, steps)
        return StreamingResponse(lines, media_type="text/event-stream", headers=headers)

    async def _lines(self, first: Step, rest: AsyncIterator[Step]) -> AsyncIterator[bytes]:
        try:
            for line in await asyncio.to_thread(self._events, first):
                yield line
            async with _deadline(self._timeout_s):
                async for step in rest:
                    for line in await asyncio.to_thread(self._events, step):
                        yield line
        except ApiError as error:
            yield _event("error", error.body)
        except (RuntimeError, ValueError, TypeError, LookupError, OSError) as error:
            logger.error("request %s failed", self._request_id, exc_info=error)
            broken = ApiError(500, "the server failed while drawing", code="internal_error")
            yield _event("error", broken.body)

    def _events(self, step: Step) -> list[bytes]:
        common, progress = self._common("created_at", step), step.progress
        if isinstance(progress, Sketch):
            body = {
                "type": "image_generation.partial_image",
                "b64_json": base64.b64encode(png(progress.pixels)).decode(),
                "partial_image_index": progress.index,
                "image_index": progress.row,
                **common,
            }
            return [_event(body["type"], body)]
        assert isinstance(progress, Complete)
        usage = {
            "input_tokens": 0,
            "output_tokens": 0,
            "total_tokens": 0,
            "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
        }
        kind = "image_generation.completed"
        return [
            _event(kind, {"type": kind, **entry, "image_index": row, **common, "usage": usage})
            for row, entry in enumerate(self._entries(step, progress.pictures))
        ]

    def _entries(self, step: Step, pictures: list[Bitmap]) -> list[dict[str, Any]]:
        """Return the answer's `data`: every picture with its receipt inside."""
        entries = []
        for pixels, seed in zip(pictures, step.drawing.seeds, strict=True):
            file = self._stamped(step, pixels, seed)
            if step.endpoint.stage == "production":
                self._samples.keep(step.endpoint.name, step.endpoint.plan.sample, file)
            entries.append({**self._deliver(file), "seed": seed})
        return entries

    def _deliver(self, file: bytes) -> dict[str, str]:
        if self._order.response_format != "url":
            return {"b64_json": base64.b64encode(file).decode()}
        identity = self._files.put(file)
        return {"url": f"{str(self._request.base_url).rstrip('/')}/v1/files/{identity}.png"}

    def _stamped(self, step: Step, pixels: Bitmap, seed: int) -> bytes:
        endpoint, drawing = step.endpoint, step.drawing
        first = endpoint.plan.stages[0]
        receipt = Receipt(
            endpoint=endpoint.name,
            version=endpoint.ref,
            digest=endpoint.digest,
            place=endpoint.stage,
            epoch=endpoint.epoch,
            stages=tuple(
                StageReceipt(name=stage.name, version=stage.version, sha256=stage.sha256)
                for stage in endpoint.plan.stages
            ),
            prompt=drawing.prompt,
            seed=seed,
            steps=first.steps if drawing.steps is None else drawing.steps,
            guidance=first.guidance if drawing.guidance is None else drawing.guidance,
            size=endpoint.plan.size,
            created=self._created,
            request_id=self._request_id,
        )
        return attach(png(pixels), receipt)

    def _common(self, when: str, step: Step) -> dict[str, Any]:
        return {
            when: int(self._created.timestamp()),
            "model": step.endpoint.ref,
            "size": step.endpoint.plan.size,
            "quality": "auto",
            "background": "opaque",
            "output_format": "png",
        }

    @property
    def _request_id(self) -> str:
        return str(self._request.scope["request_id"])


class _deadline:  # noqa: N801 - used like asyncio.timeout
    """A block that ends with 504 after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            message = f"the pictures were not ready within {self._seconds:g} s"
            raise ApiError(504, message, code="timeout", retry=False) from None


def _event(kind: str, body: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(body, separators=(',', ':'))}\n\n".encode()
