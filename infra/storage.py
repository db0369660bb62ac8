"""Published files: written whole or not at all, sealed by a manifest of hashes, verified before use."""

import errno
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

MANIFEST: Final = "MANIFEST.json"


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(directory: Path, facts: Mapping[str, Any]) -> str:
    """Write MANIFEST.json over every file below `directory`, last; return the manifest's own sha256 (the digest).

    `facts` (step, seed, data identity, ...) stand beside the files. A directory without a manifest does not exist.
    """
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            name = path.relative_to(directory).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_json(directory / MANIFEST, {"format": 1, "files": files, **facts})
    return sha256_of(directory / MANIFEST)


def verify(directory: Path, digest: str | None = None) -> dict[str, Any]:
    """Return the manifest after comparing every file's size and sha256 with it, before anything is parsed.

    Raises:
        IntegrityError: no manifest, another digest than `digest`, or a missing, extra or altered file (named).
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise IntegrityError(f"{directory} has no {MANIFEST}: it was never finished")
    if digest is not None and sha256_of(path) != digest:
        raise IntegrityError(f"{path} has sha256 {sha256_of(path)[:12]}, expected {digest[:12]}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        files: dict[str, Any] = manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is not a manifest: {error}") from None
    present = {
        file.relative_to(directory).as_posix()
        for file in directory.rglob("*")
        if file.is_file() and file.name != MANIFEST
    }
    if odd := sorted(present ^ files.keys()):
        side = "missing" if odd[0] in files else "not in the manifest"
        raise IntegrityError(f"{directory / odd[0]} is {side}")
    for name, facts in files.items():
        file = directory / name
        if file.stat().st_size != facts["bytes"]:
            raise IntegrityError(
                f"{file} has {file.stat().st_size} bytes, expected {facts['bytes']}"
            )
        if sha256_of(file) != facts["sha256"]:
            raise IntegrityError(f"{file} was altered: its sha256 is not the manifest's")
    return manifest
