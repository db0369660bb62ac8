"""The real `openai` client asks for clips: they are jobs, seen by their owner's key alone, and fetched in any way."""

import asyncio
import errno
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image

from infra.jobs.ids import made_at, new_id
from infra.jobs.jobs import Jobs
from infra.keys import Keys
from infra.media.clips import decode, encoded
from infra.media.pictures import png
from infra.receipts.clip_receipts import rest_sha256
from infra.receipts.provenance import check
from infra.receipts.receipts import read
from services.jobs.runner import Runner
from services.jobs.store import Store
from services.pipelines.executor import Executor
from services.routing.endpoints import Endpoints
from tests.services.clips_kit import publish_clips
from tests.services.hand_kit import Hand
from tests.services.served_kit import listening, with_toys

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API")  # OpenAI's own, not its client
PROMPT = "a red circle moving left"


@pytest.fixture(scope="module")
def house(own_workshop: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    keys = Keys(own_workshop.database)
    with with_toys():
        publish_clips(own_workshop)
        publish_clips(own_workshop, "changing", alters=True)
        stage = own_workshop.stage()
        app = own_workshop.gateway(stage)
        first, second = keys.create("first"), keys.create("second")
        with listening(app) as address:
            hand = Hand(own_workshop, stage, tmp_path_factory.mktemp("made"))
            yield SimpleNamespace(
                address=address, keys=(first, second), hand=hand, workshop=own_workshop
            )
    stage.close()


@contextmanager
def client_of(house: Any, key: int = 0) -> Iterator[OpenAI]:
    base = f"{house.address}/v1"
    with OpenAI(base_url=base, api_key=house.keys[key], max_retries=0) as client:
        yield client


@pytest.fixture
def client(house: Any) -> Iterator[OpenAI]:
    with client_of(house) as found:
        yield found


@pytest.fixture
def made(house: Any, client: OpenAI) -> Any:
    """A completed clip."""
    video = client.videos.create(model="moving", prompt=PROMPT, extra_body={"seed": 7})
    house.hand.work()
    return client.videos.retrieve(video.id)


def test_a_clip_is_asked_for_awaited_and_described(house: Any, client: OpenAI) -> None:
    with house.hand.working():
        video = client.videos.create_and_poll(
            model="moving", prompt=PROMPT, seconds="0.75", size="16x16"
        )  # type: ignore[arg-type]
    assert (video.status, video.progress, video.object) == ("completed", 100, "video")
    assert (video.seconds, video.size, video.model) == ("0.75", "16x16", "moving")
    assert video.prompt == PROMPT
    assert video.completed_at is not None
    assert video.expires_at is not None
    assert video.expires_at > video.completed_at >= video.created_at


def test_the_same_seed_gives_the_same_clip_with_a_receipt_inside(
    house: Any, client: OpenAI, made: Any
) -> None:
    first = client.videos.download_content(made.id).read()
    again = client.videos.create(model="moving", prompt=PROMPT, extra_body={"seed": 7})
    house.hand.work()
    second = client.videos.download_content(again.id).read()
    assert rest_sha256(io.BytesIO(first)) == rest_sha256(io.BytesIO(second))  # but for the receipts
    receipt, checks = check(first, house.workshop.signing())
    assert all(one.passed for one in checks)
    assert (receipt.seed, receipt.prompt, receipt.version) == (7, PROMPT, "moving:1")
    assert (receipt.frames, receipt.frame_rate, receipt.size) == (6, 8, "16x16")
    assert receipt.request_id == made.id


def test_each_variant_is_a_file_of_its_kind(client: OpenAI, made: Any) -> None:
    clip = client.videos.download_content(made.id)
    assert clip.response.headers["content-type"] == "video/mp4"
    assert decode(clip.read()).frames.shape == (6, 16, 16, 3)
    for variant, kind in (("thumbnail", "WEBP"), ("spritesheet", "JPEG")):
        found = client.videos.download_content(made.id, variant=variant)  # type: ignore[arg-type]
        with Image.open(io.BytesIO(found.read())) as image:
            assert image.format == kind


@pytest.mark.parametrize(
    ("asked", "span"),
    [
        ("bytes=0-99", slice(0, 100)),
        ("bytes=100-", slice(100, None)),
        ("bytes=-50", slice(-50, None)),
        ("bytes=0-99999999", slice(0, None)),
    ],
)
def test_a_range_of_a_clip_is_its_bytes(
    house: Any, client: OpenAI, made: Any, asked: str, span: slice
) -> None:
    whole = client.videos.download_content(made.id)
    content, tag = whole.read(), whole.response.headers["etag"]
    part = client.videos.download_content(made.id, extra_headers={"range": asked})
    assert part.read() == content[span]
    start = range(len(content))[span][0]
    says = f"bytes {start}-{start + len(content[span]) - 1}/{len(content)}"
    assert part.response.status_code == 206
    assert part.response.headers["content-range"] == says
    other = {"range": asked, "if-range": '"another"'}
    assert client.videos.download_content(made.id, extra_headers=other).read() == content
    headers = {"authorization": f"Bearer {house.keys[0]}", "if-none-match": tag}
    url = f"{house.address}/v1/videos/{made.id}/content"
    assert httpx.get(url, headers=headers).status_code == 304


def test_bytes_that_are_not_there_are_refused_with_the_size(client: OpenAI, made: Any) -> None:
    with pytest.raises(openai.APIStatusError, match=r"there are \d+ bytes") as caught:
        client.videos.download_content(made.id, extra_headers={"range": "bytes=99999999-"})
    assert caught.value.status_code == 416


def test_a_list_is_paged_in_both_orders(house: Any) -> None:
    with client_of(house, 1) as client:
        ids = [client.videos.create(model="moving", prompt=PROMPT).id for _ in range(5)]
        assert [one.id for one in client.videos.list(limit=2)] == ids[::-1]
        assert [one.id for one in client.videos.list(limit=2, order="asc")] == ids
        assert not client.videos.list(limit=0).data
        page = client.videos.list(limit=3)
        assert page.has_more is True
        assert [one.id for one in client.videos.list(after=ids[1], order="asc")] == ids[2:]
        for id in ids:
            assert client.videos.delete(id).deleted
        assert not list(client.videos.list())


def test_a_clip_is_nobody_else_s(house: Any, made: Any) -> None:
    with client_of(house, 1) as other:
        for asking in (
            lambda: other.videos.retrieve(made.id),
            lambda: other.videos.download_content(made.id),
            lambda: other.videos.delete(made.id),
            lambda: other.videos.remix(made.id, prompt=PROMPT),
            lambda: other.videos.list(after=made.id),
        ):
            with pytest.raises(openai.NotFoundError, match=r"no video .* of this key"):
                asking()
        assert made.id not in [one.id for one in other.videos.list()]


def test_a_remix_is_the_same_noise_by_another_prompt(house: Any, client: OpenAI, made: Any) -> None:
    remix = client.videos.remix(made.id, prompt="a red circle moving right")
    assert remix.remixed_from_video_id == made.id
    assert (remix.model_extra or {})["seed"] == 7
    house.hand.work()
    ours, theirs = (decode(client.videos.download_content(id).read()) for id in (made.id, remix.id))
    difference = np.abs(ours.frames.astype(int) - theirs.frames).mean((1, 2, 3))
    assert difference[0] < 2 < difference[-1]


def test_an_extension_goes_on_from_where_a_clip_ends(house: Any, client: OpenAI, made: Any) -> None:
    source = decode(client.videos.download_content(made.id).read())
    file = client.videos.extend(
        prompt=PROMPT, seconds="0.625", video=encoded(source.frames, 8, "mp4").content,  # type: ignore[arg-type]
        extra_body={"model": "moving"},
    )  # fmt: skip
    named: Any = client.post(
        "/videos/extensions", body={"prompt": PROMPT, "video": {"id": made.id}}, cast_to=object
    )
    for id in (file.id, named["id"]):
        house.hand.work()
        longer = client.videos.retrieve(id)
        assert (longer.status, longer.seconds) == ("completed", "1.375")
        clip = decode(client.videos.download_content(id).read())
        assert len(clip.frames) == 11
        assert np.abs(clip.frames[:6].astype(int) - source.frames).mean() < 6
        moved = np.roll(source.frames[5], -1, axis=1)
        assert np.abs(clip.frames[6].astype(int) - moved).mean() < 6
        steps = np.abs(np.diff(clip.frames.astype(int), axis=0)).mean((1, 2, 3))
        assert steps[5] > steps.max() / 2  # no frame is shown twice where they meet


def test_an_extension_ends_where_no_clip_is_read_any_more(house: Any, client: OpenAI) -> None:
    def extended(count: int) -> Any:
        frames = np.zeros((count, 16, 16, 3), np.uint8)
        clip = ("a.mp4", encoded(frames, 8, "mp4").content)
        body = {"model": "moving", "prompt": PROMPT}
        form: Any = {"headers": {"Content-Type": "multipart/form-data"}}
        return client.post(
            "/videos/extensions", body=body, files=[("video", clip)], options=form, cast_to=object
        )

    says = "video: with what is added 1025 frames at 8 a second, at most 1024 are read"
    with pytest.raises(openai.BadRequestError, match=says):
        extended(1020)
    longest = extended(1019)["id"]
    house.hand.work()
    sheet = client.videos.download_content(longest, variant="thumbnail")
    assert sheet.response.headers["content-type"] == "image/webp"


def test_a_clip_that_cannot_be_read_has_no_thumbnail_and_says_so(
    house: Any, client: OpenAI, made: Any
) -> None:
    file = Path(house.workshop.jobs.get(made.id).result.uri)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(openai.BadRequestError, match="variant: there is no thumbnail of this clip"):
        client.videos.download_content(made.id, variant="thumbnail")


def test_an_edit_shows_something_else_for_as_long(house: Any, client: OpenAI, made: Any) -> None:
    source = decode(client.videos.download_content(made.id).read())
    file = client.videos.edit(
        prompt=PROMPT, video=encoded(source.frames, 8, "mp4").content,  # type: ignore[arg-type]
        extra_body={"model": "changing"},
    )  # fmt: skip
    body = {"prompt": PROMPT, "video": {"id": made.id}, "model": "changing"}
    named: Any = client.post("/videos/edits", body=body, cast_to=object)
    for id in (file.id, named["id"]):
        house.hand.work()
        edited = client.videos.retrieve(id)
        assert (edited.status, edited.seconds, edited.model) == ("completed", "0.75", "changing")
        content = client.videos.download_content(id).read()
        clip = decode(content)
        assert clip.frames.shape == source.frames.shape
        assert np.abs(clip.frames + source.frames.astype(int) - 255).mean() < 6
        receipt, checks = check(content, house.workshop.signing())
        assert list(receipt.inputs or ()) == ["clip"]
        assert all(one.passed for one in checks)


def test_a_picture_begins_to_move(house: Any, client: OpenAI) -> None:
    picture = png(np.full((20, 20, 3), (200, 30, 60), np.uint8))
    video = client.videos.create(model="moving", prompt=PROMPT, input_reference=picture)
    house.hand.work()
    content = client.videos.download_content(video.id).read()
    assert np.abs(decode(content).frames.astype(int) - (200, 30, 60)).mean() < 10
    assert list(read(content).inputs or ()) == ["image"]


@pytest.mark.parametrize(("form", "media"), [("gif", "image/gif"), ("webp", "image/webp")])
def test_other_formats_are_asked_for_by_name(
    house: Any, client: OpenAI, form: str, media: str
) -> None:
    video = client.videos.create(
        model="moving", prompt=PROMPT, extra_body={"output_format": form, "seed": 3}
    )
    house.hand.work()
    found = client.videos.download_content(video.id)
    assert found.response.headers["content-type"] == media
    assert check(found.read(), house.workshop.signing())[0].seed == 3


def test_a_clip_is_linked_for_an_hour_without_a_key(client: OpenAI, made: Any) -> None:
    url = (made.model_extra or {})["url"]
    whole = httpx.get(url)
    assert whole.content == client.videos.download_content(made.id).read()
    assert httpx.get(url, headers={"range": "bytes=0-9"}).content == whole.content[:10]
    assert httpx.get(url.replace("signature=", "signature=0")).status_code == 404
    client.videos.delete(made.id)
    assert httpx.get(url).status_code == 404


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"seconds": "4"},
        r"seconds: moving makes 6 frames at 8 a second, 0.75 s, got 4; leave it out",
    ),
    ({"size": "720x1280"}, r"size: moving makes 16x16, got '720x1280'; leave it out"),
    ({"num_frames": 81}, r"num_frames: moving makes 6 frames .* got 81; leave it out"),
    ({"fps": 24}, r"fps: moving makes 8 frames a second, got 24; leave it out"),
    ({"n": 2}, r"unknown parameter 'n'"),
    ({"prompt": ""}, r"prompt: it is empty"),
    ({"input_reference": {"image_url": "https://example.org/a.png"}}, r"input_reference"),
    (
        {"input_reference": {"image_url": "data:image/png;base64,AAAA"}},
        r"input_reference: not a pict",
    ),
    ({"model": "nobody"}, r"the model 'nobody' does not exist"),
    ({"output_format": "avi"}, r"output_format"),
    ({"prompt": "a rad circle"}, r"unknown word 'rad'; did you mean 'red'\?"),
    ({"prompt": "a circle " * 9}, r"the caption has 18 words, the model reads 8"),
    ({"negative_prompt": "a square"}, r"negative_prompt: "),
]


