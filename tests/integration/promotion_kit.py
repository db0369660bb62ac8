"""A house with a policy: pipeline versions, good and bad, published straight into a registry and a ledger."""

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from flows import context
from flows.evaluating.gate import Evaluation, Interval
from flows.evaluating.pipeline import interface_hash, ports_of
from flows.recipe import Recipe
from infra import serving
from infra.keys import Keys
from infra.ledger.ledger import Ledger
from infra.ledger.promotions import Promotions
from infra.pipelines import PinnedStage, Pipeline
from infra.receipts import receipts
from infra.registry.registry import Registry, Version
from infra.settings import Settings, settings
from infra.storage import seal
from models import describe
from models.diffusion.ddpm import DDPM
from models.family import Family
from tests.integration.serving_kit import PROMPT, WORDS, png

GATE = {"metrics": {"alignment": {"at_least": 0.5}}, "max_slowdown": 20}
"""A machine that is busy with other tests must not refuse the good ones: who tests latency says so."""


def network(seed: int, kind: str = "good") -> Family:
    """Return a tiny network, or one that is broken as `kind` says."""
    torch.manual_seed(seed)
    model = DDPM(dataclasses.replace(DDPM.presets["tiny"], vocabulary=WORDS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
            if kind == "nan":
                parameter.fill_(float("nan"))
        if kind in {"black", "same"}:  # it draws its last layer's bias, whatever the seed
            last: Any = model.network.unet.out
            last.weight.zero_()
            last.bias.fill_(-100.0)
            if kind == "same":
                last.bias[::2] = 100.0
    return model.eval()


@dataclass
class Installation:
    """One Ray, one Serve, one registry; a ledger, a journal and two people of its own."""

    folder: Path
    settings: Settings
    ledger: Ledger
    journal: Promotions
    registry: Registry
    people: dict[str, Path] = field(default_factory=dict)  # their key files

    def stage(self, seed: int, kind: str = "good", steps: int = 4) -> PinnedStage:
        from safetensors.torch import save_file

        model = network(seed, kind)
        making = self.folder / f"stage-{seed}-{kind}"
        if not making.exists():
            making.mkdir()
            (making / "config.json").write_text(json.dumps(describe(model)))
            weights = model.state_dict()
            if kind == "unloadable":
                weights.popitem()
            save_file(weights, making / "model.safetensors")
            seal(making, {"kind": "model", "name": "promotion.base", "seed": seed})
        version = self.registry.publish("promotion.base", making, key=making.name, tags={})
        return PinnedStage(
            stage="base",
            name=version.name,
            version=version.number,
            sha256=version.digest,
            family="ddpm",
            interface=interface_hash(model),
            **ports_of(model),
            steps=steps,
            guidance=1.0,
        )

    def publish(
        self,
        name: str,
        stage: PinnedStage,
        *,
        alignment: float = 0.9,
        gate: Mapping[str, Any] | None = None,
        over: str = "set",
        side: int = 8,
    ) -> Version:
        """Publish a pipeline of one stage with what judging would have found."""
        recipe = {
            "name": name,
            "data": {"name": "shapes"},
            "stages": {"base": {"family": "ddpm", "training": {"steps": 1}}},
            "gate": {**GATE, **(gate or {})},
        }
        found = Evaluation(
            evaluation_set=over,
            judge=None,
            metrics={
                "alignment": Interval(value=alignment, low=alignment, high=alignment, count=8)
            },
            outcomes={"alignment": [alignment] * 8},
        )
        pipeline = Pipeline(
            endpoint=name, stages=(stage,), vocabulary=WORDS, image_size=(side, side)
        )
        number = len(list(self.folder.glob(f"{name}-pipeline-*"))) + 1
        making = self.folder / f"{name}-pipeline-{number}"
        making.mkdir()
        (making / "pipeline.json").write_text(pipeline.model_dump_json())
        (making / "recipe.json").write_text(Recipe.model_validate(recipe).model_dump_json())
        (making / "evaluation.json").write_text(found.model_dump_json())
        (making / "card.md").write_text(f"# {name}\n\n{number}\n")
        seal(making, {"kind": "pipeline", "name": name, "number": number})
        return self.registry.publish(name, making, key=making.name, tags={})

    def put(self, version: Version) -> None:
        """Set a version in production without any ceremony."""
        head = self.ledger.head(version.name, "production")
        epoch = head.epoch if head else 0
        self.ledger.transition(
            name=version.name,
            stage="production",
            to_version=version.number,
            to_digest=version.digest,
            expected_epoch=epoch,
            key=f"{version.name}/{epoch}",
            actor="builder",
        )

    def key(self, person: str) -> str:
        return self.people[person].read_text()

    def served(self, model: str) -> tuple[receipts.Receipt, Any]:
        """Return the receipt and the pixels of one picture."""
        body = {"model": model, "prompt": PROMPT, "seed": 1}
        answer = httpx.post(
            f"{self.settings.gateway_url}/images/generations",
            json=body,
            headers={"authorization": f"Bearer {self.key('anna')}"},
            timeout=60,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        [entry] = answer.json()["data"]
        return receipts.read(png(entry)), np.asarray(Image.open(io.BytesIO(png(entry))))

    def environment(self, person: str) -> dict[str, str]:
        """Return the environment of a process that this person starts."""
        return {**os.environ, "ATELIER_API_KEY_FILE": str(self.people[person]), "COLUMNS": "200"}

    @contextlib.contextmanager
    def acting(self, person: str) -> Iterator[None]:
        """Be this person for a while."""
        before = os.environ["ATELIER_API_KEY_FILE"]
        os.environ["ATELIER_API_KEY_FILE"] = str(self.people[person])
        settings.cache_clear()
        try:
            yield
        finally:
            os.environ["ATELIER_API_KEY_FILE"] = before
            settings.cache_clear()


def installed(folder: Path, database: str) -> Iterator[Installation]:
    """Yield an installation whose settings are this process's own, and take its application down."""
    before = dict(os.environ)
    os.environ["ATELIER_DATABASE_URL"] = database
    os.environ["ATELIER_API_KEY_FILE"] = str(folder / "anna.key")
    forget()
    here = settings()
    people = {}
    for person in ("anna", "berta", "carl"):
        people[person] = folder / f"{person}.key"
        with contextlib.closing(Keys(here.database)) as keys:
            people[person].write_text(keys.create(person))
        people[person].chmod(0o600)
    ledger, promotions = Ledger(here.database), Promotions(here.database)
    try:
        yield Installation(
            folder,
            here,
            ledger,
            promotions,
            Registry(here.mlflow_uri, here.state / "versions"),
            people,
        )
    finally:
        with contextlib.suppress(serving.ServingError):
            serving.stop(here)
        for one in (ledger, promotions):
            one.close()
        os.environ.clear()
        os.environ.update(before)
        forget()


def forget() -> None:
    """Have the next flow read the settings anew."""
    settings.cache_clear()
    for one in (context.ledger, context.promotions):
        if one.cache_info().currsize:
            one().close()
        one.cache_clear()
    context.registry.cache_clear()
