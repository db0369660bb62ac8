"""POST /v1/embeddings: a vector a text, as base64 of little-endian float32 or as numbers."""

import asyncio
import base64
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, PlainValidator, WithJsonSchema

from services.api.answers import Embeddings
from services.api.requests import Label, Strict
from services.api.served import parts_of, read_order
from services.api.text_requests import prompts, prompts_schema
from services.gateway.openapi import Routes
from services.pipelines.payload import Embedded, EmbedWork, Prompt, Refused, Vectors
from services.pipelines.request import refusal
from services.routing.endpoints import Endpoint
from services.routing.request_session import Deadline, from_the_house

MOST_INPUTS: Final = 2048


class EmbeddingOrder(Strict):
    """A request for embeddings, in OpenAI's words."""

    input: Annotated[
        tuple[Prompt, ...],
        PlainValidator(prompts(MOST_INPUTS, 1)),
        WithJsonSchema(prompts_schema(MOST_INPUTS, 1)),
    ]
    model: Annotated[str, Field(max_length=100)] | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Label | None = None


def _document(endpoint: Endpoint, found: Embedded, base64_wanted: bool) -> dict[str, Any]:
    tokens = sum(found.tokens)
    return {
        "object": "list",
        "model": endpoint.ref,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _packed(vector) if base64_wanted else vector.tolist(),
            }
            for index, vector in enumerate(found.vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        **({"warnings": list(found.warnings)} if found.warnings else {}),
    }


def _packed(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


routes = Routes()


@routes.takes("/v1/embeddings", EmbeddingOrder, Embeddings)
async def embed(request: Request) -> Response:
    """Embed texts.

    While a rollout runs with the champion: vectors of two models in one index would be worth nothing.
    """
    order, parts = await read_order(request, EmbeddingOrder), parts_of(request)
    endpoint = (await asyncio.to_thread(parts.endpoints.route, order.model, "")).endpoint
    endpoint.must("embeddings")
    pinned = endpoint.pipeline.stages[0]
    work = EmbedWork(
        pin=pinned.pin,
        texts=order.input,
        dimensions=order.dimensions,
        ahead=from_the_house(request),
    )
    async with Deadline(parts.arguments.timeout_s):
        found = await parts.stage_of(pinned).embed(work)
    if isinstance(found, Refused):
        raise refusal(replace(found, param=found.param or "input"))
    return JSONResponse(_document(endpoint, found, order.encoding_format == "base64"))
