"""Bodies that do not come: they end by themselves, and hold up nobody."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.keys import Keys
from services.gateway import bodies
from services.gateway.bodies import MOST, MOST_OF_ONE, Bodies, again
from services.gateway.errors import ApiError
from tests.services.test_gateway import IMAGES, body, error


class Half:
    """A request over ASGI whose body stops half-way."""

    def __init__(self, app: Any, client: str, headers: dict[str, str] | None = None) -> None:
        self.messages: list[Any] = []
        self._parts = [{"type": "http.request", "body": b'{"model"', "more_body": True}]
        given = {"host": "localhost", "content-type": "application/json", **(headers or {})}
        scope = {
            "type": "http",
            "method": "POST",
            "path": IMAGES,
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
            "client": (client, 50000),
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if self._parts:
            return self._parts.pop()
        return await asyncio.Event().wait()

    async def _send(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def answer(self) -> tuple[int, Any, dict[str, str]]:
        start, end = self.messages
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], json.loads(end["body"])["error"]["code"], headers


async def post(app: Any, document: Any, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return await client.post(IMAGES, json=document, headers=headers)


def test_a_body_that_does_not_come_is_ended_with_408_and_its_connection_closed(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_bodies", Bodies(longest_s=0.01))

    async def run() -> Half:
        half = Half(app, "127.0.0.1")
        await half.task
        return half

    status, code, headers = asyncio.run(run()).answer
    assert (status, code, headers["connection"]) == (408, "body_timeout", "close")
    assert headers["x-request-id"]


@pytest.mark.parametrize("client", ["127.0.0.1", "10.0.0.9"])
def test_six_hundred_half_sent_bodies_of_one_client_close_the_gateway_to_nobody(
    app: Any, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to others, nor to the client itself: its oldest ones are ended."""
    monkeypatch.setattr(bodies, "YOUNG_S", 0.0)

    async def run() -> list[Half]:
        halves = [Half(app, client) for _ in range(600)]
        assert (await post(app, body(steps=1))).status_code == 200
        left = [half for half in halves if not half.task.done()]
        for half in left:
            half.task.cancel()
        await asyncio.gather(*(half.task for half in halves), return_exceptions=True)
        assert len(left) <= MOST_OF_ONE
        return halves

    ended = [half for half in asyncio.run(run()) if half.messages]
    assert {half.answer[:2] for half in ended} == {(408, "body_timeout")}


def test_a_crowd_that_comes_at_once_is_let_in(app: Any) -> None:
    async def run() -> None:
        halves = [Half(app, "127.0.0.1") for _ in range(2 * MOST_OF_ONE)]
        assert (await post(app, body(steps=1))).status_code == 200
        assert not [half for half in halves if half.task.done()]
        for half in halves:
            half.task.cancel()
        await asyncio.gather(*(half.task for half in halves), return_exceptions=True)

    asyncio.run(run())


