"""Runs on MLflow: one for equal work, however often it is interrupted; logged by id, never by a global state."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from infra.registry.mlflow_client import KEY, Mlflow, pages, require

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Status: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]
BATCH = 1000  # metrics a request, MLflow's limit
PARAMS = 100  # parameters a request, MLflow's limit


class Runs:
    """The runs of one MLflow."""

    def __init__(self, mlflow: Mlflow) -> None:
        self._mlflow = mlflow

    def start_run(
        self, experiment: str, run_name: str, tags: Mapping[str, str], *, reopen: bool = False
    ) -> str:
        """Return the id of the unfinished run of this identity, or of a new one.

        The identity is the tag `atelier.identity`, or `run_name` where the tags have none. A run that failed or
        was killed is opened again: equal work is one run. With `reopen` a finished one is, too.
        """
        identity = tags.get("atelier.identity", run_name)
        require(KEY, "run identity", identity)
        with self._mlflow.calling() as client:
            where = self.experiment(client, experiment)
            if not (found := _runs_of(client, where, identity, reopen)):
                client.create_run(
                    where, tags={**tags, "atelier.identity": identity}, run_name=run_name
                )
                found = _runs_of(client, where, identity, reopen)
            first, *rest = found
            for run in rest:
                client.delete_run(run.info.run_id)
            if first.info.status != "RUNNING":
                client.update_run(first.info.run_id, status="RUNNING")
        return str(first.info.run_id)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics at a step, a thousand a request."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        rows = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        with self._mlflow.calling() as client:
            for start in range(0, len(rows), BATCH):
                client.log_batch(run_id, metrics=rows[start : start + BATCH], synchronous=True)

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Log parameters, which may be logged again with equal values only."""
        from mlflow.entities import Param

        rows = [Param(name, str(value)) for name, value in params.items()]
        with self._mlflow.calling() as client:
            for start in range(0, len(rows), PARAMS):
                client.log_batch(run_id, params=rows[start : start + PARAMS], synchronous=True)

    def tag_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        from mlflow.entities import RunTag

        rows = [RunTag(name, value) for name, value in tags.items()]
        with self._mlflow.calling() as client:
            client.log_batch(run_id, tags=rows, synchronous=True)

    def log_file(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Add a file to a run's artifacts, below `folder`."""
        with self._mlflow.calling() as client:
            client.log_artifact(run_id, str(path), folder)

    def end_run(self, run_id: str, status: Status = "FINISHED") -> None:
        """Mark a run as over."""
        with self._mlflow.calling() as client:
            client.set_terminated(run_id, status)

    def run(self, run_id: str) -> "Run | None":
        """Return a run by its id, or None where this MLflow has none: it ran in another installation."""
        from mlflow.exceptions import MlflowException

        with self._mlflow.calling() as client:
            try:
                return client.get_run(run_id)
            except MlflowException as error:
                if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                    return None
                raise

    def ours(self) -> "list[Run]":
        """Return every run that was started here, of all experiments; deleted ones left out."""
        with self._mlflow.calling() as client:
            where = [one.experiment_id for one in pages(client.search_experiments)]
            found = pages(partial(client.search_runs, where)) if where else []
        return [run for run in found if "atelier.identity" in run.data.tags]

    def remove_run(self, run: "Run") -> None:
        """Delete a run and its artifacts. Safe to repeat."""
        with self._mlflow.calling() as client:
            self._clear(str(run.info.artifact_uri))
            client.delete_run(run.info.run_id)

    def _clear(self, artifacts: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository: Any = get_artifact_repository(artifacts, tracking_uri=self._mlflow.uri)
        repository.delete_artifacts()

    def experiment(self, client: "MlflowClient", name: str) -> str:
        """Return the id of an experiment, made where there is none."""
        from mlflow.exceptions import MlflowException

        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name, self._mlflow.artifacts_of(name)))
        except MlflowException:
            if found := client.get_experiment_by_name(name):  # another process was first
                return str(found.experiment_id)
            raise


def folder_of(artifacts: str) -> Path | None:
    """Return the folder that an artifact address names; None where they are elsewhere."""
    parts = urlsplit(artifacts)
    return Path(unquote(parts.path)) if parts.scheme in {"", "file"} else None


def _runs_of(client: "MlflowClient", experiment: str, identity: str, finished: bool) -> "list[Run]":
    query = f"tags.`atelier.identity` = '{identity}'"
    if not finished:
        query += " and attributes.status != 'FINISHED'"
    order = ["attributes.start_time ASC", "attributes.run_id ASC"]
    return list(client.search_runs([experiment], query, order_by=order))
