"""The whole way of a recipe: prepare, train, evaluate, promote, deploy; finished steps are found, not repeated."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect import flow

from flows.context import registry
from flows.evaluation import judge_pipeline
from flows.prepare import prepare_for
from flows.promote import promote
from flows.promotion.release import project_aliases
from flows.recipe import Recipe
from flows.recipes.loader import load
from flows.train import train_stages
from infra import serving
from infra.settings import settings


@flow(flow_run_name="lifecycle {recipe.name}")
def lifecycle(recipe: Recipe) -> dict[str, Any]:
    """Walk `recipe` to production; returns the pipeline version and the ledger's answer.

    Raises:
        flows.recipes.loader.RecipeError: the prepared data tell why it would fail later.
        flows.promote.Refused: the gate failed; the version stays a candidate.
        infra.serving.ServingError: the gateway could not start, which is told before anything is trained.
    """
    serving.check(settings())
    prepared = prepare_for(recipe)
    trained = train_stages(recipe, prepared)
    version = judge_pipeline(recipe, trained, prepared)
    promoted = promote(f"{version['name']}:{version['version']}")
    return {"version": version, "promoted": promoted, "trained": trained, "prepared": prepared}


@flow(flow_run_name="retrain {recipe}")
def retrain(
    recipe: str, overrides: Sequence[str] = (), to_production: bool = False
) -> dict[str, Any]:
    """Walk the recipe at a path (of the project) to a judged candidate, what a schedule does; returns it.

    It stops there, or with `to_production` goes on through the gate. The run's labels name the version.

    Raises:
        flows.recipes.loader.RecipeError: the recipe can no longer be used, or would fail later.
        flows.promote.Refused: the gate failed on the way to production.
        infra.serving.ServingError: as `lifecycle`, on the way to production.
    """
    if to_production:
        serving.check(settings())
    wanted = load(settings().project / recipe, overrides)
    prepared = prepare_for(wanted)
    version = judge_pipeline(wanted, train_stages(wanted, prepared), prepared)
    project_aliases(version["name"])
    ref = f"{version['name']}:{version['version']}"
    _label(ref)
    promoted = promote(ref) if to_production else None
    return {"version": version, "promoted": promoted}


def _label(ref: str) -> None:
    """Let the flow run say which version it made and what its gate said."""
    from prefect import get_client
    from prefect.runtime import flow_run

    gate = registry().get(ref).tags.get("atelier.gate", "unknown")
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(
            UUID(flow_run.get_id() or ""), {"atelier.version": ref, "atelier.gate": gate}
        )