@pytest.mark.parametrize(("body", "message"), REFUSED)
def test_what_cannot_be_made_is_refused_with_the_way_out(
    client: OpenAI, body: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        client.post("/videos", body={"model": "moving", "prompt": PROMPT, **body}, cast_to=object)
    assert caught.value.status_code in {400, 404}
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"]


IMAGE = "data:image/png;base64,AAAA"
DOUBLE: list[tuple[str, list[Any], str]] = [
    (
        "",
        [("input_reference", b"")],
        "input_reference: not a picture that can be read (PNG, JPEG, WEBP, BMP, GIF, TIFF)",
    ),
    (
        "",
        [("input_reference", png(np.zeros((16, 16, 3), np.uint8))), ("input_reference[image_url]", (None, IMAGE))],
        "input_reference: one is taken, got several",
    ),
    (
        "/extensions",
        [("video[id]", (None, f"video_{sign * 26}")) for sign in "01"],
        "video: one is taken, got several",
    ),
    (
        "/edits",
        [("video[id]", (None, f"video_{'0' * 26}")), ("video", b"clip")],
        "video: one is taken, got several",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "parts", "message"), DOUBLE)
def test_a_form_without_a_file_or_with_two_is_refused(
    house: Any, path: str, parts: list[Any], message: str
) -> None:
    fields = [("model", (None, "moving")), ("prompt", (None, PROMPT)), *parts]
    key = {"authorization": f"Bearer {house.keys[0]}"}
    answer = httpx.post(f"{house.address}/v1/videos{path}", files=fields, headers=key)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


def test_a_clip_cannot_be_changed_by_who_only_makes_them(client: OpenAI, made: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="gives no changed clips"):
        client.post(
            "/videos/edits", body={"prompt": PROMPT, "video": {"id": made.id}}, cast_to=object
        )
    with pytest.raises(openai.BadRequestError, match="video: send one clip"):
        client.post(
            "/videos/extensions", body={"prompt": PROMPT, "model": "moving"}, cast_to=object
        )
    with pytest.raises(openai.BadRequestError, match="video: not a clip that can be read"):
        client.videos.extend(
            prompt=PROMPT, seconds="0.625", video=b"nothing", extra_body={"model": "moving"}
        )  # type: ignore[arg-type]


def test_a_key_names_one_job_and_one_alone(client: OpenAI) -> None:
    headers = {"idempotency-key": "once"}
    first, second = (
        client.videos.create(model="moving", prompt=PROMPT, extra_headers=headers) for _ in range(2)
    )
    assert first.id == second.id
    with pytest.raises(openai.UnprocessableEntityError, match="was used for video_") as caught:
        client.videos.create(model="moving", prompt="a circle", extra_headers=headers)
    assert caught.value.code == "idempotency_conflict"
    client.videos.delete(first.id)


def test_a_key_names_its_job_after_a_promotion_too(house: Any, client: OpenAI) -> None:
    publish_clips(house.workshop, "newer")
    asked: Any = {"model": "newer", "prompt": PROMPT, "extra_headers": {"idempotency-key": "then"}}
    first = client.videos.create(**asked)
    publish_clips(house.workshop, "newer", alters=True)
    again = client.videos.create(**asked)
    assert again.id == first.id
    assert (again.model_extra or {})["version"] == "newer:1"
    with pytest.raises(openai.UnprocessableEntityError, match="was used for video_"):
        client.videos.create(**asked, extra_body={"seed": 5})
    client.videos.delete(first.id)


def test_what_a_clip_was_made_of_goes_with_it(house: Any, client: OpenAI, made: Any) -> None:
    kept = house.workshop.folder / "files" / "jobs"
    asked = {"prompt": PROMPT, "video": {"id": made.id}, "model": "moving"}
    video: Any = client.post("/videos/extensions", body=asked, cast_to=object)
    remix = client.videos.remix(video["id"], prompt="a red circle moving right")
    endpoints, store = Endpoints(house.workshop.ledger, house.workshop.registry), Store(str(kept))
    sweeper = Runner(house.workshop.jobs, store, endpoints, Executor(lambda _: None), {})
    assert [one.name for one in (kept / video["id"]).iterdir()] == ["given-clip"]
    client.videos.delete(video["id"])
    sweeper.sweep()
    assert not (kept / video["id"]).exists()
    assert (kept / remix.id).exists()
    client.videos.delete(remix.id)
    sweeper.sweep()
    assert not (kept / remix.id).exists()


class Stuck(Store):
    """A disk that keeps the files of one job."""

    held = ""

    def clear(self, job: str) -> None:
        if job == self.held:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), job)
        super().clear(job)


