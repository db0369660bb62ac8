"""The one way to MLflow's client: opened late, with finite times, and its errors in one line."""

import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from infra.imports import at_rest
from infra.settings import QUIET

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT: Final = {
    **QUIET,
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What MLflow's client reads; values that are set already stay."""

PROBE_S: Final = 3.0
CREDENTIAL: Final = (
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are to be set wherever it is asked, also where the nodes "
    "of a Ray cluster are started"
)
KEY: Final = re.compile(r"[A-Za-z0-9._:@/+=-]{1,200}")


class RegistryError(RuntimeError):
    """The registry refuses, or does not know, or cannot do it; one line that names the way out."""


class Unreachable(RegistryError):
    """MLflow does not answer; the same call may be repeated."""


class Mlflow:
    """MLflow at a server's address or a database's (sqlite:///absolute/path, postgresql://...)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._client: MlflowClient | None = None

    @property
    def is_server(self) -> bool:
        """Whether MLflow is reached over HTTP; else its database is opened in this process."""
        return self.uri.startswith(("http://", "https://"))

    def artifacts_of(self, experiment: str) -> str | None:
        """Return where a new experiment's files go, or None where a server decides."""
        path = urlsplit(self.uri).path
        if self.is_server or not self.uri.startswith("sqlite:"):
            return None
        return (Path(path[1:]).resolve().parent / "artifacts" / experiment).as_uri()

    @contextmanager
    def calling(self) -> Iterator["MlflowClient"]:
        """Yield the client; what it raises leaves as a RegistryError.

        Raises:
            Unreachable: no connection, or none that lasted, after the retries.
            RegistryError: MLflow's own refusal, or its store's.
        """
        client = self._open()
        from mlflow.exceptions import MlflowException
        from requests import RequestException

        try:
            yield client
        except MlflowException as error:
            text = " ".join(str(error.message).split())
            if "failed with exception" in text or "failed with error code 50" in text:
                raise self._unreachable(text) from error
            if "failed with error code 401" in text:
                text = f"it takes no credential of this process (401); {CREDENTIAL}"
            raise RegistryError(f"MLflow at {self._shown()}: {text}") from error
        except (RequestException, ConnectionError) as error:
            raise self._unreachable(" ".join(str(error).split())) from error
        except store_errors() as error:
            why = " ".join(str(error).split())[:300]
            raise RegistryError(
                f"the files of MLflow at {self._shown()} cannot be reached: {why};"
                " s3:// needs boto3 and AWS_* variables"
            ) from error

    def _open(self) -> "MlflowClient":
        with self._lock:
            if self._client is None:
                for name, value in ENVIRONMENT.items():
                    os.environ.setdefault(name, value)
                self._probe()
                with at_rest():
                    from mlflow import MlflowClient

                self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            return self._client

    def _probe(self) -> None:
        """Fail in a moment, before a slow import and slow retries, where no server listens."""
        if not self.is_server:
            return
        address = urlsplit(self.uri)
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname or "", port), timeout=PROBE_S).close()
        except OSError as error:
            raise self._unreachable(str(error)) from None

    def _unreachable(self, why: str) -> Unreachable:
        return Unreachable(
            f"MLflow does not answer at {self._shown()} ({why[:200]}); "
            "start it with `atelier up`, or set ATELIER_TRACKING_URI"
        )

    def _shown(self) -> str:
        """Return the address without a password."""
        if "@" not in self.uri:
            return self.uri
        parts = urlsplit(self.uri)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def store_errors() -> tuple[type[Exception], ...]:
    """Return what an artifact store's own client raises: none is installed, or S3's says why."""
    boto = sys.modules.get("botocore.exceptions")
    return (ImportError, boto.BotoCoreError, boto.ClientError) if boto else (ImportError,)


def pages(search: Callable[..., Any], query: str | None = None, **options: Any) -> list[Any]:
    """Return all results of one of the client's paged searches."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = search(filter_string=query, page_token=token, **options)
        found += page
        if not (token := page.token):
            return found


def require(pattern: re.Pattern[str], what: str, value: str) -> None:
    """Raise RegistryError for a value that may not stand in MLflow's search language."""
    if not pattern.fullmatch(value):
        raise RegistryError(f"{value!r} cannot be a {what}: it must match {pattern.pattern}")
