"""Whatever JSON comes to a route of text, sound or numbers, the answer is no failure of the server."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
