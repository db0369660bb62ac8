import pytest

from flows.judging.gate import Evaluation, Interval, JudgeRecord, check
from flows.recipe import Bound, Gate


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


def test_evaluations_over_different_sets_are_not_compared() -> None:
    report = check(COMPARED, evaluation(0.9), evaluation(0.9, over="other"))
    assert "evaluation set set is not production's other" in report.refusal()


def test_a_gate_without_conditions_passes_nothing() -> None:
    bare = Evaluation(evaluation_set="s", judge=None, metrics={}, outcomes={})
    assert not check(Gate(), bare, None).passed


@pytest.mark.parametrize("bound", [{}, {"at_least": None}])
def test_a_bound_without_a_side_is_refused(bound: dict[str, None]) -> None:
    with pytest.raises(ValueError, match="at_least, at_most or both"):
        Bound.model_validate(bound)
