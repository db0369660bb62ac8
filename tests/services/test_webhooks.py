"""Webhooks leave from the outbox until they are taken or given up, signed as OpenAI's client verifies it."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from openai import InvalidWebhookSignatureError, OpenAI

from infra.database import open_engine, reading, writing
from infra.jobs import outbox
from infra.jobs.jobs import Jobs
from infra.jobs.table import DELIVERIES, Result
from infra.jobs.webhooks import (
    BOTH_S,
    CLAIM_S,
    MOST_TRIES,
    PAUSE_S,
    TooMany,
    WebhookEndpoint,
    WebhookError,
    Webhooks,
)
from infra.receipts.signing import Signing
from services.jobs import webhooks
from services.jobs.webhooks import Courier, Unwelcome, address_of, secret_of
from tests.databases_kit import Database

EVENTS = ["video.completed", "video.failed"]


class Told:
    """A receiver: what it was told, and what it answers."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.url = ""


@contextmanager
def receiving() -> Iterator[Told]:
    told = Told()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told.got.append((dict(self.headers.items()), body))
            self.send_response(told.answers.pop(0) if told.answers else 204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}/hooks?a=b"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Post:
    """Jobs and webhooks of one database, under one clock."""

    def __init__(self, url: str, folder: Path) -> None:
        import time

        self.now = time.time()
        self.url = url
        self.signing = Signing(folder)
        self.jobs = Jobs(url, clock=lambda: self.now)
        self.webhooks = Webhooks(url, clock=lambda: self.now)

    def courier(self, *, private: bool = True) -> Courier:
        return Courier(self.webhooks, self.signing, private=private)

    def deliver(self, *, private: bool = True) -> bool:
        delivery = self.webhooks.claim()
        if delivery is not None:
            asyncio.run(self.courier(private=private).deliver(delivery))
        return delivery is not None

    def listen(self, url: str, owner: str = "anna", events: Any = EVENTS) -> WebhookEndpoint:
        return self.webhooks.create(owner, "mine", url, events)

    def end(self, owner: str = "anna", *, well: bool = True) -> str:
        given = {"pipeline": "clips:1", "digests": {}, "seed": 1}
        made = self.jobs.submit("video", {}, owner=owner, **given)  # type: ignore[arg-type]
        self.now += 1  # the next is later
        lease = self.jobs.claim("runner")
        assert lease is not None
        if well:
            lease.finish(Result("d" * 64, "file:///x", "video/mp4", 1))
        else:
            lease.fail("failed", "broken", again=False)
        return made.id


@pytest.fixture
def post(database: Database, tmp_path: Path) -> Iterator[Post]:
    made = Post(database.url, tmp_path)
    yield made
    made.jobs.close()
    made.webhooks.close()


def unwrapped(secret: str, headers: dict[str, str], body: bytes) -> Any:
    client = OpenAI(api_key="none", base_url="http://127.0.0.1:9")
    return client.webhooks.unwrap(body, headers, secret=secret)


def test_the_end_of_a_job_is_told_to_its_owner_s_endpoints_and_verified(post: Post) -> None:
    with receiving() as told:
        mine = post.listen(told.url)
        post.listen(told.url, owner="berta")
        post.listen(told.url, events=["batch.completed"])
        done, failed = post.end(), post.end(well=False)
        while post.deliver():
            pass
    secret = secret_of(post.signing, mine)
    events = [unwrapped(secret, headers, body) for headers, body in told.got]
    assert [(one.type, one.data.id) for one in events] == [
        ("video.completed", done),
        ("video.failed", failed),
    ]
    headers, body = told.got[0]
    assert headers["webhook-id"] == events[0].id
    with pytest.raises(InvalidWebhookSignatureError):
        unwrapped(secret, headers, body.replace(b"completed", b"failed!!!"))


