"""The table of experiments: a model clears its gate, its broken control does not, and neither is taken on trust."""

from pathlib import Path
from typing import Any

import pytest

from flows.comparing import experiments
from flows.comparing.experiments import BEGIN, COLUMNS, END, Row, Side, lines, row, written
from flows.evaluating.gate import Evaluation, Interval, check
from flows.recipe import Recipe
from flows.recipes.loader import RecipeError, control_of, controlled, load
from flows.train import train_stages

RECIPES = Path(__file__).parents[2] / "flows/recipes"
CONTROLLED = [one for one in controlled(RECIPES) if one.control]
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
    return Side(
        ref="toy:1", commit="abc1234", cpu_seconds=14.2, conditions=conditions, passed=report.passed
    )


def table(found: Row) -> dict[str, str]:
    """Return the first line of a row's, by column."""
    return dict(zip(COLUMNS, lines(found)[0], strict=True))


@pytest.mark.parametrize(
    ("honest", "broken", "good"),
    [(16.7, 0.01, True), (19.0, 0.01, False), (16.7, 16.9, False), (19.0, 16.9, False)],
)
def test_a_row_is_good_where_the_model_passes_and_the_control_does_not(
    honest: float, broken: float, good: bool
) -> None:
    one = recipe()
    found = row(one, [judged(one, honest)], [judged(one, broken)])
    assert found.good == good
    assert found.controls[0].refused == (broken < 10)
    shown = table(found)
    assert shown["gate"] == "10 .. 18"
    assert shown["worst (95 %)"] == f"{honest:.4g} ({honest - 0.5:.4g} .. {honest + 0.5:.4g})"
    assert shown["control"] == f"{broken:.4g}, {'refused' if broken < 10 else 'PASSED'}"
    assert (shown["seeds"], shown["CPU-s"], shown["commit"]) == ("1", "14", "abc1234")
    assert shown[""] == ("good" if good else "FAILED")


@pytest.mark.parametrize(
    ("nats", "worst", "good"),
    [((16.0, 16.5, 17.0), 17.0, True), ((16.0, 10.2, 17.0), 10.2, False), ((14,) * 3, 14.0, True)],
)
def test_of_several_seeds_the_worst_the_mean_and_the_spread_are_told_and_each_must_pass(
    nats: tuple[float, ...], worst: float, good: bool
) -> None:
    """The worst is the one with the least room to a bound: an end of 9.7 lies below 10."""
    one = recipe()
    found = row(one, [judged(one, value) for value in nats], [judged(one, 0.0)])
    shown = table(found)
    assert shown["worst (95 %)"].startswith(f"{worst:.4g} (")
    assert shown["mean"] == f"{sum(nats) / 3:.4g}"
    assert shown["spread"] == f"{max(nats) - min(nats):.2g}"
    assert shown["seeds"] == "3"
    assert (found.good, shown[""] == "good") == (good, good)
    assert ("toy: seed 1: nade_nats" in "".join(found.notes)) == (not good)


def test_every_metric_of_the_gate_has_a_line_with_the_controls_beside() -> None:
    second = {"set": {"stages.nade.training.steps": 2}, "refused_by": ["memorised"]}
    both = recipe(control=[DOCUMENT["control"], second])
    assert [control_of(both, number).name for number in (0, 1)] == ["toy-control", "toy-control-2"]
    found = row(both, [judged(both, 16.7)], [judged(both, 0.0), judged(both, 16.0)])
    nats, memorised = lines(found)
    assert nats[1:3] == ("nade_nats", "10 .. 18")
    assert nats[COLUMNS.index("control")] == "0, refused; 16"
    assert memorised[COLUMNS.index("control")] == "0; 0, PASSED"
    assert (nats[-1], memorised[-1], found.good) == ("good", "FAILED", False)
    assert found.notes == ["toy: control 2 is not refused by memorised"]
    with pytest.raises(RecipeError, match="recipe toy has 2 controls"):
        control_of(both, 2)


def test_every_metric_that_is_named_must_refuse_the_control() -> None:
    both = recipe(control={**DOCUMENT["control"], "refused_by": ["nade_nats", "memorised"]})
    found = row(both, [judged(both, 16.7)], [judged(both, 0.0)])
    assert found.controls[0].refused is False
    assert found.notes == ["toy: the control is not refused by nade_nats, memorised"]


