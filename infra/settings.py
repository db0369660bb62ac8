"""Where the outside world is: one class, read from `ATELIER_*`, with defaults that need no server beforehand."""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    computed_field,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})
"""Hosts that are listened on and never dialled."""
MARKS: Final = ("dvc.yaml", "params.yaml", "flows/recipes")
"""What the folder of a project holds."""
PORTS: Final = ("gateway_port", "mlflow_port", "prefect_port", "ray_port", "dashboard_port")

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]


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
    if not os.environ.get("ATELIER_PROJECT") and project_above(here) is None:
        raise NoProjectError(
            f"no Atelier project in {here} or above it (a folder with {', '.join(MARKS)}):"
            " go into one, or name it with ATELIER_PROJECT"
        )


class Settings(BaseSettings):
    """Addresses, folders and ports; a laptop needs none of them set, a cluster sets the first five.

    A variable that is empty is not set.
    """

    model_config = SettingsConfigDict(
        env_prefix="ATELIER_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    tracking_uri: str | None = None  # MLflow; None: the local server on mlflow_port
    prefect_api_url: str | None = Field(default=None, validation_alias="PREFECT_API_URL")
    ray_address: str | None = None  # None: the local cluster that `atelier up` starts
    ray_scale_s: Seconds | None = Field(
        default=None, ge=0
    )  # wait for an autoscaler's nodes; 0: none
    worker_silence_s: Seconds = Field(default=60, gt=2)  # then a worker beside live ones is hung
    database_url: str | None = None  # ledger; None: SQLite in home
    storage_uri: str | None = (
        None  # runs, checkpoints, kept answers, relative to project; None: in home
    )

    project: Path = Field(  # the folder with dvc.yaml: the one that the current folder is in
        default_factory=lambda: project_above(Path.cwd()) or Path.cwd()
    )
    home: Path = Path(".atelier")  # state of this installation, relative to project

    host: str = "127.0.0.1"  # where the gateway listens
    gateway_port: Port = 8000
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
    mlflow_port: Port = 5000
    prefect_port: Port = 4200
    ray_port: Port = 6379
    dashboard_port: Port = 8265
    api_key_file: Path | None = None  # for clients: the key is the file's content

    @field_validator("project")
    @classmethod
    def _is_there(cls, value: Path) -> Path:
        if not value.is_dir():
            raise ValueError("there is no such folder")
        return value

    @field_validator("host")
    @classmethod
    def _is_a_host(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*)|[0-9A-Fa-f:.]+", value):
            raise ValueError("give a host's name or address alone, as 0.0.0.0")
        return value

    @field_validator("tracking_uri", "prefect_api_url")
    @classmethod
    def _is_a_server(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value:
            raise ValueError("give a server's address, as http://mlflow:5000")
        return value.rstrip("/") if value is not None and value.startswith("http") else value

    @field_validator("tracking_uri", "prefect_api_url", "public_url")
    @classmethod
    def _has_a_port(cls, value: str | None) -> str | None:
        if value is not None:
            _ = urlsplit(value).port  # what is no port is refused
        return value

    @model_validator(mode="after")
    def _have_ports_of_their_own(self) -> Self:
        """Refuse a port said twice; those that nobody set may stand for servers that are elsewhere."""
        said: dict[int, str] = {}
        for name in PORTS:
            if name not in self.model_fields_set:
                continue
            port = getattr(self, name)
            if port in said:
                both = f"ATELIER_{said[port].upper()} and ATELIER_{name.upper()}"
                raise ValueError(f"{both} are both {port}: each needs a port of its own")
            said[port] = name
        return self

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
        return self._mount or self.state / "runs"

    @property
    def samples(self) -> Path:
        """Where the gateways keep answers for `atelier drift`: local, or below the mount that every node shares."""
        return (self._mount or self.state) / "samples"

    @property
    def _mount(self) -> Path | None:
        """`storage_uri` from wherever a process stands."""
        return (self.project / self.storage_uri).resolve() if self.storage_uri else None

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
        """The client's key: from its file, or a word that a gateway without keys accepts.

        Raises:
            ValueError: the file cannot be read.
        """
        if self.api_key_file is None:
            return SecretStr("none")
        try:
            return SecretStr(self.api_key_file.read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ValueError(
                f"ATELIER_API_KEY_FILE: {self.api_key_file} cannot be read: {why}"
            ) from None


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
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # it is about several
            raise ValueError(reason) from None
        name = str(first["loc"][0]).upper()
        variable = name if name.startswith("PREFECT_") else f"ATELIER_{name}"
        raise ValueError(f"{variable}: {reason}, got {first['input']!r}") from None
    os.environ["ATELIER_PROJECT"] = str(found.project.resolve())
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    return found
