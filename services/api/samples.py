"""POST /v1/samples: anything from any model; PNG, WAV or text by its modality, each with its receipt."""

import asyncio
import base64
from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from infra.pipelines import Modality
from services.api.answers import SampleList
from services.api.images import caption, stamped_png
from services.api.requests import (
    LARGEST_COST,
    LARGEST_GUIDANCE,
    LARGEST_STEPS,
    Label,
    Order,
    TopK,
    one_line,
    plain_text,
)
from services.api.served import exchange_of, read_order
from services.api.speech import stamped_sound
from services.api.text_requests import COMPLETION_TOKENS, LONGEST_TEXT
from services.gateway.errors import invalid
from services.gateway.openapi import Routes
from services.pipelines.payload import LONGEST_S, GenerationSpec, Text
from services.pipelines.request import One
from services.routing.canary import Step
from services.routing.endpoints import Endpoint
from services.routing.request_session import Exchange

MEANINGFUL: dict[Modality, tuple[str, ...]] = {
    "image": ("steps", "guidance", "temperature", "top_k", "top_p"),
    "audio": ("seconds", "temperature", "top_k", "top_p"),
    "text": ("max_tokens", "temperature", "top_k", "top_p"),
}
"""The parameters that a model of each modality takes."""


class SampleOrder(Order):
    """A request for samples of whatever the model makes."""

    prompt: Annotated[str, Field(max_length=LONGEST_TEXT)] = ""
    steps: Annotated[int, Field(ge=1, le=LARGEST_STEPS)] | None = None
    guidance: Annotated[float, Field(ge=0, le=LARGEST_GUIDANCE)] | None = None
    seconds: Annotated[float, Field(gt=0, le=LONGEST_S)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: TopK | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    user: Label | None = None

    @property
    def session(self) -> str:
        """Whose request it is: the user, else the prompt."""
        return self.user or self.prompt


def plan_samples(order: SampleOrder, seeds: tuple[int, ...], endpoint: Endpoint) -> GenerationSpec:
    """Return what to make with a version, after checking what depends on it.

    Raises:
        ApiError: 400 that names the parameter.
    """
    pipeline = endpoint.pipeline
    endpoint.must("samples")
    names = MEANINGFUL[pipeline.modality]
    for name in {one for many in MEANINGFUL.values() for one in many}.difference(names):
        if getattr(order, name) is not None:
            message = (
                f"{name}: {endpoint.name} makes {pipeline.modality} and takes {', '.join(names)}"
            )
            raise invalid(message, name)
    asked = {name: value for name in names if (value := getattr(order, name)) is not None}
    options = pipeline.options(asked)
    if pipeline.modality == "image":
        steps = options.get("steps")
        if steps is not None and order.count * steps > LARGEST_COST:
            message = f"steps: n x steps is at most {LARGEST_COST}, got {order.count} x {steps}"
            raise invalid(message, "steps")
        options = asked  # rollouts tell requests apart by what was asked for
    if pipeline.modality == "text":
        options.setdefault("max_tokens", COMPLETION_TOKENS)
    return GenerationSpec(prompts=_prompts(order, seeds, endpoint), seeds=seeds, options=options)


def _prompts(order: SampleOrder, seeds: tuple[int, ...], endpoint: Endpoint) -> tuple[str, ...]:
    try:
        if endpoint.pipeline.modality != "text":
            return caption(one_line(order.prompt), seeds, endpoint)
        plain_text(order.prompt)
    except ValueError as error:
        raise invalid(f"prompt: {error}", "prompt") from None
    return (order.prompt,) * len(seeds) if order.prompt else ()


async def give_samples(exchange: Exchange) -> Response:
    """Return all samples as one JSON document."""
    step, complete = await exchange.whole()

    def entries() -> list[dict[str, Any]]:
        return [_entry(exchange, step, row, one) for row, one in enumerate(complete.made)]

    return JSONResponse(
        {
            "object": "list",
            "created": int(exchange.created.timestamp()),
            "model": step.endpoint.ref,
            "modality": step.endpoint.pipeline.modality,
            "data": await asyncio.to_thread(entries),
            **complete.said,
        }
    )


def _entry(exchange: Exchange, step: Step, row: int, made: One) -> dict[str, Any]:
    common = {"object": "sample", "index": row, "seed": step.spec.seeds[row]}
    if isinstance(made, Text):
        receipt = exchange.receipt(step, row, made.text)
        return {
            **common,
            "content_type": "text/plain; charset=utf-8",
            "text": made.text,
            "finish_reason": made.reason,
            "receipt": receipt.model_dump(mode="json", exclude_none=True),
        }
    audio = step.endpoint.pipeline.modality == "audio"
    file = (stamped_sound if audio else stamped_png)(exchange, step, row, made)
    content_type = "audio/wav" if audio else "image/png"
    return {**common, "content_type": content_type, "b64": base64.b64encode(file).decode()}


routes = Routes()


@routes.takes("/v1/samples", SampleOrder, SampleList)
async def sample(request: Request) -> Response:
    """Make whatever the model makes."""
    order = await read_order(request, SampleOrder)
    return await give_samples(await exchange_of(request, order, plan_samples))