def test_what_is_not_taken_is_tried_five_times_ever_later_under_one_id(post: Post) -> None:
    with receiving() as told:
        post.listen(told.url)
        post.end()
        told.answers = [500] * MOST_TRIES
        for pause_s in (5, 20, 80, 320):
            assert post.deliver()
            post.now += pause_s - 1
            assert not post.deliver()
            post.now += 1
        assert post.deliver()
        post.now += 100_000
        assert not post.deliver()
    assert len(told.got) == MOST_TRIES
    assert len({headers["webhook-id"] for headers, _ in told.got}) == 1


def test_a_delivery_whose_courier_was_killed_is_another_s_a_minute_later(post: Post) -> None:
    with receiving() as told:
        post.listen(told.url)
        post.end()
        assert post.webhooks.claim() is not None  # and nothing more is heard of it
        assert not post.deliver()
        post.now += CLAIM_S
        assert post.deliver()
        assert not post.deliver()
    assert len(told.got) == 1


def test_a_clock_that_was_set_back_keeps_no_news(post: Post) -> None:
    with receiving() as told:
        post.listen(told.url)
        post.end()
        post.now -= 3600
        assert post.deliver()
        assert not post.deliver()
    assert len(told.got) == 1


def test_an_id_that_no_database_keeps_is_an_unknown_endpoint(post: Post) -> None:
    for id in ("we_\0", "we_\ud800"):
        with pytest.raises(WebhookError, match="there is no webhook endpoint"):
            post.webhooks.get(id, "anna")


