"""The gate: typed conditions on judged metrics; a report that says why, condition by condition."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from flows.recipe import Bound, Gate


class Interval(BaseModel):
    """A metric with its bootstrap interval (95 %) and the number of samples under it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    low: float
    high: float
    count: int


class JudgeRecord(BaseModel):
    """Which judge scored, and how well it does on real pictures it never saw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    sha256: str
    accuracy: Annotated[float, Field(ge=0, le=1)]


class Evaluation(BaseModel):
    """What judging a pipeline found; stored with the version as evaluation.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    evaluation_set: str  # hash of data identity, prompts, seeds and judge: equal ones compare
    judge: JudgeRecord | None
    metrics: dict[str, Interval]
    outcomes: dict[str, list[float]]  # per-sample values, in the set's order, for paired comparison


class Condition(BaseModel):
    """One line of the gate's report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    says: str


class GateReport(BaseModel):
    """Every condition with its value and verdict; part of the ledger row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    evaluation_set: str
    conditions: list[Condition]

    def refusal(self) -> str:
        """Return the failed conditions as one line."""
        return "; ".join(condition.says for condition in self.conditions if not condition.passed)


def check(gate: Gate, found: Evaluation, production: Evaluation | None) -> GateReport:
    """Return the report of `gate` over `found`, compared with what is in production where the gate asks for it."""
    conditions = [_bound(name, bound, found) for name, bound in gate.metrics.items()]
    if found.judge is not None:
        accuracy, least = found.judge.accuracy, gate.judge_accuracy
        says = f"judge {found.judge.version} accuracy {accuracy:.3f} {_sign(accuracy >= least)} {least:.2f}"
        conditions.append(Condition(passed=accuracy >= least, says=says))
    if gate.no_worse_than is not None and production is not None:
        conditions += _compare(found, production)
    if not conditions:
        conditions.append(Condition(passed=False, says="the recipe's gate has no condition"))
    return GateReport(
        passed=all(condition.passed for condition in conditions),
        evaluation_set=found.evaluation_set,
        conditions=conditions,
    )


def _sign(holds: bool) -> str:
    return ">=" if holds else "is below"


def _bound(name: str, bound: Bound, found: Evaluation) -> Condition:
    if name not in found.metrics:
        known = ", ".join(sorted(found.metrics))
        return Condition(passed=False, says=f"{name} was not measured (measured: {known})")
    metric = found.metrics[name]
    spread = f"{name} {metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}]"
    if bound.at_least is not None and metric.value < bound.at_least:
        return Condition(passed=False, says=f"{spread} is below {bound.at_least:g}")
    if bound.at_most is not None and metric.value > bound.at_most:
        return Condition(passed=False, says=f"{spread} is above {bound.at_most:g}")
    limits = [f">= {bound.at_least:g}"] if bound.at_least is not None else []
    limits += [f"<= {bound.at_most:g}"] if bound.at_most is not None else []
    return Condition(passed=True, says=f"{spread} {' and '.join(limits)}")


def _compare(found: Evaluation, production: Evaluation) -> list[Condition]:
    """Paired bootstrap on the same prompts, seeds and data: worse means that 95 % of resamples say so."""
    import torch

    from models.judges.metrics import paired

    if found.evaluation_set != production.evaluation_set:
        says = (
            f"evaluation set {found.evaluation_set} is not production's {production.evaluation_set}: "
            "evaluate both on the same prompts, seeds, data and judge"
        )
        return [Condition(passed=False, says=says)]
    conditions = []
    for name in sorted(found.outcomes.keys() & production.outcomes.keys()):
        ours, theirs = torch.tensor(found.outcomes[name]), torch.tensor(production.outcomes[name])
        gain = paired(ours, theirs, count=1000, seed=0)
        says = f"{name} against production {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        conditions.append(
            Condition(passed=gain.high >= 0, says=says + (" is worse" if gain.high < 0 else ""))
        )
    return conditions


def document(report: GateReport) -> dict[str, Any]:
    """Return the report as the JSON that the ledger keeps."""
    return report.model_dump(mode="json")
