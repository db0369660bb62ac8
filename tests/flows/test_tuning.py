"""What a search tries is inside its space, fits the recipe, and is the same whenever it is asked for."""

import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flows.recipe import Recipe
from flows.recipes.loader import RecipeError, load, searched_stage
from flows.training.ray_train import Trained, fit
from flows.tuning.picture import draw_search
from flows.tuning.plan import (
    Records,
    Trial,
    check,
    draw,
    found,
    plan,
    trial_recipe,
    values_of,
    with_values,
)
from flows.tuning.space import Range
from tests.flows.training_kit import prepare, spec_of, weights_of

RATE = "training.optimizers.model.learning_rate"
SPACE: dict[str, Any] = {
    RATE: {"log_uniform": [1e-5, 1e-2]},
    "training.ema_half_life": {"uniform": [50, 400]},
    "training.batch_size": {"int_uniform": [8, 40]},
    "config.hidden": {"choice": [[16], [32, 32]]},
}
TINY: dict[str, Any] = {
    "name": "shades",
    "data": {"name": "shades"},
    "stages": {"vae": {"family": "vae", "preset": "tiny", "training": {"steps": 40}}},
    "search": {"space": SPACE, "max_steps": 20, "grace_steps": 5, "validate_every": 5},
}


def recipe(folder: Path, **changes: Any) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return load(path)


def searching(**changes: Any) -> dict[str, Any]:
    return {"search": {**TINY["search"], **changes}}


@given(low=st.floats(1e-6, 1e3), span=st.floats(1.001, 1e4), seed=st.integers(), log=st.booleans())
def test_a_drawn_number_lies_in_its_range(low: float, span: float, seed: int, log: bool) -> None:
    space = Range.model_validate({"log_uniform" if log else "uniform": [low, low * span]})
    assert low <= draw(space, Random(seed)) <= low * span


@given(low=st.integers(-50, 50), span=st.integers(1, 9), seed=st.integers())
def test_a_drawn_whole_number_may_be_either_end(low: int, span: int, seed: int) -> None:
    space = Range(int_uniform=(low, low + span))
    random = Random(seed)
    drawn = {draw(space, random) for _ in range(400)}
    assert min(drawn) == low
    assert max(drawn) == low + span


def test_a_log_uniform_range_gives_every_decade_the_same_share() -> None:
    space, random = Range(log_uniform=(1e-5, 1e-2)), Random(0)
    decades = [math.floor(math.log10(draw(space, random))) for _ in range(3000)]
    assert all(900 < decades.count(decade) < 1100 for decade in (-5, -4, -3))


@given(number=st.integers(0, 10_000), seed=st.integers(0, 10_000))
def test_every_trial_s_values_fit_the_recipe(number: int, seed: int) -> None:
    base = Recipe.model_validate(TINY)
    assert base.search is not None
    values = values_of(base.search, seed, number)
    assert values == values_of(base.search, seed, number)
    stage = with_values(base, values).stages["vae"]
    if number == 0:
        assert stage == base.stages["vae"]
    else:
        assert stage.training.optimizers["model"].learning_rate == values[RATE]
        assert stage.config["hidden"] in ([16], [32, 32])


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({}, "give one of log_uniform"),
        ({"uniform": [0, 1], "choice": [1]}, "give one of log_uniform"),
        ({"uniform": [2, 1]}, "low < high"),
        ({"log_uniform": [0, 1]}, "above 0"),
        ({"choice": []}, "at least 1 item"),
        ({"int_uniform": [0.5, 2]}, "valid integer"),
    ],
)
def test_a_range_that_is_none_is_refused(space: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Range.model_validate(space)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (searching(space={}), r"search\.space: .*at least 1 item"),
        (
            searching(space={"training.momentum": {"uniform": [0, 1]}}),
            "training.momentum: there is no such field",
        ),
        (
            searching(space={"training.ema_half_life": {"uniform": [-1, 2]}}),
            r"ema_half_life: .*got -1",
        ),
        (
            searching(space={"training.ema_decay": {"uniform": [0.5, 0.9]}}),
            r"ema_decay, of a step, became ema_half_life",
        ),
        (searching(space={"training.steps": {"choice": [5]}}), "cannot be searched"),
        (searching(space={"image_size": {"choice": [8]}}), "'image_size' cannot be searched"),
        (searching(space={"training.steps.x": {"choice": [1]}}), "'steps' is a value"),
        (searching(stage="gan"), "no stage 'gan'; name one of vae"),
        (searching(grace_steps=30), "validate_every <= grace_steps <= max_steps"),
        (searching(trials=0), r"search\.trials: .*greater than 0"),
        (searching(metric="accuracy"), r"search\.metric"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_search_that_cannot_be_is_one_line_when_the_recipe_is_loaded(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=says) as refused:
        recipe(tmp_path, **changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"config.hiden": {"choice": [[8]]}}, "vae has no setting 'hiden'"),
        ({"config.latent": {"choice": [4, -1]}}, "latent .*must be at least 1"),
        (
            {"training.optimizers.critic.learning_rate": {"uniform": [0.1, 1]}},
            "vae has no player 'critic'; choose one of model",
        ),
    ],
)
def test_a_space_that_the_family_would_refuse_is_refused_before_a_trial(
    space: dict[str, Any], says: str, tmp_path: Path
) -> None:
    check(recipe(tmp_path))
    with pytest.raises(RecipeError, match=says):
        check(recipe(tmp_path, **searching(space=space)))


