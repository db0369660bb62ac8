"""What every flow reaches for: the registry, the ledger, specs, the identity of code and of the one who asks."""

import os
import pwd
import subprocess
from collections.abc import Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.identity.code import ROOT, training_code
from flows.recipe import Recipe, Stage, split
from flows.training.spec import Need, TrainingSpec
from infra.documents import MOST_OF_OURS, read_json
from infra.settings import settings

if TYPE_CHECKING:
    from infra.keys import Keys
    from infra.ledger.ledger import Ledger
    from infra.ledger.promotions import Promotions
    from infra.receipts.signing import Signing
    from infra.registry.registry import Registry, Version


@lru_cache
def registry() -> "Registry":
    """Return this process's registry at the settings' tracking server."""
    from infra.registry.registry import Registry

    return Registry(settings().mlflow_uri, settings().state / "versions")


@lru_cache
def ledger() -> "Ledger":
    """Return this process's ledger at the settings' database."""
    from infra.ledger.ledger import Ledger

    return Ledger(settings().database)


@lru_cache
def promotions() -> "Promotions":
    """Return this process's journal of promotions at the settings' database."""
    from infra.ledger.promotions import Promotions

    return Promotions(settings().database)


def signing() -> "Signing":
    """Return this installation's key and whom it trusts."""
    from infra.receipts.signing import Signing

    return Signing(settings().state / "exchange")


def named(version: "Version") -> dict[str, Any]:
    """Return how a version passes from step to step: its name, number and digest."""
    return {"name": version.name, "version": version.number, "digest": version.digest}


def training_spec(
    recipe: Recipe,
    stage: str,
    prepared: dict[str, Any],
    trained: Mapping[str, dict[str, Any]] | None = None,
) -> TrainingSpec:
    """Return all that fixes the outcome of training `stage` ("judge" is the recipe's judge).

    `prepared` is its own dataset, and `trained` has the versions of the stages that it needs or starts from, as `named`
    gives them.

    Raises:
        RegistryError, RecipeError: there is no such version as `training.from` names.
    """
    from flows.provenance.bases import base_of, handed, needs_of

    chosen: Stage | None = recipe.judge if stage == "judge" else recipe.stages[stage]
    assert chosen is not None
    ref = chosen.training.start
    base = base_of(ref, stage) if ref else None
    if chosen.starts_from:
        base = handed((trained or {})[chosen.starts_from])
    needs = _needed(chosen, trained or {})
    if chosen.training.lora is not None:
        needs = needs_of(chosen.training.lora.base, stage)
    return TrainingSpec(
        name=f"{recipe.name}.{stage}",
        family=chosen.family,
        preset=chosen.preset,
        config=chosen.config,
        image_size=chosen.image_size,
        seed=recipe.seed,
        training=chosen.training,
        resources=chosen.resources,
        dataset=(recipe.judged_by if stage == "judge" else recipe.data).name,
        prepared=Path(prepared["path"]),
        data_identity=prepared["identity"],
        code_identity=training_code(chosen.family, modality_of(Path(prepared["path"]))).digest,
        base=base,
        inherits=chosen.starts_from is not None,
        needs={name: _need(*one, prepared) for name, one in needs.items()},
    )


def _needed(
    stage: Stage, trained: Mapping[str, dict[str, Any]]
) -> dict[str, tuple["Version", str]]:
    """Return what a stage learns from beside the data: by input, a version and its entry."""
    found = {}
    for name, wanted in stage.needs.items():
        source, entry = split(wanted)
        version = trained[source]
        found[name] = registry().get(f"{version['name']}:{version['version']}"), entry
    return found


def _need(version: "Version", entry: str, prepared: dict[str, Any]) -> Need:
    from data.outputs import folder_of
    from flows.provenance.bases import placed

    folder = Path(prepared["path"])
    made = folder_of(folder, prepared["identity"], version.digest, entry).resolve()
    return Need(**named(version), entry=entry, path=placed(version), made=made)


def modality_of(prepared: Path) -> str:
    """Return image, text, audio or clip, without torch; what is wrong with the data is said by who reads them."""
    header = read_json(prepared / "dataset.json", most=MOST_OF_OURS)
    return str(header.get("modality", "image"))


@lru_cache
def git_commit() -> str:
    """Return the checkout's commit, or "unknown" outside a repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


class Nameless(ValueError):
    """Nobody can say which person asks; one line with the way out."""


def actor() -> str:
    """Return who asks, as the ledger will name them: the API key's label, else the account that runs this process.

    The account is the one of the process's uid: an environment variable cannot name another.

    Raises:
        Nameless: ATELIER_API_KEY_FILE holds no key of this installation, or one that was revoked.
    """
    here = settings()
    if here.api_key_file is not None:
        with closing(_keys()) as keys:
            if key := keys.find(here.api_key.get_secret_value()):
                return key.label
            if keys.any():
                raise Nameless(
                    f"ATELIER_API_KEY_FILE ({here.api_key_file}) holds no key that may pass: it is unknown here or"
                    " was revoked; list them: atelier keys list"
                )
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's uid without an entry
        return f"uid {os.getuid()}"


def person() -> str:
    """Return who asks where it matters that two are two: as `actor`, but an account counts on one machine alone.

    In containers everybody is root, and one person has another account on every machine: there a key tells.

    Raises:
        Nameless: as for `actor`, and where there are keys, or the database is shared, and none is named.
    """
    here = settings()
    if here.api_key_file is None:
        with closing(_keys()) as keys:
            if here.database_url is not None or keys.any():
                raise Nameless(
                    "who asks and who approves are told apart by their API keys: make yours by `atelier keys add NAME`"
                    " and name its file in ATELIER_API_KEY_FILE"
                )
    return actor()


def _keys() -> "Keys":
    from infra.keys import Keys

    return Keys(settings().database)


def environment() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    import platform
    from importlib.metadata import version

    packages = ("torch", "ray", "mlflow", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
