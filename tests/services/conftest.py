"""A workshop without servers: random networks in the registry's cache, a ledger, stages in this process."""

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from flows.evaluating.pipeline import (
    MODALITIES,
    able_of,
    entrance_of,
    output_of,
    ports_of,
    sizes_of,
)
from flows.training.checkpoints import detached
from infra.jobs.jobs import Jobs
from infra.jobs.webhooks import Webhooks
from infra.keys import Keys
from infra.ledger.ledger import Ledger
from infra.ledger.rollout_metrics import Observations
from infra.pipelines import EDITED, FURTHER, PinnedStage, Pipeline, chained
from infra.receipts.signing import Signing
from infra.registry.registry import Registry
from infra.storage import seal
from models import describe
from models.diffusion.ddpm import DDPM
from models.family import Family
from models.parts.lora import own
from models.variational.vae import VAE
from services.api.served import Parts
from services.application import create, drawn_by, kinds
from services.batches.batcher import Batcher
from services.gateway.readiness import Readiness
from services.jobs.runner import Runner
from services.jobs.store import Store
from services.jobs.webhooks import Courier
from services.jobs.working import Working
from services.media.answer_log import Samples
from services.media.result_store import Files
from services.pipelines.executor import Executor
from services.routing.canary import Arms
from services.routing.endpoints import Endpoints
from services.routing.observer import Observer
from services.settings import Arguments
from services.stages.deployment import Stage
from tests.services.toys import described

WORDS = ("a", "small", "large", "red", "green", "circle", "square", "on", "the", "left")


