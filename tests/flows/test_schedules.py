from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.params import CatalogError
from flows.recipes.loader import RecipeError
from flows.scheduling.deployments import BUILT_IN, POOL, Deployment, submit, zombie_rule
from flows.scheduling.schedules import ScheduleError, Trigger, check, deployment, length

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "flows/recipes/shapes.yaml"


@given(count=st.integers(1, 999_999), unit=st.sampled_from("smhd"))
def test_a_length_of_time_is_read_as_written_and_a_short_one_refused(count: int, unit: str) -> None:
    names = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    meant = timedelta(**{names[unit]: count})
    if meant < timedelta(seconds=15):
        with pytest.raises(ScheduleError, match="at least 15s"):
            length(f"{count}{unit}")
    else:
        assert length(f"{count}{unit}") == meant


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({}, "give one of --cron"),
        ({"cron": "0 3 * * *", "every": "6h"}, "give one of --cron"),
        ({"every": "6h", "timezone": "Europe/Berlin"}, "goes with --cron alone"),
        ({"every": "six hours"}, "like 6h; got 'six hours'"),
        ({"cron": "0 3 * *"}, "five fields"),
        ({"cron": "61 3 * * *"}, "'61 3 \\* \\* \\*' is no cron line"),
        ({"cron": "0 3 * * *", "timezone": "Mars/Base"}, "unknown time zone 'Mars/Base'"),
        ({"on_drift": "../x"}, "no endpoint's name"),
        ({"on_drift": "shapes"}, "no answers kept, so that .* give --set drift.sample=0.1"),
        ({"on_data_change": "nope"}, "unknown dataset 'nope'; choose one of shapes"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_in_one_line(terms: dict[str, str], says: str) -> None:
    with pytest.raises((ScheduleError, CatalogError), match=says) as refusal:
        check(SHAPES, [], Trigger(**terms))
    assert "\n" not in str(refusal.value)


def test_a_recipe_that_cannot_be_trained_is_refused_when_it_is_scheduled() -> None:
    every = Trigger(every="6h")
    with pytest.raises(RecipeError, match=r"data\.nmae"):
        check(SHAPES, ["data.nmae=x"], every)
    with pytest.raises(RecipeError, match=r"data\.name: unknown dataset 'nope'"):
        check(SHAPES, ["data.name=nope"], every)
    assert check(SHAPES, ["drift.sample=0.1"], Trigger(on_drift="shapes")).drift is not None
    with pytest.raises(RecipeError, match="nobody measures 'memorized'; did you mean"):
        check(SHAPES, ["gate.metrics.memorized.at_most=0.2"], every)


@pytest.mark.parametrize(
    ("trigger", "name", "collision"),
    [
        (Trigger(cron="0 3 * * *"), "shapes-cron", "CANCEL_NEW"),
        (Trigger(every="6h"), "shapes-every", "CANCEL_NEW"),
        (Trigger(on_data_change="digits"), "shapes-on-data-digits", "ENQUEUE"),
        (Trigger(on_drift="shapes"), "shapes-on-drift-shapes", "ENQUEUE"),
    ],
)
def test_a_late_clock_is_dropped_and_no_event_is(
    trigger: Trigger, name: str, collision: str
) -> None:
    wanted = deployment("flows/recipes/shapes.yaml", [], trigger)
    assert (wanted.full_name, wanted.collision) == (f"retrain/{name}", collision)
    assert wanted.parameters["to_production"] is False


def test_the_cluster_s_prefect_yaml_declares_what_the_commands_do() -> None:
    import yaml
    from prefect.cli.deploy._models import PrefectYamlModel

    path = ROOT / "infra/deploy/prefect/prefect.yaml"
    declared = PrefectYamlModel.model_validate(yaml.safe_load(path.read_text())).deployments
    nightly = Trigger(cron="0 3 * * *", timezone="Europe/Berlin")
    wanted = (*BUILT_IN, deployment("flows/recipes/shapes.yaml", [], nightly))
    assert [as_declared(one) for one in wanted] == [
        one.model_dump(exclude_none=True, mode="json", exclude={"parameters"})
        | {"parameters": one.parameters}
        for one in declared
    ]


def as_declared(wanted: Deployment) -> dict[str, object]:
    """Give a deployment in the words of prefect.yaml."""
    pool = {"name": POOL, "work_queue_name": wanted.queue, "job_variables": {}}
    document: dict[str, object] = {
        "name": wanted.name,
        "flow_name": wanted.flow,
        "entrypoint": wanted.entrypoint,
        "description": wanted.description,
        "tags": list(wanted.tags),
        "parameters": dict(wanted.parameters),
        "work_pool": pool,
    }
    if wanted.schedule is not None:
        clock = wanted.schedule.model_dump(include={"cron", "timezone"})
        document["schedules"] = [{**clock, "parameters": {}}]
    if wanted.collision is not None:
        document["concurrency_limit"] = {"limit": 1, "collision_strategy": wanted.collision}
    return document


def test_the_rule_for_killed_runs_leaves_ended_and_resting_ones_alone() -> None:
    trigger = zombie_rule().trigger
    states = {name.rpartition(".")[2] for name in trigger.expect}  # type: ignore[union-attr]
    assert {"Completed", "Failed", "Cancelled", "Crashed", "Suspended", "AwaitingRetry"} <= states
    assert "Running" not in states, "a late Running would count as a sign of life"


def test_an_unknown_built_in_flow_names_the_known() -> None:
    with pytest.raises(ValueError, match="no built-in flow 'demote'; choose one of promote"):
        submit("demote", {})
