"""Webhooks by the real client: made, changed, rotated and tested; what they are told, `webhooks.unwrap` believes."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from tests.services.clips_kit import publish_clips
from tests.services.served_kit import listening, with_toys

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API")


@pytest.fixture(scope="module")
def ear() -> Iterator[Any]:
    """Somebody who hears webhooks: his address, and what he heard."""
    heard: Queue[tuple[bytes, dict[str, str]]] = Queue()

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            heard.put((body, {name.lower(): value for name, value in self.headers.items()}))
            self.send_response(410 if self.path.endswith("gone") else 202)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Ear) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/hook", heard=heard)
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def client(own_workshop: Any) -> Iterator[OpenAI]:
    with with_toys():
        publish_clips(own_workshop)
        stage = own_workshop.stage()
        app = own_workshop.worked(own_workshop.gateway(stage, private_webhooks=True), stage)
        with (
            listening(app) as address,
            OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as found,
        ):
            yield found
    stage.close()


def made(client: OpenAI, ear: Any) -> Any:
    return client.webhooks.create(name="ci", url=ear.url, event_types=["video.completed"])


def test_the_end_of_a_clip_is_told_and_the_client_believes_it(client: OpenAI, ear: Any) -> None:
    hook = made(client, ear)
    video = client.videos.create(model="moving", prompt="a red circle")
    body, headers = ear.heard.get(timeout=30)
    event: Any = client.webhooks.unwrap(body, headers, secret=hook.signing_secret)
    assert (event.type, event.data.id) == ("video.completed", video.id)
    assert client.videos.retrieve(video.id).status == "completed"
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(body + b" ", headers, secret=hook.signing_secret)
    client.webhooks.delete(hook.id)


def test_a_test_says_what_the_address_answered(client: OpenAI, ear: Any) -> None:
    hook = made(client, ear)
    tested = client.webhooks.test(hook.id, event_type="video.failed")
    assert (tested.status_code, tested.event_type) == (202, "video.failed")
    assert tested.success
    body, headers = ear.heard.get(timeout=30)
    client.webhooks.verify_signature(body, headers, secret=hook.signing_secret)
    client.webhooks.update(hook.id, url=f"{ear.url}/gone")
    refused = client.webhooks.test(hook.id, event_type="video.failed")
    assert (refused.status_code, refused.success) == (410, False), "as of a real event"
    ear.heard.get(timeout=30)
    client.webhooks.update(hook.id, url="http://127.0.0.1:9/nobody")
    with pytest.raises(openai.BadRequestError, match="gave no answer"):
        client.webhooks.test(hook.id, event_type="video.failed")
    client.webhooks.delete(hook.id)


def test_a_rotated_secret_signs_alone_or_beside_the_old_one(client: OpenAI, ear: Any) -> None:
    hook = made(client, ear)
    for keep in (True, False):
        before = client.webhooks.retrieve(hook.id).signing_secret_hint
        new = client.webhooks.rotate_secret(hook.id, keep_old_secret_active_for_24_hours=keep)
        assert new.signing_secret_hint != before
        client.webhooks.test(hook.id, event_type="video.completed")
        body, headers = ear.heard.get(timeout=30)
        client.webhooks.verify_signature(body, headers, secret=new.signing_secret)
        if keep:
            client.webhooks.verify_signature(body, headers, secret=hook.signing_secret)
        else:
            with pytest.raises(InvalidWebhookSignatureError):
                client.webhooks.verify_signature(body, headers, secret=hook.signing_secret)
    client.webhooks.delete(hook.id)


def test_an_endpoint_and_its_new_secret_are_made_once_by_their_key(
    client: OpenAI, ear: Any
) -> None:
    """As a request is asked again whose gateway was lost."""

    def asked(key: str, name: str = "ci") -> Any:
        headers = {"Idempotency-Key": key}
        events: Any = ["video.completed"]
        return client.webhooks.create(
            name=name, url=ear.url, event_types=events, extra_headers=headers
        )

    hook = asked("made")
    assert asked("made") == hook
    with pytest.raises(openai.UnprocessableEntityError, match="take a new key"):
        asked("made", "other")
    assert [one.id for one in client.webhooks.list()] == [hook.id]
    headers = {"Idempotency-Key": "turned"}
    new = [
        client.webhooks.rotate_secret(
            hook.id, keep_old_secret_active_for_24_hours=True, extra_headers=headers
        )
        for _ in range(2)
    ]
    assert new[0] == new[1] != hook
    assert asked("made").id == hook.id, "also once its secret is another"
    client.webhooks.test(hook.id, event_type="video.completed")
    body, told = ear.heard.get(timeout=30)
    for secret in (hook.signing_secret, new[0].signing_secret):
        client.webhooks.verify_signature(body, told, secret=secret)
    client.webhooks.delete(hook.id)


def test_endpoints_are_listed_changed_and_forgotten(client: OpenAI, ear: Any) -> None:
    hooks = [made(client, ear) for _ in range(3)]
    assert [one.id for one in client.webhooks.list(limit=2)] == [one.id for one in hooks]
    changed = client.webhooks.update(hooks[0].id, name="nightly", event_types=["video.failed"])
    assert (changed.name, changed.event_types) == ("nightly", ["video.failed"])
    assert not hasattr(changed, "signing_secret")
    assert client.webhooks.event_types.list().data == [
        *("video.completed", "video.failed", "mesh.completed", "mesh.failed"),
        *("batch.completed", "batch.failed", "batch.cancelled"),
    ]
    for one in hooks:
        assert client.webhooks.delete(one.id).deleted
    with pytest.raises(openai.NotFoundError, match="no webhook endpoint"):
        client.webhooks.retrieve(hooks[0].id)


@pytest.mark.parametrize("name", ["", "a\0b", "a\ud800", "a\nb"])
def test_a_name_that_no_database_keeps_is_refused(own_workshop: Any, ask: Any, name: str) -> None:
    stage = own_workshop.stage()
    app = own_workshop.gateway(stage)
    body = {"name": name, "url": "https://example.org/", "event_types": ["video.completed"]}
    head = {"content-type": "application/json"}
    answer = ask(app, "POST", "/v1/webhook_endpoints", content=json.dumps(body), headers=head)
    stage.close()
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "name"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.org/", "a webhook goes to https"),
        ("https://127.0.0.1/", "of a private network"),
        ("https://user:word@example.org/", "holds no password"),
        ("ftp://example.org", "a webhook goes to https"),
    ],
)
def test_addresses_that_are_not_to_be_called_are_refused(
    own_workshop: Any, ask: Any, url: str, message: str
) -> None:
    stage = own_workshop.stage()
    app = own_workshop.gateway(stage)
    body = {"name": "ci", "url": url, "event_types": ["video.completed"]}
    answer = ask(app, "POST", "/v1/webhook_endpoints", json=body)
    stage.close()
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "url"
