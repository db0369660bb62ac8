"""Where the outside world is: one class, read from `ATELIER_*`, with defaults that need no server beforehand."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, computed_field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})
"""Hosts that are listened on and never dialled."""
MARKS: Final = ("dvc.yaml", "params.yaml", "flows/recipes")
"""What the folder of a project holds."""


class NoProjectError(ValueError):
    """A command outside of every project: it must write nothing."""


def project_above(folder: Path) -> Path | None:
    """Return the project that a folder is in, as git finds a repository; None outside of every one."""
    around = (folder, *folder.parents)
    return next((one for one in around if all((one / mark).exists() for mark in MARKS)), None)


def require_project() -> None:
    """Refuse to work where no project is and no variable names one.

    Raises:
        NoProjectError: says where it looked, and what to do.
    """
    here = Path.cwd()
    if "ATELIER_PROJECT" not in os.environ and project_above(here) is None:
        raise NoProjectError(
            f"no Atelier project in {here} or above it (a folder with {', '.join(MARKS)}):"
            " go into one, or name it with ATELIER_PROJECT"
        )


class Settings(BaseSettings):
    """Addresses, folders and ports; a laptop needs none of them set, a cluster sets the first five."""

    model_config = SettingsConfigDict(env_prefix="ATELIER_", extra="forbid", frozen=True)

    tracking_uri: str | None = None  # MLflow; None: the local server on mlflow_port
    prefect_api_url: str | None = Field(default=None, validation_alias="PREFECT_API_URL")
    ray_address: str | None = None  # None: the local cluster that `atelier up` starts
    ray_scale_s: float | None = Field(default=None, ge=0)  # wait for an autoscaler's nodes; 0: none
    worker_silence_s: float = Field(default=60, gt=2)  # then a worker beside live ones is hung
    database_url: str | None = None  # ledger; None: SQLite in home
    storage_uri: str | None = None  # runs, checkpoints, kept answers; None: in home

    project: Path = Field(  # the folder with dvc.yaml: the one that the current folder is in
        default_factory=lambda: project_above(Path.cwd()) or Path.cwd()
    )
    home: Path = Path(".atelier")  # state of this installation, relative to project

    host: str = "127.0.0.1"  # where the gateway listens
    gateway_port: int = 8000
    public_url: str | None = (
        None  # where clients reach it, without /v1; None: host and gateway_port
    )
    placement: Path | None = (
        None  # YAML of which stage runs where; None: one pool (infra/placement.py)
    )
    layout: Literal["fused", "staged"] | None = (
        None  # stages in the gateway's process or apart; None: placement's
    )
    unknown_words: Literal["refuse", "map"] = (
        "refuse"  # of prompts; mapped ones are said in the answer
    )
    private_webhooks: bool = False  # webhooks may go to private networks, and without TLS
    mlflow_port: int = 5000
    prefect_port: int = 4200
    ray_port: int = 6379
    dashboard_port: int = 8265
    api_key_file: Path | None = None  # for clients: the key is the file's content

    @field_validator("storage_uri")
    @classmethod
    def _is_a_folder(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError("give a folder that every node mounts; checkpoints go to no URL")
        return value

    @field_validator("public_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
            raise ValueError("give the gateway's address, as https://models.example.org")
        return value.rstrip("/").removesuffix("/v1")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def state(self) -> Path:
        """The absolute folder of everything this installation keeps."""
        return (self.project / self.home).resolve()

    @property
    def mlflow_uri(self) -> str:
        """MLflow's tracking and registry address."""
        return self.tracking_uri or f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def prefect_url(self) -> str:
        """Prefect's API address."""
        return self.prefect_api_url or f"http://127.0.0.1:{self.prefect_port}/api"

    @property
    def ray_url(self) -> str:
        """The address that `ray.init` takes."""
        return self.ray_address or f"127.0.0.1:{self.ray_port}"

    @property
    def dashboard_url(self) -> str:
        """Ray's dashboard: beside our own Ray, or on the head that the cluster's address names."""
        address = self.ray_address or "127.0.0.1"
        host = urlsplit(address if "://" in address else f"ray://{address}").hostname
        return f"http://{f'[{host}]' if host and ':' in host else host}:{self.dashboard_port}"

    @property
    def scale_s(self) -> float:
        """How long an autoscaler's nodes are waited for: as set, else 300 s on a named cluster, not on our own."""
        if self.ray_scale_s is not None:
            return self.ray_scale_s
        return 300.0 if self.ray_address else 0.0

    @property
    def database(self) -> str:
        """SQLAlchemy's address of the ledger."""
        return self.database_url or f"sqlite:///{self.state / 'atelier.db'}"

    @property
    def runs(self) -> Path:
        """Where runs keep their checkpoints: local, or a mount that every node shares."""
        return Path(self.storage_uri) if self.storage_uri else self.state / "runs"

    @property
    def samples(self) -> Path:
        """Where the gateways keep answers for `atelier drift`: local, or below the mount that every node shares."""
        return (Path(self.storage_uri) if self.storage_uri else self.state) / "samples"

    @property
    def gateway_url(self) -> str:
        """The OpenAI-compatible base address, as clients are told."""
        return f"{self.public_url or self.gateway_here}/v1"

    @property
    def gateway_here(self) -> str:
        """Where a gateway on this machine is reached from this machine."""
        host = "127.0.0.1" if self.host in EVERYWHERE else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.gateway_port}"

    @property
    def api_key(self) -> SecretStr:
        """The client's key: from its file, or a word that a gateway without keys accepts."""
        if self.api_key_file is None:
            return SecretStr("none")
        return SecretStr(self.api_key_file.read_text().strip())


QUIET = {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # of a lost node Ray prints a page; what matters is said by us
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What every process of ours sets before it imports a tool: no call home, no pickled results."""


@lru_cache
def settings() -> Settings:
    """Return this process's settings, read once, and hand them on to the processes it starts.

    Raises:
        ValueError: a variable has a value that it cannot have; names it.
    """
    try:
        found = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper()
        variable = name if name.startswith("PREFECT_") else f"ATELIER_{name}"
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{variable}: {reason}, got {first['input']!r}") from None
    os.environ["ATELIER_PROJECT"] = str(found.project.resolve())
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    return found
