"""What tests of batches share: the house that answers them, and requests that are sent in files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from openai import OpenAI

from infra.keys import Keys
from services.jobs.store import Store
from tests.services.clips_kit import publish_clips
from tests.services.conftest import network
from tests.services.meshes_kit import publish_meshes
from tests.services.served_kit import listening, publish_each_modality, with_toys

EMBEDDINGS = "/v1/embeddings"
CHAT, IMAGES, VIDEOS = "/v1/chat/completions", "/v1/images/generations", "/v1/videos"


@contextmanager
def opened(workshop: Any) -> Iterator[Any]:
    """A gateway whose batches are worked on, and one where none are; of the same database."""
    keys = Keys(workshop.database)
    with with_toys():
        publish_clips(workshop)
        publish_meshes(workshop)
        publish_each_modality(workshop)
        shapes = workshop.publish_pipeline("shapes", network("base"), network("upscaler"))
        workshop.promote(shapes)
        workshop.publish_wired("small", {"base": network("base")})
        stage = workshop.stage()
        found = [keys.create("first"), keys.create("second")]
        app = workshop.gateway(stage)
        yield SimpleNamespace(
            app=app, stage=stage, keys=found, workshop=workshop, worked=workshop.worked(app, stage)
        )
    stage.close()


@contextmanager
def idle_client(house: Any) -> Iterator[OpenAI]:
    """A client of a gateway where nobody works on batches."""
    with (
        listening(house.app) as address,
        OpenAI(base_url=f"{address}/v1", api_key=house.keys[0], max_retries=0) as client,
    ):
        yield client


def store_of(house: Any) -> Store:
    """Return where the house keeps what jobs make."""
    return Store(str(house.workshop.folder / "files" / "jobs"))


def requests(endpoint: str, *bodies: Any) -> bytes:
    lines = [
        {"custom_id": f"r{number}", "method": "POST", "url": endpoint, "body": body}
        for number, body in enumerate(bodies)
    ]
    return "\n".join(map(json.dumps, lines)).encode()


def sent(client: OpenAI, content: bytes) -> Any:
    return client.files.create(file=("asked.jsonl", content), purpose="batch")


def batch_of(client: OpenAI, endpoint: str, *bodies: Any, **more: Any) -> Any:
    file = sent(client, requests(endpoint, *bodies))
    asked: Any = {"endpoint": endpoint, "completion_window": "24h", **more}
    return client.batches.create(input_file_id=file.id, **asked)


def answers(client: OpenAI, file: str) -> dict[str, Any]:
    rows = client.files.content(file).text.splitlines()
    return {one["custom_id"]: one for one in map(json.loads, rows)}


def turn(said: str) -> dict[str, Any]:
    return {
        "model": "talker",
        "messages": [{"role": "user", "content": said}],
        "seed": 1,
        "max_tokens": 4,
    }
