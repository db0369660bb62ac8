"""POST /v1/audio/speech: what is said, as the bytes of one sound file or as events that carry them in parts."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import AfterValidator, BeforeValidator, Field

from infra.media.sounds import flac, wav
from infra.receipts.receipts import MOST_BYTES, Receipt, attach, behind
from services.api.answers import Voices
from services.api.images import caption
from services.api.requests import Absent, Label, Order, one_line
from services.api.served import exchange_of, parts_of, read_order
from services.gateway.errors import ApiError
from services.gateway.openapi import ANYWHERE, STREAM, Routes, answers
from services.media.codecs import Sound
from services.media.encoders import Levels, encoded, pcm
from services.media.sound_stream import Writer, writer
from services.media.speech import sentences
from services.pipelines.payload import LONGEST_S, GenerationSpec
from services.pipelines.request import Complete, One, Said
from services.routing.canary import Step
from services.routing.endpoints import Endpoint
from services.routing.request_session import Exchange, event

WRITERS: Final[Mapping[str, tuple[str, Callable[[Levels, int], bytes]]]] = {
    "mp3": ("audio/mpeg", partial(encoded, kind="mp3")),
    "opus": ("audio/ogg", partial(encoded, kind="opus")),
    "aac": ("audio/aac", partial(encoded, kind="aac")),
    "flac": ("audio/flac", flac),
    "wav": ("audio/wav", wav),
    "pcm": ("audio/pcm", pcm),
}
"""Content type and writer of each format; the first is what a client gets that names none."""
DEFAULT: Final = "mp3"
ANYBODY: Final = ("default", "alloy")
"""Names of the first voice, whatever a version calls it: the client insists on one."""
BARE: Final = ("opus", "pcm")
"""Formats without a place for a receipt."""
ENDING: Final = ("mp3", "aac", "wav")
"""Formats that hold a receipt behind their sound, too, as they are sent while it is made."""
RECEIPT: Final = "x-atelier-receipt"
"""The header with the receipt of a bare format, ASCII JSON."""
LONGEST_HEADER: Final = 8192  # bytes; proxies have no room for more
LONGEST_INPUT: Final = 4096  # characters
PART_BYTES: Final = 24 * 1024  # of the file, in one event


def _voice(value: Any) -> Any:
    return value.get("id", value) if isinstance(value, dict) else value


def _said(text: str) -> str:
    return one_line(" ".join(text.split()))  # a line's end is a pause like any other


SAID: Final = Field(json_schema_extra={"pattern": r"^[^\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]*$"})
"""What `_said` takes, as a JSON schema says it."""


class SpeechOrder(Order):
    """A request for sound, in OpenAI's words; `seed`, `seconds`, `temperature` and the like are ours."""

    input: Annotated[str, SAID, Field(max_length=LONGEST_INPUT), AfterValidator(_said)]
    n: Literal[1] | None = 1
    voice: Annotated[Label | None, BeforeValidator(_voice)] = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = DEFAULT
    speed: Annotated[float, Field(ge=0.25, le=4)] | None = 1.0  # the pitch stays
    stream_format: Literal["sse", "audio"] | None = "audio"
    instructions: Annotated[None, Absent("instructions", ("",))] = None
    seconds: Annotated[float, Field(gt=0, le=LONGEST_S)] | None = None  # before `speed`
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None

    @property
    def session(self) -> str:
        """Whose request it is: what is to be said."""
        return self.input

    @property
    def kind(self) -> str:
        """The format of the file."""
        return self.response_format or DEFAULT


