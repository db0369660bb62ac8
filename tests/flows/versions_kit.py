"""Installations without servers: a state folder, a ledger and an MLflow database each; tiny pipelines to publish."""

import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from flows import context
from flows.evaluating.gate import Evaluation, Interval, JudgeRecord, check
from flows.evaluating.pipeline import draw, ports_of
from flows.recipe import Gate
from infra.pipelines import PinnedStage, Pipeline
from infra.receipts.provenance import sign
from infra.receipts.receipts import GENERATOR, Receipt, StageReceipt, attach
from infra.registry.registry import Registry, Version
from infra.settings import settings
from infra.storage import seal
from models import describe
from models.diffusion.ddpm import DDPM
from models.family import Family
from models.judges.gallery import to_image
from models.parts.lora import own
from tests.ports_kit import free_ports
from tests.services.conftest import Workshop
from tests.services.served_kit import listening

NAME = "toys"
WORDS = ("red", "green", "square", "circle")
PROMPT = "red square"
RECIPE: dict[str, Any] = {
    "name": NAME,
    "data": {"name": "nowhere"},
    "stages": {
        kind: {"family": "ddpm", "preset": "tiny", "training": {"steps": 1}}
        for kind in ("base", "upscaler")
    },
    "try_prompts": [PROMPT, "green circle"],
}


def network(kind: str, seed: int) -> Family:
    tiny = DDPM.presets["tiny"]
    torch.manual_seed(seed)
    if kind == "base":
        config = dataclasses.replace(tiny, vocabulary=WORDS)
    else:
        config = dataclasses.replace(
            tiny, image_size=16, low_size=8, text="none", attention=0, guidance=1.0
        )
    model = DDPM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def evaluation(judge: Version, outcomes: list[float], over: str = "set-1") -> Evaluation:
    value = sum(outcomes) / len(outcomes)
    spread = Interval(value=value, low=value - 0.05, high=value + 0.05, count=len(outcomes))
    return Evaluation(
        evaluation_set=over,
        judge=JudgeRecord(version=judge.ref, sha256=judge.digest, accuracy=0.99),
        metrics={"alignment": spread},
        outcomes={"alignment": outcomes},
    )


