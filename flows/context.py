"""What every flow reaches for: the registry, the ledger, specs, the identity of code and of the one who asks."""

import os
import pwd
import subprocess
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.identity.code import ROOT
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
