import shutil

import pytest
import torch

from flows.evaluating.gate import (
    Condition,
    Evaluation,
    GateReport,
    Interval,
    JudgeRecord,
    check,
    document,
)
from flows.promotion.gate_report import gate_report
from flows.recipe import Approvals, Bound, Gate, Wins
from infra.registry.registry import RegistryError
from tests.flows.versions_kit import Installation


def evaluation(
    value: float, *, accuracy: float = 0.99, outcomes: list[float] | None = None, over: str = "set"
) -> Evaluation:
    return Evaluation(
        evaluation_set=over,
        judge=JudgeRecord(version="shapes.judge:1", sha256="0" * 64, accuracy=accuracy),
        metrics={
            "alignment": Interval(value=value, low=value - 0.02, high=value + 0.02, count=240)
        },
        outcomes={"alignment": outcomes or [1.0] * 240},
    )


AT_LEAST = Gate(metrics={"alignment": Bound(at_least=0.85)})
COMPARED = Gate(metrics={"alignment": Bound(at_least=0.5)}, no_worse_than="production")


def test_a_good_version_passes_and_a_bad_one_is_told_why() -> None:
    assert check(AT_LEAST, evaluation(0.9), None).passed
    report = check(AT_LEAST, evaluation(0.03), None)
    assert not report.passed
    assert report.refusal() == "alignment 0.03 [0.01, 0.05] is below 0.85"


def test_a_bound_holds_the_whole_interval_and_not_its_middle_alone() -> None:
    report = check(AT_LEAST, evaluation(0.86), None)
    assert report.refusal() == "alignment 0.86 [0.84, 0.88] may be below 0.85"
    most = Gate(metrics={"alignment": Bound(at_most=0.87)})
    assert check(most, evaluation(0.86), None).refusal().endswith("may be above 0.87")
    assert check(most, evaluation(0.85), None).passed


def test_a_judge_that_errs_too_often_is_not_trusted() -> None:
    report = check(AT_LEAST, evaluation(0.9, accuracy=0.9), None)
    assert report.refusal() == "judge shapes.judge:1 accuracy 0.900 is below 0.95"


def test_a_metric_that_was_not_measured_fails_the_gate() -> None:
    gate = Gate(metrics={"aligment": Bound(at_least=0.8)})
    assert (
        "aligment was not measured (measured: alignment)"
        in check(gate, evaluation(0.9), None).refusal()
    )


def test_a_version_worse_than_production_on_the_same_prompts_is_refused() -> None:
    worse = evaluation(0.9, outcomes=[1.0] * 180 + [0.0] * 60)
    assert "is worse" in check(COMPARED, worse, evaluation(0.95)).refusal()
    assert check(COMPARED, evaluation(0.95), worse).passed
    assert check(COMPARED, worse, worse).passed


def test_a_version_that_finds_something_impossible_is_no_better_than_one_that_does_not() -> None:
    production = evaluation(0.95)
    production = production.model_copy(
        update={"outcomes": {**production.outcomes, "vae_nats": [9.0] * 240}}
    )
    assert check(COMPARED, evaluation(0.95), production).passed, "measured by others alone"
    found = evaluation(0.95).model_copy(
        update={"left_out": ["vae_nats, which is no finite number"]}
    )
    refused = check(COMPARED, found, production).refusal()
    assert refused == "vae_nats, which is no finite number, cannot be compared with production"


def test_a_loss_of_two_points_is_refused_however_often_it_is_tried() -> None:
    """Versions right in 0.97 and in 0.95 of 1,000 prompts, by a margin of one point: one in a thousand is let in."""
    gate = COMPARED.model_copy(update={"margin": 0.01})
    generator = torch.Generator().manual_seed(0)

    def drawn(right: float) -> Evaluation:
        outcomes = (torch.rand(1000, generator=generator) < right).float().tolist()
        return evaluation(0.9, outcomes=outcomes)

    assert not any(check(gate, drawn(0.95), drawn(0.97)).passed for _ in range(40))


def test_equal_versions_pass_where_the_evaluation_is_large_enough_to_tell() -> None:
    def drawn(count: int) -> Evaluation:
        outcomes = (torch.rand(count, generator=generator) < 0.97).float().tolist()
        return evaluation(0.9, outcomes=outcomes)

    generator = torch.Generator().manual_seed(0)
    passed = [check(COMPARED, drawn(500), drawn(500)).passed for _ in range(20)]
    assert sum(passed) >= 18
    few = evaluation(0.9, outcomes=[1.0] * 30 + [0.0])
    mirrored = evaluation(0.9, outcomes=[0.0] + [1.0] * 30)
    assert "may be below the margin -0.0484: evaluate more samples" in (
        check(COMPARED, few, mirrored).refusal()
    )


def test_quality_cannot_be_lost_a_margin_at_a_time() -> None:
    def losing(lost: range) -> Evaluation:
        return evaluation(0.9, outcomes=[float(row not in lost) for row in range(480)])

    first, second, third = losing(range(5)), losing(range(5, 17)), losing(range(17, 37))
    assert check(COMPARED, second, first).passed
    assert check(COMPARED, third, second).passed
    report = check(COMPARED, third, second, baseline=first)
    assert report.refusal().startswith("alignment against the baseline -0.0312")


def test_evaluations_over_different_sets_are_not_compared() -> None:
    report = check(COMPARED, evaluation(0.9), evaluation(0.9, over="other"))
    assert "evaluation set set is not production's other" in report.refusal()


