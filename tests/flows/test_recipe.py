import json
import re
from pathlib import Path

import pytest

from flows.recipe import Recipe, Resources
from flows.recipes.loader import RecipeError, load
from flows.training.spec import TrainingSpec

RECIPES = sorted((Path(__file__).parents[2] / "flows/recipes").glob("*.yaml"))
SHAPES = next(path for path in RECIPES if path.stem == "shapes")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_in_the_box_is_valid(path: Path) -> None:
    assert load(path).name == path.stem


OF_SAMPLES = re.compile(
    "alignment.*|fd_judge|spread|coverage|distinct|least_class|ngram_gap|word_accuracy|relative_duration"
    "|.*_(sample_gap|exact_match|prediction_mse)"
)
DRAW_NOTHING = {
    "scenes-bert": "fills blanks",
    "shakespeare-bert": "fills blanks",
    "shapes-clip": "embeds",
    "shapes-dvae": "codes by lot: what it is for is reconstruction",
    "shapes-vqvae": "codes by lot: what it is for is reconstruction",
}
NOT_YET = {
    *("mnist-nade-gpu", "mnist-pixelcnn-gpu"),
    *("mnist-vae-gpu", "multi30k-transformer", "shakespeare-gpt-gpu"),
}
"""Recipes whose honest samples were not measured yet: a likelihood says nothing of them."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_gate_looks_at_what_is_drawn(path: Path) -> None:
    """A right likelihood, or few copies, is what a sampler of noise has as well."""
    looks = any(OF_SAMPLES.fullmatch(name) for name in load(path).gate.metrics)
    assert looks == (path.stem not in {*DRAW_NOTHING, *NOT_YET})


VARIED = {"spread", "distinct", "coverage", "recall"}
ONE_OF_EACH = {
    "cifar10-edm": "not measured yet: it needs a GPU",
    "solids-dreamfusion": "one thing a prompt is what distilling a score does (Poole et al. 2022, section 5)",
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_gate_of_what_was_asked_for_refuses_the_same_again_and_again(path: Path) -> None:
    """One picture, clip or sound a caption, whatever the seed, may have every attribute right."""
    asked = load(path).gate.metrics.keys()
    if any(name.startswith("alignment") for name in asked):
        assert VARIED.isdisjoint(asked) == (path.stem in ONE_OF_EACH)


def test_an_override_reaches_its_field() -> None:
    recipe = load(SHAPES, ["stages.base.training.shuffle_captions=true", "seed=3"])
    assert recipe.stages["base"].training.shuffle_captions
    assert recipe.seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.base.training.step=3",
            r"stages\.base\.training\.step: there is no such field; did you mean 'steps'\?",
        ),
        ("stages.base.training.steps=0", r"stages\.base\.training\.steps: .*greater than 0, got 0"),
        (
            "stages.base.training={steps: 1, cuda_graph: true, accumulate: 2}",
            r"cuda_graph takes a step whole: accumulate must be 1, got 2",
        ),
        ("gate.judge_accuracy=0.5", r"gate\.judge_accuracy: .*0\.95, got 0\.5"),
        ("name=Bad Name", r"name: "),
        ("seed=true", r"seed: give a number, not true or false, got True"),
        ("seed=9007199254740992", r"seed: .*less than 9007199254740992, got"),
        ("evaluation.seeds=[true]", r"evaluation\.seeds\.0: give a number, not true or false"),
        ("evaluation.seeds=[3, 3]", r"evaluation\.seeds: a seed said twice draws the same samples"),
        ("evaluation.samples=100000000000", r"evaluation\.samples: .*got 100000000000"),
        ("stages.base.training.batch_size=1048577", r"batch_size: .*1048576, got 1048577"),
        ("stages.base.training.steps=true", r"steps: give a number, not true or false"),
        ("gate.metrics.spread.at_least=false", r"at_least: give a number, not true or false"),
        ("stages={a/b: {}}", r"stages\.a/b\.\[key\]: .*match pattern"),
        ("control=0", r"control: .*got 0"),
        (".seed=1", r"--set takes a\.b=value, got '\.seed=1'"),
        ("nonsense", r"--set takes a\.b=value, got 'nonsense'"),
        ("seed.deep=1", r"'seed' is a value, not a section"),
        ("description=@", r"--set description=@: '@' is not YAML"),
        ("seed=[", r"--set seed=\[: '\[' is not YAML"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_the_field(
    override: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as refused:
        load(SHAPES, [override])
    assert "\n" not in str(refused.value)


def test_what_would_be_passed_over_is_refused() -> None:
    with pytest.raises(RecipeError, match="--set seed=2: seed is set twice"):
        load(SHAPES, ["seed=1", "seed=2"])
    document = load(SHAPES).model_dump(mode="json")
    document["stages"]["judge"] = document["stages"].pop("upsampler")
    with pytest.raises(ValueError, match="judge is the name of the recipe's judge"):
        Recipe.model_validate_json(json.dumps(document))


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("stages.base.options={steps: 4}", r"stages\.base\.options"),
        ("judge.options={steps: 4}", r"judge\.options"),
        (
            "control={set: {stages.base.options.steps: 4}, refused_by: [alignment]}",
            r"stages\.base\.options",
        ),
    ],
)
def test_an_option_with_a_field_of_its_own_is_refused_and_stored_recipes_that_have_it_are_read(
    override: str, where: str
) -> None:
    with pytest.raises(RecipeError, match=rf"{where}: steps has a field of its own: say it there"):
        load(SHAPES, [override])
    stored = load(SHAPES).model_dump(mode="json")
    stored["stages"]["base"]["options"] = {"steps": 4}
    read = Recipe.model_validate_json(json.dumps(stored))
    assert read.stages["base"].sampling == load(SHAPES).stages["base"].sampling


@pytest.mark.parametrize("size", ["32", "null"])
def test_a_judge_of_pictures_of_another_size_is_refused_before_anything_is_trained(
    size: str,
) -> None:
    path = SHAPES.with_stem("shapes-dvae")
    with pytest.raises(RecipeError, match=r"judge\.image_size must be 16, .* got (32|none)"):
        load(path, [f"judge.image_size={size}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stages.other={family: ddpm, training: {steps: 1, lora: {base: digits}}}"],
            r"adapters of one pipeline name one base, got digits, shapes@production",
        ),
        (
            ["stages.other={family: ddpm, training: {steps: 1}}"],
            r"stages\.other: shapes@production stays around its adapters, and other is none",
        ),
        (
            ["stages.base.training.lora.base=shapes.base:3"],
            r"gate\.no_worse_than: with its base an adapter of a pipeline is compared",
        ),
    ],
)
def test_adapters_around_which_no_pipeline_could_stay_are_refused_before_they_are_trained(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load(SHAPES.with_stem("shapes-teal"), overrides)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read recipe .*none\.yaml: No such file"):
        load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [")
    with pytest.raises(RecipeError, match=r"broken\.yaml is not YAML"):
        load(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"broken\.yaml is not YAML"):
        load(broken)
    broken.write_text("just words")
    with pytest.raises(RecipeError, match="must hold a mapping"):
        load(broken)


def _spec(**changes: object) -> TrainingSpec:
    stage = load(SHAPES).stages["base"]
    values = {
        "name": "shapes.base",
        "family": stage.family,
        "preset": stage.preset,
        "config": stage.config,
        "image_size": stage.image_size,
        "seed": 0,
        "training": stage.training,
        "resources": stage.resources,
        "dataset": "shapes",
        "prepared": Path("/anywhere"),
        "data_identity": "d",
        "code_identity": "c",
    }
    return TrainingSpec.model_validate({**values, **changes})


def test_equal_work_has_an_equal_identity_wherever_the_data_lie_and_however_many_cpus_are_lent() -> (
    None
):
    assert _spec().identity == _spec(prepared=Path("/elsewhere")).identity
    assert _spec().identity == _spec(resources=Resources(cpus_per_worker=3)).identity


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"data_identity": "other"},
        {"code_identity": "other"},
        {"config": {"width": 8}},
        {"resources": Resources(num_workers=2)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_different_work_has_a_different_identity(changes: dict[str, object]) -> None:
    assert _spec().identity != _spec(**changes).identity


def test_a_spec_survives_json() -> None:
    assert TrainingSpec.model_validate_json(_spec().model_dump_json()) == _spec()
