"""The real `openai` client has files of requests answered: pictures, texts and clips, by jobs that outlive kills."""

import asyncio
import base64
import io
import json
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import sqlalchemy as sa
from openai import OpenAI
from PIL import Image

from infra.jobs.ids import new_id
from infra.jobs.jobs import Jobs
from services.api import files as api
from services.batches import files, lines
from services.batches.work import file_id
from services.jobs.runner import STRAY_S, Runner
from tests.services.batches_kit import (
    CHAT,
    IMAGES,
    VIDEOS,
    answers,
    batch_of,
    idle_client,
    opened,
    requests,
    sent,
    store_of,
    turn,
)
from tests.services.served_kit import listening

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API")
EDITS = "/v1/images/edits"


@pytest.fixture(scope="module")
def house(own_workshop: Any) -> Iterator[Any]:
    with opened(own_workshop) as house:
        yield house


@pytest.fixture
def clients(house: Any) -> Iterator[Any]:
    """Clients of both keys, of a gateway that works."""
    with listening(house.worked) as address:
        base = f"{address}/v1"
        both = [OpenAI(base_url=base, api_key=key, max_retries=0) for key in house.keys]
        yield both
        for one in both:
            one.close()


@pytest.fixture
def idle(house: Any) -> Iterator[OpenAI]:
    with idle_client(house) as client:
        yield client


def ended(client: OpenAI, id: str) -> Any:
    until = time.monotonic() + 60
    while (found := client.batches.retrieve(id)).status in {
        "validating",
        "in_progress",
        "cancelling",
    }:
        assert time.monotonic() < until, found
        time.sleep(0.05)
    return found


def pixels(b64: Any) -> Any:
    with Image.open(io.BytesIO(base64.b64decode(b64))) as image:
        return np.asarray(image)


def test_pictures_texts_clips_and_meshes_are_answered_in_files(clients: Any) -> None:
    client = clients[0]
    picture = {"model": "shapes", "prompt": "a small red circle", "seed": 3, "steps": 2}
    picture["response_format"] = "b64_json"
    clip = {"model": "moving", "prompt": "a red circle", "seed": 4}
    mesh = {"model": "balls", "prompt": "a red ball", "seed": 4}
    made = [
        batch_of(client, IMAGES, picture, {**picture, "prompt": "a smal circle"}, metadata={"a": "b"}),
        batch_of(client, CHAT, turn("a"), turn("b")),
        batch_of(client, VIDEOS, clip),
        batch_of(client, "/v1/meshes", mesh, {**mesh, "prompt": "nothing"}),
    ]  # fmt: skip
    done = [ended(client, one.id) for one in made]
    counts = [
        (one.request_counts.total, one.request_counts.completed, one.request_counts.failed)
        for one in done
    ]
    assert [one.status for one in done] == ["completed"] * 4
    assert counts == [(2, 1, 1), (2, 2, 0), (1, 1, 0), (2, 1, 1)]
    assert done[0].metadata == {"a": "b"}
    right = answers(client, done[0].output_file_id)
    direct = client.images.generate(**{k: v for k, v in picture.items() if k in {"model", "prompt"}},
        response_format="b64_json", extra_body={"seed": 3, "steps": 2})  # fmt: skip
    body = right["r0"]["response"]["body"]
    assert right["r0"]["response"]["status_code"] == 200
    assert direct.data is not None
    assert (pixels(body["data"][0]["b64_json"]) == pixels(direct.data[0].b64_json)).all()
    wrong = answers(client, done[0].error_file_id)
    assert wrong["r1"]["response"]["status_code"] == 400
    assert "unknown word 'smal'" in wrong["r1"]["response"]["body"]["error"]["message"]
    assert done[1].error_file_id is None
    said = answers(client, done[1].output_file_id)
    assert list(said) == ["r0", "r1"]
    video = answers(client, done[2].output_file_id)["r0"]["response"]["body"]
    assert (video["status"], video["seed"]) == ("completed", 4)
    empty = answers(client, done[3].error_file_id)["r1"]["response"]["body"]
    assert (empty["status"], empty["error"]["code"]) == ("failed", "mesh_empty")
    assert "url" not in video  # it would open for an hour, and its answer is kept for 30 days
    assert client.videos.download_content(video["id"]).read()
    assert [one.id for one in client.batches.list(limit=2)][:4] == [one.id for one in made[::-1]]


