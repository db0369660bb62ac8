"""A served house: tiny pipelines in a registry and a ledger of their own, on the run's Ray, and a steady load."""

import asyncio
import base64
import dataclasses
import io
import json
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import numpy as np
import openai
import torch
from PIL import Image

from infra import serving
from infra.ledger.ledger import Ledger
from infra.pipelines import PinnedStage, Pipeline, chained, read_pipeline
from infra.receipts import receipts
from infra.registry.registry import Registry, Version
from infra.settings import Settings
from infra.storage import seal
from models import describe
from models.diffusion.ddpm import DDPM
from models.family import Family
from services.pipelines.executor import Executor
from services.pipelines.payload import GenerationSpec
from services.stages.deployment import Stage

WORDS = ("a", "small", "red", "green", "circle", "square", "on", "the", "left")
PROMPT = "a small red circle"
Change = Callable[[Any], None]
NAME = "served-shapes"
Found = TypeVar("Found")
PATIENCE_S: Final = 600.0
"""With what takes seconds on a machine at rest: what never comes fails, and what comes late on a busy one does not."""


def wait_for(what: str, look: Callable[[], Found | None]) -> Found:
    """Give what `look` finds, once it finds something; looks, which cost a server's time, less and less often."""
    ends, pause = time.monotonic() + PATIENCE_S, 0.1
    while not (found := look()):
        assert time.monotonic() < ends, f"no {what} within {PATIENCE_S:.0f} s"
        time.sleep(pause)
        pause = min(1.0, 1.3 * pause)
    return found


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
    answered: dict[int, threading.Event] = field(
        default_factory=lambda: defaultdict(threading.Event)
    )  # by epoch: set by the first answer under it
    capacity: float = 0.0  # answers a second, once measured

    @property
    def url(self) -> str:
        return self.settings.gateway_url

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.key, max_retries=0, timeout=120)

    def draw(self, **changes: Any) -> Any:
        asked = {"model": NAME, "prompt": PROMPT, "response_format": "b64_json", **changes}
        return self.client.images.generate(**asked)

    def replica(self, stage: str) -> int:
        """The process of a stage's replica, once there is one."""

        def pids() -> list[int] | None:
            state = serving.status(self.settings)
            return state["deployments"][stage]["pids"] if state else None

        return int(wait_for(f"replica of {stage}", pids)[0])

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

    def promote_and_see(self, number: int) -> datetime:
        """Promote under load; give when the move began, once somebody was answered under the new epoch."""
        began = datetime.now(UTC)
        self.promote(number)
        epoch = max(self.moved)
        assert self.answered[epoch].wait(PATIENCE_S), f"nobody was answered in epoch {epoch}"
        return began

    def stood(self, receipt: receipts.Receipt, sent: datetime, answered: datetime) -> bool:
        """Whether the ledger's row of the receipt's epoch names its version and was in force at that time.

        In force: begun before the answer, and no promotion after it had returned when the request was sent.
        """
        history = self.ledger.history(NAME)
        rows = {row.epoch: row for row in history if row.stage == "production"}
        row = rows[receipt.epoch]
        newest = max((epoch for epoch, at in self.moved.items() if at < sent), default=0)
        named = f"{NAME}:{row.to_version}" == receipt.version and row.to_digest == receipt.digest
        return named and row.at <= answered and receipt.epoch >= newest


def network(kind: str, seed: int, side: int = 8) -> Family:
    tiny = DDPM.presets["tiny"]
    torch.manual_seed(seed)
    if kind == "base":
        config = dataclasses.replace(tiny, vocabulary=WORDS, image_size=side)
    else:
        reads = {"vocabulary": WORDS} if kind == "captioned" else {"text": "none"}
        config = dataclasses.replace(
            tiny, image_size=max(16, side), low_size=side, guidance=1.0, **reads
        )
    model = DDPM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def publish_stage(
    registry: Registry, folder: Path, kind: str, seed: int, change: Change, side: int
) -> dict[str, Any]:
    from safetensors.torch import save_file

    model = network(kind, seed, side)
    with torch.no_grad():
        change(model)
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
        "family": "ddpm",
        "accepts": {"prompt": "text"}
        if kind == "base"
        else {"prompt": "none", "picture": [3, side, side]},
        "gives": {"picture": [3, model.config.image_size, model.config.image_size]},
        "steps": model.config.steps,
        "guidance": model.config.guidance,
    }


