"""Search a recipe's space for better values, train the best in full and judge it; promotion stays a decision."""

from typing import Any

from prefect import flow, task

from flows import progress
from flows.context import registry
from flows.evaluation import judge_pipeline
from flows.prepare import prepare_for
from flows.promotion.release import project_aliases
from flows.recipe import Recipe
from flows.recipes.loader import searched_stage
from flows.scheduling.concurrency import training_slots
from flows.train import train_stages
from flows.training.journal import Progress
from flows.training.spec import TrainingSpec
from flows.training.specifying import training_spec
from flows.tuning.plan import Plan, check_batches, found, plan, trial_recipe, values_of
from flows.tuning.search import document, search
from infra.settings import settings


def plan_of(recipe: Recipe, prepared: dict[str, Any], trials: int | None = None) -> Plan:
    """Return the search of the recipe's own values and `trials` drawn ones (None: as many as it says).

    Trials are of the same code and of the same bytes of their base, which are looked at once.
    """
    stage, rules = searched_stage(recipe), recipe.search
    assert rules is not None
    count = 1 + (rules.trials if trials is None else trials)
    check_batches(recipe, count)
    firsts: dict[str | None, TrainingSpec] = {}  # by what they start from
    specs = []
    for number in range(count):
        tried = trial_recipe(recipe, values_of(rules, recipe.seed, number))
        training, config = tried.stages[stage].training, tried.stages[stage].config
        if training.start not in firsts:
            firsts[training.start] = training_spec(tried, stage, prepared)
        own = {"training": training, "config": config}
        specs.append(firsts[training.start].model_copy(update=own))
    return plan(rules, recipe.seed, tuple(specs))


@task(task_run_name="search {recipe.name}")
def run_search(recipe: Recipe, wanted: Plan) -> dict[str, Any]:
    """Run the trials; returns `flows.tuning.search.document`."""
    here = settings()
    reporters: dict[int, Any] = {}

    def show(number: int, now: Progress) -> None:
        if number not in reporters:
            reporters[number] = progress.reporter(f"trial {number}")
        reporters[number](now)

    outcome = search(
        wanted,
        registry=registry(),
        tracking_uri=here.mlflow_uri,
        experiment=recipe.name,
        runs=here.runs,
        ray_url=here.ray_url,
        on_result=show,
    )
    return document(outcome)


@flow(flow_run_name="tune {recipe.name}")
def tune(recipe: Recipe, trials: int | None = None) -> dict[str, Any]:
    """Search, then train and judge the recipe with the values found; returns {"search", "version", "trained"}."""
    prepared = prepare_for(recipe)
    wanted = plan_of(recipe, prepared, trials)
    with training_slots(wanted.specs):
        searched = run_search(recipe, wanted)
    best = next(row for row in searched["trials"] if row["number"] == searched["best"])
    chosen = found(recipe, searched["run"], best["number"], best["values"])
    trained = train_stages(chosen, prepared)
    version = judge_pipeline(chosen, trained, prepared)
    ref = f"{version['name']}:{version['version']}"
    registry().tag_run(searched["run"], {"atelier.version": ref})
    project_aliases(recipe.name)
    return {"search": searched, "version": version, "trained": trained}
