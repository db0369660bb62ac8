"""POST /v1/embeddings: a vector a text and a picture, as base64 of little-endian float32 or as numbers."""

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic.json_schema import JsonSchemaValue

from infra.media.pictures import PictureError, decode
from models.ports import Port
from services.api.answers import Embeddings
from services.api.data_urls import URL_SCHEMA, checked, content_of
from services.api.requests import Label, Strict
from services.api.served import parts_of, read_order
from services.api.text_requests import prompts, prompts_schema
from services.gateway.errors import ApiError, invalid
from services.gateway.openapi import Routes
from services.pipelines.payload import Embedded, EmbedWork, Pictures, Prompt, Refused, Vectors
from services.pipelines.request import refusal
from services.routing.endpoints import Endpoint
from services.routing.request_session import Deadline, from_the_house, of_a_batch, patience

MOST_INPUTS: Final = 2048
MOST_PICTURES: Final = 32
NONE: Final[JsonSchemaValue] = {"type": "array", "maxItems": 0}


def _texts(value: Any) -> tuple[Prompt, ...]:
    return () if value == [] else prompts(MOST_INPUTS, 1)(value)


def _urls(value: Any) -> tuple[str, ...]:
    many = value if isinstance(value, list) else [] if value is None else [value]
    if len(many) > MOST_PICTURES:
        raise ValueError(f"send at most {MOST_PICTURES} pictures, got {len(many)}")
    return tuple(checked(str(one)) for one in many)


class EmbeddingOrder(Strict):
    """A request for embeddings, in OpenAI's words; `input_image` is ours."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["input"], "properties": {"input": {"not": NONE}}},
                {
                    "required": ["input_image"],
                    "properties": {"input_image": {"not": {"anyOf": [NONE, {"type": "null"}]}}},
                },
            ]
        }
    )

    input: Annotated[
        tuple[Prompt, ...],
        PlainValidator(_texts),
        WithJsonSchema({"anyOf": [*prompts_schema(MOST_INPUTS, 1)["anyOf"], NONE]}),
    ] = ()
    input_image: Annotated[
        tuple[str, ...],
        PlainValidator(_urls),
        WithJsonSchema(
            {
                "anyOf": [
                    URL_SCHEMA,
                    {"type": "array", "maxItems": MOST_PICTURES, "items": URL_SCHEMA},
                    {"type": "null"},
                ]
            }
        ),
    ] = ()
    model: Annotated[str, Field(max_length=100)] | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Label | None = None

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not self.input and not self.input_image:
            raise ValueError("input: send a text, or a picture as input_image")
        return self


def _pixels(urls: Sequence[str], port: Port) -> Pictures:
    """Return pictures (N, C, H, W) in [0, 1] at the size that a model takes.

    Raises:
        ApiError: 400, one is no base64, too large or no picture.
    """
    side, channels = int(port.shape[2] or 0), int(port.shape[0] or 0)
    found = []
    for url in urls:
        try:
            found.append(decode(content_of(url, "input_image"), side, channels).pixels)
        except PictureError as error:
            raise invalid(f"input_image: {error}", "input_image") from None
    return (np.stack(found).transpose(0, 3, 1, 2) / 255).astype(np.float32)


def _body(endpoint: Endpoint, found: Embedded, base64_wanted: bool) -> bytes:
    """Return the answer, JSON that is written vector by vector: whoever else has work comes between."""
    tokens = sum(found.tokens)
    about = {
        "object": "list",
        "model": endpoint.ref,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        **({"warnings": list(found.warnings)} if found.warnings else {}),
    }
    rows = ",".join(
        _json(
            {
                "object": "embedding",
                "index": index,
                "embedding": _packed(vector) if base64_wanted else vector.tolist(),
            }
        )
        for index, vector in enumerate(found.vectors)
    )
    return f'{_json(about)[:-1]},"data":[{rows}]}}'.encode()


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _packed(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


routes = Routes()


@routes.takes("/v1/embeddings", EmbeddingOrder, Embeddings)
async def embed(request: Request) -> Response:
    """Embed texts, and pictures after them.

    While a rollout runs with the champion: vectors of two models in one index would be worth nothing.
    """
    order, parts = await read_order(request, EmbeddingOrder), parts_of(request)
    endpoint = (await asyncio.to_thread(parts.endpoints.route, order.model, "")).endpoint
    endpoint.must("embeddings")
    pinned = endpoint.pipeline.stages[0]
    pixels = None
    if order.input_image:
        if "pixels" not in pinned.entries:
            message = f"input_image: {endpoint.name} embeds texts alone"
            raise ApiError(400, message, code="unsupported_capability", param="input_image")
        port = Port.parse(pinned.entries["pixels"].inputs["pixels"])
        pixels = await asyncio.to_thread(_pixels, order.input_image, port)
    work = EmbedWork(
        pin=pinned.pin,
        texts=order.input,
        pixels=pixels,
        dimensions=order.dimensions,
        ahead=from_the_house(request),
        behind=of_a_batch(request),
    )
    async with Deadline(patience(request, parts.arguments.timeout_s)):
        found = await parts.stage_of(pinned).embed(work)
    if isinstance(found, Refused):
        raise refusal(replace(found, param=found.param or "input"))
    body = await asyncio.to_thread(_body, endpoint, found, order.encoding_format == "base64")
    return Response(body, media_type="application/json")