def publish(
    house: House, folder: Path, seed: int, change: Change = lambda _model: None, side: int = 8
) -> Version:
    """Publish a pipeline of two networks with random weights, each `change`d before it is saved."""
    stages = [
        publish_stage(house.registry, folder, kind, seed, change, side)
        for kind in ("base", "upscaler")
    ]
    making = folder / f"pipeline-{seed}"
    making.mkdir()
    document = {
        "format": 1,
        "endpoint": NAME,
        "stages": stages,
        "vocabulary": list(WORDS),
        "image_size": [max(16, side)] * 2,
    }
    (making / "pipeline.json").write_text(json.dumps(document))
    seal(making, {"kind": "pipeline", "name": NAME, "seed": seed})
    version = house.registry.publish(NAME, making, key=f"serving-pipeline-{seed}", tags={})
    house.stages[version.number] = [
        {
            "name": one["name"],
            "number": one["version"],
            "digest": one["sha256"],
            "family": one["family"],
        }
        for one in stages
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


def publish_wired(house: House, folder: Path, seed: int) -> Version:
    """Publish a cascade that is no chain, its upscaler reads the text too, with the entrance `edit`."""
    registry, nothing = house.registry, lambda _model: None
    found = [
        publish_stage(registry, folder, kind, seed, nothing, 8) for kind in ("base", "captioned")
    ]
    stages = []
    for document, kind in zip(found, ("base", "captioned"), strict=True):
        model = network(kind, seed)
        inputs, outputs = (
            {name: str(port) for name, port in of.items()} for of in (model.inputs, model.outputs)
        )
        known = {name: document[name] for name in ("stage", "name", "version", "sha256", "family")}
        stages.append(PinnedStage(**known, inputs=inputs, outputs=outputs))
    pipeline = Pipeline(
        endpoint=NAME,
        abilities=("images", "edits"),
        stages=tuple(stages),
        entrances={"generate": chained(stages), "edit": chained(stages, edits=True)},
        vocabulary=WORDS,
        image_size=(16, 16),
    )
    making = folder / f"pipeline-wired-{seed}"
    making.mkdir()
    (making / "pipeline.json").write_text(pipeline.model_dump_json())
    seal(making, {"kind": "pipeline", "name": NAME, "seed": seed})
    return registry.publish(NAME, making, key=f"serving-wired-{seed}", tags={})


def check_wired(house: House, folder: Path, seed: int) -> None:
    """Check that such a cascade, and an edit with it, are what one process without a server makes."""
    version = publish_wired(house, folder, seed)
    asked = {"model": f"{NAME}:{version.number}", "extra_body": {"seed": 5}}
    answer = house.draw(n=2, **asked)
    for entry, expected in zip(
        answer.data, in_one_process(house, version.number, (5, 6)), strict=True
    ):
        np.testing.assert_array_equal(pixels(entry), expected)
    picture, alpha = pixels(answer.data[0]), np.full((16, 16), 255, np.uint8)
    alpha[4:12, 4:12] = 0
    clear = io.BytesIO()
    Image.fromarray(np.dstack([picture, alpha])).save(clear, "PNG")
    edited = house.client.images.edit(
        image=("in.png", png(answer.data[0])), mask=("mask.png", clear.getvalue()),
        prompt=PROMPT, response_format="b64_json", **asked,
    )  # fmt: skip
    given = {
        "image": picture.transpose(2, 0, 1)[None].astype(np.float32) / 255,
        "mask": (alpha == 0)[None, None].astype(np.float32),
    }
    [expected] = in_one_process(house, version.number, (5,), entrance="edit", given=given)
    np.testing.assert_array_equal(pixels(edited.data[0]), expected)
    np.testing.assert_array_equal(pixels(edited.data[0])[alpha > 0], picture[alpha > 0])


def in_one_process(house: House, number: int, seeds: tuple[int, ...], **more: Any) -> list[Any]:
    """Draw with a version and no server: what any layout is to answer."""
    version = house.registry.get(f"{NAME}:{number}")
    folder = house.registry.fetch(version.ref, digest=version.digest)
    cache = house.settings.state / "versions"
    given = {"tracking_uri": house.settings.mlflow_uri, "cache": str(cache)}
    stage = Stage(given, house.registry)
    spec = GenerationSpec(prompts=(PROMPT,) * len(seeds), seeds=seeds, **more)
    try:
        found = asyncio.run(Executor(lambda _: stage).draw(read_pipeline(folder), spec))
    finally:
        stage.close()
    return list(found.made)


def png(entry: Any) -> bytes:
    return base64.b64decode(entry["b64_json"] if isinstance(entry, dict) else entry.b64_json)


def pixels(entry: Any) -> Any:
    return np.asarray(Image.open(io.BytesIO(png(entry))))


def receipt(entry: Any) -> receipts.Receipt:
    return receipts.read(png(entry))


@dataclass
class Outcome:
    sent: datetime
    answered: datetime
    status: int
    data: list[dict[str, Any]]


def slowest(outcomes: list[Outcome]) -> float:
    return max((one.answered - one.sent).total_seconds() for one in outcomes)


async def ask(house: House, client: httpx.AsyncClient, body: dict[str, Any]) -> Outcome:
    sent = datetime.now(UTC)
    answer = await client.post(
        "/images/generations", json={"model": NAME, "prompt": PROMPT, **body}
    )
    outcome = Outcome(sent, datetime.now(UTC), answer.status_code, [answer.json()])
    if answer.status_code == 200:
        outcome.data = answer.json()["data"]
        house.answered[receipt(outcome.data[0]).epoch].set()
    return outcome


async def capacity(house: House, users: int = 8, each: int = 6) -> float:
    """Answers a second when so many users ask one request after the other; measured once."""
    if not house.capacity:
        async with http(house) as client:

            async def user() -> None:
                for number in range(each):
                    await ask(house, client, {"seed": number})

            await asyncio.gather(*(user() for _ in range(2)))  # warm
            began = time.monotonic()
            await asyncio.gather(*(user() for _ in range(users)))
            house.capacity = users * each / (time.monotonic() - began)
    return house.capacity


async def steadily(
    house: House,
    count: int,
    share: float,
    events: dict[int, Callable[[], Any]],
    asking: Callable[[int], dict[str, Any]] = lambda _number: {},
) -> list[Outcome]:
    """Send `count` requests, whatever the answers do, at a `share` of what the house can answer.

    `events` are calls made at a request's turn, one after another. Requests go on for as long as a call lasts;
    those that follow the last call are counted from its return, so that a slow machine sees no fewer of them.
    """
    per_s = share * await capacity(house)
    last = max(events, default=-1)
    left = count - 1 - last
    async with http(house) as client:
        started, tasks, calls, number = time.monotonic(), [], [], 0
        with ThreadPoolExecutor(max_workers=1) as one_at_a_time:
            while number <= last or left > 0 or not all(call.done() for call in calls):
                await asyncio.sleep(max(0.0, started + number / per_s - time.monotonic()))
                if number in events:
                    calls.append(one_at_a_time.submit(events[number]))
                body = {"seed": number % 10, **asking(number)}
                tasks.append(asyncio.create_task(ask(house, client, body)))
                left -= number > last and all(call.done() for call in calls)
                number += 1
            for call in calls:
                call.result()
        return await asyncio.gather(*tasks)