def network(kind: str, seed: int = 0) -> Family:
    """Return a small network whose every layer counts."""
    tiny = DDPM.presets["tiny"]
    torch.manual_seed(seed)
    model: Family
    if kind == "base":
        model = DDPM(dataclasses.replace(tiny, vocabulary=WORDS))
    elif kind == "upscaler":
        up = dataclasses.replace(
            tiny, image_size=16, low_size=8, text="none", steps=3, guidance=1.0
        )
        model = DDPM(up)
    else:
        model = VAE(VAE.presets["tiny"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


class Workshop:
    """Publishes and promotes into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "versions"
        self.database = f"sqlite:///{folder / 'atelier.db'}"
        self.ledger = Ledger(self.database)
        self.keys = Keys(self.database)
        self.jobs = Jobs(self.database)
        self.webhooks = Webhooks(self.database)
        self.registry = Registry("http://127.0.0.1:9", self.cache)  # nothing is fetched
        self.observations = Observations(self.database)
        self.numbers: dict[str, int] = {}
        self.published: dict[
            str, dict[str, Any]
        ] = {}  # by digest: the same again is no other version

    def signing(self) -> Signing:
        """The key that its gateway signs with."""
        return Signing(self.folder / "exchange")

    def publish(
        self, name: str, files: dict[str, Any], model: Family | None = None
    ) -> dict[str, Any]:
        from safetensors.torch import save_file

        making = self.folder / "making"
        making.mkdir()
        for file, document in files.items():
            (making / file).write_text(json.dumps(document))
        if model is not None:
            (making / "config.json").write_text(json.dumps(describe(model)))
            save_file(detached(own(model)), making / "model.safetensors")
        digest = seal(making, {"kind": "model" if model else "pipeline", "name": name})
        if digest in self.published:
            shutil.rmtree(making)
            return self.published[digest]
        self.numbers[name] = self.numbers.get(name, 0) + 1
        shutil.move(making, self.cache / digest)
        version = {"name": name, "number": self.numbers[name], "digest": digest}
        self.published[digest] = version
        return version

    def publish_stage(self, name: str, model: Family) -> dict[str, Any]:
        version = self.publish(name, {}, model)
        config = model.config
        low = config.low_size if model.capabilities.upscales else None
        return {
            "stage": name.partition(".")[2],
            "name": name,
            "version": version["number"],
            "sha256": version["digest"],
            "family": describe(model)["family"],
            "accepts": {
                "prompt": model.capabilities.condition,
                "picture": [config.channels, low, low] if low else None,
            },
            "gives": {"picture": [config.channels, config.image_size, config.image_size]},
            "steps": getattr(config, "steps", None),
            "guidance": getattr(config, "guidance", None),
        }

    def publish_pipeline(self, name: str, *models: Family, sample: float = 0) -> dict[str, Any]:
        stages = [
            self.publish_stage(f"{name}.{'base' if place == 0 else f'up{place}'}", model)
            for place, model in enumerate(models)
        ]
        side = models[-1].config.image_size
        words = list(WORDS) if models[0].capabilities.condition == "text" else []
        document = {
            "format": 1,
            "endpoint": name,
            "stages": stages,
            "vocabulary": words,
            "image_size": [side, side],
            "sample": sample,
            "try_prompts": [],
        }
        return {**self.publish(name, {"pipeline.json": document}), "stages": stages}

    def publish_wired(
        self,
        name: str,
        models: dict[str, Family],
        wires: dict[str, Any] | None = None,
        **further: dict[str, Any],
    ) -> Pipeline:
        """Publish a graph of stages, one behind the other unless `wires` says otherwise, and put it in production.

        `further` has the wires of other entrances.
        """
        stages = []
        for stage, model in models.items():
            version = self.publish(f"{name}.{stage}", {}, model)
            stages.append(
                PinnedStage(
                    stage=stage,
                    name=version["name"],
                    version=version["number"],
                    sha256=version["digest"],
                    family=describe(model)["family"],
                    **ports_of(model),
                )
            )
        by_stage = {stage.stage: stage for stage in stages}
        generate = chained(stages) if wires is None else entrance_of(wires, by_stage)
        edits = all(stage.inputs.keys() >= set(EDITED) for stage in stages)
        edit = {"edit": chained(stages, edits=True)} if edits else {}
        others = {key: entrance_of(one, by_stage) for key, one in further.items()}
        entrances = {"generate": generate, **edit, **others}
        made = output_of(generate, stages)
        ways = [FURTHER[key] for key in entrances if key in FURTHER]
        pipeline = Pipeline(
            endpoint=name,
            modality=MODALITIES[made.kind],
            abilities=(*able_of(generate, models), *ways),
            stages=tuple(stages),
            entrances=entrances,
            vocabulary=WORDS,
            **sizes_of(generate, stages, models),
            resolution=made.shape[-1] if made.kind == "volume" else None,
            sample_rate=int(made.space.removesuffix(" Hz")) if made.kind == "sound" else None,
            sample=1.0,
        )
        self.promote(self.publish(name, {"pipeline.json": pipeline.model_dump(mode="json")}))
        return pipeline

    def publish_alone(self, name: str, model: Family, **stage: Any) -> dict[str, Any]:
        """Publish a pipeline of one model, whatever its modality, and put it in production."""
        version = self.publish(f"{name}.base", {}, model)
        pinned = {
            "stage": "base",
            "name": version["name"],
            "version": version["number"],
            "sha256": version["digest"],
            "family": describe(model)["family"],
            "accepts": {"prompt": model.capabilities.condition},
            "gives": {"modality": model.capabilities.modality},
            **stage,
        }
        words = getattr(model.config, "vocabulary", ())
        document = {"format": 1, "endpoint": name, "stages": [pinned], "vocabulary": list(words)}
        published = self.publish(name, {"pipeline.json": {**document, **described(model)}})
        self.promote(published)
        return {**published, "stages": [pinned]}

    def promote(self, version: dict[str, Any], stage: Any = "production") -> None:
        head = self.ledger.head(version["name"], stage)
        epoch = head.epoch if head else 0
        self.ledger.transition(
            name=version["name"],
            stage=stage,
            to_version=version["number"],
            to_digest=version["digest"],
            expected_epoch=epoch,
            key=f"{version['name']}/{stage}/{epoch}",
            actor="test",
        )

    def stage(self, **arguments: Any) -> Stage:
        given = {"tracking_uri": "sqlite:///none", "cache": self.cache, **arguments}
        return Stage(given, self.registry)

    def gateway(self, *pools: Stage, keys: Keys | None = None, **arguments: Any) -> Any:
        """Return a gateway over its only pool, or over a pool a stage as `arguments["placement"]` names them."""
        given = Arguments(
            database=self.database,
            tracking_uri="sqlite:///none",
            cache=self.cache,
            files=self.folder / "files",
            samples=self.folder / "samples",
            signing=self.folder / "exchange",
            **arguments,
        )
        endpoints = Endpoints(self.ledger, self.registry)
        self.observer = Observer(self.ledger, self.observations, every_s=0.05)
        names = [pool.name for pool in given.placement.pools]
        stages = dict(zip(names, pools, strict=True))
        stage_of = drawn_by(given.placement, stages)
        self.readiness = Readiness(given.placement, stages, endpoints)
        self.arms = Arms(Executor(stage_of), self.observer, given.timeout_s)
        parts = Parts(
            endpoints=endpoints,
            arms=self.arms,
            stage_of=stage_of,
            files=Files(given.files, Signing(given.signing)),
            jobs=self.jobs,
            webhooks=self.webhooks,
            samples=Samples(given.samples),
            signing=Signing(given.signing),
            keys=keys or self.keys,
            readiness=self.readiness,
            arguments=given,
        )
        return create(parts)

    def worked(self, app: Any, stage: Stage) -> Any:
        """Return a gateway with a runner of jobs, over the same stage."""
        executor = Executor(lambda _: stage)
        store, endpoints = (
            Store(str(self.folder / "files" / "jobs")),
            Endpoints(self.ledger, self.registry),
        )
        courier = Courier(self.webhooks, self.signing(), private=True)
        runner = Runner(self.jobs, store, endpoints, executor, kinds(self.signing()))
        return Working(app, runner, courier, Batcher(self.jobs, store, app._app))


Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Return a function that sends one request to an application."""
    return lambda app, method, path, **options: asyncio.run(_ask(app, method, path, **options))


@pytest.fixture(scope="session")
def networks() -> Callable[..., Family]:
    return network


async def _ask(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return await client.request(method, path, **options)


@pytest.fixture(scope="module")
def own_workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """One that a module fills by itself."""
    found = Workshop(tmp_path_factory.mktemp("workshop"))
    found.cache.mkdir()
    return found


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    workshop = Workshop(tmp_path_factory.mktemp("workshop"))
    workshop.cache.mkdir()
    workshop.promote(workshop.publish_pipeline("shapes", network("base"), network("upscaler")))
    workshop.promote(workshop.publish_pipeline("digits", network("vae")))
    return workshop


@pytest.fixture(scope="session")
def app(workshop: Workshop) -> Iterator[Any]:
    stage = workshop.stage()
    yield workshop.gateway(stage)
    stage.close()
