"""The whole way of a recipe: prepare, train, evaluate, promote, deploy; finished steps are found, not repeated."""

from typing import Any

from prefect import flow

from flows.evaluation import judge_pipeline
from flows.prepare import prepare_dataset
from flows.promote import promote
from flows.recipe import Recipe
from flows.train import train_stages


@flow(flow_run_name="lifecycle {recipe.name}")
def lifecycle(recipe: Recipe) -> dict[str, Any]:
    """Walk `recipe` to production; returns the pipeline version and the ledger's answer.

    Raises:
        flows.promote.Refused: the gate failed; the version stays a candidate.
    """
    prepared = prepare_dataset(recipe.data.name)
    trained = train_stages(recipe, prepared)
    version = judge_pipeline(recipe, trained, prepared)
    promoted = promote(f"{version['name']}:{version['version']}")
    return {"version": version, "promoted": promoted, "trained": trained, "prepared": prepared}
