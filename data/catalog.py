"""The datasets: which there are, preparing one, and where its prepared bytes are.

A dataset's identity is the DVC hash of its prepared folder, so equal bytes have equal identities on every machine.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.makers import MAKERS, MakerError, maker
from data.modalities import modality
from data.params import CatalogError, add, checked, entries, entry, remove, written
from data.repro import PrepareError, locked, repair_locks, reproduce, unlock
from data.stages import quarantine_path, report_path
from infra.documents import MOST_OF_OURS, parse_json, read_json

__all__ = [
    "MAKERS",
    "CatalogError",
    "Listed",
    "PrepareError",
    "Prepared",
    "add_own",
    "datasets",
    "entered",
    "forget",
    "identity",
    "known",
    "point",
    "prepare",
    "prepared",
    "repair_locks",
]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A dataset that can be learned from."""

    name: str
    path: Path  # absolute, with dataset.json
    identity: str
    report: Path | None  # the validation's HTML page, where it was made on this machine
    ran: tuple[str, ...] = ()  # the stages that had to run

    @property
    def header(self) -> dict[str, Any]:
        """What dataset.json says."""
        found: dict[str, Any] = read_json(self.path / "dataset.json", most=MOST_OF_OURS)
        return found


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of `atelier data list`."""

    name: str
    maker: str
    path: Path
    modality: str
    size: str  # of a sample: pixels a side, seconds, or the tokenizer
    identity: str | None  # None: not prepared here
    rows: dict[str, int]  # by split; empty where not prepared
    problem: str = ""  # why it could not be prepared from the files as they are


def datasets(project: Path) -> list[Listed]:
    """Return params.yaml's datasets with their state.

    Raises:
        CatalogError: params.yaml or dvc.lock cannot be used.
    """
    found = []
    for name, values in entries(project).items():
        known, rows, problem = None, {}, ""
        try:
            ready = prepared(name, project)
            known = ready.identity
            rows = {split: facts["rows"] for split, facts in ready.header["splits"].items()}
        except CatalogError:
            try:
                maker(values.maker).made(values, project)
            except MakerError as error:
                problem = str(error)
        kind, size = values.modality, values.size
        found.append(Listed(name, values.maker, values.path, kind, size, known, rows, problem))
    return found


def prepare(name: str, project: Path, on_stage: Callable[[str], None] = lambda _: None) -> Prepared:
    """Run the stages of a dataset whose inputs changed, each told to `on_stage` at its start, and return it.

    Raises:
        CatalogError: unknown dataset, or files it is made from are missing or cannot be used (named).
        PrepareError: a stage failed; where samples are refused the message has a line for each.
    """
    values = entry(name, project)
    try:
        maker(values.maker).made(values, project)
    except MakerError as error:
        raise CatalogError(f"{name}: {error}") from None
    ran = reproduce(name, project, on_stage)
    found = prepared(name, project)
    return Prepared(found.name, found.path, found.identity, found.report, tuple(ran))


def prepared(name: str, project: Path) -> Prepared:
    """Return a dataset that is prepared already.

    Raises:
        CatalogError: unknown, never prepared, or its folder is not the one that dvc.lock names.
    """
    entry(name, project)
    known = identity(name, project)
    folder = project.resolve() / "data" / "prepared" / name
    again = f"run `atelier data prepare {name}`"
    if not (folder / "dataset.json").is_file():
        raise CatalogError(f"{folder} holds no prepared dataset: {again}")
    if not _is_locked(folder, known, project):
        raise CatalogError(f"{folder} is not what dvc.lock names ({known[:12]}): {again}")
    page = report_path(name, project)
    return Prepared(name, folder, known, page if page.is_file() else None)


def known(name: str, project: Path) -> dict[str, Any]:
    """Return what is known of a dataset now: dataset.json, or what its maker says where it is not prepared as asked.

    The maker's has no `splits`, a word as `max_words`, and of text the tokenizer's settings in place of the tokenizer.

    Raises:
        CatalogError: unknown dataset, or files it is made from are missing or cannot be used (named).
    """
    values = entry(name, project)
    try:
        made = maker(values.maker).made(values, project)
    except MakerError as error:
        raise CatalogError(f"{name}: {error}") from None
    found = {
        "name": name,
        "modality": made.modality,
        **made.settings,
        "attributes": {key: list(listed) for key, listed in made.attributes.items()},
        "vocabulary": list(made.vocabulary),
        "held_out": list(made.held_out),
        "max_words": 1,
    }
    try:
        header = prepared(name, project).header
    except CatalogError:
        return found
    told = {*found, *modality(made.modality).settings} - {"tokenizer", "max_words"}
    return header if all(header.get(key) == found.get(key) for key in told) else found


def identity(name: str, project: Path) -> str:
    """Return the DVC hash of a dataset's prepared folder.

    Raises:
        CatalogError: never prepared.
    """
    known = locked(name, project)
    if known is None:
        raise CatalogError(f"{name} was never prepared: run `atelier data prepare {name}`")
    return known


def add_own(
    maker_name: str, name: str, path: Path, settings: dict[str, Any], project: Path
) -> None:
    """Add a user's own files to params.yaml, as a maker reads them; adding the same again changes nothing.

    Raises:
        CatalogError: a bad name or setting, or files that the maker cannot use (file and line are named).
    """
    found = path.expanduser().resolve()
    if project.resolve().is_relative_to(found):
        raise CatalogError(f"{found} holds the project itself: give the folder of your own files")
    values = {"maker": maker_name, "path": _shown(found, project), **settings}
    config = checked(name, values)
    try:
        maker(maker_name).made(config, project)
    except MakerError as error:
        raise CatalogError(str(error)) from None
    add(name, values, project)


@contextmanager
def entered(name: str, project: Path) -> Iterator[None]:
    """Leave params.yaml as it was before the block where the block refuses the dataset."""
    before = written(name, project)
    try:
        yield
    except CatalogError:
        if before is not None:
            add(name, before, project)
        elif written(name, project) is not None:
            forget(name, project)
        raise


def forget(name: str, project: Path) -> None:
    """Remove a dataset: its entry, its stages in dvc.lock, and what was made of it; never the files it was made from.

    Raises:
        CatalogError: unknown dataset.
    """
    remove(name, project)
    unlock(name, project)
    for folder in (project / "data" / part / name for part in ("made", "prepared")):
        if folder.exists():
            shutil.rmtree(folder)
    for page in (report_path(name, project), quarantine_path(name, project)):
        page.unlink(missing_ok=True)


def point(name: str, path: Path, project: Path) -> None:
    """Let a dataset of params.yaml be made from other files: MNIST from where you keep it.

    Raises:
        CatalogError: unknown dataset, one that a program makes up, or the files are not there (named).
    """
    asked = entry(name, project)
    if asked.path.suffix == ".py":
        raise CatalogError(
            f"{name} is made up by {asked.path} and reads no files: leave --path out"
        )
    values = asked.model_dump(mode="json") | {"path": _shown(path, project)}
    config = maker(values["maker"])
    try:
        config.made(config.Config.model_validate(values), project)
    except MakerError as error:
        raise CatalogError(f"{name}: {error}") from None
    add(name, values, project)


def _shown(path: Path, project: Path) -> str:
    """Return a path as params.yaml keeps it: relative to the project if inside, else absolute."""
    found, root = path.expanduser().resolve(), project.resolve()
    return (found.relative_to(root) if found.is_relative_to(root) else found).as_posix()


def _is_locked(folder: Path, known: str, project: Path) -> bool:
    """Return whether the folder's dataset.json is the one of the hash; dataset.json in turn has every shard's.

    The hash is over DVC's list of files, which its cache keeps; where it was cleaned all bytes are hashed instead.
    """
    listed = project / ".dvc" / "cache" / "files" / "md5" / known[:2] / known[2:]
    try:
        content = listed.read_bytes()
    except OSError:
        content = _listing(folder)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != known.removesuffix(".dir"):
        return False
    files = {item["relpath"]: item["md5"] for item in parse_json(content, str(listed))}
    return files.get("dataset.json") == _md5(folder / "dataset.json")


def _listing(folder: Path) -> bytes:
    """Return DVC's list of a folder's files, byte for byte."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    items = [{"md5": _md5(path), "relpath": path.relative_to(folder).as_posix()} for path in files]
    items.sort(key=lambda item: tuple(item["relpath"].split("/")))
    return json.dumps(items, sort_keys=True).encode()


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
