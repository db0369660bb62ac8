"""What MLflow lists, as ours: a version's number, digest, kind and tags, found by name, key or digest."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infra.registry.mlflow_client import RegistryError, require

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PUBLISHABLE: Final = frozenset({".safetensors", ".json", ".md", ".txt", ".png", ".wav", ".html"})
NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,60}(\.[a-z][a-z0-9_-]{0,60})?")
DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model: its number counts from 1, its digest names its bytes."""

    name: str
    number: int
    digest: str
    kind: str
    tags: dict[str, str]
    created: datetime
    description: str = field(default="", compare=False)  # Markdown; it may change

    @property
    def ref(self) -> str:
        """What people type: `shapes:3`."""
        return f"{self.name}:{self.number}"


def quoted(name: str) -> str:
    """Return a name as it may stand in MLflow's search language, which has no escapes."""
    require(NAME, "model name", name)
    return name


def check_files(name: str, manifest: Mapping[str, Any]) -> None:
    """Raise RegistryError for a manifest without a kind, or with a file that may not be published."""
    if "kind" not in manifest:
        raise RegistryError(f"{name}: the manifest has no `kind`; seal the directory with one")
    for file in manifest["files"]:
        if Path(file).suffix not in PUBLISHABLE:
            raise RegistryError(
                f"{name}: {file} may not be published; take it out, only "
                f"{', '.join(sorted(PUBLISHABLE))} are stored (weights as .safetensors)"
            )


def create_name(client: "MlflowClient", name: str) -> None:
    """Make a registered model, where there is none of that name."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def by_key(client: "MlflowClient", name: str, key: str) -> "list[ModelVersion]":
    """Return what was registered under a publication's key, oldest first."""
    query = f"name = '{quoted(name)}' and tags.`atelier.key` = '{key}'"
    return sorted(client.search_model_versions(query), key=lambda found: int(found.version))


def by_digest(client: "MlflowClient", name: str, digest: str) -> "list[ModelVersion]":
    """Return the versions of a name that have these bytes, oldest first."""
    require(DIGEST, "sha256", digest)
    query = f"name = '{quoted(name)}' and tags.`atelier.digest` = '{digest}'"
    return sorted(client.search_model_versions(query), key=lambda found: int(found.version))


def settled(client: "MlflowClient", name: str, key: str, digest: str) -> Version | None:
    """Return the first version of a key, after deleting any that a repeated request made beside it."""
    from mlflow.exceptions import MlflowException

    found = by_key(client, name, key)
    if not found:
        return None
    for double in found[1:]:
        try:
            client.delete_model_version(name, double.version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # another process deleted it
                raise
    version = as_version(found[0])
    if version.digest != digest:
        raise RegistryError(
            f"key {key!r} published {version.ref} with digest {version.digest[:12]}, not {digest[:12]}; "
            "take a new key for other files"
        )
    return version


def as_version(found: "ModelVersion") -> Version:
    """Return MLflow's model version as ours; raise RegistryError for one that was not published by us."""
    tags = {str(name): str(value) for name, value in found.tags.items()}
    if not {"atelier.digest", "atelier.kind"} <= tags.keys():
        raise RegistryError(
            f"{found.name}:{found.version} was not published by atelier: it has no digest; delete it in MLflow"
        )
    return Version(
        name=str(found.name),
        number=int(found.version),
        digest=tags["atelier.digest"],
        kind=tags["atelier.kind"],
        tags=tags,
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        description=str(found.description or ""),
    )


def ranges(numbers: list[int]) -> str:
    """Return numbers for a message, the middle of many left out."""
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 10 else [*shown[:3], "...", *shown[-3:]])