def test_of_all_clients_together_the_one_with_most_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bodies, "YOUNG_S", 0.0)

    async def run() -> None:
        reading = Bodies()

        async def never() -> Any:
            await asyncio.Event().wait()

        clients = [str(place % (MOST // 32)) for place in range(MOST)] + ["busy"] * 32 + ["new"]
        tasks = [asyncio.ensure_future(reading.read(one, never, 2**20)) for one in clients]
        await asyncio.sleep(0)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        while sum(task.done() for task in tasks) < len(tasks) - MOST:
            await asyncio.sleep(0)
        assert not tasks[-1].done()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_large_bodies_lie_on_disk_as_many_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is closed, since its request was answered, makes room."""
    monkeypatch.setattr(bodies, "IN_MEMORY", 10)
    monkeypatch.setattr(bodies, "MOST_ON_DISK", 100)

    async def run() -> None:
        reading = Bodies()

        def sending(size: int) -> Any:
            parts = [b"ab" * 5] * (size // 10)

            async def receive() -> Any:
                part = parts.pop()
                return {"type": "http.request", "body": part, "more_body": bool(parts)}

            return receive

        large = [await reading.read("one", sending(40), 2**20) for _ in range(2)]
        with pytest.raises(ApiError, match="bodies of 100 bytes are under way") as refused:
            await reading.read("two", sending(40), 2**20)
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        (await reading.read("two", sending(10), 2**20)).close()
        large[0].close()
        third = await reading.read("two", sending(40), 2**20)
        monkeypatch.setattr(bodies, "BLOCK", 16)
        receive = again(third, sending(10))
        blocks = [await receive() for _ in range(4)]
        assert [len(one["body"]) for one in blocks] == [16, 16, 8, 10]
        assert [one["more_body"] for one in blocks] == [True, True, False, False]
        for one in (large[1], third):
            one.close()

    asyncio.run(run())


def test_a_long_body_has_the_time_that_its_length_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SLOWEST", 1e-9)

    async def run() -> None:
        reading, sent = Bodies(longest_s=0.0), asyncio.Event()

        async def receive() -> Any:
            await sent.wait()
            return {"type": "http.request", "body": b"ab"}

        with pytest.raises(ApiError, match="was not there after"):
            await reading.read("one", receive, 10)
        task = asyncio.ensure_future(reading.read("one", receive, 10, 2))
        await asyncio.sleep(0)
        sent.set()
        with await task as body:
            assert body.read() == b"ab"

    asyncio.run(run())


def test_who_tries_a_version_is_let_in_when_the_gateway_is_full(
    workshop: Any, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_max_under_way", 1)
    ours = {"authorization": f"Bearer {workshop.keys.create_ours('smoke')}"}

    async def run() -> None:
        long = [asyncio.ensure_future(post(app, body(n=8, steps=250)))]
        while not app._under_way:
            await asyncio.sleep(0)
        full = await post(app, body(steps=1))
        assert error(full) == (429, "queue_full", None)
        assert (await post(app, body(steps=1), **ours)).status_code == 200
        assert not long[0].done()
        long[0].cancel()
        await asyncio.gather(*long, return_exceptions=True)

    asyncio.run(run())


def test_no_key_s_flood_keeps_another_key_out(
    app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(f"sqlite:///{tmp_path / 'keys.db'}")
    one, other = ({"authorization": f"Bearer {keys.create(name)}"} for name in "ab")
    monkeypatch.setattr(app, "_keys", keys)
    monkeypatch.setattr(app, "_max_under_way", 4)

    async def run() -> None:
        def ask(**key: str) -> Any:
            return asyncio.ensure_future(post(app, body(n=8, steps=250), **key))

        flood = [ask(**one) for _ in range(4)]
        while app._under_way.total() < 4:
            await asyncio.sleep(0)
        assert error(await post(app, body(steps=1), **one)) == (429, "queue_full", None)
        fair = [ask(**other) for _ in range(2)]
        while app._under_way.total() < 6:
            await asyncio.sleep(0)
        assert error(await post(app, body(steps=1), **other)) == (429, "queue_full", None)
        for task in flood + fair:
            task.cancel()
        await asyncio.gather(*flood, *fair, return_exceptions=True)
        assert not app._under_way

    asyncio.run(run())


def test_keys_that_share_what_is_full_have_twice_of_it_at_most(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_max_under_way", 8)
    monkeypatch.setattr(app, "_under_way", Counter(one=8, two=4))
    assert not app._full("three")
    monkeypatch.setattr(app, "_under_way", Counter(one=8, two=4, three=2, four=2))
    assert "16 requests are under way" in app._full("five")


def test_a_deadline_frees_the_model_as_a_client_that_leaves_does(workshop: Any) -> None:
    stage = workshop.stage()
    app = workshop.gateway(stage, timeout_s=0.01)

    async def run() -> None:
        answer = await post(app, body(n=8, steps=250))
        assert error(answer)[:2] in {(504, "timeout"), (400, "too_long")}  # after three steps
        assert (await stage.status())["waiting"] == 0
        assert (await stage.status())["drawing"] == 0

    asyncio.run(run())
    stage.close()
