import asyncio
import base64
import io
import json
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.receipts import receipts
from infra.receipts.signing import Signing
from infra.registry.registry import Registry
from models.family import Family
from services.gateway import errors
from services.gateway.guard import require_key_off_loopback
from services.media.result_store import Files
from services.pipelines.payload import GenerationSpec, StageTask
from services.routing.endpoints import Endpoints
from services.stages.deployment import Stage
from tests.services.conftest import Workshop

IMAGES = "/v1/images/generations"
INVALID_JSON = (400, "invalid_json", "body")
TABLES = ("jobs", "webhook_endpoints", "transitions")
Ask = Callable[..., httpx.Response]


def pixels(encoded: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def raw(content: bytes) -> dict[str, Any]:
    return {"content": content, "headers": {"content-type": "application/json"}}


def error(response: httpx.Response) -> tuple[int, Any, Any]:
    body = response.json()["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    assert body["message"]
    assert response.headers["x-request-id"]
    return response.status_code, body["code"], body["param"]


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "shapes", "prompt": "a small red circle", "seed": 7, **changes}


def test_pictures_come_with_their_seeds_and_receipts(app: Any, ask: Ask) -> None:
    answer = ask(app, "POST", IMAGES, json=body(n=3, steps=2, guidance=2.0)).json()
    assert [entry["seed"] for entry in answer["data"]] == [7, 8, 9]
    receipt = receipts.read(base64.b64decode(answer["data"][2]["b64_json"]))
    assert (receipt.version, receipt.seed, receipt.steps, receipt.guidance) == ("shapes:1", 9, 2, 2)
    assert receipt.generator == receipts.GENERATOR
    assert [stage.name for stage in receipt.stages] == ["shapes.base", "shapes.up1"]
    assert pixels(answer["data"][0]["b64_json"]).shape == (16, 16, 3)


def test_seeds_may_be_negative_and_after_the_largest_comes_the_smallest(app: Any, ask: Ask) -> None:
    for seed in (-1, 2**63 - 1):
        answer = ask(app, "POST", IMAGES, json=body(n=2, seed=seed)).json()["data"]
        assert [entry["seed"] for entry in answer] == [seed, 0 if seed == -1 else -(2**63)]
        alone = ask(app, "POST", IMAGES, json=body(seed=answer[1]["seed"])).json()["data"][0]
        np.testing.assert_array_equal(pixels(alone["b64_json"]), pixels(answer[1]["b64_json"]))


def test_the_same_seed_gives_the_same_picture_alone_and_in_a_crowd(app: Any, ask: Ask) -> None:
    alone = ask(app, "POST", IMAGES, json=body()).json()["data"][0]
    again = ask(app, "POST", IMAGES, json=body(n=10, seed=1)).json()["data"][6]
    np.testing.assert_array_equal(pixels(alone["b64_json"]), pixels(again["b64_json"]))


def test_a_stream_shows_the_picture_growing_and_then_whole(app: Any, ask: Ask) -> None:
    response = ask(app, "POST", IMAGES, json=body(stream=True, partial_images=2))
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response)
    assert [event["type"].rpartition(".")[2] for event in found] == ["partial_image"] * 2 + [
        "completed"
    ]
    assert [event["partial_image_index"] for event in found[:2]] == [0, 1]
    assert pixels(found[0]["b64_json"]).shape == (16, 16, 3)
    whole = ask(app, "POST", IMAGES, json=body()).json()["data"][0]
    np.testing.assert_array_equal(pixels(found[2]["b64_json"]), pixels(whole["b64_json"]))


def test_a_picture_by_url_can_be_fetched(app: Any, ask: Ask) -> None:
    [entry] = ask(app, "POST", IMAGES, json=body(response_format="url")).json()["data"]
    picture = ask(app, "GET", entry["url"])
    assert picture.headers["content-type"] == "image/png"
    assert receipts.read(picture.content).seed == 7
    for path in ("/v1/files/../secret", "/v1/files/secret.png", f"/v1/files/{'0' * 64}.png"):
        assert ask(app, "GET", path).status_code == 404


