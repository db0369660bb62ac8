"""Published files: written whole or not at all, sealed by a manifest of hashes, verified before use."""

import errno
import hashlib
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from infra.documents import parse_json

MANIFEST: Final = "MANIFEST.json"
OWN: Final = frozenset({"format", "files", "seal"})  # of a manifest's fields, not the caller's


class IntegrityError(ValueError):
    """Bytes on disk are not the bytes that were published."""


def faultpoint(name: str) -> None:
    """Die, fail or wait here when `ATELIER_FAULT=name:kill|enospc|delay` says so; tests iterate over names."""
    wanted, _, kind = os.environ.get("ATELIER_FAULT", "").partition(":")
    if wanted != name:
        return
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    elif kind == "delay":
        time.sleep(2)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that appears at `path` only when the block ends well (temp, fsync, rename, fsync)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            faultpoint("storage.write")
            yield file
            file.flush()
            os.fsync(file.fileno())
        faultpoint("storage.rename")
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def oldest_first(folder: Path, pattern: str) -> list[tuple[Path, os.stat_result]]:
    """Return a folder's files by when they were written, without those that others remove meanwhile."""
    found = []
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            found.append((path, path.stat()))
    return sorted(found, key=lambda one: one[1].st_mtime_ns)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write(_json(value))


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(directory: Path, facts: Mapping[str, Any]) -> str:
    """Write MANIFEST.json over every file below `directory`, last; return the manifest's own sha256 (the digest).

    `facts` (step, seed, data identity, ...) stand beside the files. A directory without a manifest does not exist.
    What an interrupted `atomic_write` left behind is removed.

    Raises:
        ValueError: a fact has the name of one of the manifest's own fields, or is no JSON value.
    """
    if taken := sorted(OWN & facts.keys()):
        raise ValueError(f"{taken[0]!r} is a field of every manifest; give the fact another name")
    for leftover in directory.rglob(".*.tmp"):
        leftover.unlink()
    files = {}
    for name, path in sorted(_files(directory).items()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    for folder in {path.parent for path in _files(directory).values()}:
        sync_directory(folder)
    document = {"format": 1, "files": files, **facts}
    write_json(directory / MANIFEST, {**document, "seal": _seal_of(document)})
    return sha256_of(directory / MANIFEST)


def verify(directory: Path, digest: str | None = None) -> dict[str, Any]:
    """Return the manifest after comparing every file's size and sha256 with it, before anything is parsed.

    The manifest itself is held by `digest`, or by its own `seal` where no digest is known.

    Raises:
        IntegrityError: no manifest, another digest than `digest`, or a missing, extra or altered file (named).
    """
    manifest = read_manifest(directory / MANIFEST, digest)
    expected, present = manifest["files"], _files(directory)
    if odd := sorted(present.keys() ^ expected.keys()):
        side = "missing" if odd[0] in expected else "not in the manifest"
        raise IntegrityError(f"{directory / odd[0]} is {side}")
    for name, facts in expected.items():
        file = present[name]
        if file.stat().st_size != facts["bytes"]:
            raise IntegrityError(
                f"{file} has {file.stat().st_size} bytes, expected {facts['bytes']}"
            )
        if sha256_of(file) != facts["sha256"]:
            raise IntegrityError(f"{file} was altered: its sha256 is not the manifest's")
    return manifest


def read_manifest(path: Path, digest: str | None) -> dict[str, Any]:
    """Return a manifest whose bytes are the ones that `seal` wrote.

    Raises:
        IntegrityError: there is none, or it was altered.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise IntegrityError(f"{path.parent} has no {MANIFEST}: it was never finished") from None
    found = hashlib.sha256(content).hexdigest()
    if digest is not None and found != digest:
        raise IntegrityError(f"{path} has sha256 {found[:12]}, expected {digest[:12]}")
    try:
        manifest: dict[str, Any] = parse_json(content, MANIFEST)
        document = {name: value for name, value in manifest.items() if name != "seal"}
        whole = manifest["seal"] == _seal_of(document) and content == _json(manifest)
        for facts in manifest["files"].values():
            whole = whole and {type(facts["bytes"]), type(facts["sha256"])} == {int, str}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is not a manifest: {error!r}") from None
    if not whole:
        raise IntegrityError(f"{path} was altered: it does not match its own seal")
    return manifest


def _files(directory: Path) -> dict[str, Path]:
    """Return every file below a directory but its manifest, by its name with slashes."""
    found = {
        path.relative_to(directory).as_posix(): path
        for path in directory.rglob("*")
        if path.is_file()
    }
    found.pop(MANIFEST, None)
    return found


def _seal_of(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json(document)).hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
