"""/v1/openapi.json is valid, and what is sent is what it says: schemathesis over every operation.

`API_REQUESTS=5000 pytest tests/services/test_api.py` sends so many random requests at least, good and bad ones; the
suite sends a few. Models of each modality answer, in this process.
"""

import base64
import itertools
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import validate
from pydantic import ValidationError
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode

from infra.documents import parse_json
from infra.keys import Keys
from infra.media.pictures import png
from services.api.requests import number
from services.api.samples import MEANINGFUL
from tests.services.clips_kit import publish_clips
from tests.services.served_kit import publish_each_modality, with_toys

logger = logging.getLogger(__name__)
Ask = Callable[..., httpx.Response]
DOT = f"data:image/png;base64,{base64.b64encode(png(np.full((2, 2, 3), 99, np.uint8))).decode()}"
REQUESTS = int(os.environ.get("API_REQUESTS", "420"))  # of all operations together, at least
ANSWER: dict[str, list[dict[str, Any]]] = {
    "/v1/images/generations": [
        {"model": "shapes", "prompt": "a small red circle", "size": "16x16", "steps": 2},
        {"model": "digits", "prompt": "", "size": None, "steps": None, "guidance": None},
    ],
    "/v1/completions": [
        {"model": "writer", "prompt": "abc", "n": 2, "best_of": None},
        {"model": "writer", "prompt": "abc", "n": 2, "best_of": 2, "echo": True, "logprobs": 2},
        {"model": "filler", "prompt": ["a [MASK]"], "logprobs": None, "n": 1, "best_of": 1},
    ],
    "/v1/chat/completions": [{"model": "talker", "messages": [{"role": "user", "content": "a"}]}],
    "/v1/audio/speech": [
        {"model": "voice", "input": "high", "voice": "alloy", "response_format": "wav"}
    ],
    "/v1/samples": [
        {"model": "bits", "prompt": "", **dict.fromkeys(chain.from_iterable(MEANINGFUL.values()))},
        {"model": "writer", "prompt": "abc", **dict.fromkeys(("steps", "guidance", "seconds"))},
    ],
    "/v1/embeddings": [
        {"model": "reader", "input": ["a", "b"], "input_image": None, "dimensions": None},
        {"model": "pairs", "input": "dark", "input_image": DOT, "dimensions": 16},
        {"model": "pairs", "input": [], "input_image": [DOT, DOT], "dimensions": None},
    ],
    "/v1/scores": [{"model": "writer", "input": "abc"}, {"model": "writer", "input": ["a", "b"]}],
}
"""What makes the rest of a random body one that some model can answer: half of the good requests have it."""