def plan_speech(order: SpeechOrder, seeds: tuple[int, ...], endpoint: Endpoint) -> GenerationSpec:
    """Return what to say with a version; a model that learned labels reads the input as one.

    Raises:
        ApiError: 400, it gives no sound, or has no such voice.
    """
    pipeline = endpoint.pipeline
    if pipeline.modality != "audio":
        endpoint.must("speech")
    lead = pipeline.lead
    known = voices(endpoint)
    if order.voice not in {None, "", *ANYBODY, *known}:
        which = ", ".join(known)
        message = f"voice: {endpoint.name} speaks as {which}; got {order.voice!r}"
        raise ApiError(400, message, code="invalid_value", param="voice")
    speed = None if order.speed == 1 else order.speed
    paces = speed is not None and "speed" in lead.takes  # the model itself speaks faster
    asked = {
        "seconds": order.seconds,
        "temperature": order.temperature,
        "voice": order.voice if order.voice in lead.speakers else None,
        "speed": speed if paces else None,
    }
    parts = sentences(order.input) if pipeline.speaks else ()
    return GenerationSpec(
        prompts=caption(order.input, seeds, endpoint, "input", LONGEST_INPUT),
        seeds=seeds,
        options=pipeline.options(asked),
        speed=None if paces else speed,
        parts=parts if len(parts) > 1 else (),
    )


def voices(endpoint: Endpoint) -> tuple[str, ...]:
    """Return in whose voices a version speaks, the default first."""
    return endpoint.pipeline.lead.speakers or ("default",)


class SpeechAnswer:
    """One request for sound being answered."""

    def __init__(self, exchange: Exchange, order: SpeechOrder) -> None:
        self._exchange = exchange
        self._order = order
        self._writer: Writer | None = None  # of a file that is sent while it is made
        self._sent = bytearray()
        self._receipt: Receipt | None = None  # of that file, when it was sent

    async def whole(self) -> Response:
        """Return the sound file."""
        try:
            step, complete = await self._exchange.whole()
        except ApiError as error:
            raise _of_input(error) from None
        file, receipt = await asyncio.to_thread(self._file, step, complete)
        headers = {"x-sample-rate": str(step.endpoint.pipeline.sample_rate)}
        told, warnings = receipt.ascii_json.decode(), [*complete.warnings]
        if self._order.kind in BARE and len(told) <= LONGEST_HEADER:
            headers[RECEIPT] = told
        elif self._order.kind in BARE:
            says = f"the receipt has {len(told)} bytes, a header at most {LONGEST_HEADER}"
            warnings.append(f"{says}: it comes with mp3, aac, flac and wav, and with sse")
        if warnings:
            headers["x-atelier-warnings"] = json.dumps(warnings)
        content_type, _ = WRITERS[self._order.kind]
        return Response(file, media_type=content_type, headers=headers)

    async def stream(self) -> Response:
        """Return the file as events, in parts that put together are the file."""
        try:
            return await self._exchange.stream(self._events, _failed)
        except ApiError as error:
            raise _of_input(error) from None

    async def sent(self) -> Response:
        """Return the file in the parts in which it is made: nobody waits for the last sentence to hear the first."""
        content_type, _ = WRITERS[self._order.kind]
        try:
            return await self._exchange.stream(
                self._bytes, _broken, media_type=content_type, told=self._told
            )
        except ApiError as error:
            raise _of_input(error) from None

    def _told(self, first: Step) -> dict[str, str]:
        """Return the headers of a file that is sent while it is made."""
        kind = self._order.kind
        says = f"{kind} that is sent while it is made holds no receipt: stream_format sse ends with one"
        return {
            "x-sample-rate": str(first.endpoint.pipeline.sample_rate),
            "x-atelier-seed": str(first.spec.seeds[0]),
            **({} if kind in ENDING else {"x-atelier-warnings": json.dumps([says])}),
        }

    def _bytes(self, step: Step) -> Iterator[bytes]:
        """Yield what a step adds to the file."""
        progress = step.progress
        if isinstance(progress, Said):
            if self._writer is None:
                self._writer = writer(self._order.kind, progress.sound.sample_rate)
            part = self._writer.push(progress.sound.levels)
            self._sent += part
            yield part
        elif self._writer is not None:  # all was said
            yield self._ended(step, self._writer.close())
        else:  # by a version that makes all of it at once
            assert isinstance(progress, Complete)
            yield self._file(step, progress)[0]

    def _ended(self, step: Step, rest: bytes) -> bytes:
        """Return the end of a file that was sent while it was made, and behind it its receipt, where it may be."""
        self._sent += rest
        file, inside = bytes(self._sent), self._order.kind in ENDING
        self._receipt = receipt = self._exchange.receipt(step, 0, file, beside=not inside)
        if inside and len(receipt.ascii_json) <= MOST_BYTES:
            rest += behind(file, receipt)
        return rest

    def _events(self, step: Step) -> Iterator[bytes]:
        """Yield the events of a step: parts of the file, and when it is whole what made it."""
        complete = step.progress
        if isinstance(complete, Said) or self._writer is not None:
            content = b"".join(self._bytes(step))
        else:
            assert isinstance(complete, Complete)
            content, self._receipt = self._file(step, complete)
        for start in range(0, len(content), PART_BYTES):
            part = base64.b64encode(content[start : start + PART_BYTES]).decode()
            yield event({"type": "speech.audio.delta", "audio": part}, "speech.audio.delta")
        if isinstance(complete, Complete):
            assert self._receipt is not None
            yield self._done(complete, self._receipt)

    def _done(self, complete: Complete, receipt: Receipt) -> bytes:
        """Return the last event."""
        sound = complete.made[0]
        assert isinstance(sound, Sound)
        words, samples = len(self._order.input.split()), len(sound.levels)
        usage = {
            "input_tokens": words,
            "output_tokens": samples,
            "total_tokens": words + samples,
        }
        told = receipt.model_dump(mode="json", exclude_none=True)
        body = {"type": "speech.audio.done", "usage": usage, "receipt": told, **complete.said}
        return event(body, "speech.audio.done")

    def _file(self, step: Step, complete: Complete) -> tuple[bytes, Receipt]:
        """Return the file, with its receipt inside where it has a place for one, and the receipt."""
        made, bare = complete.made[0], self._order.kind in BARE
        assert isinstance(made, Sound)
        rate = made.sample_rate
        _, write = WRITERS[self._order.kind]
        file = write(made.levels, rate)
        receipt = self._exchange.receipt(step, 0, file, beside=bare)
        return file if bare else attach(file, receipt), receipt


