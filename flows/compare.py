"""Two pipeline versions side by side: metrics, stages, recipe, and pictures of the same prompts and seeds.

A difference is always B minus A: what changes for whoever goes from A to B.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.judging.gate import Evaluation, Interval
from flows.judging.pipeline import Pipeline
from flows.recipe import Recipe
from flows.workshop import ledger, registry
from infra.settings import settings
from infra.storage import MANIFEST

if TYPE_CHECKING:
    from torch import Tensor

    from infra.registry import Version
    from models.family import Family

PICTURES: Final = 24
FACTORS: Final = (32, 16, 8, 4, 2, 1)
RESAMPLES: Final = 1000


class Incomparable(ValueError):
    """Two versions that draw no common picture, or one that is no pipeline."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two, with what stands in its directory."""

    version: "Version"
    pipeline: Pipeline
    recipe: dict[str, Any]
    evaluation: Evaluation | None
    passed: bool | None  # its gate
    facts: dict[str, Any]  # its manifest
    stands: tuple[str, ...]  # places of the ledger


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of both, and the paired difference B - A where per-sample outcomes allow it."""

    name: str
    first: Interval | None
    second: Interval | None
    change: Interval | None = None

    @property
    def verdict(self) -> str:
        """What the paired difference shows at 95 %."""
        if self.change is None:
            return ""
        if self.change.low > 0:
            return "B is higher"
        return "B is lower" if self.change.high < 0 else "no difference shown"


@dataclass(frozen=True, slots=True)
class Pictures:
    """The same requests drawn by both, (N, C, H, W) in [0, 1]."""

    prompts: tuple[str, ...]  # "" without text
    seeds: tuple[int, ...]
    source: str
    first: "Tensor"
    second: "Tensor"
    difference: "Tensor | None"  # |A - B| times `factor`, at most 1; None: other sizes
    factor: int
    most: float  # the largest |A - B|, in [0, 1]

    @property
    def says(self) -> str:
        """The difference in a sentence."""
        if self.difference is None:
            a, b = (f"{one.shape[-1]}x{one.shape[-2]}" for one in (self.first, self.second))
            return f"A draws {a} pictures, B {b}: they have no pixels to subtract"
        if not self.most:
            return "both drew the same pictures, bit for bit"
        return f"|A - B| x {self.factor}; the largest difference is {self.most * 255:.0f} of 255"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that the page, the sheet and the JSON say."""

    first: Side
    second: Side
    metrics: tuple[Metric, ...]
    paired: str  # on what the differences stand, or why there are none
    stages: tuple[tuple[str, str, str, bool], ...]  # stage, A's, B's, whether they are the same
    recipe: tuple[tuple[str, str, str], ...]  # field, A's value, B's value

    def as_json(self) -> dict[str, Any]:
        """Return it as a document."""
        return {
            "first": {"ref": self.first.version.ref, "digest": self.first.version.digest},
            "second": {"ref": self.second.version.ref, "digest": self.second.version.digest},
            "paired": self.paired,
            "metrics": {
                metric.name: {
                    "first": metric.first and metric.first.model_dump(),
                    "second": metric.second and metric.second.model_dump(),
                    "change": metric.change and metric.change.model_dump(),
                    "verdict": metric.verdict,
                }
                for metric in self.metrics
            },
            "stages": [
                dict(zip(("stage", "first", "second", "same"), row, strict=True))
                for row in self.stages
            ],
            "recipe": [
                dict(zip(("field", "first", "second"), row, strict=True)) for row in self.recipe
            ],
        }


