"""Judge one pipeline: draw its fixed prompts x seeds on Ray, score the pictures, keep a gallery.

Runs wherever Ray puts it: workers fetch versions by name and digest, and only arrays and numbers travel.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.judging.gate import Evaluation, JudgeRecord
from flows.judging.pipeline import Pipeline, draw, load_model
from flows.judging.scores import score
from flows.judging.speed import cost_per_sample
from flows.recipe import Evaluation as EvaluationSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.family import Family


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What to judge, in terms that any node of the cluster can resolve."""

    pipeline: dict[str, Any]
    judge: dict[str, Any] | None  # {"name", "version", "digest"}
    prepared: str
    data_identity: str
    spec: dict[str, Any]  # flows.recipe.Evaluation
    tracking_uri: str
    cache: str
    num_gpus: float


def evaluation_set(order: Order, prompts: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the hash that two evaluations must share to be compared: prompts, seeds, data and judge."""
    judge = order.judge["digest"] if order.judge else None
    text = json.dumps(["by prompt", order.data_identity, judge, list(prompts), list(seeds)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fixed_requests(
    pipeline: Pipeline, captions: Sequence[str], spec: EvaluationSpec
) -> tuple[list[str], list[int]]:
    """Return one prompt and one seed a sample: every caption with every seed, or numbered seeds without prompts."""
    if pipeline.stages[0].accepts.prompt == "none":
        return [], list(range(spec.samples))
    step = max(1, len(captions) * len(spec.seeds) // spec.samples)
    chosen = list(captions)[::step]
    pairs = [
        (caption, 100_003 * seed + row) for seed in spec.seeds for row, caption in enumerate(chosen)
    ]
    return [caption for caption, _ in pairs], [seed for _, seed in pairs]


def draw_part(order: Order, prompts: list[str], seeds: list[int]) -> "NDArray[np.uint8]":
    """Return this part's pictures (N, C, H, W) as bytes 0..255; runs as a Ray task."""
    pipeline = Pipeline.model_validate(order.pipeline)
    models = _models(order, pipeline)
    pictures = draw(models, pipeline.stages, prompts, seeds)
    levels: NDArray[np.uint8] = (pictures.clamp(0, 1) * 255).round().byte().numpy()
    return levels


def score_all(
    order: Order, prompts: list[str], seeds: list[int], parts: "list[NDArray[np.uint8]]"
) -> tuple[str, bytes]:
    """Return the evaluation as JSON and the gallery as PNG; runs as a Ray task."""
    from infra.registry import Registry

    pipeline = Pipeline.model_validate(order.pipeline)
    registry = Registry(order.tracking_uri, Path(order.cache))
    judge, record = None, None
    if order.judge is not None:
        pinned = f"{order.judge['name']}:{order.judge['version']}"
        directory = registry.fetch(pinned, digest=order.judge["digest"])
        judge, record = load_judge(directory, order)
    models = _models(order, pipeline)
    metrics, outcomes, gallery = score(
        np.concatenate(parts),
        prompts,
        judge=judge,
        prepared=Path(order.prepared),
        spec=EvaluationSpec.model_validate(order.spec),
        models=models,
        pipeline=pipeline,
    )
    metrics |= cost_per_sample(models, pipeline.stages, prompts)
    found = Evaluation(
        evaluation_set=evaluation_set(order, prompts, seeds),
        judge=record,
        metrics=metrics,
        outcomes=outcomes,
    )
    return found.model_dump_json(), gallery


def load_judge_network(directory: Path) -> Any:
    """Return the judge of a fetched version, in evaluation mode."""
    from safetensors.torch import load_file

    from models import build

    judge: Any = build(json.loads((directory / "config.json").read_text()))
    judge.load_state_dict(load_file(directory / "model.safetensors"))
    return judge.eval()


def load_judge(directory: Path, order: Order) -> tuple[Any, JudgeRecord]:
    """Return the judge network and its record: its accuracy is measured here, on the held-out split."""
    from data.loaders import everything

    judge = load_judge_network(directory)
    pixels, _, attributes = everything(Path(order.prepared), "validation")
    accuracy = judge.accuracy(pixels, attributes)["joint"]
    assert order.judge is not None
    return judge, JudgeRecord(
        version=f"{order.judge['name']}:{order.judge['version']}",
        sha256=order.judge["digest"],
        accuracy=float(accuracy),
    )


def evaluate_on_ray(order: Order, captions: Sequence[str]) -> tuple[Evaluation, bytes]:
    """Return the evaluation and the gallery's PNG; drawing is spread over the cluster's CPUs or GPUs."""
    import ray

    pipeline = Pipeline.model_validate(order.pipeline)
    spec = EvaluationSpec.model_validate(order.spec)
    prompts, seeds = fixed_requests(pipeline, captions, spec)
    cluster: Mapping[str, float] = ray.cluster_resources()
    workers = cluster.get("GPU" if order.num_gpus else "CPU", 1)
    size = max(32, -(-len(seeds) // max(1, min(16, int(workers)))))
    lent = {"num_cpus": 1, "num_gpus": order.num_gpus, "max_retries": 2}
    drawing = ray.remote(draw_part).options(**lent)
    parts = [
        drawing.remote(order, prompts[start : start + size], seeds[start : start + size])
        for start in range(0, len(seeds), size)
    ]
    scoring = ray.remote(_score_refs).options(**lent)
    document, gallery = ray.get(scoring.remote(order, prompts, seeds, *parts))
    return Evaluation.model_validate_json(document), gallery


def _score_refs(
    order: Order, prompts: list[str], seeds: list[int], *parts: "NDArray[np.uint8]"
) -> tuple[str, bytes]:
    return score_all(order, prompts, seeds, list(parts))


def _models(order: Order, pipeline: Pipeline) -> "list[Family]":
    import torch

    from infra.registry import Registry

    registry = Registry(order.tracking_uri, Path(order.cache))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [
        load_model(registry.fetch(stage.name, stage.version, digest=stage.sha256)).to(device)
        for stage in pipeline.stages
    ]