def test_a_link_opens_by_itself_at_every_replica_where_keys_are_needed(
    workshop: Any, app: Any, ask: Ask, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.keys import Keys

    keys = Keys(f"sqlite:///{tmp_path / 'keys.db'}")
    good = {"authorization": f"Bearer {keys.create('mine')}"}
    stage = workshop.stage()
    replicas = [workshop.gateway(stage, host="0.0.0.0") for _ in range(2)]
    for replica in replicas:
        monkeypatch.setattr(replica, "_keys", keys)
    asked = body(response_format="url", seed=70)
    [entry] = ask(replicas[0], "POST", IMAGES, json=asked, headers=good).json()["data"]
    elsewhere = {"host": "models.example.org"}
    picture = ask(replicas[1], "GET", entry["url"], headers=elsewhere)
    assert receipts.read(picture.content).seed == 70
    assert 3500 < int(re.findall(r"max-age=(\d+)", picture.headers["cache-control"])[0]) <= 3600

    plain, _, query = entry["url"].partition("?")
    expires = int(re.findall(r"expires=(\d+)", query)[0])
    assert error(ask(replicas[1], "GET", plain)) == (401, "invalid_api_key", None)
    for altered in (
        query.replace(str(expires), str(expires + 1)),
        query.replace(f"expires={expires}&", ""),
        query[:-1] + ("0" if query[-1] != "0" else "1"),
        query.replace("signature=", "signature=%C3%A9"),
        "signature=",
    ):
        told = ask(replicas[1], "GET", f"{plain}?{altered}")
        assert error(told) == (404, "file_not_found", None), altered
    other = f"/v1/files/{'0' * 64}.png?{query}"
    assert error(ask(replicas[1], "GET", other)) == (404, "file_not_found", None)
    for route in ("/v1/models", "/v1/filesystem"):
        assert ask(replicas[1], "GET", f"{route}?{query}").status_code == 401
    stage.close()


def test_a_link_s_time_ends_and_a_file_that_is_asked_for_again_is_the_newest(
    app: Any, ask: Ask, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.media.result_store.LINK_S", 0)
    [entry] = ask(app, "POST", IMAGES, json=body(response_format="url")).json()["data"]
    assert error(ask(app, "GET", entry["url"])) == (403, "link_expired", None)
    monkeypatch.undo()
    files = Files(tmp_path / "files", Signing(tmp_path / "key"), max_files=10)
    names = [files.put(bytes([number])) for number in range(10)]
    for age, name in enumerate(reversed(names)):
        os.utime(tmp_path / "files" / name, (1e9 - age, 1e9 - age))
    assert files.put(b"\x00") == names[0]
    files.put(b"more")
    left = {path.name for path in (tmp_path / "files").glob("*.png")}
    assert names[0] in left
    assert names[1] not in left


def test_a_link_leads_to_the_public_address(workshop: Any, ask: Ask) -> None:
    stage = workshop.stage()
    public = "https://models.example.org"
    try:
        app = workshop.gateway(stage, public_url=public)
        [entry] = ask(app, "POST", IMAGES, json=body(response_format="url")).json()["data"]
        assert entry["url"].startswith(f"{public}/v1/files/")
    finally:
        stage.close()


def test_a_pipeline_without_text_draws_from_an_empty_prompt(app: Any, ask: Ask) -> None:
    answer = ask(app, "POST", IMAGES, json={"model": "digits", "prompt": "", "n": 2})
    assert pixels(answer.json()["data"][0]["b64_json"]).ndim == 2
    told = ask(app, "POST", IMAGES, json={"model": "digits", "prompt": "two"})
    assert error(told) == (400, "invalid_value", "prompt")
    steps = ask(app, "POST", IMAGES, json={"model": "digits", "prompt": "", "steps": 3})
    assert error(steps) == (400, "invalid_value", "steps")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "nope"}, (404, "model_not_found", "model")),
        ({"model": "shapes@staging"}, (404, "model_not_found", "model")),
        ({"model": "shapes.base"}, (404, "model_not_found", "model")),
        ({"model": None}, (400, "invalid_value", "model")),
        ({"prompt": ""}, (400, "invalid_value", "prompt")),
        ({"prompt": "a purple circle"}, (400, "invalid_value", "prompt")),
        ({"prompt": "a\x07"}, (400, "invalid_value", "prompt")),
        ({"prompt": 3}, (400, "invalid_type", "prompt")),
        ({"n": 11}, (400, "integer_above_max_value", "n")),
        ({"n": 0}, (400, "integer_below_min_value", "n")),
        ({"n": "2"}, (400, "invalid_type", "n")),
        ({"size": "1024x1024"}, (400, "invalid_value", "size")),
        ({"steps": 251}, (400, "integer_above_max_value", "steps")),
        ({"n": 10, "steps": 250}, (400, "invalid_value", "steps")),
        ({"steps": 3, "num_inference_steps": 3}, (400, "invalid_value", "steps")),
        ({"guidance": 51.0}, (400, "integer_above_max_value", "guidance")),
        ({"temperature": 2.5}, (400, "integer_above_max_value", "temperature")),
        ({"temperature": 0.5}, (400, "invalid_value", "temperature")),  # of codes, it has none
        ({"top_k": 4}, (400, "invalid_value", "top_k")),
        ({"top_k": 2**63}, (400, "integer_above_max_value", "top_k")),
        ({"output_format": "webp"}, (400, "invalid_value", "output_format")),
        ({"background": "transparent"}, (400, "invalid_value", "background")),
        ({"partial_images": 1}, (400, "invalid_value", "partial_images")),
        ({"negative": "x"}, (400, "unknown_parameter", "negative")),
        ({"negative_prompt": "a purple circle"}, (400, "invalid_value", "negative_prompt")),
        (
            {"negative_prompt": "a red circle", "guidance": 1.0},
            (400, "invalid_value", "negative_prompt"),
        ),
        ({"seed": 2**63}, (400, "integer_above_max_value", "seed")),
        ({"seed": -(2**63) - 1}, (400, "integer_below_min_value", "seed")),
    ],
)
def test_what_is_wrong_is_named(app: Any, ask: Ask, changes: Any, expected: Any) -> None:
    assert error(ask(app, "POST", IMAGES, json=body(**changes))) == expected


