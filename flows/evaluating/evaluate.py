"""Judge one pipeline: draw its fixed prompts x seeds on Ray, score the samples, keep a gallery.

Runs wherever Ray puts it: workers fetch versions by name and digest, and only arrays and numbers travel.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.evaluating.gate import Evaluation, JudgeRecord
from flows.evaluating.modalities import judging, unseen
from flows.evaluating.pipeline import load_model
from flows.evaluating.speed import cost_per_sample
from flows.recipe import Evaluation as EvaluationSpec
from infra.documents import read_json
from infra.pipelines import Pipeline

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.family import Family

FEWEST: Final = 32
"""Samples that a process of its own is worth, which has to import torch first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What to judge, in terms that any node of the cluster can resolve."""

    pipeline: dict[str, Any]
    judge: dict[str, Any] | None  # {"name", "version", "digest"}
    prepared: str
    judged_on: str  # the prepared data on which the judge's accuracy is measured
    data_identity: str
    spec: dict[str, Any]  # flows.recipe.Evaluation
    tracking_uri: str
    cache: str
    num_gpus: float


def evaluation_set(
    order: Order, prompts: Sequence[str], seeds: Sequence[int], cut: str = ""
) -> str:
    """Return the hash that two evaluations must share to be compared: prompts, seeds, data and judge.

    `cut` is how held-out data were taken where that can differ: nats of other windows or tokens are of something else,
    and so is a distance to other pictures.
    """
    judge = order.judge["digest"] if order.judge else None
    parts = ["by prompt", order.data_identity, judge, list(prompts), list(seeds)]
    text = json.dumps([*parts, cut] if cut else parts)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def draw_part(order: Order, prompts: list[str], seeds: list[int]) -> "NDArray[Any]":
    """Return this part's samples as they travel, a row a seed; runs as a Ray task."""
    pipeline = Pipeline.model_validate(order.pipeline)
    prepared = Path(order.prepared)
    judges = judging(pipeline.modality, prepared)
    return judges.packed(judges.drawn(_models(order, pipeline), pipeline, prompts, seeds, prepared))


def score_all(
    order: Order, prompts: list[str], seeds: list[int], parts: "list[NDArray[Any]]"
) -> tuple[str, dict[str, bytes]]:
    """Return the evaluation as JSON and the gallery's files by path; runs as a Ray task.

    Raises:
        ValueError: a judge was asked for, and nothing comes out that it could see.
    """
    from infra.registry.registry import Registry

    pipeline = Pipeline.model_validate(order.pipeline)
    if order.judge is not None and (why := unseen(pipeline.modality)):
        raise ValueError(f"judge: {why}")
    registry = Registry(order.tracking_uri, Path(order.cache))
    judge, record = None, None
    if order.judge is not None:
        pinned = f"{order.judge['name']}:{order.judge['version']}"
        directory = registry.fetch(pinned, digest=order.judge["digest"])
        judge, record = load_judge(directory, order)
    models = _models(order, pipeline)
    judged = judging(pipeline.modality, Path(order.prepared)).score(
        parts,
        prompts,
        judge=judge,
        prepared=Path(order.prepared),
        spec=EvaluationSpec.model_validate(order.spec),
        models=models,
        pipeline=pipeline,
    )
    found = Evaluation(
        evaluation_set=evaluation_set(order, prompts, seeds, judged.cut),
        judge=record,
        metrics=judged.metrics | cost_per_sample(models, pipeline, prompts),
        outcomes=judged.outcomes,
        left_out=list(judged.left_out),
    )
    return found.model_dump_json(), judged.files


def load_judge_network(directory: Path) -> Any:
    """Return the judge of a fetched version, in evaluation mode."""
    from safetensors.torch import load_file

    from models import build

    judge: Any = build(read_json(directory / "config.json"))
    judge.load_state_dict(load_file(directory / "model.safetensors"))
    return judge.eval()


def load_judge(directory: Path, order: Order) -> tuple[Any, JudgeRecord]:
    """Return the judge network and its record: its accuracy is measured here, on the held-out split at its size."""
    from data.loaders import clips
    from flows.evaluating.pictures import as_squares

    judge = load_judge_network(directory)
    size = judge.config.image_size
    read = clips if hasattr(judge.config, "frames") else as_squares
    shown, _, attributes = read(Path(order.judged_on), "validation", size)
    accuracy = judge.accuracy(shown, attributes)["joint"]
    assert order.judge is not None
    return judge, JudgeRecord(
        version=f"{order.judge['name']}:{order.judge['version']}",
        sha256=order.judge["digest"],
        accuracy=float(accuracy),
    )


def evaluate_on_ray(order: Order) -> tuple[Evaluation, dict[str, bytes]]:
    """Return the evaluation and the gallery's files by path; drawing is spread over the cluster's CPUs or GPUs."""
    import ray

    pipeline = Pipeline.model_validate(order.pipeline)
    spec = EvaluationSpec.model_validate(order.spec)
    prepared = Path(order.prepared)
    prompts, seeds = judging(pipeline.modality, prepared).requests(pipeline, prepared, spec)
    cluster: Mapping[str, float] = ray.cluster_resources()
    workers = cluster.get("GPU" if order.num_gpus else "CPU", 1)
    count = max(1, min(16, int(workers), len(seeds) // FEWEST))
    size = max(FEWEST, -(-len(seeds) // count))
    lent = {"num_cpus": 1, "num_gpus": order.num_gpus, "max_retries": 2}
    drawing = ray.remote(draw_part).options(**lent)
    parts = [
        drawing.remote(order, prompts[start : start + size], seeds[start : start + size])
        for start in range(0, len(seeds), size)
    ]
    scoring = ray.remote(_score_refs).options(**lent)
    document, files = ray.get(scoring.remote(order, prompts, seeds, *parts))
    return Evaluation.model_validate_json(document), files


def _score_refs(
    order: Order, prompts: list[str], seeds: list[int], *parts: "NDArray[Any]"
) -> tuple[str, dict[str, bytes]]:
    return score_all(order, prompts, seeds, list(parts))


def _models(order: Order, pipeline: Pipeline) -> "list[Family]":
    import torch

    from infra.registry.registry import Registry

    registry = Registry(order.tracking_uri, Path(order.cache))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [
        load_model(
            *registry.weights(registry.fetch(stage.name, stage.version, digest=stage.sha256))
        ).to(device)
        for stage in pipeline.stages
    ]