async def opened(answer: Any) -> tuple[asyncio.Server, str]:
    """A receiver that does with each connection what `answer` does."""

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(closing, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


def test_a_head_that_comes_line_by_line_is_given_up_in_time(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "ANSWER_S", 0.3)

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not writer.is_closing():
            writer.write(b"x: y\r\n")
            await asyncio.sleep(0.05)

    async def told() -> None:
        server, url = await opened(drip)
        post.listen(url)
        post.end()
        delivery = post.webhooks.claim()
        assert delivery is not None
        async with asyncio.timeout(30):
            await post.courier().deliver(delivery)
        server.close()

    asyncio.run(told())
    post.now += PAUSE_S
    assert post.webhooks.claim() is not None  # it failed, and is tried again


def test_an_owner_s_slow_address_keeps_nobody_else_s_news_waiting(post: Post) -> None:
    happened: list[str] = []

    async def slow(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()  # until who calls has given it up
        happened.append("anna is given up")

    async def quick(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        happened.append("berta is told")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        over.set()

    async def work() -> None:
        (one, of_anna), (two, of_berta) = await opened(slow), await opened(quick)
        for _ in range(2):
            post.listen(of_anna)
        post.listen(of_berta, owner="berta")
        post.end()
        post.end(owner="berta")
        courier = post.courier()
        courier.start()
        await over.wait()
        await courier.stop()
        one.close()
        two.close()

    over = asyncio.Event()
    asyncio.run(work())
    assert happened[0] == "berta is told"


def test_an_owner_has_twenty_endpoints_however_many_are_asked_for_at_once(post: Post) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(post.listen, "https://example.org/") for _ in range(24)]
    refused = [one for one in asked if isinstance(one.exception(), TooMany)]
    assert (len(refused), len(post.webhooks.list("anna"))) == (4, 20)


def test_news_for_an_endpoint_that_went_meanwhile_stops_no_others(post: Post) -> None:
    with receiving() as told:
        mine = post.listen(told.url)
        engine = open_engine(post.url)
        with writing(engine) as connection:  # as a job ends while it is deleted
            outbox.post(connection, "we_gone", "video.completed", {}, post.now - 1)
        post.webhooks.test(mine.id, "anna", "video.completed", {})
        assert post.deliver()
        assert not post.deliver()
        post.webhooks.sweep()
    with reading(engine) as connection:
        kept = list(connection.scalars(sa.select(DELIVERIES.c.endpoint)))
    engine.dispose()
    assert kept == [mine.id]


def test_a_rotated_secret_signs_alone_or_for_a_day_beside_the_old_one(post: Post) -> None:
    with receiving() as told:
        first = post.listen(told.url)
        both = post.webhooks.rotate(first.id, "anna", keep_old=True)
        post.webhooks.test(first.id, "anna", "video.completed", {"id": "video_test"})
        assert post.deliver()
        alone = post.webhooks.rotate(first.id, "anna", keep_old=False)
        post.webhooks.test(first.id, "anna", "video.completed", {"id": "video_test"})
        assert post.deliver()
    assert both.both_until == post.now + BOTH_S
    secrets = [secret_of(post.signing, one) for one in (first, both, alone)]
    assert len(set(secrets)) == 3
    for secret in secrets[:2]:
        assert unwrapped(secret, *told.got[0]).data.id == "video_test"
    unwrapped(secrets[2], *told.got[1])
    for secret in secrets[:2]:
        with pytest.raises(InvalidWebhookSignatureError):
            unwrapped(secret, *told.got[1])


def test_endpoints_are_changed_and_deleted_by_their_owner_alone(post: Post) -> None:
    made = post.listen("https://example.org/hooks")
    changed = post.webhooks.update(made.id, "anna", name="other", events=["batch.failed"])
    assert (changed.name, changed.url, changed.events) == ("other", made.url, ("batch.failed",))
    for act in (post.webhooks.get, post.webhooks.delete):
        with pytest.raises(WebhookError, match=made.id):
            act(made.id, "berta")
    post.webhooks.test(made.id, "anna", "video.completed", {})
    post.webhooks.delete(made.id, "anna")
    assert not post.webhooks.list("anna")
    assert not post.deliver()  # nor is what was still to be told


@pytest.mark.parametrize(
    "url",
    [
        *("https://127.0.0.1/", "https://localhost/", "https://[::1]/", "https://10.1.2.3/"),
        *("https://169.254.169.254/latest", "https://[::ffff:127.0.0.1]/", "https://0.0.0.0/"),
        *("http://1.1.1.1/", "ftp://1.1.1.1/", "https://user:word@1.1.1.1/", "https:///x"),
        *("https://224.0.0.1/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/"),
        *("https://[::127.0.0.1]/", "https://[fec0::1]/", "https://[64:ff9b:1::7f00:1]/"),
        *(f"https://{'a' * 64}.org/", "https://a..b/", "https://xn--/"),
    ],
)
def test_private_addresses_and_open_lines_are_refused(url: str) -> None:
    with pytest.raises(Unwelcome):
        asyncio.run(address_of(httpx.URL(url), private=False))


def test_a_public_address_is_called_and_a_private_one_where_it_is_allowed() -> None:
    assert asyncio.run(address_of(httpx.URL("https://1.1.1.1/x"), private=False)) == "1.1.1.1"
    for ours in ("2606:4700::1111", "64:ff9b::101:101"):
        assert asyncio.run(address_of(httpx.URL(f"https://[{ours}]/x"), private=False)) == ours
    assert asyncio.run(address_of(httpx.URL("http://127.0.0.1:9/"), private=True)) == "127.0.0.1"


def test_names_that_are_found_late_keep_nothing_else_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = threading.Event()

    def late(*_: Any, **__: Any) -> Any:
        found.wait()
        return [(2, 1, 6, "", ("1.1.1.1", 443))]

    async def lookups() -> list[str]:
        url = httpx.URL("https://late.example/")
        asked = [asyncio.create_task(address_of(url, private=False)) for _ in range(99)]
        await asyncio.sleep(0)
        try:
            await asyncio.wait_for(asyncio.to_thread(int), 30)  # as every request asks for its key
        finally:
            found.set()
        return await asyncio.gather(*asked)

    monkeypatch.setattr(socket, "getaddrinfo", late)
    assert set(asyncio.run(lookups())) == {"1.1.1.1"}


def test_what_may_not_be_called_is_a_failed_try_and_nothing_is_sent(post: Post) -> None:
    with receiving() as told:
        post.listen(told.url)
        post.end()
        assert post.deliver(private=False)
    assert not told.got
