"""The artifact store: what jobs make, stage by stage, in a folder that every node mounts or in any place fsspec knows.

A file is named by its job and by the fence it was made under, so that a runner that was taken for dead overwrites
nothing of its successor's. What no row names does not exist, and goes with its job.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from infra.storage import faultpoint, sync_directory

BLOCK: Final = 2**20  # bytes that are read at a time


class StoreError(RuntimeError):
    """The store cannot be used, or does not hold what was put there; one line."""


class Store:
    """Files below one address: "/mnt/jobs", "file:///mnt/jobs", "s3://bucket/jobs"."""

    def __init__(self, address: str) -> None:
        try:
            # others put there and remove what a list that is kept does not know of
            self._files, self._root = fsspec.url_to_fs(address, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            why = " ".join(str(error).split())
            raise StoreError(f"cannot keep what jobs make at {address!r}: {why}") from None

    def put(self, job: str, name: str, content: bytes) -> tuple[str, str]:
        """Write a file of a job's, durably; return its sha256 and its address."""
        digest, uri, _ = self.put_blocks(job, name, [content])
        return digest, uri

    def put_blocks(self, job: str, name: str, blocks: Iterable[bytes]) -> tuple[str, str, int]:
        """Write a file block by block, as `put` does; return how many bytes it has, too."""
        path, digest, count = f"{self._root}/{job}/{name}", hashlib.sha256(), 0
        self._files.makedirs(f"{self._root}/{job}", exist_ok=True)
        with self._files.open(path, "wb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
                count += len(block)
            faultpoint("jobs.put")
            if isinstance(self._files, LocalFileSystem):
                file.flush()
                os.fsync(file.fileno())
        if isinstance(self._files, LocalFileSystem):
            sync_directory(Path(path).parent)
        return digest.hexdigest(), str(self._files.unstrip_protocol(path)), count

    def get(self, uri: str, digest: str) -> bytes:
        """Return a file's bytes.

        Raises:
            StoreError: it is gone, or not what was put there.
        """
        try:
            content: bytes = self._files.cat_file(uri)
        except OSError as error:
            raise StoreError(f"{uri} cannot be read: {error}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise StoreError(f"{uri} was altered: its sha256 is not {digest[:12]}")
        return content

    def rows(self, uri: str, digest: str, longest: int) -> Iterator[bytes]:
        """Yield a file's lines, one at a time in memory; a longer one in pieces of `longest` bytes and one.

        Raises:
            StoreError: it is gone, or not what was put there; before the first line.
        """
        found = hashlib.sha256()
        try:
            # in a bucket a file's own readline knows no limit
            with self._files.open(uri, "rb") as opened, io.BufferedReader(opened, BLOCK) as file:
                while block := file.read(BLOCK):
                    found.update(block)
                if found.hexdigest() != digest:
                    raise StoreError(f"{uri} was altered: its sha256 is not {digest[:12]}")
                file.seek(0)
                while row := file.readline(longest + 1):
                    yield row
        except OSError as error:
            raise StoreError(f"{uri} cannot be read: {error}") from None

    def remove(self, uri: str) -> None:
        """Remove one file, if it is there."""
        if self._files.exists(uri):
            self._files.rm_file(uri)

    def jobs(self) -> list[str]:
        """Return the names of the jobs that something is there of."""
        if not self._files.exists(self._root):
            return []
        paths = self._files.ls(self._root, detail=False)
        return [str(path).rstrip("/").rpartition("/")[2] for path in paths]

    def clear(self, job: str) -> None:
        """Remove all that is there of a job."""
        folder = f"{self._root}/{job}"
        if self._files.exists(folder):
            self._files.rm(folder, recursive=True)
