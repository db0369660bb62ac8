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
from services.endpoints import Endpoint
from services.errors import ApiError, invalid, logger
from services.files import Files
from services.media import Bitmap, png
from services.orders import LARGEST_COST, ImageOrder
from services.text_to_image import Complete, Drawing, Progress, Sketch, TextToImage


def plan_drawing(order: ImageOrder, endpoint: Endpoint) -> Drawing:
    """Return what to draw, after checking what depends on the pipeline.

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
    if order.sampler_steps is not None and order.count * order.sampler_steps > LARGEST_COST:
        raise invalid(
            f"steps: n x steps is at most {LARGEST_COST}, got {order.count} x {steps}", "steps"
        )
    return Drawing(
        prompt=order.prompt,
        seeds=order.seeds(),
        steps=order.sampler_steps,
        guidance=order.scale,
        previews=order.partial_images or 0,
    )


class Answer:
    """One request being answered."""

    def __init__(
        self,
        painter: TextToImage,
        files: Files,
        timeout_s: float,
        request: Request,
        order: ImageOrder,
        endpoint: Endpoint,
        drawing: Drawing,
    ) -> None:
        self._painter = painter
        self._files = files
        self._timeout_s = timeout_s
        self._request = request
        self._order = order
        self._endpoint = endpoint
        self._drawing = drawing
        self._created = datetime.now(UTC)

    async def whole(self) -> Response:
        """Return the finished pictures as one JSON document."""
        async with _deadline(self._timeout_s):
            pictures = await self._painter.draw(self._endpoint.plan, self._drawing)
            entries = await asyncio.to_thread(self._entries, pictures)
        return JSONResponse({**self._common("created"), "data": entries})

    async def stream(self) -> Response:
        """Return server-sent events; what fails before the first one is still an ordinary error."""
        events = self._painter.watch(self._endpoint.plan, self._drawing)
        async with _deadline(self._timeout_s):
            first = await anext(events)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        lines = self._lines(first, events)
        return StreamingResponse(lines, media_type="text/event-stream", headers=headers)

    async def _lines(self, first: Progress, rest: AsyncIterator[Progress]) -> AsyncIterator[bytes]:
        try:
            for line in await asyncio.to_thread(self._events, first):
                yield line
            async with _deadline(self._timeout_s):
                async for progress in rest:
                    for line in await asyncio.to_thread(self._events, progress):
                        yield line
        except ApiError as error:
            yield _event("error", error.body)
        except (RuntimeError, ValueError, TypeError, LookupError, OSError) as error:
            logger.error("request %s failed", self._request_id, exc_info=error)
            broken = ApiError(500, "the server failed while drawing", code="internal_error")
            yield _event("error", broken.body)

    def _events(self, progress: Progress) -> list[bytes]:
        common = self._common("created_at")
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
            for row, entry in enumerate(self._entries(progress.pictures))
        ]

    def _entries(self, pictures: list[Bitmap]) -> list[dict[str, Any]]:
        """Return the answer's `data`: every picture with its receipt inside."""
        return [
            {**self._deliver(self._stamped(pixels, seed)), "seed": seed}
            for pixels, seed in zip(pictures, self._drawing.seeds, strict=True)
        ]

    def _deliver(self, file: bytes) -> dict[str, str]:
        if self._order.response_format != "url":
            return {"b64_json": base64.b64encode(file).decode()}
        identity = self._files.put(file)
        return {"url": f"{str(self._request.base_url).rstrip('/')}/v1/files/{identity}.png"}

    def _stamped(self, pixels: Bitmap, seed: int) -> bytes:
        endpoint, first = self._endpoint, self._endpoint.plan.stages[0]
        drawing = self._drawing
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

    def _common(self, when: str) -> dict[str, Any]:
        return {
            when: int(self._created.timestamp()),
            "model": self._endpoint.ref,
            "size": self._endpoint.plan.size,
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
