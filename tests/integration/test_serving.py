"""The served application: the real client, promotions and lost replicas under load."""

import asyncio
import base64
import dataclasses
import io
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from infra import receipts, serving
from infra.keys import Keys
from infra.ledger import Ledger
from infra.registry import Registry, Version
from infra.settings import Settings
from infra.storage import seal
from models import describe
from models.diffusion.ddpm import DDPM
from models.family import Family

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

WORDS = ("a", "small", "red", "green", "circle", "square", "on", "the", "left")
PROMPT = "a small red circle"
NAME = "served-shapes"


@dataclass
class House:
    """One Ray, one Serve, one registry, one ledger."""

    settings: Settings
    key: str
    ledger: Ledger
    registry: Registry
    stages: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    moved: dict[int, datetime] = field(
        default_factory=dict
    )  # by epoch: when its promotion returned

    @property
    def url(self) -> str:
        return self.settings.gateway_url

    def client(self, **options: Any) -> openai.OpenAI:
        given = {"api_key": self.key, "max_retries": 0, "timeout": 120, **options}
        return openai.OpenAI(base_url=self.url, **given)

    def draw(self, **changes: Any) -> Any:
        asked = {"model": NAME, "prompt": PROMPT, "response_format": "b64_json", **changes}
        return self.client().images.generate(**asked)

    def replica(self, stage: str) -> int:
        """The process of a stage's replica, once there is one."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            state = serving.status(self.settings)
            if state and (pids := state["deployments"][stage]["pids"]):
                return int(pids[0])
            time.sleep(0.1)
        raise AssertionError(f"{stage} has no replica")

    def promote(self, number: int) -> None:
        """Load a version beside the serving one on every replica, then move the ledger."""
        before = self.ledger.head(NAME, "production")
        loaded = [number] if before is None else [number, before.to_version or number]
        serving.deploy(self.settings, [pin for one in loaded for pin in self.stages[one]])
        epoch = before.epoch if before else 0
        self.ledger.transition(
            name=NAME,
            stage="production",
            to_version=number,
            to_digest=self.registry.get(f"{NAME}:{number}").digest,
            expected_epoch=epoch,
            key=f"{NAME}/{epoch}",
            actor="test",
        )
        self.moved[epoch + 1] = datetime.now(UTC)

    def stood(self, receipt: receipts.Receipt, sent: datetime, answered: datetime) -> bool:
        """Whether the ledger's row of the receipt's epoch names its version and was in force at that time.

        In force: begun before the answer, and no promotion after it had returned when the request was sent.
        """
        rows = {row.epoch: row for row in self.ledger.history(NAME)}
        row = rows[receipt.epoch]
        newest = max((epoch for epoch, at in self.moved.items() if at < sent), default=0)
        named = f"{NAME}:{row.to_version}" == receipt.version and row.to_digest == receipt.digest
        return named and row.at <= answered and receipt.epoch >= newest


def network(kind: str, seed: int) -> Family:
    tiny = DDPM.presets["tiny"]
    torch.manual_seed(seed)
    if kind == "base":
        config = dataclasses.replace(tiny, vocabulary=WORDS)
    else:
        config = dataclasses.replace(tiny, image_size=16, low_size=8, text="none", guidance=1.0)
    model = DDPM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def publish_stage(registry: Registry, folder: Path, kind: str, seed: int) -> dict[str, Any]:
    from safetensors.torch import save_file

    model = network(kind, seed)
    making = folder / f"{kind}-{seed}"
    making.mkdir()
    (making / "config.json").write_text(json.dumps(describe(model)))
    save_file(model.state_dict(), making / "model.safetensors")
    seal(making, {"kind": "model", "name": f"{NAME}.{kind}", "seed": seed})
    version = registry.publish(f"{NAME}.{kind}", making, key=f"serving-{kind}-{seed}", tags={})
    return {
        "stage": kind,
        "name": version.name,
        "version": version.number,
        "sha256": version.digest,
        "accepts": {"prompt": "text"}
        if kind == "base"
        else {"prompt": "none", "picture": [3, 8, 8]},
        "steps": model.config.steps,
        "guidance": model.config.guidance,
    }


def publish(house: House, folder: Path, seed: int) -> Version:
    stages = [publish_stage(house.registry, folder, kind, seed) for kind in ("base", "upscaler")]
    making = folder / f"pipeline-{seed}"
    making.mkdir()
    document = {
        "format": 1,
        "endpoint": NAME,
        "stages": stages,
        "vocabulary": list(WORDS),
        "image_size": [16, 16],
    }
    (making / "pipeline.json").write_text(json.dumps(document))
    seal(making, {"kind": "pipeline", "name": NAME, "seed": seed})
    version = house.registry.publish(NAME, making, key=f"serving-pipeline-{seed}", tags={})
    house.stages[version.number] = [
        {"name": one["name"], "number": one["version"], "digest": one["sha256"]} for one in stages
    ]
    return version


@asynccontextmanager
async def http(house: House) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {house.key}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=house.url, headers=headers, timeout=120, limits=limits, trust_env=False
    ) as client:
        yield client


@pytest.fixture(scope="module")
def house(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The run's Ray and MLflow with a ledger and keys of their own, three versions, the first in production."""
    folder = tmp_path_factory.mktemp("serving")
    settings = Settings(database_url=f"sqlite:///{folder / 'atelier.db'}")
    house = House(
        settings,
        Keys(settings.database).create("tests"),
        Ledger(settings.database),
        Registry(settings.mlflow_uri, settings.state / "versions"),
    )
    for seed in (1, 2, 3):
        publish(house, folder, seed)
    house.promote(1)
    yield house
    serving.stop(settings)


