"""The registered versions that a training starts from or needs, found once, put where workers see them."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.context import registry
from flows.recipe import Recipe, split
from flows.recipes.loader import RecipeError
from flows.training.spec import Base
from infra.pipelines import read_pipeline
from infra.settings import settings
from infra.storage import IntegrityError, verify

if TYPE_CHECKING:
    from infra.registry.registry import Version


def version_of(ref: str, stage: str) -> "Version":
    """Return the stage version that NAME[:v|@alias] means to a recipe's stage: itself, or what a pipeline pins so.

    Raises:
        RegistryError: no such version; the message lists near ones.
        RecipeError: a pipeline without such a stage; names those that it has.
    """
    version = registry().get(ref)
    if version.kind != "pipeline":
        return version
    pinned = read_pipeline(registry().fetch(version)).stages
    names = ", ".join(f"{one.name}:{one.version}" for one in pinned)
    chosen = next((one for one in pinned if one.stage == stage), None)
    if chosen is None:
        raise RecipeError(f"{version.ref} pins no stage {stage!r}: name one of {names}")
    found = registry().by_digest(chosen.name, chosen.sha256)
    if found is None:
        raise RecipeError(f"{chosen.name} {chosen.sha256[:12]} of {version.ref} is not registered")
    return found


def needs_of(ref: str, stage: str) -> "dict[str, tuple[Version, str]]":
    """Return what the base of an adapter learned from beside the data: by input, a version and its entry.

    A pipeline says so of its stages; of a stage alone nobody knows.

    Raises:
        RegistryError, RecipeError: as `version_of`.
    """
    version = registry().get(ref)
    if version.kind != "pipeline":
        return {}
    pipeline = read_pipeline(registry().fetch(version))
    found = {}
    for one in pipeline.stages:
        for name, wanted in one.needs.items() if one.stage == stage else ():
            source, entry = split(wanted)
            found[name] = version_of(ref, source), entry
    return found


def base_of(ref: str, stage: str) -> Base:
    """Return the version, with its bytes beside the runs, on storage that every worker sees.

    Raises:
        RegistryError, RecipeError: as `version_of`.
        IntegrityError: what is in the store is not what was published.
    """
    version = version_of(ref, stage)
    path = placed(version)
    return Base(name=version.name, version=version.number, digest=version.digest, path=path)


def handed(trained: Mapping[str, Any]) -> Base:
    """Return a stage's version, {"name", "version", "digest"}, for another one to start from.

    Raises:
        IntegrityError: what is in the store is not what was published.
    """
    kept = registry().get(f"{trained['name']}:{trained['version']}")
    return Base(**trained, path=placed(kept))


def placed(version: "Version") -> Path:
    """Return where a version's bytes lie beside the runs, on storage that every worker sees.

    Raises:
        IntegrityError: what is in the store is not what was published.
    """
    path = settings().runs.resolve() / "bases" / version.digest
    _place(registry().fetch(version), path, version.digest)
    return path


def unseen(recipe: Recipe) -> list[str]:
    """Return which versions a recipe starts from that could not be looked at, for MLflow does not answer."""
    from infra.registry.registry import Unreachable

    lines = []
    for stage, ref in recipe.bases.items():
        try:
            version_of(ref, stage)
        except Unreachable as error:
            lines.append(f"{stage}: training.from {ref} was not looked at: {error}")
    return lines


def _place(directory: Path, path: Path, digest: str) -> None:
    """Copy a verified version to `path`, whole or not at all."""
    try:
        verify(path, digest)
        return
    except IntegrityError:
        shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{digest[:12]}.", dir=path.parent))
    try:
        shutil.copytree(directory, making / digest)
        (making / digest).rename(path)
    except OSError:  # not empty: another process brought the same bytes
        verify(path, digest)
    finally:
        shutil.rmtree(making, ignore_errors=True)