def test_a_control_that_diverged_is_refused_and_says_why() -> None:
    found = row(recipe(), [judged(recipe(), 16.7)], [Side(note="loss is nan at step 3")])
    assert (found.controls[0].refused, found.good) == (True, True)
    assert found.notes == ["toy: the control diverged: loss is nan at step 3"]


def test_a_recipe_that_failed_or_whose_data_is_not_there_costs_the_others_nothing() -> None:
    """No server answers here."""
    failed = experiments.run(recipe())
    assert failed.notes[0].startswith("toy: failed: ")
    missing = row(recipe(), note="not run: mnist: put the files under data/raw/mnist")
    for found in (failed, missing):
        assert (found.good, lines(found)) == (None, [])
        assert Row.model_validate_json(found.model_dump_json()) == found


def test_a_seed_that_diverged_has_failed_and_says_so() -> None:
    one = recipe()
    found = row(one, [judged(one, 16.7), Side(note="diverged: loss is nan at step 3")])
    assert found.good is False
    assert found.notes == ["toy: seed 1: diverged: loss is nan at step 3"]
    assert table(found)["worst (95 %)"] == "not measured"


def test_rows_are_put_into_the_table_of_a_document_and_the_others_stay() -> None:
    peer = {"name": "a | b", "metric": "nade_nats", "value": 17.84}
    toy, other = recipe(peer=peer), recipe(name="another")
    first = written([row(one, [judged(one, 16.7)]) for one in (toy, other)], "")
    _, head, rule, *rows, _ = first.splitlines()
    assert head.count("|") == rule.count("|") == rows[2].count("|") - rows[2].count("\\|")
    assert "a \\| b 17.84" in rows[2]
    assert [line.split(" | ")[0] for line in rows] == ["| another"] * 2 + ["| toy"] * 2
    document = f"# Figures\n\n{first}\nThe end.\n"
    again = written([row(toy, [judged(toy, 19.0)])], document)
    assert again.startswith(f"# Figures\n\n{BEGIN}\n")
    assert again.endswith("The end.\n")
    assert [line for line in again.splitlines() if "another" in line] == rows[:2]
    assert "- toy: seed 0: nade_nats 19" in again
    assert written([row(toy, [judged(toy, 16.7)])], again) == document
    assert written([row(toy, note="failed: no room")], document) == document
    with pytest.raises(ValueError, match=f"put the lines {BEGIN} and {END}"):
        written([], "# Figures\n")


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
    assert [one.name for one in controlled(RECIPES, ["cifar10-edm"])] == ["cifar10-edm"]
    with pytest.raises(ValueError, match=r"no recipe 'mnist'; choose from .*mnist-vae"):
        controlled(RECIPES, ["mnist"])


@pytest.mark.parametrize(
    ("override", "left"),
    [
        ("stages.prior.training.shuffle_captions", {"vqvae", "clip", "judge"}),
        ("stages.vqvae.training.shuffle_captions", {"clip", "judge"}),
    ],
)
def test_a_control_trains_what_it_changes_and_what_learned_from_that(
    override: str, left: set[str]
) -> None:
    honest = load(RECIPES / "shapes-dalle.yaml")
    broken = load(RECIPES / "shapes-dalle.yaml", [f"{override}=true"])
    trained = dict.fromkeys([*honest.stages, "judge"], "any")
    assert experiments.unchanged(honest, broken, trained).keys() == left


def test_a_further_seed_is_judged_by_the_first_ones_judge_and_its_own_data() -> None:
    recipe = load(RECIPES / "shapes-teal.yaml")
    trained = {name: {"name": name, "version": 1} for name in [*recipe.stages, "judge"]}
    seeded, there = experiments.by_seed(recipe, 2, trained)
    assert seeded.seed == recipe.seed + 2
    assert seeded.judge == recipe.judge
    assert seeded.judged_by == recipe.judged_by != recipe.data
    assert there == {"judge": trained["judge"]}


def test_a_stage_whose_need_is_not_there_is_told_and_waits_for_nobody() -> None:
    honest = load(RECIPES / "shapes-dalle.yaml")
    alone = honest.model_copy(update={"stages": {"prior": honest.stages["prior"]}, "judge": None})
    with pytest.raises(ValueError, match="prior needs a stage that is not there"):
        train_stages(alone, {})
