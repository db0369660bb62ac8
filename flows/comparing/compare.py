"""Two pipeline versions side by side: metrics, stages, recipe, and samples of the same prompts and seeds.

A difference is always B minus A: what changes for whoever goes from A to B.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.context import ledger, registry
from flows.evaluating.gate import Evaluation, Interval
from flows.identity.why import differences
from infra.documents import read_json
from infra.pipelines import Pipeline, is_pipeline, read_pipeline
from infra.storage import MANIFEST

if TYPE_CHECKING:
    from infra.registry.registry import Version

RESAMPLES: Final = 1000


class Incomparable(ValueError):
    """Two versions that make nothing in common, or one that is no pipeline."""


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
    if not is_pipeline(directory):
        raise Incomparable(f"{version.ref} is a stage: compare {version.name.split('.')[0]!r}")
    evaluation = directory / "evaluation.json"
    report = _document(directory / "report.json")
    rows = ledger().standing(version.name).values()
    return Side(
        version=version,
        pipeline=read_pipeline(directory),
        recipe=_document(directory / "recipe.json"),
        evaluation=Evaluation.model_validate_json(evaluation.read_bytes()) if evaluation.is_file() else None,
        passed=report.get("passed"),
        facts=_document(directory / MANIFEST),
        stands=tuple(sorted(row.stage for row in rows if row.to_digest == version.digest)),
    )  # fmt: skip


def compare(first: Side, second: Side) -> Comparison:
    """Return what differs between two versions on paper; `flows.comparing.samples` has what they make."""
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


def _stages(a: Pipeline, b: Pipeline) -> list[tuple[str, str, str, bool]]:
    ours, theirs = ({stage.stage: stage for stage in one.stages} for one in (a, b))
    rows = []
    for name in dict.fromkeys([*ours, *theirs]):
        texts, digests = [], []
        for stage in (ours.get(name), theirs.get(name)):
            digests.append(stage and (stage.sha256, stage.options))
            if stage is None:
                texts.append("-")
                continue
            texts.append(", ".join([f"{stage.pin.ref} ({stage.sha256[:12]})", *stage.sampled]))
        rows.append((name, texts[0], texts[1], digests[0] == digests[1]))
    return rows


def _document(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found: dict[str, Any] = read_json(path)
    return found
