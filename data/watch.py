"""Whether what a dataset is made from has changed: first by a glance at the files, then by their bytes."""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from data.params import entry


class Glance(NamedTuple):
    """What a look at a dataset's files saw without reading them."""

    digest: str
    files: int


def glance(name: str, project: Path) -> Glance:
    """Return a hash of the dataset's entry in params.yaml and of its files' names, sizes and times, and their number.

    Raises:
        data.params.CatalogError: the dataset is unknown, or its entry cannot be used.
    """
    digest, files = _entry(name, project), 0
    for label, path in _files(project / entry(name, project).path):
        digest.update(f"{label}\0{_facts(path)}\0".encode(errors="surrogateescape"))
        files += 1
    return Glance(digest.hexdigest(), files)


def content(name: str, project: Path) -> str:
    """Return a hash of the dataset's entry in params.yaml and of its files' names and bytes.

    A file is read again only where its size, times or inode moved since this process read it last.

    Raises:
        data.params.CatalogError: as `glance`.
    """
    digest = _entry(name, project)
    for label, path in _files(project / entry(name, project).path):
        found = f"{label}\0{_bytes(path, _facts(path))}\0"
        digest.update(found.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _entry(name: str, project: Path) -> "hashlib._Hash":
    document = entry(name, project).model_dump(mode="json")
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode())


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file below `root` with its name, or `root` itself, in an order of their own."""
    if root.is_file():
        yield root.name, root
        return
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            yield path.relative_to(root).as_posix(), path


def _facts(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()  # gone since it was listed
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@lru_cache(maxsize=1 << 20)
def _bytes(path: Path, _facts: tuple[int, ...]) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "unreadable"