@pytest.fixture(scope="module")
def served(workshop: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """A gateway that asks for a key, with models of each modality; and the key."""
    keys = Keys(f"sqlite:///{tmp_path_factory.mktemp('keys') / 'keys.db'}")
    key = keys.create("api")
    with with_toys():
        publish_each_modality(workshop)
        publish_clips(workshop)
        stage = workshop.stage()
        yield workshop.gateway(stage, keys=keys), key
    stage.close()


@pytest.fixture(scope="module")
def document(served: Any, ask: Ask) -> Any:
    app, key = served
    headers = {"authorization": f"Bearer {key}"}
    return ask(app, "GET", "/v1/openapi.json", headers=headers).json()


def test_the_description_is_valid_and_names_every_answer(document: Any) -> None:
    validate(document)
    for path in ANSWER:
        operation = document["paths"][path]["post"]
        sent = set(operation["responses"])
        assert sent >= {"200", "400", "401", "404", "408", "413", "415", "429", "503", "504"}
        assert "422" not in sent
        assert all("content" in answer for answer in operation["responses"].values())
    assert document["security"] == [{"key": []}]


class Answers:
    """Sends random requests of one operation and checks what comes back."""

    def __init__(self, served: Any, document: Any, path: str, method: str) -> None:
        app, key = served
        self.order = None if path in FORMS else app._app.orders.get(path)  # files are no JSON
        self.path = path
        checks = {
            "positive_data_acceptance": {"enabled": False},  # below, with what a model cannot do
            "negative_data_rejection": {"expected-statuses": [400, 401, 404, 413, 415]},
            "not_a_server_error": {"enabled": path != "/readyz"},  # that is what it is for
        }
        given = {
            "checks": checks,
            "request-timeout": 500,
            "auth": {"openapi": {"key": {"bearer": key}}},
        }
        config = SchemathesisConfig.from_dict(given)
        schema = schemathesis.openapi.from_dict(document, config=config)
        schema.app = app
        self.operation = schema[path][method]
        self.seen: Counter[int] = Counter()
        self.number = itertools.count()

    def check(self, case: Any) -> None:
        good = case.meta.generation.mode.is_positive and isinstance(case.body, dict)
        turn = next(self.number)
        if good and turn % 3 and self.path in ANSWER:
            case.body.update(ANSWER[self.path][turn % len(ANSWER[self.path])])
            case.body.pop("num_inference_steps", None)
        if turn % 2 and "model" in (case.path_parameters or {}):
            case.path_parameters["model"] = "shapes"
        answer = case.call_and_validate(base_url="http://127.0.0.1")
        self.seen[answer.status_code] += 1
        if answer.status_code == 400:
            assert answer.json()["error"]["param"], answer.json()
            if good and self.order is not None:  # its model refused it, then, and not its schema
                try:
                    sent = parse_json(json.dumps(case.body), "the body", number=number)
                    self.order.model_validate(sent)
                except ValidationError as error:
                    raise AssertionError(f"{case.body} is as the schema says: {error}") from None


OPERATIONS = [
    ("/healthz", "get"),
    ("/readyz", "get"),
    ("/v1/models", "get"),
    ("/v1/models/{model}", "get"),
    ("/v1/files", "post"),
    ("/v1/files", "get"),
    ("/v1/files/{name}", "get"),
    ("/v1/files/{name}", "delete"),
    ("/v1/files/{name}/content", "get"),
    ("/v1/batches", "post"),
    ("/v1/batches", "get"),
    ("/v1/batches/{batch_id}", "get"),
    ("/v1/batches/{batch_id}/cancel", "post"),
    ("/v1/images/generations", "post"),
    ("/v1/images/edits", "post"),
    ("/v1/images/variations", "post"),
    ("/v1/completions", "post"),
    ("/v1/chat/completions", "post"),
    ("/v1/audio/speech", "post"),
    ("/v1/audio/voices", "get"),
    ("/v1/samples", "post"),
    ("/v1/embeddings", "post"),
    ("/v1/scores", "post"),
    ("/v1/content_provenance_checks", "post"),
    ("/v1/videos", "post"),
    ("/v1/videos", "get"),
    ("/v1/videos/edits", "post"),
    ("/v1/videos/extensions", "post"),
    ("/v1/videos/{video_id}", "get"),
    ("/v1/videos/{video_id}", "delete"),
    ("/v1/videos/{video_id}/remix", "post"),
    ("/v1/videos/{video_id}/content", "get"),
    ("/v1/videos/{video_id}/events", "get"),
    ("/v1/meshes", "post"),
    ("/v1/meshes", "get"),
    ("/v1/meshes/{mesh_id}", "get"),
    ("/v1/meshes/{mesh_id}", "delete"),
    ("/v1/meshes/{mesh_id}/content", "get"),
    ("/v1/meshes/{mesh_id}/events", "get"),
    ("/v1/webhook_event_types", "get"),
    ("/v1/webhook_endpoints", "post"),
    ("/v1/webhook_endpoints", "get"),
    ("/v1/webhook_endpoints/{webhook_endpoint_id}", "get"),
    ("/v1/webhook_endpoints/{webhook_endpoint_id}", "post"),
    ("/v1/webhook_endpoints/{webhook_endpoint_id}", "delete"),
    ("/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret", "post"),
    ("/v1/webhook_endpoints/{webhook_endpoint_id}/test", "post"),
]
CLIPS = ("/v1/videos", "/v1/videos/edits", "/v1/videos/extensions")
FORMS = (
    *("/v1/images/edits", "/v1/images/variations", "/v1/content_provenance_checks"),
    *(*CLIPS, "/v1/meshes", "/v1/files"),
)
TAKE_A_BODY = [path for path, method in OPERATIONS if method == "post"]
EACH_WAY = math.ceil(REQUESTS / len(TAKE_A_BODY) / 2)
"""Requests as the schema says, for every operation; and as many that are not, where there is a body."""


@pytest.fixture(scope="module")
def sent() -> Iterator[Counter[str]]:
    """How many requests each operation was sent; of all of them together, as many as were asked for."""
    count: Counter[str] = Counter()
    yield count
    logger.info("%d requests in all", count.total())
    if len(count) == len(OPERATIONS):  # none was left out by -k
        assert count.total() >= REQUESTS, f"{REQUESTS} requests were to be sent, not {count}"


def test_every_operation_is_tried(document: Any) -> None:
    found = {(path, method) for path, one in document["paths"].items() for method in one}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_documented_and_nothing_good_is_refused(
    served: Any, document: Any, sent: Counter[str], path: str, method: str
) -> None:
    answers = Answers(served, document, path, method)
    strategy = answers.operation.as_strategy
    bad = [GenerationMode.NEGATIVE] if path in served[0]._app.orders and method == "post" else []
    for mode in [GenerationMode.POSITIVE, *bad]:

        @settings(
            max_examples=EACH_WAY,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],
        )
        @given(case=strategy(generation_mode=mode))
        def run(case: Any) -> None:
            answers.check(case)

        run()
    sent[path] += answers.seen.total()
    logger.info("%s: %s", path, dict(sorted(answers.seen.items())))
    assert path not in ANSWER or answers.seen[200] >= EACH_WAY // 3
