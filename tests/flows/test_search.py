"""What a search does with trials that have ended, on an MLflow in this process and without Ray."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.training.journal import Journal
from flows.tuning.asha import _Follower
from flows.tuning.plan import Plan, Records, Trial, plan
from flows.tuning.search import Outcome, SearchFailed, search
from flows.tuning.space import Search
from infra.registry.registry import Registry
from tests.flows.training_kit import spec_of

RULES = {"max_steps": 12, "grace_steps": 4, "validate_every": 4}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("mlflow")
    return Registry(f"sqlite:///{folder / 'mlflow.db'}", folder / "versions")


def planned(folder: Path, trials: list[Trial]) -> Plan:
    space = {"training.ema_half_life": {"uniform": [1, 900]}}
    rules = Search.model_validate({"space": space, **RULES})
    specs = tuple(spec_of(folder, validate_every=4, seed=trial.number) for trial in trials)
    wanted = plan(rules, 0, specs)
    for trial in trials:
        values = wanted.values[trial.number]
        Records(folder / "runs" / wanted.identity / "ended").write(
            trial.model_copy(update={"values": values})
        )
    return wanted


def run(folder: Path, registry: Registry, trials: list[Trial]) -> Outcome:
    return search(
        planned(folder, trials),
        registry=registry,
        tracking_uri=f"sqlite:///{registry._cache.parent / 'mlflow.db'}",
        experiment="shades",
        runs=folder / "runs",
        ray_url="nothing is trained",
        on_result=print,
    )


def test_the_best_went_to_the_end_however_good_a_stopped_one_looked(
    tmp_path: Path, registry: Registry
) -> None:
    trials = [
        Trial(number=0, values={}, state="finished", curve=((4, 9.0), (12, 8.0))),
        Trial(number=1, values={}, state="stopped", curve=((4, 1.0),)),
        Trial(number=2, values={}, state="finished", curve=((4, 9.5), (12, 7.0))),
        Trial(number=3, values={}, state="failed", curve=(), why="Diverged: at once"),
    ]
    outcome = run(tmp_path, registry, trials)
    assert [trial.number for trial in outcome.trials] == [2, 0, 1, 3]
    assert outcome.best.number == 2
    assert (outcome.steps_spent, outcome.steps_in_full) == (28, 48)
    assert all(trial.run_id for trial in outcome.trials)
    with registry._mlflow.calling() as client:
        runs = [client.get_run(trial.run_id) for trial in outcome.trials]
        parent = client.get_run(outcome.run_id)
    ended = {run.data.tags["mlflow.runName"]: run.info.status for run in runs}
    assert ended == {
        "trial 2": "FINISHED", "trial 0": "FINISHED", "trial 1": "FINISHED", "trial 3": "FAILED",
    }  # fmt: skip
    assert runs[-1].data.tags["atelier.ended"] == "failed at step 0: Diverged: at once"
    assert parent.data.tags["atelier.best"] == "trial 2"
    assert parent.data.metrics["validation_loss"] == 7.0
    assert run(tmp_path, registry, trials).run_id == outcome.run_id


def test_a_trial_that_its_own_patience_ended_went_to_its_end(
    tmp_path: Path, registry: Registry
) -> None:
    """And is the best where its loss is, however few steps it took."""
    trials = [
        Trial(number=0, values={}, state="finished", curve=((4, 9.0), (12, 8.0))),
        Trial(number=1, values={}, state="finished", curve=((4, 6.0), (8, 7.0))),
    ]
    outcome = run(tmp_path, registry, trials)
    assert [trial.number for trial in outcome.trials] == [1, 0]
    told: list[Trial] = []
    follower = _Follower(planned(tmp_path, trials), tmp_path, {}, lambda *_: None, told.append)
    tune_s = SimpleNamespace(config={"number": 1}, last_result={"whole": True})
    follower.on_trial_start(0, [], tune_s)
    follower.on_trial_result(0, [], tune_s, {"step": 8, "validation_loss": 7.0})
    follower.on_trial_complete(1, [], tune_s)
    assert (told[0].state, told[0].step) == ("finished", 8)


def test_a_search_whose_trials_all_failed_says_how_and_leaves_no_run_open(
    tmp_path: Path, registry: Registry
) -> None:
    broken = [Trial(number=0, values={}, state="failed", curve=(), why="Diverged: loss is nan")]
    with pytest.raises(SearchFailed, match=r"came to its end: Diverged: loss is nan"):
        run(tmp_path, registry, broken)
    with registry._mlflow.calling() as client:
        where = registry.experiment(client, "shades")
        assert not client.search_runs([where], "attributes.status = 'RUNNING'")


def test_a_trial_that_is_stopped_earlier_than_a_killed_driver_came_keeps_what_was_measured(
    tmp_path: Path,
) -> None:
    trials = [Trial(number=0, values={}, state="stopped", curve=())]
    told: list[Trial] = []
    wanted = planned(tmp_path, trials)
    journal = tmp_path / "runs" / wanted.specs[0].identity / "journal"
    journal.mkdir(parents=True)
    before = Journal(journal, 1, 0)
    before.metrics(4, {"validation_loss": 3.0})
    before.metrics(8, {"validation_loss": 2.0})  # told to MLflow by the driver that was killed
    before.close()
    follower = _Follower(wanted, tmp_path / "runs", {}, lambda *_: None, told.append)
    tune_s = SimpleNamespace(config={"number": 0}, last_result={})
    follower.on_trial_start(0, [], tune_s)
    follower.on_trial_result(0, [], tune_s, {"step": 4, "validation_loss": 3.0})
    follower.on_trial_complete(1, [], tune_s)
    assert (told[0].state, told[0].curve) == ("stopped", ((4, 3.0), (8, 2.0)))