@dataclass
class Installation:
    """One installation; `enter` makes it this process's own."""

    home: Path
    monkeypatch: pytest.MonkeyPatch

    def enter(self) -> "Installation":
        self.monkeypatch.setenv("ATELIER_HOME", str(self.home))
        self.monkeypatch.setenv("ATELIER_PROJECT", str(self.home))
        self.monkeypatch.setenv("ATELIER_TRACKING_URI", f"sqlite:///{self.home / 'mlflow.db'}")
        [nobody_s] = free_ports(1)  # the process's own stack may be up, and its gateway
        self.monkeypatch.setenv("ATELIER_GATEWAY_PORT", str(nobody_s))
        for cached in (settings, context.registry, context.ledger):
            cached.cache_clear()
        return self

    @property
    def registry(self) -> Registry:
        return context.registry()

    def stage(self, kind: str, seed: int, base: Version | None = None) -> Version:
        begun = {"base": base.ref, "base_digest": base.digest} if base else {}
        return self.publish(
            f"{NAME}.{kind}", network(kind, seed), f"{kind}-{seed}", seed=seed, **begun
        )

    def publish(self, name: str, model: Family, key: str, **facts: Any) -> Version:
        """Publish a network, once for a key, with a run that trained it."""
        from safetensors.torch import save_file

        if found := self.registry.find(name, key):
            return found
        making = self.home / "making"
        making.mkdir(parents=True)
        (making / "config.json").write_text(json.dumps(describe(model)))
        (making / "card.md").write_text(f"# {name}\n")
        save_file(own(model), making / "model.safetensors")
        run = self.registry.start_run(NAME, key, {})
        self.registry.end_run(run)
        seal(
            making,
            {"kind": "model", "data_identity": "d0", "run_id": run, **facts, "git_commit": "c0"},
        )
        return self._publish(name, making, key, {"atelier.family": describe(model)["family"]})

    def publish_wired(self, document: Pipeline) -> Version:
        """Publish a pipeline that nobody judged, and put it in production."""
        making = self.home / "making"
        making.mkdir()
        (making / "pipeline.json").write_text(document.model_dump_json())
        digest = seal(making, {"kind": "pipeline", "data_identity": "d0", "git_commit": "c0"})
        version = self._publish(document.endpoint, making, f"wired-{digest}", {})
        self.promote(version)
        return version

    def pipeline(
        self,
        seed: int = 0,
        *,
        steps: int = 2,
        outcomes: list[float] | None = None,
        over: str = "set-1",
        negative: str = "",
        **recipe: Any,
    ) -> Version:
        stages = []
        for kind in ("base", "upscaler"):
            version = self.stage(kind, seed)
            stages.append(
                PinnedStage(
                    stage=kind, name=version.name, version=version.number, sha256=version.digest,
                    family="ddpm", **ports_of(network(kind, seed)), steps=steps,
                    guidance=2.0 if kind == "base" else 1.0,
                )
            )  # fmt: skip
        if negative:
            stages[0].options["negative_prompt"] = negative
        judge = self.stage("judge", 99)
        document = Pipeline(
            endpoint=NAME, stages=tuple(stages), vocabulary=WORDS, image_size=(16, 16),
            try_prompts=tuple(RECIPE["try_prompts"]),
        )  # fmt: skip
        judged = evaluation(judge, outcomes or [1.0] * 40, over)
        making = self.home / "making"
        making.mkdir()
        (making / "pipeline.json").write_text(document.model_dump_json())
        (making / "recipe.json").write_text(json.dumps({**RECIPE, **recipe}))
        (making / "evaluation.json").write_text(judged.model_dump_json())
        report = check(Gate(), judged, production=None)
        (making / "report.json").write_text(report.model_dump_json())
        (making / "card.md").write_text("# toys\n")
        run = self.registry.start_run(NAME, f"judging-{seed}", {})
        self.registry.end_run(run)
        facts = {"kind": "pipeline", "data_identity": "d0", "git_commit": "c0", "run_id": run}
        seal(making, facts)
        return self._publish(
            NAME, making, f"pipeline-{seed}-{steps}-{over}-{negative}-{len(recipe)}", {}
        )

    def _publish(self, name: str, making: Path, key: str, tags: dict[str, str]) -> Version:
        try:
            return self.registry.find(name, key) or self.registry.publish(
                name, making, key=key, tags=tags
            )
        finally:
            shutil.rmtree(making)

    def promote(self, version: Version, stage: Any = "production") -> int:
        head = context.ledger().head(version.name, stage)
        epoch = head.epoch if head else 0
        context.ledger().transition(
            name=version.name,
            stage=stage,
            to_version=version.number,
            to_digest=version.digest,
            expected_epoch=epoch,
            key=f"{version.name}/{stage}/{epoch}",
            actor="test",
            reason="a trial",
        )
        return epoch + 1

    def picture(
        self, version: Version, file: Path, *, seed: int = 7, place: str | None = "production", epoch: int = 1
    ) -> Path:  # fmt: skip
        """Draw one as the gateway would, with its receipt."""
        directory = self.registry.fetch(version)
        found = Pipeline.model_validate_json((directory / "pipeline.json").read_text())
        models = [self.model(stage) for stage in found.stages]
        image = io.BytesIO()
        to_image(draw(models, found, [PROMPT], [seed])[0]).save(image, "PNG")
        receipt = Receipt(
            endpoint=NAME, version=version.ref, digest=version.digest, place=place, epoch=epoch,
            stages=tuple(
                StageReceipt(name=stage.name, version=stage.version, sha256=stage.sha256)
                for stage in found.stages
            ),
            prompt=PROMPT, seed=seed, generator=GENERATOR,
            **found.stages[0].options,
            size="16x16", created=datetime.now(UTC), request_id="r1",
        )  # fmt: skip
        signed = sign(receipt, image.getvalue(), context.signing())
        file.write_bytes(attach(image.getvalue(), signed))
        return file

    def model(self, stage: PinnedStage) -> Family:
        from flows.evaluating.pipeline import load_model

        directory = self.registry.fetch(stage.name, stage.version, digest=stage.sha256)
        return load_model(*self.registry.weights(directory))


@contextmanager
def served(here: Installation) -> Iterator[str]:
    """The address of a gateway at the settings' port, over an installation's own registry and ledger."""
    workshop = Workshop(settings().state)
    workshop.registry, workshop.ledger = context.registry(), context.ledger()
    stage = workshop.stage()
    try:
        with listening(workshop.gateway(stage), settings().gateway_port) as address:
            yield address
    finally:
        stage.close()