def test_pictures_are_changed_in_files(clients: Any) -> None:
    """As JSON with data URLs; a line whose picture cannot be read is an answer among the wrong ones."""
    client, out = clients[0], io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 4)).astype(np.uint8)
    noise[..., 3] = 255
    noise[4:, :, 3] = 0
    Image.fromarray(noise).save(out, "PNG")
    content = base64.b64encode(out.getvalue()).decode()
    asked = {"model": "small", "prompt": "a small red circle", "seed": 3, "steps": 2}
    right, wrong = (
        {**asked, "images": [{"image_url": f"data:image/png;base64,{one}"}]}
        for one in (content, content[:40])
    )
    done = ended(client, batch_of(client, EDITS, right, wrong).id)
    told = answers(client, done.error_file_id)
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 1), told
    body = answers(client, done.output_file_id)["r0"]["response"]["body"]
    direct = client.images.edit(
        image=("a.png", out.getvalue()), model="small", prompt=asked["prompt"], extra_body={"seed": "3", "steps": "2"}
    )  # fmt: skip
    assert direct.data is not None
    drawn = pixels(body["data"][0]["b64_json"])
    assert (drawn == pixels(direct.data[0].b64_json)).all()
    assert (drawn[:4] == noise[:4, :, :3]).all()
    refused = told["r1"]["response"]
    assert (refused["status_code"], refused["body"]["error"]["param"]) == (400, "image")


def test_files_are_listed_described_and_removed(clients: Any) -> None:
    first, second = clients
    content = requests(CHAT, turn("a"))
    file = sent(first, content)
    assert (file.bytes, file.filename, file.purpose) == (len(content), "asked.jsonl", "batch")
    assert file.expires_at == file.created_at + 30 * 24 * 3600
    assert first.files.retrieve(file.id) == file
    assert first.files.content(file.id).content == content
    assert file.id in [one.id for one in first.files.list(purpose="batch")]
    for asking in (second.files.retrieve, second.files.content, second.files.delete):
        with pytest.raises(openai.NotFoundError, match=r"no file .* of this key"):
            asking(file.id)
    assert file.id not in [one.id for one in second.files.list()]
    assert first.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        first.files.retrieve(file.id)


def test_a_file_is_kept_once_by_its_key(house: Any, idle: OpenAI) -> None:
    def made(content: bytes) -> Any:
        headers = {"Idempotency-Key": "the-upload"}
        file = ("asked.jsonl", content)
        return idle.files.create(file=file, purpose="batch", extra_headers=headers)

    first = made(b"{}")
    store = store_of(house)
    kept = set(store.jobs())
    assert made(b"{}") == first
    with pytest.raises(openai.UnprocessableEntityError, match="take a new key"):
        made(b"[]")
    assert set(store.jobs()) == kept
    idle.files.delete(first.id)
    assert made(b"[]").id != first.id