def side(ref: str) -> Side:
    """Return a pipeline version with its documents.

    Raises:
        Incomparable: a stage, not a pipeline.
    """
    version = registry().get(ref)
    directory = registry().fetch(version)
    if not (directory / "pipeline.json").is_file():
        raise Incomparable(f"{version.ref} is a stage: compare {version.name.split('.')[0]!r}")
    evaluation = directory / "evaluation.json"
    report = _document(directory / "report.json")
    rows = ledger().standing(version.name).values()
    return Side(
        version=version,
        pipeline=Pipeline.model_validate_json((directory / "pipeline.json").read_bytes()),
        recipe=_document(directory / "recipe.json"),
        evaluation=Evaluation.model_validate_json(evaluation.read_bytes()) if evaluation.is_file() else None,
        passed=report.get("passed"),
        facts=_document(directory / MANIFEST),
        stands=tuple(sorted(row.stage for row in rows if row.to_digest == version.digest)),
    )  # fmt: skip


def compare(first: Side, second: Side) -> Comparison:
    """Return what differs between two versions on paper; `draw_both` has the pictures."""
    metrics, paired = compare_metrics(first, second)
    return Comparison(
        first,
        second,
        tuple(metrics),
        paired,
        tuple(_stages(first.pipeline, second.pipeline)),
        tuple(differences(first.recipe, second.recipe)),
    )


