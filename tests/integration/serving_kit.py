"""A served house: tiny pipelines in a registry and a ledger of their own, on the run's Ray, and a steady load."""

import asyncio
import base64
import dataclasses
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import torch
from PIL import Image

from infra import receipts, serving
from infra.ledger import Ledger
from infra.registry import Registry, Version
from infra.settings import Settings
from infra.storage import seal
from models import describe
from models.diffusion.ddpm import DDPM
from models.family import Family

WORDS = ("a", "small", "red", "green", "circle", "square", "on", "the", "left")
PROMPT = "a small red circle"
Change = Callable[[Any], None]
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
        history = self.ledger.history(NAME)
        rows = {row.epoch: row for row in history if row.stage == "production"}
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


def publish_stage(
    registry: Registry, folder: Path, kind: str, seed: int, change: Change
) -> dict[str, Any]:
    from safetensors.torch import save_file

    model = network(kind, seed)
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
        else {"prompt": "none", "picture": [3, 8, 8]},
        "gives": {"picture": [3, 8, 8] if kind == "base" else [3, 16, 16]},
        "steps": model.config.steps,
        "guidance": model.config.guidance,
    }


def publish(house: House, folder: Path, seed: int, change: Change = lambda _model: None) -> Version:
    """Publish a pipeline of two networks with random weights, each `change`d before it is saved."""
    stages = [
        publish_stage(house.registry, folder, kind, seed, change) for kind in ("base", "upscaler")
    ]
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


async def steadily(
    house: House,
    count: int,
    per_s: float,
    events: dict[int, Any],
    asking: Callable[[int], dict[str, Any]] = lambda _number: {},
) -> list[Outcome]:
    """Send `count` requests at a rate, whatever the answers do; `events` are calls made at a request's turn."""

    async def one(client: httpx.AsyncClient, number: int) -> Outcome:
        body = {"model": NAME, "prompt": PROMPT, "seed": number % 10, **asking(number)}
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
