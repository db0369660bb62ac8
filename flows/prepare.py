"""Prepare a dataset: DVC repeats only the stages whose inputs changed, Great Expectations may refuse."""

from typing import Any

from prefect import flow, task

from flows.progress import say
from infra.settings import settings


@task(task_run_name="prepare {dataset}")
def prepare_dataset(dataset: str) -> dict[str, Any]:
    """Return the prepared folder and the identity of its bytes."""
    from data.catalog import prepare as repeat_stages

    ready = repeat_stages(
        dataset, settings().project, lambda stage: say(f"{dataset}: stage {stage}")
    )
    return {"path": str(ready.path), "identity": ready.identity}


@flow(flow_run_name="prepare {dataset}")
def prepare(dataset: str) -> dict[str, Any]:
    """Prepare one of params.yaml's datasets; returns {"path", "identity"}."""
    return prepare_dataset(dataset)