@pytest.mark.parametrize("name", ["vae_nats", "jerk", "frames_prediction_mse"])
def test_of_nats_jerk_and_squared_errors_less_is_better(name: str) -> None:
    def measured(mean: float) -> Evaluation:
        values = {name: [mean + (row % 7) / 10 for row in range(200)]}
        return evaluation(0.9).model_copy(update={"outcomes": values})

    assert check(COMPARED, measured(99), measured(101)).passed
    told = check(COMPARED, measured(101), measured(99)).refusal()
    assert f"{name} against production -2.0" in told


def test_nothing_to_compare_is_no_pass() -> None:
    silent = evaluation(0.9).model_copy(update={"outcomes": {}})
    assert "nothing was measured sample by sample" in check(COMPARED, silent, silent).refusal()


def test_a_gate_without_conditions_passes_nothing() -> None:
    bare = Evaluation(evaluation_set="s", judge=None, metrics={}, outcomes={})
    assert not check(Gate(), bare, None).passed


@pytest.mark.parametrize("bound", [{}, {"at_least": None}])
def test_a_bound_without_a_side_is_refused(bound: dict[str, None]) -> None:
    with pytest.raises(ValueError, match="at_least, at_most or both"):
        Bound.model_validate(bound)


def test_every_condition_says_what_was_asked_and_found_in_fields() -> None:
    report = check(COMPARED, evaluation(0.9), evaluation(0.95))
    bound, judge, compared = report.conditions
    assert (bound.name, bound.value, bound.low, bound.high) == ("alignment", 0.9, 0.88, 0.92)
    assert (bound.at_least, bound.at_most, bound.passed) == (0.5, None, True)
    assert (judge.name, judge.value, judge.at_least) == ("judge accuracy", 0.99, 0.95)
    assert (compared.name, compared.value) == ("alignment against production", 0.0)
    worse = evaluation(0.9, outcomes=[1.0] * 180 + [0.0] * 60)
    lost = check(COMPARED, worse, evaluation(0.95)).conditions[-1]
    assert lost.value == -0.25
    assert lost.high is not None
    assert lost.high < 0


@pytest.mark.parametrize(
    ("votes", "passed", "says"),
    [
        ((7.5, 10), True, "preferred to production in 0.750 of 10 blind votes >= 0.55"),
        ((5.0, 10), False, "preferred to production in 0.500 of 10 blind votes is below 0.55"),
        ((9.0, 9), False, "9 blind votes against production, 10 are needed"),
        ((0.0, 0), False, "0 blind votes against production, 10 are needed"),
    ],
)
def test_people_must_prefer_a_version_often_enough(
    votes: tuple[float, int], passed: bool, says: str
) -> None:
    gate = Gate(wins=Wins(at_least=0.55, votes=10))
    condition = check(gate, evaluation(0.9), evaluation(0.9), votes).conditions[-1]
    assert condition.passed == passed
    assert says in condition.says


def test_without_a_version_in_production_nobody_can_have_voted() -> None:
    gate = Gate(metrics={"alignment": Bound(at_least=0.5)}, wins=Wins(at_least=0.5, votes=10))
    assert check(gate, evaluation(0.9), None).passed


def test_further_conditions_join_a_report_and_can_fail_it() -> None:
    report = check(AT_LEAST, evaluation(0.9), None)
    slow = Condition(name="slowdown", passed=False, says="too slow", value=3.0, at_most=1.5)
    joined = report.joined([slow])
    assert not joined.passed
    assert joined.refusal() == "too slow"
    assert GateReport.model_validate(document(joined)) == joined


def test_a_cost_bound_refuses_what_is_too_slow() -> None:
    gate = Gate(metrics={"seconds_per_sample": Bound(at_most=0.5)})
    slow = Interval(value=0.8, low=0.7, high=0.9, count=9)
    found = Evaluation(
        evaluation_set="s", judge=None, metrics={"seconds_per_sample": slow}, outcomes={}
    )
    assert check(gate, found, None).refusal() == "seconds_per_sample 0.8 [0.7, 0.9] is above 0.5"


def test_approvals_that_can_never_come_are_refused_in_the_recipe() -> None:
    assert Approvals(count=2, by=("berta", "carl")).hours == 24
    with pytest.raises(ValueError, match="2 approvals cannot come from 1 people"):
        Approvals(count=2, by=("berta",))
    with pytest.raises(ValueError, match="greater than 1"):
        Gate(max_slowdown=0.9)


def test_production_is_looked_at_where_the_gate_asks_for_it_alone(here: Installation) -> None:
    """It would be judged anew on the candidate's data, and a deleted one would stop whoever asks nothing of it."""
    metrics = {"alignment": {"at_least": 0.5}}
    old = here.pipeline(0)
    here.promote(old)
    alone = here.pipeline(1, over="set-2", gate={"metrics": metrics})
    beside = here.pipeline(
        2, over="set-2", gate={"metrics": metrics, "no_worse_than": "production"}
    )
    report = gate_report(beside)
    assert report.against == old.ref
    assert "evaluation set set-2 is not production's set-1" in report.refusal()
    shutil.rmtree(here.registry.fetch(old))
    here.registry.remove(old)
    report = gate_report(alone)
    assert report.passed
    assert report.against is None
    assert [one.name for one in report.conditions] == ["alignment", "judge accuracy", "stages fit"]
    with pytest.raises(RegistryError, match="no version"):
        gate_report(beside)