def stamped_sound(exchange: Exchange, step: Step, row: int, made: One) -> bytes:
    """Return sound `row` as a WAV with its receipt."""
    assert isinstance(made, Sound)
    file = wav(made.levels, made.sample_rate)
    return attach(file, exchange.receipt(step, row, file))


def _of_input(error: ApiError) -> ApiError:
    """Return the error with the name that this route has for the prompt."""
    if error.param == "prompt":
        error.param = "input"
    return error


def _failed(error: ApiError) -> bytes:
    return event(error.body, "error")


def _broken(error: ApiError) -> bytes:
    """Break the connection off: a file has no place for an error, and must not look whole."""
    raise ConnectionAbortedError(str(error))


routes = Routes()


sounds: dict[str, Any] = {kind: {} for kind, _ in WRITERS.values()}


@routes.takes("/v1/audio/speech", SpeechOrder, None, {**sounds, **STREAM})
async def speech(request: Request) -> Response:
    """Say something."""
    order = await read_order(request, SpeechOrder)
    exchange = await exchange_of(request, order, plan_speech)
    answer = SpeechAnswer(exchange, order)
    if order.stream_format == "sse":
        return await answer.stream()
    many = exchange.route.endpoint.pipeline.speaks and len(sentences(order.input)) > 1
    return await (answer.sent() if many else answer.whole())


@routes.get("/v1/audio/voices", response_model=None, responses=answers(Voices, [*ANYWHERE, 404]))
async def list_voices(request: Request, model: str | None = None) -> dict[str, Any]:
    """Return in whose voices the models that give sound speak, or one of them does."""
    endpoints = parts_of(request).endpoints
    if model is None:
        found = await asyncio.to_thread(endpoints.everything)
    else:
        found = [await asyncio.to_thread(endpoints.resolve, model)]
        found[0].must("speech")
    speaking = [one for one in found if "speech" in one.pipeline.able]
    data = [
        {"id": name, "name": name, "object": "voice", "model": one.model}
        for one in speaking
        for name in voices(one)
    ]
    return {"object": "list", "data": data}
