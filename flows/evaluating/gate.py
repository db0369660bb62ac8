"""The gate: typed conditions on judged metrics; a report that says why, condition by condition."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from flows.recipe import Bound, Gate, Wins

NO_NUMBER: Final = ", which is no finite number"
"""How a line of what is left out goes on behind a metric's name."""
LESS_IS_BETTER: Final = ("_nats", "jerk", "_mse")  # endings of such outcomes; of others more is


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
    left_out: list[str] = []  # what of held-out data is in no metric, counted and said a stage


class Condition(BaseModel):
    """One line of the gate's report: what was asked, what was found, and the verdict in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    passed: bool
    value: float | None = None
    low: float | None = None  # its 95 % interval
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    says: str


class GateReport(BaseModel):
    """Every condition with its value and verdict; part of the ledger row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    evaluation_set: str
    against: str | None = None  # the version in production that it was compared with
    conditions: list[Condition]

    def joined(self, more: Sequence[Condition]) -> "GateReport":
        """Return the report with further conditions."""
        conditions = [*self.conditions, *more]
        passed = all(condition.passed for condition in conditions)
        return self.model_copy(update={"conditions": conditions, "passed": passed})

    def refusal(self) -> str:
        """Return the failed conditions as one line."""
        return "; ".join(condition.says for condition in self.conditions if not condition.passed)


def check(
    gate: Gate,
    found: Evaluation,
    production: Evaluation | None,
    votes: tuple[float, int] | None = None,
    baseline: Evaluation | None = None,
) -> GateReport:
    """Return the report of `gate` over `found`, compared with what is in production where the gate asks for it.

    `baseline` is of a version that does not change from promotion to promotion, so that quality cannot be lost a
    margin at a time. `votes` are the wins over production in blind votes, and how many votes there were; None: nothing
    in production.
    """
    conditions = [_bound(name, bound, found) for name, bound in gate.metrics.items()]
    if found.judge is not None:
        conditions.append(_judged(found.judge, gate.judge_accuracy))
    if gate.no_worse_than == "production":
        for what, other in (("production", production), ("the baseline", baseline)):
            if other is not None:
                conditions += compare(found, other, what, gate.margin)
    if gate.wins is not None and votes is not None:
        conditions.append(_preferred(gate.wins, *votes))
    if not conditions:
        says = "the recipe's gate has no condition"
        conditions.append(Condition(name="conditions", passed=False, says=says))
    return GateReport(
        passed=all(condition.passed for condition in conditions),
        evaluation_set=found.evaluation_set,
        conditions=conditions,
    )


def _judged(judge: JudgeRecord, least: float) -> Condition:
    holds = judge.accuracy >= least
    sign = ">=" if holds else "is below"
    return Condition(
        name="judge accuracy",
        passed=holds,
        value=judge.accuracy,
        at_least=least,
        says=f"judge {judge.version} accuracy {judge.accuracy:.3f} {sign} {least:.2f}",
    )


def _preferred(wins: Wins, won: float, votes: int) -> Condition:
    share = won / votes if votes else 0.0
    fields = {"name": "wins over production", "value": share, "at_least": wins.at_least}
    if votes < wins.votes:
        says = f"{votes} blind votes against production, {wins.votes} are needed: atelier vote"
        return Condition(passed=False, says=says, **fields)
    holds = share >= wins.at_least
    sign = ">=" if holds else "is below"
    says = f"preferred to production in {share:.3f} of {votes} blind votes {sign} {wins.at_least:g}"
    return Condition(passed=holds, says=says, **fields)


def _bound(name: str, bound: Bound, found: Evaluation) -> Condition:
    limits = {"name": name, "at_least": bound.at_least, "at_most": bound.at_most}
    if name not in found.metrics:
        known = ", ".join(sorted(found.metrics))
        return Condition(
            passed=False, says=f"{name} was not measured (measured: {known})", **limits
        )
    metric = found.metrics[name]
    says = f"{name} {metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}]"
    low = bound.at_least is not None and metric.low < bound.at_least
    high = bound.at_most is not None and metric.high > bound.at_most
    if low and bound.at_least is not None:
        says += f" {'is' if metric.value < bound.at_least else 'may be'} below {bound.at_least:g}"
    elif high and bound.at_most is not None:
        says += f" {'is' if metric.value > bound.at_most else 'may be'} above {bound.at_most:g}"
    else:
        sides = [f">= {bound.at_least:g}"] if bound.at_least is not None else []
        sides += [f"<= {bound.at_most:g}"] if bound.at_most is not None else []
        says += f" {' and '.join(sides)}"
    spread = metric.model_dump(include={"value", "low", "high"})
    return Condition(passed=not (low or high), says=says, **spread, **limits)


def compare(found: Evaluation, other: Evaluation, what: str, margin: float) -> list[Condition]:
    """Compare, paired over the same prompts, seeds and data: not surely worse, and surely not by more than the margin.

    Surely: 95 % of resamples say so. Too few samples to tell are a refusal, not a pass.
    """
    import torch

    from models.judges.metrics import paired

    if found.evaluation_set != other.evaluation_set:
        says = (
            f"evaluation set {found.evaluation_set} is not {what}'s {other.evaluation_set}: "
            "evaluate both on the same prompts, seeds, data and judge"
        )
        return [Condition(name="evaluation set", passed=False, says=says)]
    conditions = []
    for name in sorted(found.outcomes.keys() & other.outcomes.keys()):
        ours, theirs = torch.tensor(found.outcomes[name]), torch.tensor(other.outcomes[name])
        better = (theirs, ours) if name.endswith(LESS_IS_BETTER) else (ours, theirs)
        gain = paired(*better, count=1000, seed=0)
        least = -margin * float(theirs.abs().mean())
        says = f"{name} against {what} {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        if gain.high < 0:
            says += " is worse"
        elif gain.low < least:
            says += f" may be below the margin {least:+.4f}: evaluate more samples"
        conditions.append(
            Condition(
                name=f"{name} against {what}",
                passed=gain.high >= 0 and gain.low >= least,
                value=gain.value,
                low=gain.low,
                high=gain.high,
                at_least=least,
                says=says,
            )
        )
    for name in sorted(other.outcomes.keys() - found.outcomes.keys()):
        if name + NO_NUMBER in found.left_out:
            says = f"{name}{NO_NUMBER}, cannot be compared with {what}"
            conditions.append(Condition(name=f"{name} against {what}", passed=False, says=says))
    if not conditions:
        says = f"nothing was measured sample by sample, so it cannot be compared with {what}"
        conditions.append(Condition(name=f"against {what}", passed=False, says=says))
    return conditions


def document(report: GateReport) -> dict[str, Any]:
    """Return the report as the JSON that the ledger keeps."""
    return report.model_dump(mode="json")