def test_a_negative_prompt_changes_the_picture_and_its_receipt_says_so(app: Any, ask: Ask) -> None:
    def drawn(**changes: Any) -> tuple[Any, Any]:
        answer = ask(app, "POST", IMAGES, json=body(seed=7, guidance=3.0, **changes))
        file = answer.json()["data"][0]["b64_json"]
        return pixels(file), receipts.read(base64.b64decode(file))

    (plain, _), (same, _) = drawn(), drawn(negative_prompt="")
    away, receipt = drawn(negative_prompt="a green square")
    np.testing.assert_array_equal(same, plain)
    assert (away != plain).any()
    assert receipt.options == {"negative_prompt": "a green square"}


def test_an_unknown_word_is_named_with_what_the_model_knows(app: Any, ask: Ask) -> None:
    told = ask(app, "POST", IMAGES, json=body(prompt="a small gren circle", stream=True))
    assert "'gren'; did you mean 'green'" in told.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "options", "expected"),
    [
        ("GET", "/v1/nothing", {}, (404, "unknown_url", None)),
        ("PUT", IMAGES, {}, (405, "method_not_allowed", None)),
        ("POST", IMAGES, {"content": b"{"}, (415, "unsupported_media_type", None)),
        ("POST", IMAGES, {"json": [1]}, (400, "invalid_type", "body")),
        ("POST", IMAGES, {"json": {}}, (400, "missing_required_parameter", "prompt")),
        ("POST", IMAGES, {"json": "x" * 1_100_000}, (413, "body_too_large", None)),
        ("POST", IMAGES, raw(b"[" * 1_000_000), INVALID_JSON),
        ("POST", IMAGES, raw(b'{"user":' * 100_000), INVALID_JSON),
        ("POST", IMAGES, raw(b'{"seed": 1, "seed": 2}'), INVALID_JSON),
        ("POST", IMAGES, raw(b'{"prompt": "\\ud83d"}'), (400, "invalid_value", "prompt")),
        ("POST", IMAGES, raw(b"[" * 3_000_000), (413, "body_too_large", None)),
        ("GET", "/v1/models/nope", {}, (404, "model_not_found", "model")),
        ("GET", "/v1/models/a/b", {}, (404, "model_not_found", "model")),
        (
            "GET",
            "/v1/models",
            {"headers": {"X-Request-Timeout-Seconds": "-1"}},
            (400, "header", "x-request-timeout-seconds"),
        ),
        (
            "GET",
            "/v1/models",
            {"headers": {"serve_multiplexed_model_id": "x"}},
            (400, "header", "serve_multiplexed_model_id"),
        ),
    ],
)
def test_every_error_has_the_envelope(
    app: Any, ask: Ask, method: str, path: str, options: Any, expected: Any
) -> None:
    assert error(ask(app, method, path, **options)) == expected


def test_a_body_is_cut_off_while_it_streams(app: Any, ask: Ask) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b" " * 65536

    headers = {"content-type": "application/json"}
    told = ask(app, "POST", IMAGES, content=endless(), headers=headers)
    assert error(told) == (413, "body_too_large", None)
    assert sent <= 17  # 64 KiB each, and 1 MiB may come