def png(entry: Any) -> bytes:
    return base64.b64decode(entry["b64_json"] if isinstance(entry, dict) else entry.b64_json)


def pixels(entry: Any) -> Any:
    return np.asarray(Image.open(io.BytesIO(png(entry))))


def receipt(entry: Any) -> receipts.Receipt:
    return receipts.read(png(entry))


def test_the_client_draws_four_pictures_with_a_seed(house: House) -> None:
    answer = house.draw(n=4, extra_body={"seed": 40})
    assert [entry.seed for entry in answer.data] == [40, 41, 42, 43]
    assert pixels(answer.data[0]).shape == (16, 16, 3)
    assert receipt(answer.data[3]).version == f"{NAME}:1"
    assert receipt(answer.data[3]).request_id == answer._request_id


def test_a_seed_gives_the_same_bytes_alone_and_in_a_crowd(house: House) -> None:
    alone = [pixels(house.draw(extra_body={"seed": seed}).data[0]) for seed in range(6)]

    async def crowd() -> list[httpx.Response]:
        async with http(house) as client:
            bodies = [
                {"model": NAME, "prompt": PROMPT, "seed": seed, "n": 1 + seed % 3}
                for seed in range(6)
            ]
            posts = (client.post("/images/generations", json=body) for body in bodies)
            return await asyncio.gather(*posts)

    for before, answer in zip(alone, asyncio.run(crowd()), strict=True):
        np.testing.assert_array_equal(pixels(answer.json()["data"][0]), before)


def test_the_client_streams_partial_images(house: House) -> None:
    stream = house.client().images.generate(
        model=NAME, prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": 1}
    )
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    whole = house.draw(extra_body={"seed": 1}).data[0]
    np.testing.assert_array_equal(pixels(events[-1]), pixels(whole))


def test_the_client_lists_models_and_fetches_a_url(house: House) -> None:
    client = house.client()
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(f"{NAME}:1").id == f"{NAME}:1"
    [entry] = house.draw(response_format="url").data
    good = {"authorization": f"Bearer {house.key}"}
    assert httpx.get(entry.url, headers=good).content.startswith(b"\x89PNG")
    assert httpx.get(entry.url).status_code == 401


@pytest.mark.parametrize(
    ("changes", "kind", "param", "code"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model", "model_not_found"),
        ({"size": "7x7"}, openai.BadRequestError, "size", "invalid_value"),
        ({"n": 11}, openai.BadRequestError, "n", "integer_above_max_value"),
        ({"prompt": ""}, openai.BadRequestError, "prompt", "invalid_value"),
        ({"prompt": "a purple circle"}, openai.BadRequestError, "prompt", "invalid_value"),
    ],
)
def test_each_error_is_the_right_exception(
    house: House, changes: Any, kind: Any, param: str, code: str
) -> None:
    with pytest.raises(kind) as raised:
        house.draw(**changes)
    assert (raised.value.param, raised.value.code) == (param, code)
    assert raised.value.request_id
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["message"] in str(raised.value)


def test_a_wrong_key_is_an_authentication_error(house: House) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        house.client(api_key="wrong").models.list()
    assert raised.value.code == "invalid_api_key"


