"""What verbs refuse before anything starts, and what they say of time."""

from pathlib import Path

import pytest
import typer

from flows.cli import promotion_verbs
from flows.cli.bench_verbs import families
from flows.cli.lineage_verbs import lineage
from flows.cli.promotion_verbs import history
from flows.cli.recipe_verbs import new
from flows.cli.rollout_verbs import limits_of, rollout
from flows.context import ledger
from flows.promotion.rollout import (
    RolloutError,
    _must_run,
    end_rollout,
    promote_challenger,
)
from flows.recipes.loader import RecipeError, load
from infra.settings import settings
from tests.flows.versions_kit import Installation


def test_history_tells_a_moment_of_any_time_zone_in_utc(
    private_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger().transition(
        name="shapes", stage="production", to_version=1, to_digest="0" * 64,
        expected_epoch=0, key="first", actor="ann",
    )  # fmt: skip
    history("shapes", at="2999-06-01T01:30+02:00")
    assert "shapes at 2999-05-31 23:30:00 UTC" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'yesterday' is no time"):
        history("shapes", at="yesterday")


def test_history_needs_no_registry_for_what_the_ledger_tells(
    private_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion_verbs, "use_stack", lambda: None)
    history("nothing")
    told = capsys.readouterr()
    assert "history of nothing: none" in told.out
    assert told.err.startswith("whether nothing is registered is not known: MLflow does not answer")
    ledger().transition(
        name="nothing", stage="production", to_version=1, to_digest="0" * 64,
        expected_epoch=0, key="of nothing", actor="ann",
    )  # fmt: skip
    history("nothing", at="1999-06-01T01:30")  # when it stood nowhere yet
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"limits": ["max_flat=3"]}, "--limit goes with --canary or --shadow"),
        ({"force": "because", "canary": 10.0}, "--force goes with --promote"),
        ({"reason": "slow", "promote": True}, "--reason goes with --abort"),
    ],
)
def test_an_option_of_another_way_to_roll_out_is_refused(
    given: dict[str, object], message: str
) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        rollout("shapes", **given)


def test_a_version_that_is_not_being_rolled_out_ends_no_others_rollout(here: Installation) -> None:
    first, second = here.pipeline(), here.pipeline(seed=1)
    here.promote(first)
    here.promote(second, "canary")
    for end in (end_rollout.fn, promote_challenger.fn):
        with pytest.raises(RolloutError, match=f"is of {second.ref}, not of {first.ref}"):
            end(first.ref, "because")
    for ref in (second.ref, second.name):
        assert _must_run(ref).to_version == second.number


def test_one_answer_is_one_document() -> None:
    with pytest.raises(typer.BadParameter, match="give one of --json and --mermaid"):
        lineage("shapes", mermaid=True, as_json=True)


@pytest.mark.parametrize("name", ["../../elsewhere/mine", "My Flowers", "mine\n"])
def test_a_recipe_of_a_name_that_none_can_have_leaves_nothing_behind(name: str) -> None:
    with pytest.raises(ValueError, match=r"recipe name .*: use lower-case letters, digits and -"):
        new(name, "digits")
    assert not (settings().project / "elsewhere").exists()


def test_a_recipe_that_is_not_there_is_told_with_the_one_that_was_meant() -> None:
    with pytest.raises(
        RecipeError, match=r"No such file or directory; did you mean .*shapes\.yaml\?"
    ):
        load(Path("shapes"))


def test_experiments_of_no_recipe_are_refused_before_the_stack_starts() -> None:
    with pytest.raises(ValueError, match="no recipe 'shape'; choose from"):
        families(only="shape")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["max_flat"], "--limit takes NAME=VALUE, got 'max_flat'"),
        (["max_flats=1"], "no limit 'max_flats'; choose one of .*max_flat"),
        (["max_flat=1", "max_flat=2"], "--limit max_flat=2: max_flat is set twice"),
    ],
)
def test_a_limit_of_a_rollout_that_would_be_passed_over_is_refused(
    said: list[str], message: str
) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        limits_of(said)


def test_limits_of_a_rollout_are_read_as_yaml() -> None:
    assert limits_of(["max_flat=3", "max_slowdown=2.5"]) == {"max_flat": 3, "max_slowdown": 2.5}
