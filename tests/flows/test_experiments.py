"""The table of experiments: a model clears its gate, its broken control does not, and neither is taken on trust."""

from pathlib import Path
from typing import Any

import pytest

from flows import experiments
from flows.experiments import Row, Side, cells, markdown, notes, row
from flows.judging.gate import Evaluation, Interval, check
from flows.recipe import Recipe, RecipeError, control_of, load

RECIPES = Path(__file__).parents[2] / "flows/recipes"
CONTROLLED = [one for one in experiments.recipes(RECIPES) if one.control]
DOCUMENT: dict[str, Any] = {
    "name": "toy",
    "data": {"name": "digits"},
    "stages": {"nade": {"family": "nade", "training": {"steps": 1}}},
    "gate": {
        "metrics": {"nade_nats": {"at_least": 10, "at_most": 18}, "memorised": {"at_most": 1}}
    },
    "control": {"set": {"stages.nade.config.mask": "B"}, "refused_by": ["nade_nats"]},
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({**DOCUMENT, **changes})


def judged(one: Recipe, nats: float) -> Side:
    def mean(value: float) -> Interval:
        return Interval(value=value, low=value - 0.5, high=value + 0.5, count=9)

    metrics = {"nade_nats": mean(nats), "memorised": mean(0.0)}
    found = Evaluation(evaluation_set="s", judge=None, metrics=metrics, outcomes={})
    report = check(one.gate, found, None)
    conditions = {condition.name: condition for condition in report.conditions}
    return Side(ref="toy:1", cpu_seconds=14.2, conditions=conditions, passed=report.passed)


@pytest.mark.parametrize(
    ("honest", "broken", "good"),
    [(16.7, 0.01, True), (19.0, 0.01, False), (16.7, 16.9, False), (19.0, 16.9, False)],
)
def test_a_row_is_good_where_the_model_passes_and_the_control_does_not(
    honest: float, broken: float, good: bool
) -> None:
    found = row(recipe(), judged(recipe(), honest), judged(recipe(), broken))
    assert found.good == good
    assert found.refused == (broken < 10)
    assert found.bound == "10 .. 18"
    shown = cells(found)
    assert shown[:4] == ("toy", "nade_nats", f"{honest:.4g}", "10 .. 18")
    assert shown[4].endswith("refused" if broken < 10 else "PASSED")
    assert (shown[5], shown[-1]) == ("14", "good" if good else "FAILED")
    assert (
        cells(found, spread=True)[2] == f"{honest:.4g} ({honest - 0.5:.4g} .. {honest + 0.5:.4g})"
    )


def test_every_metric_that_is_named_must_refuse_the_control() -> None:
    both = recipe(control={**DOCUMENT["control"], "refused_by": ["nade_nats", "memorised"]})
    found = row(both, judged(both, 16.7), judged(both, 0.0))
    assert found.refused is False
    assert "the control is not refused by nade_nats, memorised" in found.note


def test_a_recipe_may_have_several_controls_and_each_has_a_row() -> None:
    second = {"set": {"stages.nade.training.steps": 2}, "refused_by": ["memorised"]}
    both = recipe(control=[DOCUMENT["control"], second])
    assert [control_of(both, number).name for number in (0, 1)] == ["toy-control", "toy-control-2"]
    found = row(both, judged(both, 16.7), judged(both, 0.0), number=1)
    assert (found.name, found.metric, found.refused) == ("toy, control 2", "memorised", False)
    with pytest.raises(RecipeError, match="recipe toy has 2 controls"):
        control_of(both, 2)


def test_a_control_that_diverged_is_refused_and_says_why() -> None:
    found = row(recipe(), judged(recipe(), 16.7), Side(note="loss is nan at step 3"))
    assert (found.refused, found.good) == (True, True)
    assert "the control diverged: loss is nan at step 3" in found.note


def test_a_recipe_whose_data_is_not_there_is_missing_and_not_failed() -> None:
    found = row(recipe(), None, None, note="not run: mnist: put the files under data/raw/mnist")
    assert found.good is None
    assert cells(found)[-1] == "missing"
    assert notes([found]) == ["toy: not run: mnist: put the files under data/raw/mnist"]
    assert Row.model_validate_json(found.model_dump_json()) == found


def test_a_recipe_that_diverged_has_failed_and_says_so() -> None:
    found = row(recipe(), Side(), None, note="diverged: loss is nan at step 3")
    assert found.good is False
    assert "nan at step 3" in found.note
    assert cells(found)[2] == "not measured"


def test_the_table_can_be_pasted_into_a_document() -> None:
    peer = {"name": "a | b", "metric": "nade_nats", "value": 17.84}
    text = markdown([row(recipe(peer=peer), judged(recipe(), 16.7), judged(recipe(), 0.0))])
    head, rule, line = text.splitlines()
    assert head.count("|") == rule.count("|") == line.count("|") - line.count("\\|")
    assert "a \\| b 17.84" in line


@pytest.mark.parametrize(
    ("one", "number"),
    [(one, number) for one in CONTROLLED for number in range(len(one.control))],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_control_is_a_recipe_that_differs_only_where_it_says(
    one: Recipe, number: int
) -> None:
    broken = control_of(one, number)
    assert broken.name == f"{one.name}-control" + (f"-{number + 1}" if number else "")
    assert broken.gate == one.gate
    assert broken.stages != one.stages
    assert broken.model_copy(update={"name": one.name, "stages": one.stages}) == one.model_copy(
        update={"control": (), "peer": None, "search": None}
    )


@pytest.mark.parametrize(
    ("control", "says"),
    [
        (
            {"set": {"stages.nade.config.mask": "B"}, "refused_by": ["fd"]},
            r"no metric 'fd'; .*nade",
        ),
        ({"set": {"stages.nade.stepz": 3}, "refused_by": ["nade_nats"]}, r"stages\.nade\.stepz"),
        ({"set": {}, "refused_by": ["nade_nats"]}, r"control\.0\.set"),
        ({"sets": {}, "refused_by": ["nade_nats"]}, r"control\.0\.sets: there is no such field"),
    ],
)
def test_a_control_that_cannot_be_is_refused_when_the_recipe_is_read(
    control: dict[str, Any], says: str, tmp_path: Path
) -> None:
    import yaml

    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({**DOCUMENT, "control": control}))
    with pytest.raises(RecipeError, match=says):
        load(tmp_path / "toy.yaml")


def test_recipes_are_those_with_a_control_or_those_that_are_named() -> None:
    assert "cifar10-edm" not in {one.name for one in CONTROLLED}
    assert [one.name for one in experiments.recipes(RECIPES, ["cifar10-edm"])] == ["cifar10-edm"]
    with pytest.raises(ValueError, match=r"no recipe 'mnist'; choose from .*mnist-vae"):
        experiments.recipes(RECIPES, ["mnist"])
