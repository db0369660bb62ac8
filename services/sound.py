"""POST /v1/audio/speech: what is said, as the bytes of one sound file."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

from fastapi.responses import Response
from pydantic import AfterValidator, BeforeValidator, Field

from infra.receipts import attach
from services.arms import Step
from services.endpoints import Endpoint
from services.errors import ApiError
from services.exchange import Exchange
from services.making import Drawing, One
from services.media import Sound, flac, pcm, wav
from services.orders import LONGEST_PROMPT, Label, Order, one_line
from services.pictures import caption
from services.work import LONGEST_S

WRITERS: Final[Mapping[str, tuple[str, Callable[[Sound], bytes]]]] = {
    "wav": ("audio/wav", wav),
    "flac": ("audio/flac", flac),
    "pcm": ("audio/pcm", pcm),
}
"""Content type and writer of each format. OpenAI's other ones (mp3, opus, aac) need an encoder that is not here."""
RECEIPT: Final = "x-atelier-receipt"
"""The header with the receipt, ASCII JSON; bare PCM has no other place for it."""


def _voice(value: Any) -> Any:
    return value.get("id", value) if isinstance(value, dict) else value


class SpeechOrder(Order):
    """A request for sound, in OpenAI's words; `seed`, `seconds`, `temperature` and the like are ours."""

    input: Annotated[str, Field(max_length=LONGEST_PROMPT), AfterValidator(one_line)]
    n: Literal[1] | None = 1
    voice: Annotated[Label | None, BeforeValidator(_voice)] = None
    response_format: Annotated[str, Field(max_length=20)] | None = "wav"
    speed: Annotated[float, Field(ge=1, le=1)] | None = None
    stream_format: Literal["audio"] | None = "audio"
    seconds: Annotated[float, Field(gt=0, le=LONGEST_S)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None

    @property
    def session(self) -> str:
        """Whose request it is: what is to be said."""
        return self.input


def plan_speech(order: SpeechOrder, seeds: tuple[int, ...], endpoint: Endpoint) -> Drawing:
    """Return what to say with a version; a model that learned labels reads the input as one.

    Raises:
        ApiError: 400, it gives no sound, or none of this format.
    """
    plan = endpoint.plan
    if plan.modality != "audio":
        plan.must("speech", endpoint.name)
    check_format(order.response_format)
    voices = {None, "", "default", "alloy"}  # the SDK insists on one
    if order.voice not in voices:
        message = f"voice: {endpoint.name} has one voice, `default`; got {order.voice!r}"
        raise ApiError(400, message, code="invalid_value", param="voice")
    first = plan.stages[0]
    return Drawing(
        prompts=caption(order.input, seeds, endpoint, "input"),
        seeds=seeds,
        seconds=first.seconds if order.seconds is None else order.seconds,
        temperature=first.temperature if order.temperature is None else order.temperature,
    )


def check_format(name: str | None) -> None:
    """Refuse a format that cannot be written.

    Raises:
        ApiError: 400 unsupported_format.
    """
    if name is not None and name not in WRITERS:
        message = (
            f"response_format: {name!r} is not written here; choose one of {', '.join(WRITERS)}"
        )
        raise ApiError(400, message, code="unsupported_format", param="response_format")


async def speak(exchange: Exchange, order: SpeechOrder) -> Response:
    """Return the sound file."""
    try:
        step, complete = await exchange.whole()
    except ApiError as error:
        if error.param == "prompt":  # what the stage calls it
            error.param = "input"
        raise
    content_type, _ = WRITERS[order.response_format or "wav"]
    kind = order.response_format or "wav"
    file = await asyncio.to_thread(stamped_sound, exchange, step, 0, complete.made[0], kind)
    headers = {}
    if kind == "pcm":
        receipt = await asyncio.to_thread(exchange.receipt, step, 0, file, beside=True)
        headers[RECEIPT] = receipt.ascii_json.decode()
        headers["x-sample-rate"] = str(step.endpoint.plan.sample_rate)
    return Response(file, media_type=content_type, headers=headers)


def stamped_sound(exchange: Exchange, step: Step, row: int, made: One, kind: str = "wav") -> bytes:
    """Return sound `row` as a file with its receipt; bare PCM has none."""
    assert isinstance(made, Sound)
    _, writer = WRITERS[kind]
    file = writer(made)
    return file if kind == "pcm" else attach(file, exchange.receipt(step, row, file))