def test_files_that_cannot_be_removed_keep_no_other_s(house: Any, client: OpenAI) -> None:
    kept = house.workshop.folder / "files" / "jobs"
    endpoints, store = Endpoints(house.workshop.ledger, house.workshop.registry), Stuck(str(kept))
    sweeper = Runner(house.workshop.jobs, store, endpoints, Executor(lambda _: None), {})
    store.held, *others = (client.videos.create(model="moving", prompt=PROMPT).id for _ in range(3))
    for id in (store.held, *others):
        store.put(id, "given-clip", b"clip")
        client.videos.delete(id)
    sweeper.sweep()
    assert [(kept / id).exists() for id in (store.held, *others)] == [True, False, False]
    stuck, store.held = store.held, ""
    sweeper.sweep()
    assert not (kept / stuck).exists(), "it is tried again"


def test_a_file_whose_job_was_never_written_down_goes_when_it_is_old(
    house: Any, client: OpenAI, made: Any
) -> None:
    kept = house.workshop.folder / "files" / "jobs"
    store, now = Store(str(kept)), time.time()
    old, young = new_id("video", now - 7200), new_id("video", now)
    assert abs((made_at(old) or 0) - (now - 7200)) < 0.01
    for id in (old, young, made.id, "another-s"):
        store.put(id, "given-clip", b"clip")
    endpoints = Endpoints(house.workshop.ledger, house.workshop.registry)
    Runner(house.workshop.jobs, store, endpoints, Executor(lambda _: None), {}).sweep()
    assert not (kept / old).exists()
    assert all((kept / id).exists() for id in (young, made.id, "another-s"))


