"""Prepare a dataset: DVC repeats only the stages whose inputs changed, Great Expectations may refuse."""

from typing import TYPE_CHECKING, Any

from prefect import flow, task

from flows.progress import say
from infra.settings import settings

if TYPE_CHECKING:
    from flows.recipe import Recipe


@task(task_run_name="prepare {dataset}")
def prepare_dataset(dataset: str) -> dict[str, Any]:
    """Return the prepared folder and the identity of its bytes."""
    from data.catalog import prepare as repeat_stages

    ready = repeat_stages(
        dataset, settings().project, lambda stage: say(f"{dataset}: stage {stage}")
    )
    return {"path": str(ready.path), "identity": ready.identity}


def prepare_for(recipe: "Recipe") -> dict[str, Any]:
    """Prepare a recipe's data and check it once more; returns as `prepare_dataset`.

    What a gate can be told of data is known once they are prepared; a schedule's recipe and data may have changed.

    Raises:
        flows.recipes.loader.RecipeError: the recipe would fail later.
    """
    from flows.checking import check

    prepared = prepare_dataset(recipe.data.name)
    check(recipe, settings().project)
    return prepared


@flow(flow_run_name="prepare {dataset}")
def prepare(dataset: str) -> dict[str, Any]:
    """Prepare one of params.yaml's datasets; returns {"path", "identity"}."""
    return prepare_dataset(dataset)
