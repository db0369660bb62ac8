"""Whatever JSON comes to a route of text, sound or numbers, the answer is no failure of the server."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.api.served import SHORT

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = [
    *("model", "prompt", "messages", "input", "n", "seed", "stop", "stream", "stream_options"),
    *("temperature", "top_p", "max_tokens", "logit_bias", "tools", "response_format", "voice"),
    *(
        "encoding_format",
        "dimensions",
        "caption",
        "seconds",
        "steps",
        "echo",
        "best_of",
        "logprobs",
    ),
]
NEEDED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/embeddings": {"input": "a"},
    "/v1/audio/speech": {"input": "a", "voice": "default"},
    "/v1/samples": {},
    "/v1/scores": {"input": "a"},
}


@pytest.mark.parametrize("path", NEEDED)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(document=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5), whole=st.booleans())
def test_no_json_is_answered_with_a_server_error(
    app: Any, ask: Callable[..., httpx.Response], path: str, document: Any, whole: bool
) -> None:
    needed = {"model": "shapes", **NEEDED[path]} if whole else {}
    content = json.dumps({**needed, **document}).encode()
    headers = {"content-type": "application/json"}
    answer = ask(app, "POST", path, content=content, headers=headers)
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


def test_no_large_body_is_read_while_others_wait(
    app: Any, ask: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    held_up: list[int] = []
    real = json.loads

    def seen(content: str, **more: Any) -> Any:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            held_up.append(len(content))
        return real(content, **more)

    monkeypatch.setattr(json, "loads", seen)
    told = ask(app, "POST", "/v1/completions", json={"prompt": "x" * 2 * SHORT})
    assert (told.status_code, told.json()["error"]["param"]) == (400, "prompt")
    assert max(held_up, default=0) <= SHORT


def test_what_unfolds_to_too_many_lists_is_no_request(
    app: Any, ask: Callable[..., httpx.Response]
) -> None:
    content = b"[" + b"[]," * 300_000 + b"0]"
    headers = {"content-type": "application/json"}
    told = ask(app, "POST", "/v1/embeddings", content=content, headers=headers)
    assert (told.status_code, told.json()["error"]["code"]) == (400, "invalid_json")