def test_a_clip_that_is_not_there_in_time_is_not_made(house: Any, client: OpenAI) -> None:
    for wrong in ("0", "1m", "86401", "-1"):
        with pytest.raises(openai.BadRequestError, match="cancel-after: whole seconds, 1 to 86400"):
            client.videos.create(
                model="moving", prompt=PROMPT, extra_headers={"cancel-after": wrong}
            )
    video = client.videos.create(
        model="moving", prompt=PROMPT, extra_headers={"cancel-after": "60"}
    )
    with Jobs(house.workshop.database, clock=lambda: time.time() + 61) as later:
        later.sweep()
    late = client.videos.retrieve(video.id)
    assert late.status == "failed"
    assert late.error is not None
    assert late.error.code == "deadline_exceeded"


def test_a_wait_ends_with_the_clip_or_in_time(house: Any, client: OpenAI) -> None:
    with house.hand.working():
        raw = client.videos.with_raw_response.create(
            model="moving", prompt=PROMPT, extra_headers={"prefer": "respond-async, wait=30"}
        )
    assert raw.parse().status == "completed"
    assert raw.headers["preference-applied"] == "wait=30"
    raw = client.videos.with_raw_response.create(
        model="moving", prompt=PROMPT, extra_headers={"prefer": "wait=0"}
    )
    assert raw.parse().status == "queued"
    assert int(raw.headers["openai-poll-after-ms"]) > 0
    client.videos.delete(raw.parse().id)