def compare_metrics(first: Side, second: Side) -> tuple[list[Metric], str]:
    """Return every metric of either, and on what the paired differences stand or why there are none."""
    import torch

    from models.judges.metrics import paired

    a, b = first.evaluation, second.evaluation
    if a is None or b is None:
        missing = (first if a is None else second).version.ref
        return [], f"{missing} was never evaluated: no metrics to compare"
    names = [*a.metrics, *(name for name in b.metrics if name not in a.metrics)]
    metrics = {name: Metric(name, a.metrics.get(name), b.metrics.get(name)) for name in names}
    if a.evaluation_set != b.evaluation_set:
        return list(metrics.values()), (
            f"no paired differences: {first.version.ref} was judged on evaluation set {a.evaluation_set}, "
            f"{second.version.ref} on {b.evaluation_set}, so their samples are not pairs; evaluate both on the same "
            "prompts, seeds, data and judge"
        )
    count = 0
    for name in sorted(a.outcomes.keys() & b.outcomes.keys() & metrics.keys()):
        ours, theirs = torch.tensor(b.outcomes[name]), torch.tensor(a.outcomes[name])
        found = paired(ours, theirs, count=RESAMPLES, seed=0)
        count = len(ours)
        change = Interval(value=found.value, low=found.low, high=found.high, count=count)
        metrics[name] = Metric(name, metrics[name].first, metrics[name].second, change)
    return list(metrics.values()), (
        f"paired bootstrap over {count} prompts x seeds of evaluation set {a.evaluation_set}, {RESAMPLES} resamples"
    )


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the fields that differ between two documents, by dotted name; "-" where one has none."""
    ours, theirs = dict(_flat(a)), dict(_flat(b))
    return [
        (name, ours.get(name, "-"), theirs.get(name, "-"))
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    ]


def draw_both(first: Side, second: Side, count: int = PICTURES) -> Pictures:
    """Return the pictures that both draw of the same requests, on this process's CPU.

    Raises:
        Incomparable: no prompt that both can read, or other numbers of channels.
    """
    from flows.judging.pipeline import draw

    models = _load(first), _load(second)
    prompts, seeds, source = common_requests(first, second, (models[0][0], models[1][0]), count)
    a = draw(models[0], first.pipeline.stages, prompts, seeds).clamp(0, 1)
    b = draw(models[1], second.pipeline.stages, prompts, seeds).clamp(0, 1)
    shown = tuple(prompts) or ("",) * len(seeds)
    if a.shape != b.shape:
        return Pictures(shown, tuple(seeds), source, a, b, None, 1, 0.0)
    apart = (a - b).abs()
    factor = amplification(apart)
    return Pictures(
        shown, tuple(seeds), source, a, b, (apart * factor).clamp(0, 1), factor, float(apart.max())
    )


def amplification(apart: "Tensor") -> int:
    """Return by how much to multiply differences so that all but the largest hundredth stay below white."""
    top = float(apart.flatten()[:: max(1, apart.numel() // 1_000_000)].quantile(0.99))
    return next((factor for factor in FACTORS if top * factor <= 1), 1)


def common_requests(
    first: Side, second: Side, models: "tuple[Family, Family]", count: int
) -> tuple[list[str], list[int], str]:
    """Return prompts and seeds that both can draw, and in words where they come from.

    They are drawn by lot, always the same, from the evaluation's requests where A's dataset is prepared here, else the
    recipes' prompts to try, with numbered seeds.

    Raises:
        Incomparable: only one of them reads text, or no prompt suits both.
    """
    reads = {one.pipeline.stages[0].accepts.prompt for one in (first, second)}
    a, b = first.version.ref, second.version.ref
    if len(reads) > 1:
        raise Incomparable(f"only one of {a} and {b} reads text: they draw no common request")
    if reads == {"none"}:
        return [], list(range(count)), f"seeds 0 to {count - 1}"
    fixed = _fixed(first)
    if fixed is None:
        tried = [*first.pipeline.try_prompts, *second.pipeline.try_prompts]
        prompts = list(dict.fromkeys(tried))
        rounds = -(-count // max(1, len(prompts)))
        fixed = prompts * rounds, [seed for seed in range(rounds) for _ in prompts]
        source = "the recipes' prompts to try (the evaluation's dataset is not prepared here)"
    else:
        source = f"by a fixed lot from the evaluation's {len(fixed[1])} requests"
    readable = {
        prompt for prompt in set(fixed[0]) if all(_reads(model, prompt) for model in models)
    }
    pairs = [pair for pair in zip(*fixed, strict=True) if pair[0] in readable]
    if not pairs:
        raise Incomparable(f"{a} and {b} have no prompt that both can read")
    # by lot and not evenly: captions come in an order, and an even step would meet it
    places = sorted(random.Random(0).sample(range(len(pairs)), min(count, len(pairs))))
    chosen = [pairs[place] for place in places]
    return [prompt for prompt, _ in chosen], [seed for _, seed in chosen], source


def _fixed(one: Side) -> tuple[list[str], list[int]] | None:
    """Return the requests that a version was judged on, or None where its data is not prepared here."""
    from data.catalog import CatalogError, prepared
    from flows.judging.modalities import judging

    if not one.recipe:
        return None
    recipe = Recipe.model_validate(one.recipe)
    try:
        ready = prepared(recipe.data.name, settings().project)
    except (CatalogError, OSError):
        return None
    if ready.identity != one.facts.get("data_identity"):
        return None
    return judging(one.pipeline.modality).requests(one.pipeline, ready.path, recipe.evaluation)


def _reads(model: "Family", prompt: str) -> bool:
    try:
        model.encode([prompt])
    except ValueError:
        return False
    return True


def _load(one: Side) -> "list[Family]":
    from flows.judging.pipeline import load_model

    stages = one.pipeline.stages
    return [
        load_model(registry().fetch(stage.name, stage.version, digest=stage.sha256))
        for stage in stages
    ]


def _stages(a: Pipeline, b: Pipeline) -> list[tuple[str, str, str, bool]]:
    ours, theirs = ({stage.stage: stage for stage in one.stages} for one in (a, b))
    rows = []
    for name in dict.fromkeys([*ours, *theirs]):
        texts, digests = [], []
        for stage in (ours.get(name), theirs.get(name)):
            digests.append(stage and (stage.sha256, stage.steps, stage.guidance))
            if stage is None:
                texts.append("-")
                continue
            how = [f"{stage.steps} steps"] if stage.steps else []
            how += [f"guidance {stage.guidance:g}"] if stage.guidance is not None else []
            texts.append(", ".join([f"{stage.name}:{stage.version} ({stage.sha256[:12]})", *how]))
        rows.append((name, texts[0], texts[1], digests[0] == digests[1]))
    return rows


def _flat(document: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in document.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append(
                (f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value))
            )
    return found


def _document(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found