GOOD = requests(CHAT, turn("a"))
WRONG = [
    (b"", r"a batch has 1 to 50000 requests, one a line, got 0"),
    (b"{}", r"line 1: custom_id: "),
    (b"nothing", r"line 1: no JSON"),
    (requests(IMAGES, {}), r"line 1: url: this batch is for /v1/chat/completions, got '/v1/images"),
    (GOOD + b"\n" + GOOD, r"line 2: custom_id: 'r0' is taken"),
    (requests(CHAT, {**turn("a"), "stream": True}), r"line 1: body.stream"),
    (
        requests(CHAT, {"response_format": "url"}),
        r"line 1: body.response_format: a link opens for an",
    ),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_a_line_that_cannot_be_sent_is_refused_by_number(
    idle: OpenAI, content: bytes, message: str
) -> None:
    file = sent(idle, content)
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        idle.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert caught.value.param == "input_file_id"


def test_what_is_too_large_or_of_another_endpoint_is_refused(
    idle: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.LARGEST >= 200e6, "as large as the API has them"
    monkeypatch.setattr(lines, "LONGEST", 2000)
    monkeypatch.setattr(files, "LONGEST", 2000)
    file = sent(idle, GOOD + b"\n\n" + requests(CHAT, turn("a" * 2000)))
    with pytest.raises(openai.BadRequestError, match="line 3: a request has at most 2000 bytes"):
        idle.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    monkeypatch.setattr(api, "LARGEST", 3000)
    with pytest.raises(openai.BadRequestError, match="file: at most 3000 bytes are taken"):
        sent(idle, bytes(3001))
    asked: Any = {"endpoint": "/v1/moderations", "completion_window": "24h"}
    with pytest.raises(openai.BadRequestError, match="/v1/chat/completions"):
        idle.batches.create(input_file_id="file_1", **asked)
    with pytest.raises(openai.NotFoundError, match="no file"):
        idle.batches.create(input_file_id="file_1", endpoint=CHAT, completion_window="24h")


def test_a_large_file_is_never_whole_in_memory(house: Any) -> None:
    """Neither when it comes nor when its lines are read: of 24 MiB a few are there at a time."""
    row = json.dumps({"custom_id": "%06d", "url": CHAT, "body": turn("a" * 8000)})
    edge = "xxxx"
    head = f'--{edge}\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n'

    async def form() -> AsyncIterator[bytes]:
        yield (head % ("purpose", "")).encode() + b"batch\r\n"
        yield (head % ("file", '; filename="a.jsonl"')).encode()
        for start in range(0, 3072, 16):
            yield "".join(f"{row % (start + place)}\n" for place in range(16)).encode()
        yield f"\r\n--{edge}--\r\n".encode()

    async def asked() -> tuple[Any, Any]:
        headers = {"authorization": f"Bearer {house.keys[0]}"}
        kind = {"content-type": f"multipart/form-data; boundary={edge}"}
        transport = httpx.ASGITransport(house.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            file = await client.post("/v1/files", content=form(), headers={**headers, **kind})
            order = {"input_file_id": file.json()["id"], "endpoint": CHAT}
            order["completion_window"] = "24h"
            return file.json(), (
                await client.post("/v1/batches", json=order, headers=headers)
            ).json()

    tracemalloc.start()
    try:
        file, batch = asyncio.run(asked())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert file["bytes"] > 24e6
    assert batch["request_counts"]["total"] == 3072
    assert most < 8 * 2**20
    house.workshop.jobs.cancel(batch["id"])


def test_a_batch_that_waits_is_cancelled_or_expires(house: Any, idle: OpenAI) -> None:
    batch = batch_of(idle, CHAT, turn("a"))
    assert (batch.status, batch.expires_at) == ("validating", batch.created_at + 24 * 3600)
    cancelled = idle.batches.cancel(batch.id)
    assert cancelled.status == "cancelled"
    assert cancelled.cancelled_at is not None
    late = batch_of(idle, CHAT, turn("a"))
    with Jobs(house.workshop.database, clock=lambda: time.time() + 24 * 3600 + 1) as later:
        later.sweep()
    assert idle.batches.retrieve(late.id).status == "expired"


def test_a_file_is_kept_for_as_long_as_a_batch_may_read_it(house: Any, idle: OpenAI) -> None:
    jobs, sent_one = house.workshop.jobs, sent(idle, requests(CHAT, turn("a")))
    made = jobs.get(sent_one.id)
    kept: dict[str, Any] = {"owner": made.owner, "result": made.result}
    old = jobs.record(made.request, id=new_id("file", time.time()), kept_s=60.0, **kept)
    asked: Any = {"endpoint": CHAT, "completion_window": "24h"}
    for file in (old, made):
        batch = idle.batches.create(input_file_id=file.id, **asked)
        assert batch.expires_at is not None
        assert int(jobs.get(file.id).expires) >= batch.expires_at
        idle.batches.cancel(batch.id)
    assert jobs.get(made.id) == made  # no less than it was


def test_files_of_new_batches_are_read_one_at_a_time(
    house: Any, clients: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a few large ones had all threads, and whatever else waits for one, leases among it, waited with them."""
    body, beside, read = requests(CHAT, turn("a")), [0], lines.count
    file = sent(clients[0], body)

    def watched(*given: Any) -> int:
        beside.append(beside[-1] + 1)
        threading.Event().wait(0.05)
        beside.append(beside[-1] - 1)
        return read(*given)

    monkeypatch.setattr(lines, "count", watched)
    asked: Any = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    with ThreadPoolExecutor(3) as many:
        made = [*many.map(lambda _: clients[0].batches.create(**asked), range(3))]
    assert (len(made), max(beside)) == (3, 1)
    for one in made:
        ended(clients[0], one.id)


def test_a_batch_is_made_once_by_its_key(house: Any, idle: OpenAI) -> None:
    file = sent(idle, requests(CHAT, turn("a")))

    def made(key: str, **more: Any) -> Any:
        order: Any = {"endpoint": CHAT, "completion_window": "24h", **more}
        headers = {"Idempotency-Key": key}
        return idle.batches.create(input_file_id=file.id, extra_headers=headers, **order)

    first = made("mine")
    assert made("mine").id == first.id != made("other").id
    with pytest.raises(openai.UnprocessableEntityError, match="take a new key"):
        made("mine", metadata={"a": "b"})
    for one in idle.batches.list(limit=2).data:
        house.workshop.jobs.cancel(one.id)


def test_a_list_of_batches_asks_the_database_no_more_often_than_one_of_them(
    house: Any, idle: OpenAI
) -> None:
    asked: list[str] = []

    def noted(*event: Any) -> None:
        asked.append(event[2])

    for _ in range(3):
        batch_of(idle, CHAT, turn("a"))
    house.workshop.keys.any()
    counts = []
    for limit in (1, 3):
        sa.event.listen(sa.Engine, "before_cursor_execute", noted)
        found = idle.batches.list(limit=limit).data
        sa.event.remove(sa.Engine, "before_cursor_execute", noted)
        assert len(found) == limit
        counts.append(sum("job" in one for one in asked))
        asked.clear()
    assert counts == [3, 3]
    for one in found:
        idle.batches.cancel(one.id)


def test_a_list_of_files_ends_with_the_last_of_its_purpose(house: Any, idle: OpenAI) -> None:
    mine = [sent(idle, b"x").id for _ in range(2)]
    made = house.workshop.jobs.get(mine[0])
    jobs, result = house.workshop.jobs, made.result
    told = {"filename": "a.jsonl", "purpose": "batch_output"}
    for number in range(3):  # newer ones, of which a page may be full
        jobs.record(told, id=f"file_{number}_output", owner=made.owner, result=result, kept_s=60.0)
    found = [one.id for one in idle.files.list(purpose="batch", limit=1)]
    assert found[:2] == mine[::-1]
    assert not [one for one in found if one.endswith("output")]
    with Jobs(house.workshop.database, clock=lambda: time.time() + 61) as later:
        later.sweep()
    for id in mine:
        idle.files.delete(id)


def test_a_file_that_is_removed_twice_at_once_is_gone_for_both(
    idle: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, real = sent(idle, b"x"), Jobs.unended

    def meanwhile(jobs: Jobs, owner: str, kind: str) -> Any:
        monkeypatch.undo()
        assert idle.files.delete(file.id).deleted
        return real(jobs, owner, kind)

    monkeypatch.setattr(Jobs, "unended", meanwhile)
    assert idle.files.delete(file.id).deleted


def test_the_files_of_an_old_batch_are_no_strays_while_they_are_written(house: Any) -> None:
    store = store_of(house)
    runner = Runner(house.workshop.jobs, store, None, None, {})  # type: ignore[arg-type]
    id = file_id(new_id("batch", time.time() - 2 * STRAY_S), "output")

    def written() -> Iterator[bytes]:
        yield b"{}\n"
        runner.sweep()

    job = files.keep(
        house.workshop.jobs, store, written(), id=id, owner="x", name="a", purpose="batch_output"
    )
    assert list(files.rows_of(store, job)) == [b"{}\n"]


def test_a_file_may_be_removed_when_its_batch_is_over(house: Any, idle: OpenAI) -> None:
    batch = batch_of(idle, CHAT, turn("a"))
    with pytest.raises(openai.ConflictError):
        idle.files.delete(batch.input_file_id)
    idle.batches.cancel(batch.id)
    assert idle.files.delete(batch.input_file_id).deleted
