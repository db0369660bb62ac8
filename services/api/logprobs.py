"""The logprobs of an answer, as chats and as completions have them in OpenAI's words."""

from collections.abc import Sequence
from typing import Any

from services.pipelines.payload import Told
from services.stages.text_stream import UNFINISHED


def said_of(tokens: Sequence[Told]) -> dict[str, Any]:
    """Return the logprobs of a chat turn's tokens."""
    return {
        "content": [
            {
                **_entry(token.text, token.nats),
                "top_logprobs": [_entry(text, nats) for text, nats in token.likeliest],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def written_of(tokens: Sequence[Told], start: int) -> dict[str, Any]:
    """Return the logprobs of a completion's tokens; the token itself is among the likeliest, too.

    Args:
        tokens: What was read or written.
        start: Where in the text the first of them begins, in characters.
    """
    places = [start]
    for token in tokens:
        places.append(places[-1] + len(token.text))
    return {
        "tokens": [_name(token) for token in tokens],
        "token_logprobs": [token.nats for token in tokens],
        "top_logprobs": [_by_text(token) for token in tokens],
        "text_offset": places[:-1],
    }


def _name(token: Told) -> str:
    return token.control or token.text


def _by_text(token: Told) -> dict[str, float] | None:
    """Return the likeliest by their text; of two that look alike the likelier, and the token itself as it was."""
    if token.nats is None:
        return None
    return {**dict(reversed(token.likeliest)), _name(token): token.nats}


def _entry(text: str, nats: float | None) -> dict[str, Any]:
    """Return a token; half of a character has no bytes of its own here."""
    whole = UNFINISHED not in text
    return {"token": text, "logprob": nats, "bytes": [*text.encode()] if whole else None}