def test_a_batch_that_the_workers_of_the_whole_training_cannot_share_is_refused_before_a_trial(
    tmp_path: Path,
) -> None:
    """Trials train alone: they would not find it out."""
    shared = {"vae": {**TINY["stages"]["vae"], "resources": {"num_workers": 2}}}
    with pytest.raises(RecipeError, match=r"trial \d+ of .*batch_size \d+ must be a multiple of 2"):
        check(recipe(tmp_path, stages=shared))
    even = {"training.batch_size": {"choice": [8, 16]}}
    check(recipe(tmp_path, stages=shared, **searching(space=even)))


def test_a_recipe_without_a_search_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no `search:` section"):
        searched_stage(recipe(tmp_path, search=None))


def test_a_trial_is_short_and_the_found_recipe_is_whole_and_names_its_search(
    tmp_path: Path,
) -> None:
    base = recipe(tmp_path)
    trial = trial_recipe(base, {RATE: 0.01}).stages["vae"]
    assert (trial.training.steps, trial.training.validate_every) == (20, 5)
    assert trial.resources.num_workers == 0
    whole = found(base, "run", 3, {RATE: 0.01})
    assert whole.stages["vae"].training.steps == 40
    assert whole.stages["vae"].training.optimizers["model"].learning_rate == 0.01
    assert whole.found_by is not None
    assert (whole.found_by.search, whole.found_by.trial) == ("run", 3)
    assert Recipe.model_validate_json(whole.model_dump_json()) == whole


def test_a_longer_search_is_the_same_search_and_another_space_is_not(tmp_path: Path) -> None:
    base = recipe(tmp_path).search
    assert base is not None
    spec = spec_of(tmp_path)
    short, long = plan(base, 0, (spec,) * 3), plan(base, 0, (spec,) * 9)
    assert short.identity == long.identity
    assert short.values == long.values[:3]
    assert plan(base, 1, (spec,)).identity != short.identity
    other = base.model_copy(update={"reduction": 2})
    assert plan(other, 0, (spec,)).identity != short.identity


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    trial = Trial(number=3, values={RATE: 0.1}, state="stopped", curve=((5, 1.5), (10, 1.25)))
    records = Records(tmp_path / "ended")
    assert records.all() == {}
    records.write(trial)
    assert records.all() == {3: trial}
    assert (trial.step, trial.loss) == (10, 1.25)


def test_the_picture_of_a_search_is_drawn_for_every_kind_of_space(tmp_path: Path) -> None:
    search = recipe(tmp_path).search
    assert search is not None
    trials = [
        Trial(
            number=number,
            values=values_of(search, 0, number),
            state="finished",
            curve=((20, 1.0 + number),) if number != 2 else (),
        )
        for number in range(5)
    ]
    draw_search(trials, search, tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


def trained(prepared: Path, runs: Path, told: list[tuple[int, float]], **options: Any) -> Trained:
    spec = spec_of(prepared, family="vae", **options)
    return fit(
        spec,
        run_id=None,
        tracking_uri=None,
        runs=runs,
        on_validation=lambda step, loss: told.append((step, loss)),
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "shades", validation=80)


def test_validation_is_told_at_its_steps_and_changes_no_bit_of_the_training(
    prepared: Path, tmp_path: Path
) -> None:
    told: list[tuple[int, float]] = []
    plain = trained(prepared, tmp_path / "plain", told)
    assert told == []
    measured = trained(prepared, tmp_path / "measured", told, validate_every=5)
    assert [step for step, _ in told] == [5, 10, 12]
    assert weights_of(measured.directory) == weights_of(plain.directory)
    assert measured.metrics["validation_loss"] == told[-1][1]
    assert len({loss for _, loss in told}) == 3


def test_validation_uses_the_same_batches_and_noise_whatever_the_batch_size(
    prepared: Path, tmp_path: Path
) -> None:
    """Nothing is learned at a rate that moves nothing: what is left to differ is the measure itself."""
    still = {"steps": 1, "validate_every": 1, "ema_half_life": 1e18}
    quiet = {"optimizers": {"model": {"learning_rate": 1e-30}}}
    first: list[tuple[int, float]] = []
    second: list[tuple[int, float]] = []
    trained(prepared, tmp_path / "a", first, **still, **quiet)
    trained(prepared, tmp_path / "b", second, batch_size=16, **still, **quiet)
    assert first == second


def test_a_training_that_is_ended_at_a_validation_goes_on_from_its_checkpoint(
    prepared: Path, tmp_path: Path
) -> None:
    class Enough(RuntimeError):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 10:
            raise Enough

    spec = spec_of(prepared, family="vae", validate_every=5)
    with pytest.raises(Enough):
        fit(spec, run_id=None, tracking_uri=None, runs=tmp_path, on_validation=stop)
    told: list[tuple[int, float]] = []
    ended = trained(prepared, tmp_path, told, validate_every=5)
    whole: list[tuple[int, float]] = []
    undisturbed = trained(prepared, tmp_path / "whole", whole, validate_every=5)
    assert told == [pair for pair in whole if pair[0] > 8]  # the last checkpoint was at 8
    assert weights_of(ended.directory) == weights_of(undisturbed.directory)