def test_a_clip_that_is_not_there_yet_is_a_conflict_that_nobody_repeats(
    house: Any, client: OpenAI
) -> None:
    video = client.videos.create(model="moving", prompt=PROMPT)
    with pytest.raises(openai.ConflictError, match="is queued, not completed") as caught:
        client.videos.download_content(video.id)
    assert caught.value.response.headers["x-should-retry"] == "false"
    lease = house.hand.claim()
    lease.fail("out_of_memory", "the device has no more memory", again=False)
    failed = client.videos.retrieve(video.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == (
        "out_of_memory",
        "the device has no more memory",
    )


def test_deleting_cancels_what_is_under_way(house: Any, client: OpenAI) -> None:
    video = client.videos.create(model="moving", prompt=PROMPT)
    lease = house.hand.claim()
    assert client.videos.delete(video.id).deleted
    assert lease.beat(10)
    lease.cancelled()
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_a_stage_that_does_not_say_what_it_can_make_keeps_nobody_waiting(
    house: Any, ask: Any
) -> None:
    class Silent:
        async def check(self, _task: Any) -> None:
            await asyncio.sleep(5)

    app = house.workshop.gateway(Silent(), timeout_s=0.1)
    headers = {"authorization": f"Bearer {house.keys[1]}"}
    asked = {"model": "moving", "prompt": PROMPT}
    answer = ask(app, "POST", "/v1/videos", json=asked, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


def test_too_many_are_refused_until_later(house: Any, client: OpenAI) -> None:
    house.workshop.jobs._most_open, before = 2, house.workshop.jobs._most_open
    try:
        ids = [client.videos.create(model="moving", prompt=PROMPT).id for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="at most 2 may") as caught:
            client.videos.create(model="moving", prompt=PROMPT)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 120
        for id in ids:
            client.videos.delete(id)
        client.videos.delete(client.videos.create(model="moving", prompt=PROMPT).id)
    finally:
        house.workshop.jobs._most_open = before


def test_progress_is_told_as_it_goes_on(house: Any, client: OpenAI) -> None:
    video = client.videos.create(model="moving", prompt=PROMPT)
    headers = {"authorization": f"Bearer {house.keys[0]}"}
    seen: list[tuple[str, int]] = []
    url = f"{house.address}/v1/videos/{video.id}/events"
    with httpx.stream("GET", url, headers=headers, timeout=60) as stream:
        lease = None
        for line in stream.iter_lines():
            if not line.startswith("data: "):
                continue
            body = json.loads(line.removeprefix("data: "))
            seen.append((body["type"], body["progress"]))
            if body["status"] == "queued":
                lease = house.hand.claim()
                lease.beat(40)
            elif body["progress"] == 40:
                house.hand.finish(lease)
    assert seen == [("video.progress", 0), ("video.progress", 40), ("video.completed", 100)]


def test_a_clip_whose_file_is_lost_is_gone_before_anything_of_it_was_sent(
    house: Any, client: OpenAI, made: Any
) -> None:
    result = house.workshop.jobs.get(made.id).result
    Path(result.uri.removeprefix("file://")).unlink()
    asked: Any = {"prompt": PROMPT, "video": {"id": made.id}, "model": "changing"}
    for ask in (
        lambda: client.videos.download_content(made.id),
        lambda: client.videos.download_content(made.id, variant="thumbnail"),
        lambda: client.post("/videos/edits", body=asked, cast_to=object),
    ):
        with pytest.raises(openai.APIStatusError) as told:
            ask()
        assert (told.value.status_code, told.value.code) == (410, "video_expired")


def test_an_expired_clip_is_gone_and_says_so(house: Any, client: OpenAI) -> None:
    video = client.videos.create(model="moving", prompt=PROMPT)
    house.hand.work()
    with Jobs(house.workshop.database, clock=lambda: 4e9) as later:
        later.sweep()
    assert client.videos.retrieve(video.id).status == "completed"
    with pytest.raises(openai.APIStatusError, match="kept for its time") as caught:
        client.videos.download_content(video.id)
    assert caught.value.status_code == 410