def test_a_request_id_is_taken_over_where_it_is_one(app: Any, ask: Ask) -> None:
    mine = ask(app, "GET", "/healthz", headers={"x-request-id": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"
    odd = ask(app, "GET", "/healthz", headers={"x-request-id": "a b" * 100})
    assert odd.headers["x-request-id"] != "a b" * 100


def test_models_are_listed_and_found_by_every_name(workshop: Any, app: Any, ask: Ask) -> None:
    listed = ask(app, "GET", "/v1/models").json()["data"]
    mine = [card for card in listed if card["id"] in {"digits", "shapes"}]  # others add theirs
    assert [(card["id"], card["version"]) for card in mine] == [
        ("digits", "digits:1"),
        ("shapes", "shapes:1"),
    ]
    card = ask(app, "GET", "/v1/models/shapes@production").json()
    assert (card["size"], card["reads_text"], card["stages"]) == (
        "16x16",
        True,
        ["shapes.base:1", "shapes.up1:1"],
    )


def test_a_promoted_version_answers_the_very_next_request(
    workshop: Any, networks: Callable[..., Family], ask: Ask
) -> None:
    stage = workshop.stage()
    app = workshop.gateway(stage)
    first, second = (workshop.publish_pipeline("fresh", networks("base", seed)) for seed in (1, 2))
    for version in (first, second, first):
        workshop.promote(version)
        [entry] = ask(app, "POST", IMAGES, json=body(model="fresh")).json()["data"]
        receipt = receipts.read(base64.b64decode(entry["b64_json"]))
        assert receipt.digest == version["digest"]
    stage.close()


@pytest.mark.parametrize("path", ["videos", "files", "batches", "webhook_endpoints", "models"])
def test_a_database_that_cannot_be_used_answers_503(own_workshop: Any, ask: Ask, path: str) -> None:
    nothing: Any = None
    app = own_workshop.gateway(nothing)
    assert ask(app, "GET", f"/v1/{path}").status_code == 200
    with sqlite3.connect(own_workshop.folder / "atelier.db") as database:
        for table in TABLES:
            database.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
    told = ask(app, "GET", f"/v1/{path}")
    assert error(told) == (503, "unavailable", None)
    assert int(told.headers["retry-after"]) >= 1
    with sqlite3.connect(own_workshop.folder / "atelier.db") as database:
        for table in TABLES:
            database.execute(f"ALTER TABLE {table}_away RENAME TO {table}")
    assert ask(app, "GET", f"/v1/{path}").status_code == 200


class Slow(Registry):
    """A registry whose versions come when they may."""

    def __init__(self, cache: Path) -> None:
        super().__init__("http://127.0.0.1:9", cache)
        self.came, self.go, self.fetched = threading.Event(), threading.Event(), list[str]()

    def fetch(self, ref: str, *, digest: str) -> Path:
        self.fetched.append(ref)
        self.came.set()
        assert self.go.wait(60)
        return super().fetch(ref, digest=digest)


def test_versions_that_are_being_loaded_hold_up_nothing_else(workshop: Any) -> None:
    registry = Slow(workshop.cache)
    stage = Stage({"tracking_uri": "sqlite:///none", "cache": workshop.cache}, registry)
    pinned = Endpoints(workshop.ledger, workshop.registry).resolve("shapes").pipeline.stages[0]
    task = StageTask(pin=pinned.pin, spec=GenerationSpec(seeds=(1,), prompts=("a red circle",)))

    async def run() -> None:
        with ThreadPoolExecutor(2) as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            asked = [asyncio.create_task(stage.check(task)) for _ in range(8)]
            while not registry.came.is_set():
                await asyncio.sleep(0.01)
            asked[0].cancel()  # who goes leaves it to the others
            try:
                async with asyncio.timeout(10):
                    assert await asyncio.to_thread(lambda: "free") == "free"
            finally:
                registry.go.set()
            assert await asyncio.gather(*asked[1:]) == [None] * 7

    asyncio.run(run())
    assert registry.fetched == [pinned.pin.ref]
    stage.close()


def test_a_damaged_version_answers_503_and_the_others_go_on(
    workshop: Any, networks: Callable[..., Family], ask: Ask
) -> None:
    version = workshop.publish_pipeline("damaged", networks("base", 3))
    weights = workshop.cache / version["stages"][0]["sha256"] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    workshop.promote(version)
    stage = workshop.stage()
    app = workshop.gateway(stage)
    told = ask(app, "POST", IMAGES, json=body(model="damaged"))
    assert error(told) == (503, "unavailable", None)
    assert int(told.headers["retry-after"]) >= 1
    assert ask(app, "POST", IMAGES, json=body()).status_code == 200
    workshop.ledger.transition(
        name="damaged", stage="production", to_version=None, to_digest=None,
        expected_epoch=1, key="damaged-out", actor="test",
    )  # fmt: skip
    stage.close()


def test_what_is_damaged_is_not_listed_but_an_outage_of_the_registry_is_said(
    tmp_path: Path, networks: Callable[..., Family], ask: Ask
) -> None:
    shop = Workshop(tmp_path)  # of its registry no server is there
    shop.cache.mkdir()
    stage = shop.stage()
    app = shop.gateway(stage)
    shop.promote(shop.publish("damaged", {"pipeline.json": {"format": 1}}))
    nothing = ask(app, "GET", "/v1/models")
    assert error(nothing)[:2] == (503, "unavailable"), "of which nobody would know"
    shop.promote(shop.publish_pipeline("whole", networks("vae")))
    assert [one["id"] for one in ask(app, "GET", "/v1/models").json()["data"]] == ["whole"]
    assert ask(app, "GET", "/v1/audio/voices").status_code == 200
    elsewhere = shop.publish_pipeline("elsewhere", networks("vae"))
    shutil.rmtree(shop.cache / elsewhere["digest"])  # as on a machine that never fetched it
    shop.promote(elsewhere)
    for path in ("/v1/models", "/v1/audio/voices"):
        away = ask(app, "GET", path)
        assert error(away)[:2] == (503, "unavailable"), "a short list would pass for all"
        assert "the registry cannot be reached" in away.json()["error"]["message"]
    stage.close()


def test_reconfiguring_loads_what_is_listed_and_reports_what_cannot_be(
    workshop: Any, networks: Callable[..., Family], ask: Ask
) -> None:
    stage = workshop.stage()
    app = workshop.gateway(stage)
    stages = workshop.publish_pipeline("listed", networks("base"), networks("upscaler"))["stages"]
    pins = [
        {"name": s["name"], "number": s["version"], "digest": s["sha256"], "family": s["family"]}
        for s in stages
    ]
    lost = {**pins[0], "number": 9, "digest": "f" * 64}
    workshop.readiness.expect([*pins, lost])
    asyncio.run(stage.reconfigure({"versions": [*pins, lost]}))
    wanted = "&".join(f"digest={pin['digest']}" for pin in pins)
    assert ask(app, "GET", f"/readyz?{wanted}").status_code == 200
    told = ask(app, "GET", f"/readyz?digest={lost['digest']}")
    assert told.status_code == 503
    assert "listed.base:9 cannot be loaded" in told.json()["missing"][lost["digest"]]
    stage.close()


def test_a_version_with_one_stage_trained_anew_keeps_the_others_weights_and_is_rolled_back_as_one(
    own_workshop: Any, networks: Callable[..., Family], ask: Ask
) -> None:
    """What both versions pin is stored once and loaded once; after the way back the same bits are drawn."""
    first, second = (
        own_workshop.publish_pipeline("pair", networks("base", seed), networks("upscaler"))
        for seed in (0, 1)
    )
    bases, upscalers = (
        [version["stages"][place]["sha256"] for version in (first, second)] for place in (0, 1)
    )
    assert (bases[0] != bases[1], upscalers[0] == upscalers[1]) == (True, True)
    stored = {path.name for path in own_workshop.cache.iterdir()}
    assert stored == {first["digest"], second["digest"], *bases, *upscalers}
    stage = own_workshop.stage()
    app = own_workshop.gateway(stage)

    def drawn(version: dict[str, Any], stages: Any) -> Any:
        own_workshop.promote(version)
        encoded = ask(app, "POST", IMAGES, json=body(model="pair")).json()["data"][0]["b64_json"]
        receipt = receipts.read(base64.b64decode(encoded))
        assert receipt.version == f"pair:{version['number']}"
        assert tuple(one.sha256 for one in receipt.stages) == stages
        return pixels(encoded)

    before = drawn(first, (bases[0], upscalers[0]))
    for digest in (bases[0], upscalers[0]):  # who read them again would be found out
        (own_workshop.cache / digest / "model.safetensors").unlink()
    anew = drawn(second, (bases[1], upscalers[0]))
    back = drawn(first, (bases[0], upscalers[0]))
    assert sorted(asyncio.run(stage.status())["loaded"]) == sorted({*bases, *upscalers})
    stage.close()
    assert (anew != before).any()
    np.testing.assert_array_equal(back, before)


def test_a_full_queue_answers_429_with_a_time_to_come_back(workshop: Any) -> None:
    stage = workshop.stage(max_waiting=2)
    app = workshop.gateway(stage)

    async def crowd() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            bodies = [body(n=4, steps=100, seed=seed) for seed in range(12)]
            return await asyncio.gather(*(client.post(IMAGES, json=one) for one in bodies))

    answers = asyncio.run(crowd())
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert error(answer) == (429, "queue_full", None)
            assert 1 <= int(answer.headers["retry-after"]) <= 120
    stage.close()


def test_a_client_that_leaves_frees_the_model(workshop: Any) -> None:
    stage = workshop.stage()
    app = workshop.gateway(stage)

    async def leave() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            long = body(n=8, steps=250)
            tasks = [asyncio.create_task(client.post(IMAGES, json=long)) for _ in range(4)]
            while (await stage.status())["waiting"] == 0:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert (await stage.status())["waiting"] == 0
            assert (await client.post(IMAGES, json=body())).status_code == 200

    asyncio.run(leave())
    stage.close()


def test_with_a_key_every_route_but_health_asks_for_it(
    workshop: Any, app: Any, ask: Ask, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.keys import Keys

    keys = Keys(f"sqlite:///{tmp_path / 'keys.db'}")
    with pytest.raises(ValueError, match="no API key"):
        require_key_off_loopback("0.0.0.0", keys)
    monkeypatch.setattr(app, "_keys", keys)
    monkeypatch.setattr(app, "_verdicts", {})
    assert ask(app, "GET", "/v1/models").status_code == 200
    for name in ("localhost:8000", "[::1]:8000"):
        assert ask(app, "GET", "/v1/models", headers={"host": name}).status_code == 200
    rebound = ask(app, "GET", "/v1/models", headers={"host": "evil.example:8000"})
    assert error(rebound) == (421, "misdirected_request", "host")
    key = keys.create("mine")
    monkeypatch.setattr(app, "_verdicts", {})
    require_key_off_loopback("0.0.0.0", keys)
    described = app._app.openapi()["paths"]
    routes = [(path, method.upper()) for path, one in described.items() for method in one]
    routes.append(("/v1/openapi.json", "GET"))
    assert ("/v1/images/generations", "POST") in routes
    for path, method in [*routes, ("/nowhere", "GET")]:
        if path not in {"/healthz", "/readyz"}:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
                told = ask(app, method, path, headers=headers)
                assert error(told) == (401, "invalid_api_key", None) if method != "HEAD" else True
                assert told.status_code == 401
                assert told.headers["x-should-retry"] == "false"
                assert told.headers["www-authenticate"] == 'Bearer realm="atelier"'
    good = {"authorization": f"Bearer {key}", "host": "atelier.example"}
    assert ask(app, "GET", "/v1/models", headers=good).status_code == 200
    assert ask(app, "GET", "/healthz").status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = [
    "prompt", "model", "n", "size", "response_format", "output_format", "stream", "partial_images",
    "seed", "steps", "guidance", "num_inference_steps", "guidance_scale", "quality", "user", "extra",
]  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5)
    | st.fixed_dictionaries({"prompt": st.text(max_size=40), "model": st.text(max_size=12)})
)
def test_no_json_is_answered_with_a_server_error(app: Any, ask: Ask, document: Any) -> None:
    told = ask(app, "POST", IMAGES, content=json.dumps(document).encode(), headers=AS_JSON)
    if told.status_code != 200:
        assert 400 <= error(told)[0] < 500


AS_JSON = {"content-type": "application/json"}


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200) | st.integers(1, 60_000).map(lambda depth: b"[" * depth))
def test_no_bytes_are_answered_with_a_server_error(app: Any, ask: Ask, content: bytes) -> None:
    assert 400 <= error(ask(app, "POST", IMAGES, content=content, headers=AS_JSON))[0] < 500


def test_the_tree_of_errors_names_every_code_that_an_answer_may_have() -> None:
    folder = Path(errors.__file__).parents[1]
    source = "".join(path.read_text() for path in sorted(folder.rglob("*.py")))
    raised = {*re.findall(r'code="([a-z_]+)"', source), *errors.CODES.values()}
    tree = (errors.__doc__ or "").partition("ApiError\n")[2].partition("\n\n")[0]
    assert raised <= {*re.findall(r"[a-z_]+", tree)}