def test_a_full_queue_is_a_rate_limit_error_and_clients_that_leave_empty_it(house: House) -> None:
    async def flood() -> None:
        async with http(house) as client:
            body = {"model": NAME, "prompt": PROMPT, "n": 10, "steps": 200}
            tasks = [
                asyncio.create_task(client.post("/images/generations", json=body))
                for _ in range(40)
            ]
            done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert {task.result().status_code for task in done} == {429}
            with pytest.raises(openai.RateLimitError) as raised:
                await asyncio.to_thread(house.draw, n=10)
            assert raised.value.code == "queue_full"
            assert 1 <= int(raised.value.response.headers["retry-after"]) <= 120
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    asyncio.run(flood())
    deadline = time.monotonic() + 30
    while True:  # the queue empties when Serve has seen the clients go
        try:
            house.draw()
            return
        except openai.RateLimitError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@dataclass
class Outcome:
    sent: datetime
    answered: datetime
    status: int
    data: list[dict[str, Any]]


def slowest(outcomes: list[Outcome]) -> float:
    return max((one.answered - one.sent).total_seconds() for one in outcomes)


async def steadily(house: House, count: int, per_s: float, events: dict[int, Any]) -> list[Outcome]:
    """Send `count` requests at a rate, whatever the answers do; `events` are calls made at a request's turn."""

    async def one(client: httpx.AsyncClient, number: int) -> Outcome:
        body = {"model": NAME, "prompt": PROMPT, "seed": number % 10}
        sent = datetime.now(UTC)
        answer = await client.post("/images/generations", json=body)
        data = answer.json()["data"] if answer.status_code == 200 else [answer.json()]
        return Outcome(sent, datetime.now(UTC), answer.status_code, data)

    async with http(house) as client:
        started, tasks, calls = time.monotonic(), [], []
        for number in range(count):
            await asyncio.sleep(max(0.0, started + number / per_s - time.monotonic()))
            if number in events:
                calls.append(asyncio.create_task(asyncio.to_thread(events[number])))
            tasks.append(asyncio.create_task(one(client, number)))
        await asyncio.gather(*calls)
        return await asyncio.gather(*tasks)


def test_promotions_under_load_fail_no_request_and_receipts_agree_with_the_ledger(
    house: House,
) -> None:
    events = {100: lambda: house.promote(2), 250: lambda: house.promote(3)}
    outcomes = asyncio.run(steadily(house, 400, 16.0, events))
    failed = [outcome for outcome in outcomes if outcome.status != 200]
    assert not failed, f"{len(failed)} failed: {failed[0].data}"
    served = {1: 0, 2: 0, 3: 0}
    for outcome in outcomes:
        found = receipt(outcome.data[0])
        assert found.place == "production"
        assert house.stood(found, outcome.sent, outcome.answered)
        served[int(found.version.partition(":")[2])] += 1
    assert min(served.values()) > 0, served
    print(f"\npromotions: 0 of 400 failed, {served}, slowest {slowest(outcomes):.2f} s")  # noqa: T201


def test_a_killed_stage_replica_fails_no_request(house: House) -> None:
    def kill(stage: str) -> None:
        os.kill(house.replica(stage), signal.SIGKILL)

    events = {20: lambda: kill("Generate"), 22: lambda: kill("Upscale")}
    outcomes = asyncio.run(steadily(house, 120, 6.0, events))
    failed = [outcome for outcome in outcomes if outcome.status != 200]
    assert not failed, f"{len(failed)} failed: {failed[0].data}"
    print(f"\nkilled replicas: 0 of 120 failed, slowest {slowest(outcomes):.2f} s")  # noqa: T201


def test_a_stream_that_is_cut_ends_with_an_error(house: House) -> None:
    stream = house.client().images.generate(
        model=NAME,
        prompt=PROMPT,
        n=10,
        stream=True,
        partial_images=3,
        extra_body={"steps": 200},
    )

    pid = house.replica("Generate")

    def watch_and_kill() -> None:
        for event in stream:
            if event.type.endswith("partial_image"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(openai.APIError, match="lost while drawing"):
        watch_and_kill()
    assert house.draw().data


def test_a_version_that_cannot_be_loaded_fails_the_deploy_and_not_the_service(
    house: House,
) -> None:
    lost = {"name": f"{NAME}.base", "number": 99, "digest": "f" * 64}
    with pytest.raises(serving.ServingError, match=f"{NAME}.base:99 cannot be loaded"):
        serving.deploy(house.settings, [*house.stages[3], lost])
    assert house.draw().data
    state = serving.status(house.settings)
    assert state is not None
    assert state["status"] == "RUNNING"
