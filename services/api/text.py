"""POST /v1/completions and /v1/chat/completions: one JSON document, or server-sent events that end with [DONE].

Every choice carries its receipt: in the document beside its text, in a stream in the chunk with its finish_reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from services.api.answers import ChatCompletion, Completion
from services.api.logprobs import said_of, written_of
from services.api.served import exchange_of, read_order
from services.api.text_requests import (
    COMPLETION_TOKENS,
    MOST_ROWS,
    ChatOrder,
    CompletionOrder,
    TextOrder,
)
from services.gateway.errors import ApiError, invalid
from services.gateway.openapi import STREAM, Routes
from services.pipelines.payload import GenerationSpec, Piece, Text, Told
from services.pipelines.request import Complete
from services.routing.canary import Step
from services.routing.endpoints import Endpoint
from services.routing.request_session import Exchange, event

DONE: Final = b"data: [DONE]\n\n"


def plan_completion(
    order: CompletionOrder, seeds: tuple[int, ...], endpoint: Endpoint
) -> GenerationSpec:
    """Return what to write with a version: every prompt n times, with the same seeds whatever stands beside it.

    Raises:
        ApiError: 400, it completes nothing.
    """
    endpoint.must("completions")
    _check_together(order)
    options = _options(order, endpoint, max_tokens=order.max_tokens, logprobs=order.logprobs)
    options.setdefault("max_tokens", COMPLETION_TOKENS)
    asked = [prompt for prompt in order.prompt for _ in seeds]
    return GenerationSpec(
        prompts=tuple(prompt for prompt in asked if isinstance(prompt, str)),
        prompt_tokens=tuple(prompt for prompt in asked if not isinstance(prompt, str)),
        seeds=seeds * len(order.prompt),
        options=options,
        stop=order.stop,
        echo=bool(order.echo),
    )


def _check_together(order: CompletionOrder) -> None:
    """Refuse what fields ask for together and each alone may."""
    if len(order.prompt) * order.count > MOST_ROWS:
        message = (
            f"n: prompts times n is at most {MOST_ROWS}, got {len(order.prompt)} x {order.count}"
        )
        raise invalid(message, "n")
    if order.best_of not in {None, order.count}:
        message = "best_of: no answers are thrown away; leave it out"
        raise invalid(f"{message}, got {order.best_of} with n {order.count}", "best_of")


def plan_turn(order: ChatOrder, seeds: tuple[int, ...], endpoint: Endpoint) -> GenerationSpec:
    """Return what to say with a version.

    Raises:
        ApiError: 400, it does not chat.
    """
    endpoint.must("chat")
    most = order.max_completion_tokens or order.max_tokens
    logprobs = (order.top_logprobs or 0) if order.logprobs else None
    return GenerationSpec(
        dialogues=(order.dialogue,) * len(seeds),
        seeds=seeds,
        options=_options(order, endpoint, max_tokens=most, logprobs=logprobs),
        stop=order.stop,
    )


def _options(order: TextOrder, endpoint: Endpoint, **asked: Any) -> dict[str, Any]:
    """Return how text is written: as the request says, else as the pipeline does."""
    drawn = {name: getattr(order, name) for name in ("temperature", "top_p", "top_k")}
    return endpoint.pipeline.options({**drawn, **asked})


class TextAnswer:
    """One request for text being answered."""

    def __init__(self, exchange: Exchange, order: CompletionOrder | ChatOrder) -> None:
        self._exchange = exchange
        self._order = order
        self._chats = isinstance(order, ChatOrder)
        self._begun: set[int] = set()  # rows of a stream that have sent something
        self._told: dict[int, int] = {}  # characters of a stream's row whose tokens were told
        kind = "chatcmpl" if self._chats else "cmpl"
        self._id = f"{kind}-{exchange.request_id}"

    async def whole(self) -> Response:
        """Return all texts as one JSON document."""
        step, complete = await self._exchange.whole()
        choices = []
        for row, text in _texts(complete):
            said = {"message": {"role": "assistant", "content": text.text, "refusal": None}}
            choices.append(
                {
                    "index": row,
                    **(said if self._chats else {"text": text.text}),
                    "logprobs": self._logprobs(step, text.logprobs, 0),
                    "finish_reason": text.reason,
                    "seed": step.spec.seeds[row],
                    "receipt": self._receipt(step, row, text.text),
                }
            )
        kind = "chat.completion" if self._chats else "text_completion"
        body = {**self._common(step, kind), "choices": choices, "usage": self._usage(complete)}
        return JSONResponse(body | complete.said)

    async def stream(self) -> Response:
        """Return the texts as they are written."""
        return await self._exchange.stream(self._events, _failed, DONE)

    def _events(self, step: Step) -> Iterator[bytes]:
        kind = "chat.completion.chunk" if self._chats else "text_completion"
        progress = step.progress
        warnings = progress.said if isinstance(progress, Complete) else {}
        common = {**self._common(step, kind), **warnings}
        usage = {"usage": None} if self._order.usage else {}

        def chunk(row: int, text: str, **more: Any) -> bytes:
            said: dict[str, Any] = {"content": text} if text else {}
            if row not in self._begun and self._chats:
                said = {"role": "assistant", "content": text}
            self._begun.add(row)
            what = {"delta": said} if self._chats else {"text": text}
            choice = {"index": row, **what, "logprobs": None, "finish_reason": None, **more}
            return event({**common, "choices": [choice], **usage})

        if isinstance(progress, Piece):
            row = progress.row
            if self._chats and row not in self._begun:
                yield chunk(row, "")  # the role comes first
            start = self._told.get(row, 0)
            self._told[row] = start + sum(len(token.text) for token in progress.logprobs)
            likely = self._logprobs(step, progress.logprobs, start)
            yield chunk(row, progress.text, logprobs=likely)
            return
        assert isinstance(progress, Complete)
        for row, text in _texts(progress):
            receipt = self._receipt(step, row, text.text)
            facts = {"seed": step.spec.seeds[row], "receipt": receipt}
            yield chunk(row, "", finish_reason=text.reason, **facts)
        if self._order.usage:
            yield event({**common, "choices": [], "usage": self._usage(progress)})

    def _logprobs(self, step: Step, tokens: Sequence[Told], start: int) -> dict[str, Any] | None:
        """Return how likely the tokens were, the first of which begins `start` characters into the text."""
        if "logprobs" not in step.spec.options:
            return None
        return said_of(tokens) if self._chats else written_of(tokens, start)

    def _receipt(self, step: Step, row: int, words: str) -> dict[str, Any]:
        receipt = self._exchange.receipt(step, row, words)
        return receipt.model_dump(mode="json", exclude_none=True)

    def _common(self, step: Step, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": int(self._exchange.created.timestamp()),
            "model": step.endpoint.ref,
            "system_fingerprint": step.endpoint.digest[:16],
        }

    def _usage(self, complete: Complete) -> dict[str, int]:
        """Return the counts: a prompt counts once however often it is answered, control tokens apart."""
        each = complete.prompt_tokens[:: self._order.count]
        prompt, completion = sum(each), sum(text.tokens for _, text in _texts(complete))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }


def _texts(complete: Complete) -> Iterator[tuple[int, Text]]:
    """Yield each row's text, after its prompt where that is asked for."""
    for row, text in enumerate(complete.made):
        assert isinstance(text, Text)
        if complete.echoes:
            echo = complete.echoes[row]
            both = (*echo.logprobs, *text.logprobs)
            text = replace(text, text=echo.text + text.text, logprobs=both)
        yield row, text


def _failed(error: ApiError) -> bytes:
    return event(error.body)


routes = Routes()


@routes.takes("/v1/completions", CompletionOrder, Completion, STREAM)
async def complete(request: Request) -> Response:
    """Go on from prompts."""
    order = await read_order(request, CompletionOrder)
    answer = TextAnswer(await exchange_of(request, order, plan_completion), order)
    return await (answer.stream() if order.stream else answer.whole())


@routes.takes("/v1/chat/completions", ChatOrder, ChatCompletion, STREAM)
async def chat(request: Request) -> Response:
    """Say the next turn of a dialogue."""
    order = await read_order(request, ChatOrder)
    answer = TextAnswer(await exchange_of(request, order, plan_turn), order)
    return await (answer.stream() if order.stream else answer.whole())
