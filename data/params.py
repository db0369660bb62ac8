"""params.yaml: which datasets there are, checked, and how a user's own is added."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from filelock import FileLock
from pydantic import ValidationError

from data.makers import MAKERS, Entry, MakerError, maker
from infra.documents import DocumentError, parse_yaml, read_yaml
from infra.settings import settings
from infra.storage import atomic_write

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,40}")


class CatalogError(ValueError):
    """A dataset that cannot be found, added or prepared, in one line with the way out."""


def entries(project: Path) -> dict[str, Entry]:
    """Return params.yaml's datasets by name.

    Raises:
        CatalogError: no such file, bad YAML, or an entry that its maker refuses (dataset and field are named).
    """
    return {name: checked(name, value) for name, value in _document(project)["datasets"].items()}


def names(project: Path) -> list[str]:
    """Return the names of params.yaml's datasets.

    Raises:
        CatalogError: no such file, or bad YAML.
    """
    return list(_document(project)["datasets"])


def written(name: str, project: Path) -> dict[str, Any] | None:
    """Return a dataset's entry as it stands in params.yaml, unchecked; None where there is none.

    Raises:
        CatalogError: no such file, or bad YAML.
    """
    found: dict[str, Any] | None = _document(project)["datasets"].get(name)
    return found


def entry(name: str, project: Path) -> Entry:
    """Return one dataset's entry.

    Raises:
        CatalogError: as `entries`, or the name is unknown; the message lists the known ones.
    """
    found = _document(project)["datasets"]
    if name not in found:
        raise CatalogError(f"unknown dataset {name!r}; choose one of {', '.join(found)}")
    return checked(name, found[name])


def remove(name: str, project: Path) -> None:
    """Take an entry out of params.yaml, keeping its other lines.

    Raises:
        CatalogError: the name is unknown; the message lists the known ones.
    """
    path = project / "params.yaml"
    with _alone(project):
        entry(name, project)
        document = _document(project)
        del document["datasets"][name]
        text = "".join(_without_line(path.read_text(), name))
        if parse_yaml(text, str(path)) != document:  # not laid out as we write it
            text = yaml.safe_dump(document, sort_keys=False)
        with atomic_write(path) as file:
            file.write(text.encode())


def _without_line(text: str, name: str) -> list[str]:
    return [kept for kept in text.splitlines(keepends=True) if not kept.startswith(f"  {name}:")]


def add(name: str, values: dict[str, Any], project: Path) -> None:
    """Write an entry into params.yaml, keeping its other lines; an equal one is left as it is.

    Raises:
        CatalogError: a bad name, values that the maker refuses, or the name belongs to another maker's dataset.
    """
    if not NAME.fullmatch(name):
        raise CatalogError(
            f"dataset name {name!r}: use lower-case letters, digits and -, 41 at most"
        )
    checked(name, values)
    with _alone(project):
        _add(name, values, project)


def _add(name: str, values: dict[str, Any], project: Path) -> None:
    document = _document(project)
    old = document["datasets"].get(name)
    if old == values:
        return
    if old is not None and old.get("maker") != values["maker"]:
        raise CatalogError(
            f"{name!r} is already a dataset made by {old.get('maker')!r}: give another --name"
        )
    document["datasets"][name] = values
    path = project / "params.yaml"
    flow = yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=10_000)
    text = _with_line(path.read_text(), name, f"  {name}: {flow.strip()}\n")
    if (
        parse_yaml(text, str(path)) != document
    ):  # not laid out as we write it: keep the content at least
        text = yaml.safe_dump(document, sort_keys=False)
    with atomic_write(path) as file:
        file.write(text.encode())


@contextmanager
def _alone(project: Path) -> Iterator[None]:
    """Let nobody else change params.yaml meanwhile: of two who read the same one, the first's entry would be lost."""
    folder = (project / settings().home).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "params.lock"):
        yield


def _with_line(text: str, name: str, line: str) -> str:
    """Return params.yaml's text with the dataset's line replaced in its place, or put last under `datasets:`."""
    whole, lines = text.splitlines(keepends=True), _without_line(text, name)
    if len(lines) == len(whole) - 1:
        return "".join(line if kept.startswith(f"  {name}:") else kept for kept in whole)
    start = next((i for i, kept in enumerate(lines) if kept.startswith("datasets:")), len(lines))
    end = start + 1
    while end < len(lines) and lines[end].startswith("  "):
        end += 1
    return "".join([*lines[:end], line, *lines[end:]])


def _document(project: Path) -> dict[str, Any]:
    path = project / "params.yaml"
    try:
        document = read_yaml(path)
    except OSError as error:
        raise CatalogError(f"cannot read {path}: {error.strerror}") from None
    except DocumentError as error:
        raise CatalogError(str(error)) from None
    if not isinstance(document, dict) or not isinstance(document.get("datasets"), dict):
        raise CatalogError(f"{path} has no section `datasets`")
    return document


def checked(name: str, value: Any) -> Entry:
    """Return an entry as its maker reads it.

    Raises:
        CatalogError: no maker, or a value that it refuses (dataset and field are named).
    """
    where = f"params.yaml: datasets.{name}"
    if not isinstance(value, dict) or not isinstance(value.get("maker"), str):
        raise CatalogError(f"{where} needs a `maker`, one of {', '.join(MAKERS)}")
    try:
        found: Entry = maker(value["maker"]).Config.model_validate(value)
    except MakerError as error:
        raise CatalogError(f"{where}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CatalogError(f"{where}.{field}: {first['msg']}, got {first['input']!r}") from None
    return found
