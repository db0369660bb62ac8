"""`atelier tune` on a real stack: the driver is killed with -9 in the middle of the search, and started again."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.recipe import Recipe
from flows.recipes.loader import load
from flows.training.journal import Progress
from flows.training.ray_train import fit
from flows.tuning.plan import Records, Trial, plan, values_of
from flows.tuning.search import Outcome, search
from flows.tuning.space import Search
from infra.registry.registry import Registry
from infra.settings import settings
from infra.storage import verify
from tests.flows.training_kit import prepare, spec_of
from tests.integration.project_kit import Workshop

BROKEN = 1e30  # a learning rate
RECIPE = Path(__file__).with_name("tune.yaml")
RATE = "training.optimizers.model.learning_rate"
TRIALS = 9  # eight drawn, and the recipe's own values
pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Tuned:
    before: dict[int, Trial]  # what had ended when the first driver was killed
    made: dict[str, Any]
    registry: Registry
    prepared: Path


def ended() -> dict[int, Trial]:
    folders = list(settings().runs.glob("tuned.vae-search-*/ended"))
    return Records(folders[0]).all() if folders else {}


@pytest.fixture(scope="module")
def tuned(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    workshop.killed(lambda: len(ended()) >= 3, "tune", str(RECIPE))
    before = ended()
    made = workshop.json("tune", str(RECIPE))
    registry = Registry(settings().mlflow_uri, tmp_path_factory.mktemp("versions"))
    return Tuned(before, made, registry, workshop.folder / "data/prepared/digits")


def test_a_search_goes_on_after_kill_9_without_repeating_a_trial(tuned: Tuned) -> None:
    assert 3 <= len(tuned.before) < TRIALS, "the driver was not killed in the middle"
    after = ended()
    assert sorted(after) == list(range(TRIALS))
    for number, trial in tuned.before.items():
        assert after[number].at == trial.at
        assert after[number].curve == trial.curve


def test_the_search_finds_what_the_recipe_does_not_have(tuned: Tuned, tmp_path: Path) -> None:
    whole = load(RECIPE).stages["vae"].training.model_dump()
    spec = spec_of(tuned.prepared, family="vae", **{**whole, "validate_every": 30})
    default = fit(spec, run_id=None, tracking_uri=None, runs=tmp_path).metrics["validation_loss"]
    best = tuned.made["search"]["trials"][0]
    assert best["number"] == tuned.made["search"]["best"]
    assert best["validation_loss"] < 0.9 * default
    stage = tuned.registry.fetch(tuned.registry.get("tuned.vae"))
    assert verify(stage)["metrics"]["validation_loss"] == pytest.approx(best["validation_loss"])


def test_bad_trials_are_stopped_early(tuned: Tuned) -> None:
    search = tuned.made["search"]
    states = {row["number"]: row["state"] for row in search["trials"]}
    assert "stopped" in states.values()
    assert "failed" not in states.values()
    assert search["steps_in_full"] == TRIALS * 270
    assert search["steps_spent"] == sum(row["step"] for row in search["trials"])
    # how much is saved depends on which trials run side by side
    assert search["steps_spent"] < search["steps_in_full"]
    print(f"\n{search['steps_spent']} of {search['steps_in_full']} steps")  # noqa: T201


def test_the_version_is_a_candidate_that_names_its_search(tuned: Tuned) -> None:
    search, version = tuned.made["search"], tuned.made["version"]
    published = tuned.registry.get("tuned@candidate")
    assert (published.number, published.digest) == (version["version"], version["digest"])
    assert published.tags["atelier.search"] == search["run"]
    directory = tuned.registry.fetch(published)
    assert verify(directory)["search"] == search["run"]
    recipe = Recipe.model_validate_json((directory / "recipe.json").read_text())
    values = search["trials"][0]["values"]
    assert recipe.found_by is not None
    assert recipe.found_by.values == values
    stage = recipe.stages["vae"]
    assert stage.training.optimizers["model"].learning_rate == values[RATE]
    assert search["run"] in (directory / "card.md").read_text()


def test_mlflow_has_one_run_for_the_search_and_one_for_every_trial(tuned: Tuned) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(settings().mlflow_uri)
    parent = client.get_run(tuned.made["search"]["run"])
    assert parent.info.status == "FINISHED"
    assert json.loads(parent.data.params[f"space.{RATE}"]) == {"log_uniform": [1e-5, 1e-2]}
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= {"search.png"}
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = client.search_runs([parent.info.experiment_id], query)
    assert {run.info.run_id for run in children} == {trial.run_id for trial in ended().values()}
    for trial in ended().values():
        run = client.get_run(trial.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["atelier.ended"] == f"{trial.state} at step {trial.step}"
        curve = client.get_metric_history(trial.run_id, "validation_loss")
        # a point that was on its way when the driver was killed may be there twice
        assert sorted({(point.step, point.value) for point in curve}) == list(trial.curve)
        if trial.number:
            assert float(run.data.params[RATE]) == trial.values[RATE]


def test_the_same_search_again_is_found_and_one_that_cannot_be_is_refused(
    tuned: Tuned,
    workshop: Workshop,
) -> None:
    again = workshop.run("tune", str(RECIPE))
    made = tuned.made
    assert f"{made['search']['steps_spent']} of {made['search']['steps_in_full']} steps" in again
    assert made["search"]["run"] in again
    assert f"atelier promote tuned:{made['version']['version']}" in again
    assert "stopped early" in again
    assert len(tuned.registry.versions("tuned")) == 1
    workshop.run("tune", str(RECIPE), "--trials", "0", code=2)
    nothing = workshop.run("tune", str(RECIPE), "--set", "search=null", code=1)
    assert "no `search:` section" in nothing


def test_a_trial_may_diverge_or_lose_its_process_and_a_longer_search_goes_on_from_a_shorter(
    ray_driver: str, tmp_path: Path
) -> None:
    prepared = prepare(tmp_path / "shades", validation=64)
    rules = Search.model_validate(
        {
            "space": {RATE: {"choice": [1e-3, BROKEN]}},
            **{"max_steps": 300, "grace_steps": 300, "validate_every": 50},
        }
    )
    values = [values_of(rules, 0, number) for number in range(5)]
    short = 1 + next(n for n in range(1, 5) if values[n][RATE] == BROKEN)
    specs = tuple(
        spec_of(
            prepared,
            family="vae",
            seed=number,  # so that no two are one training
            optimizers={"model": {"learning_rate": tried.get(RATE, 1e-4)}},
            **{"steps": 300, "validate_every": 50, "checkpoint_every": 50},
        )
        for number, tried in enumerate(values)
    )
    killed: list[int] = []

    def kill_trial_0(number: int, now: Progress) -> None:
        if number == 0 and now.step >= 100 and not killed:
            (folder,) = tmp_path.glob(f"runs/*/trials/{specs[0].identity}")
            rank = json.loads((folder / "journal/1.rank0.json").read_bytes())
            killed.append(rank["pid"])
            os.kill(rank["pid"], signal.SIGKILL)

    def run(count: int) -> Outcome:
        return search(
            plan(rules, 0, specs[:count]),
            registry=Registry(settings().mlflow_uri, tmp_path / "versions"),
            tracking_uri=settings().mlflow_uri,
            experiment="diverging",
            runs=tmp_path / "runs",
            ray_url=ray_driver,
            on_result=kill_trial_0,
        )

    first = run(short)
    assert killed
    by_number = {trial.number: trial for trial in first.trials}
    assert by_number[0].state == "finished"
    assert [step for step, _ in by_number[0].curve] == [50, 100, 150, 200, 250, 300]
    assert by_number[short - 1].state == "failed"
    assert "Diverged" in by_number[short - 1].why
    second = run(5)
    assert second.run_id == first.run_id
    assert len(second.trials) == 5
    assert {t.number: t for t in second.trials}.items() >= by_number.items()
    kept = tmp_path / "runs" / specs[second.best.number].identity
    assert verify(kept / "final")["metrics"]["validation_loss"] == second.best.loss
