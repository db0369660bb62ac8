"""Pictures that are answered by url: kept by what they are, and opened by links that are signed for an hour.

Every replica signs with the same secret, from the key in the folder `signing`, and finds every file in the folder
`files`; on a cluster both are mounts of every node.
"""

import hashlib
import hmac
import os
import re
import time
from pathlib import Path
from typing import Final

from infra.receipts.signing import Signing
from infra.storage import atomic_write, oldest_first
from services.gateway.errors import ApiError

LINK_S: Final = 3600  # how long a link opens
_NAME: Final = re.compile(r"[0-9a-f]{64}\.png")
_EXPIRES: Final = re.compile(r"[1-9][0-9]{0,11}")


def gone() -> ApiError:
    """Return the answer to a link that opens nothing."""
    return ApiError(404, "there is no such file, or not any more", code="file_not_found")


class Files:
    """PNG files in one folder; the oldest go when there are too many of them or they grow too large."""

    def __init__(
        self, folder: Path, signing: Signing, *, max_files: int = 2000, max_bytes: int = 2**30
    ) -> None:
        self._folder = folder
        self._signing = signing
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._kept: tuple[int, int] | None = None  # files and bytes, as last counted

    def put(self, png: bytes) -> str:
        """Keep a file; returns its name, a keyed hash of its bytes: equal bytes have one and nobody can compute it."""
        name = f"{hmac.new(self._signing.secret('files'), png, hashlib.sha256).hexdigest()}.png"
        path = self._folder / name
        try:
            os.utime(path)  # the newest again
        except FileNotFoundError:
            self._make_room(len(png))
            with atomic_write(path) as file:
                file.write(png)
        return name

    def link(self, name: str) -> str:
        """Return the path and query that open a file from now on for an hour."""
        expires = str(int(time.time()) + LINK_S)
        return f"/v1/files/{name}?expires={expires}&signature={self._signature(name, expires)}"

    def check(self, name: str, expires: str, signature: str) -> int:
        """Return for how many seconds a link still opens.

        Raises:
            ApiError: 404, no such link; 403, its time is over.
        """
        if not _EXPIRES.fullmatch(expires):
            raise gone()
        if not hmac.compare_digest(self._signature(name, expires).encode(), signature.encode()):
            raise gone()
        left_s = int(expires) - int(time.time())
        if left_s <= 0:
            message = f"the link has expired: links open for {LINK_S // 60} minutes; ask again"
            raise ApiError(403, message, code="link_expired")
        return left_s

    def read(self, name: str) -> bytes:
        """Return a file's bytes, whose link was checked.

        Raises:
            ApiError: 404, it is gone.
        """
        if not _NAME.fullmatch(name):
            raise gone()
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            raise gone() from None

    def _signature(self, name: str, expires: str) -> str:
        content = f"{name}\n{expires}".encode()
        return hmac.new(self._signing.secret("links"), content, hashlib.sha256).hexdigest()

    def _make_room(self, coming: int) -> None:
        """Count this file in; where there are too many, remove the oldest tenth and what is too large beyond it."""
        files, size = self._kept or self._prune(self._max_files, self._max_bytes)
        if files + 1 > self._max_files or size + coming > self._max_bytes:
            files, size = self._prune(self._max_files * 9 // 10, self._max_bytes * 9 // 10)
        self._kept = (files + 1, size + coming)

    def _prune(self, most_files: int, most_bytes: int) -> tuple[int, int]:
        """Remove the oldest until so many are left; returns files and bytes that are."""
        found = oldest_first(self._folder, "*.png")
        files, size = len(found), sum(facts.st_size for _, facts in found)
        for path, facts in found:
            if files <= most_files and size <= most_bytes:
                break
            path.unlink(missing_ok=True)
            files, size = files - 1, size - facts.st_size
        return files, size
