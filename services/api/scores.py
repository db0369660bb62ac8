"""POST /v1/scores: the log-likelihood of given inputs, in nats; a route of ours.

What a family draws for an input (grey levels to bits, a latent code) is drawn after seeding with `seed`, 0 where it is
not given, as an evaluation seeds before its test split: the same input, seed and version have the same number.
"""

import asyncio
import base64
import binascii
import math
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, Self

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from infra.pipelines import Modality, Pin
from services.api.answers import Scores
from services.api.requests import LONGEST_PROMPT, Seed, Strict, plain_text
from services.api.served import parts_of, read_order
from services.api.text_requests import LONGEST_TEXT
from services.gateway.errors import invalid
from services.gateway.openapi import Routes
from services.pipelines.payload import Dialogue, Refused, Scored, ScoreWork
from services.pipelines.request import refusal
from services.routing.endpoints import Endpoint
from services.routing.request_session import Deadline, from_the_house

MOST_INPUTS: Final = 32


class Turn(Strict):
    """A part of a text record: "user" and "assistant" of a dialogue, "source" and "target" of a pair."""

    role: Literal["text", "source", "target", "system", "user", "assistant"]
    content: Annotated[str, Field(max_length=LONGEST_TEXT)]


class ScoreInput(Strict):
    """One input: exactly one of these."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
                for name in ("text", "messages", "image_b64", "audio_b64")
            ]
        }
    )

    text: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)] | None = None
    messages: Annotated[list[Turn], Field(min_length=1, max_length=256)] | None = None
    image_b64: str | None = None
    audio_b64: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join(type(self).model_fields)
            raise ValueError(
                f"input: give exactly one of {names}, got {', '.join(given) or 'none'}"
            )
        for _, text in self.record:
            plain_text(text)
        return self

    @property
    def modality(self) -> Modality:
        """What it is."""
        if self.image_b64 is not None:
            return "image"
        return "audio" if self.audio_b64 is not None else "text"

    @property
    def record(self) -> Dialogue:
        """The text, as families learn from it."""
        if self.text is not None:
            return (("text", self.text),)
        return tuple((turn.role, turn.content) for turn in self.messages or ())

    def content(self) -> bytes:
        """Return the upload.

        Raises:
            ValueError: it is not base64.
        """
        try:
            return base64.b64decode(self.image_b64 or self.audio_b64 or "", validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("not base64") from None


def _inputs(value: Any) -> Any:
    many = value if isinstance(value, list) else [value]
    if not 1 <= len(many) <= MOST_INPUTS:
        raise ValueError(f"send 1 to {MOST_INPUTS} inputs, got {len(many)}")
    return [{"text": one} if isinstance(one, str) else one for one in many]


OneText = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
Several = Annotated[list[OneText | ScoreInput], Field(min_length=1, max_length=MOST_INPUTS)]


class ScoreOrder(Strict):
    """A request for likelihoods: `input` is a text, an object of `ScoreInput`, or a list of them."""

    input: Annotated[
        list[ScoreInput],
        BeforeValidator(_inputs, json_schema_input_type=OneText | ScoreInput | Several),
    ]
    model: Annotated[str, Field(max_length=100)] | None = None
    caption: Annotated[str, Field(max_length=LONGEST_PROMPT)] | None = None  # of a p(x | caption)
    seed: Seed | None = 0


def _works(order: ScoreOrder, endpoint: Endpoint, pin: Pin, *, ahead: bool) -> list[ScoreWork]:
    """Return what is to be rated, input by input.

    Raises:
        ApiError: 400, an input is of another modality, or no file.
    """
    modality, works = endpoint.pipeline.modality, []
    for one in order.input:
        if one.modality != modality:
            message = f"input: {endpoint.name} scores {modality}, got {one.modality}"
            raise invalid(message, "input")
        try:
            content = b"" if one.modality == "text" else one.content()
        except ValueError as error:
            raise invalid(f"input: {error}", "input") from None
        works.append(
            ScoreWork(
                pin=pin,
                content=content,
                record=one.record,
                caption=order.caption,
                seed=order.seed or 0,
                ahead=ahead,
            )
        )
    return works


def _numbers(modality: Modality, found: Scored) -> dict[str, Any]:
    """Return log p in nats and, of pictures, -log2 p a number; minus infinity is null, since JSON has none."""
    finite = math.isfinite(found.nats)
    nats = found.nats if finite else None
    if modality == "text":
        return {"nats": nats, "tokens": found.numbers}
    if modality == "audio":
        return {"nats": nats, "samples": found.numbers}
    bits = -found.nats / math.log(2) / found.numbers if finite else None
    return {"nats": nats, "bits_per_dim": bits, "dimensions": found.numbers}


routes = Routes()


@routes.takes("/v1/scores", ScoreOrder, Scores)
async def score(request: Request) -> Response:
    """Return how likely given inputs are, while a rollout runs to the champion."""
    order, parts = await read_order(request, ScoreOrder), parts_of(request)
    endpoint = (await asyncio.to_thread(parts.endpoints.route, order.model, "")).endpoint
    endpoint.must("scores")
    pinned = endpoint.pipeline.stages[-1]
    works = _works(order, endpoint, pinned.pin, ahead=from_the_house(request))
    async with Deadline(parts.arguments.timeout_s):
        found = await parts.stage_of(pinned).score(works)
    if isinstance(found, Refused):
        raise refusal(replace(found, param=found.param or "input"))
    data = [
        {
            "object": "score",
            "index": index,
            **_numbers(endpoint.pipeline.modality, one),
            **({"warnings": list(one.warnings)} if one.warnings else {}),
        }
        for index, one in enumerate(found)
    ]
    return JSONResponse({"object": "list", "model": endpoint.ref, "data": data})
