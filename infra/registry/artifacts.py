"""Whether MLflow's files can be had from here: a version's smallest file is really fetched."""

import tempfile
import threading
from typing import Final

from infra.registry.mlflow_client import store_errors

LIMIT_S: Final = 15.0
"""A file comes within moments; an S3 address that leads nowhere takes a minute."""


def unreadable(uri: str) -> str | None:
    """Return why no file of the registry at `uri` can be read, None where one can or there is none yet."""
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(_try(uri)), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    return found[0] if found else f"no file came in {LIMIT_S:.0f} s"


def _try(uri: str) -> str | None:
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts, list_artifacts
    from mlflow.exceptions import MlflowException

    try:
        versions = MlflowClient(uri, uri).search_model_versions(max_results=1)
        if not versions:
            return None
        files = [
            one
            for one in list_artifacts(artifact_uri=versions[0].source, tracking_uri=uri)
            if not one.is_dir
        ]
        if files:
            smallest = min(files, key=lambda one: one.file_size or 0).path.rpartition("/")[2]
            with tempfile.TemporaryDirectory() as folder:
                place = f"{versions[0].source}/{smallest}"
                download_artifacts(artifact_uri=place, dst_path=folder, tracking_uri=uri)
    except (MlflowException, OSError, RuntimeError, *store_errors()) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None
