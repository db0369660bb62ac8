"""Make-A-Video's graph in a house: small networks that know nothing, as slow as is asked for, and its jobs."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from safetensors.torch import save_file

from data.makers.moving import CAPTIONS
from infra.database import open_engine, reading
from infra.jobs.table import JOBS, STAGES
from infra.receipts.clip_receipts import rest_sha256
from infra.storage import seal
from models import describe
from tests.flows.moving_kit import small_cascade
from tests.integration.serving_kit import House

CLIPS: Final = "served-clips"


def publish_clips(house: House, folder: Path, steps: Mapping[str, int]) -> list[dict[str, Any]]:
    """Put a version into production whose stages take so many steps; returns its pins, not deployed yet."""
    models, graph = small_cascade()
    stages, pins = [], []
    for model, pinned in zip(models, graph.stages, strict=True):
        making = folder / f"clips-{pinned.stage}"
        making.mkdir()
        (making / "config.json").write_text(json.dumps(describe(model)))
        save_file(model.state_dict(), making / "model.safetensors")
        name, family = f"{CLIPS}.{pinned.stage}", describe(model)["family"]
        digest = seal(making, {"kind": "model", "name": name})
        version = house.registry.publish(name, making, key=f"{name}-{digest}", tags={})
        here = {"name": name, "version": version.number, "sha256": digest, "family": family}
        options = {"steps": steps.get(pinned.stage, 2)} if pinned.options else {}
        stages.append(pinned.model_copy(update={**here, "options": options}))
        pins.append({"name": name, "number": version.number, "digest": digest, "family": family})
    told = {"modality": "clip", "image_size": (64, 64), "frames": 9, "frame_rate": 8.0}
    told |= {"endpoint": CLIPS, "abilities": ("videos", "animations"), "stages": tuple(stages)}
    entrances = {name: graph.entrances[name] for name in ("generate", "animate")}
    making = folder / "clips"
    making.mkdir()
    pipeline = graph.model_copy(update={**told, "entrances": entrances})
    (making / "pipeline.json").write_text(pipeline.model_dump_json())
    digest = seal(making, {"kind": "pipeline", "name": CLIPS})
    version = house.registry.publish(CLIPS, making, key=f"{CLIPS}-{digest}", tags={})
    house.ledger.transition(
        name=CLIPS,
        stage="production",
        to_version=version.number,
        to_digest=digest,
        expected_epoch=0,
        key=CLIPS,
        actor="test",
    )
    return pins


@dataclass(frozen=True)
class Seen:
    """A job as its rows say: by node, the finished stages' digests and under which fence and when they were made."""

    state: str
    attempt: int
    causes: dict[str, int]
    stages: dict[str, tuple[str, int, float]]

    @property
    def digests(self) -> dict[str, str]:
        """What each stage made."""
        return {node: digest for node, (digest, _, _) in self.stages.items()}

    def again(self, before: "Seen") -> int:
        """Return how many of the stages that were finished before were made anew."""
        return sum(self.stages[node] != one for node, one in before.stages.items())


def seen(house: House, job: str) -> Seen:
    """Return what a job's rows say now."""
    engine = open_engine(house.settings.database)
    with reading(engine) as connection:
        row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job)).mappings().one()
        query = sa.select(STAGES).where(STAGES.c.job == job).order_by(STAGES.c.at)
        stages = {one.node: (one.digest, one.fence, one.at) for one in connection.execute(query)}
    engine.dispose()
    causes = json.loads(row["causes"])
    return Seen(row["state"], row["attempt"], causes, stages)


def asked(house: House, seed: int, key: str | None = None) -> str:
    """Ask for a clip, as a WebP, perhaps by an idempotency key; returns its job."""
    body = {"model": CLIPS, "prompt": CAPTIONS[0], "seed": seed, "output_format": "webp"}
    headers: Any = {"headers": {"Idempotency-Key": key} if key else {}}
    made: Any = house.client.post("/videos", body=body, options=headers, cast_to=object)
    return str(made["id"])


def frames_of(house: House, job: str) -> str:
    """Return the hash over a finished clip's bytes; its receipt, which names the job, left out."""
    content = house.client.videos.download_content(job).read()
    return rest_sha256(io.BytesIO(content))
