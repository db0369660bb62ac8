"""Pictures that are answered by url: kept by what they are, under ids that cannot be guessed, and only so many."""

import hashlib
import hmac
import re
import secrets
from pathlib import Path
from typing import Final

from infra.storage import atomic_write

_ID: Final = re.compile(r"[0-9a-f]{64}")


class Files:
    """PNG files in one folder; the oldest go when there are too many of them or they grow too large."""

    def __init__(self, folder: Path, *, max_files: int = 2000, max_bytes: int = 2**30) -> None:
        self._folder = folder
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._secret: bytes | None = None
        self._kept: tuple[int, int] | None = None  # files and bytes, as last counted

    def put(self, png: bytes) -> str:
        """Keep a file; returns its id, a keyed hash of its bytes: equal bytes have one id and nobody can compute it."""
        identity = hmac.new(self._key(), png, hashlib.sha256).hexdigest()
        path = self._folder / f"{identity}.png"
        if not path.exists():
            self._make_room(len(png))
            with atomic_write(path) as file:
                file.write(png)
        return identity

    def get(self, identity: str) -> bytes | None:
        """Return a file's bytes, or None where there is none (any more)."""
        if not _ID.fullmatch(identity):
            return None
        try:
            return (self._folder / f"{identity}.png").read_bytes()
        except FileNotFoundError:
            return None

    def _key(self) -> bytes:
        if self._secret is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self._folder / "secret"
            if not path.exists():
                with atomic_write(path) as file:
                    path_of_temporary = Path(file.name)
                    path_of_temporary.chmod(0o600)
                    file.write(secrets.token_bytes(32))
            self._secret = path.read_bytes()
        return self._secret

    def _make_room(self, coming: int) -> None:
        """Count this file in; where there are too many, remove the oldest tenth and what is too large beyond it."""
        files, size = self._kept or self._prune(self._max_files, self._max_bytes)
        if files + 1 > self._max_files or size + coming > self._max_bytes:
            files, size = self._prune(self._max_files * 9 // 10, self._max_bytes * 9 // 10)
        self._kept = (files + 1, size + coming)

    def _prune(self, most_files: int, most_bytes: int) -> tuple[int, int]:
        """Remove the oldest until so many are left; returns files and bytes that are."""
        found = [(path.stat(), path) for path in self._folder.glob("*.png")]
        found.sort(key=lambda one: one[0].st_mtime_ns)
        files, size = len(found), sum(facts.st_size for facts, _ in found)
        for facts, path in found:
            if files <= most_files and size <= most_bytes:
                break
            path.unlink(missing_ok=True)
            files, size = files - 1, size - facts.st_size
        return files, size
