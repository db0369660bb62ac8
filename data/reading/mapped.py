"""Rows as they are read: written to this machine's disk once, then memory-mapped by every process that reads them.

`.atelier/rows/KEY` has a file a column and one more with a sha256 for every 256 KiB of it. What is touched is compared
with that first, so nothing reads a whole file to begin with. The pages are the kernel's: all processes of a machine
share them, and it drops those that nobody touches where memory is short.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from infra.documents import read_json
from infra.settings import settings
from infra.storage import IntegrityError, faultpoint, sync_directory, write_json

Array: TypeAlias = npt.NDArray[Any]
BLOCK: Final = 1 << 18  # bytes that have a digest of their own
DIGEST: Final = 32  # bytes of a sha256
INDEX: Final = "index.json"


class DatasetError(ValueError):
    """A prepared dataset that cannot be read as asked, in one line with the way out."""


class Column:
    """An array on disk, compared with its digests where it is touched first.

    Raises:
        IntegrityError: the file has another size, or is not there.
    """

    def __init__(self, path: Path, dtype: str, shape: Sequence[int]) -> None:
        self._path = path
        self._row = np.dtype(dtype).itemsize * math.prod(shape[1:])  # bytes
        size = self._row * shape[0]
        _check_size(path, size)
        digests = _digests(path)
        _check_size(digests, -(-size // BLOCK) * DIGEST)
        self._digests = digests.read_bytes()
        self._bytes = np.asarray(np.memmap(path, np.uint8, "r")) if size else np.zeros(0, np.uint8)
        self._array = self._bytes.view(dtype).reshape(shape)
        self._known = np.zeros(-(-size // BLOCK), bool)  # of every block, whether it was compared
        self._left = len(self._known)

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self._array)

    def __getitem__(self, places: slice) -> Array:
        """Return rows that stand one after the other, without a copy.

        Raises:
            IntegrityError: they are not what was written.
        """
        if self._left:
            first, last, _ = places.indices(len(self))
            self._compare(np.arange(first * self._row // BLOCK, -(-last * self._row // BLOCK)))
        return self._array[places]

    def take(self, index: Array) -> Array:
        """Return a copy of chosen rows, in an index of any shape.

        Raises:
            IntegrityError: they are not what was written.
        """
        if self._left:
            begins = index.reshape(-1, 1) * self._row
            first, last = begins // BLOCK, (begins + self._row - 1) // BLOCK
            self._compare(np.minimum(first + np.arange(self._row // BLOCK + 2), last))
        found: Array = self._array.take(index, axis=0)
        return found

    def _compare(self, blocks: Array) -> None:
        """Compare those of these blocks with their digests that were not yet."""
        touched = np.zeros(len(self._known), bool)
        touched[blocks] = True
        for block in np.flatnonzero(touched & ~self._known).tolist():
            start = block * BLOCK
            found = hashlib.sha256(self._bytes[start : start + BLOCK].data).digest()
            if found != self._digests[block * DIGEST : (block + 1) * DIGEST]:
                raise IntegrityError(
                    f"{self._path} was altered at byte {start}: {_way_out(self._path)}"
                )
            self._known[block] = True
        self._left = len(self._known) - int(self._known.sum())


class Mapped:
    """A folder of columns.

    Raises:
        IntegrityError: a file is missing, or is not the one that was written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / INDEX
        document: Any = None
        with suppress(OSError, ValueError):
            document = read_json(path)
        if not isinstance(document, dict) or document.pop("seal", None) != _seal(document):
            raise IntegrityError(f"{path} was altered: {_way_out(path)}")
        self.facts: Mapping[str, Any] = document["facts"]
        self.columns: Mapping[str, Column] = {
            name: Column(folder / name, column["dtype"], column["shape"])
            for name, column in document["columns"].items()
        }


def mapped(
    key: str, facts: Mapping[str, Any], make: Callable[[], Iterator[Mapping[str, Array]]]
) -> Mapped:
    """Return the columns of a key; one process of the machine writes what `make` yields, the others wait for it.

    Args:
        key: the same for equal columns, and for them alone.
        facts: kept beside the columns.
        make: yields parts, one after the other, each with every column.

    Raises:
        DatasetError: there is no room for them, or their folder cannot be written.
        IntegrityError: they are not what was written.
    """
    folder = settings().state / "rows" / key
    try:
        if not (folder / INDEX).is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not (folder / INDEX).is_file():
                    _make(folder, facts, make)
    except OSError as error:
        raise DatasetError(
            f"cannot write rows to {folder.parent}: {error.strerror or error}; they take as much room there as"
            " their split does unpacked"
        ) from None
    return Mapped(folder)


def unneeded(needed: set[str]) -> list[Path]:
    """Return the folders of rows whose fact `dataset` is not among those that are needed."""
    found = []
    for path in sorted((settings().state / "rows").glob(f"*/{INDEX}")):
        try:
            dataset = Mapped(path.parent).facts["dataset"]
        except IntegrityError:
            dataset = None
        if dataset not in needed:
            found.append(path.parent)
    return found


def _make(
    folder: Path, facts: Mapping[str, Any], make: Callable[[], Iterator[Mapping[str, Array]]]
) -> None:
    """Write a folder of columns, whole or not at all; what a killed maker left is removed."""
    for leftover in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with ExitStack() as opened:
            files: dict[str, _File] = {}
            for part in make():
                faultpoint("rows.write")
                for name, array in part.items():
                    if name not in files:
                        files[name] = _File(new / name, opened)
                    files[name].append(array)
            document = {
                "columns": {name: file.end() for name, file in files.items()},
                "facts": facts,
            }
        write_json(new / INDEX, {**document, "seal": _seal(document)})
        faultpoint("rows.written")
        shutil.rmtree(folder, ignore_errors=True)  # which has no index
        new.rename(folder)
        sync_directory(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


class _File:
    """A column while it is written."""

    def __init__(self, path: Path, opened: ExitStack) -> None:
        self._file = opened.enter_context(path.open("wb"))
        self._digests = opened.enter_context(_digests(path).open("wb"))
        self._kind, self._shape, self._rows = "", list[int](), 0
        self._hash, self._filled = hashlib.sha256(), 0

    def append(self, array: Array) -> None:
        self._kind, self._shape = array.dtype.str, list(array.shape[1:])
        self._rows += len(array)
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._file.write(content)
        while len(content):
            room = BLOCK - self._filled
            head, content = content[:room], content[room:]
            self._hash.update(head)
            self._filled += len(head)
            if self._filled == BLOCK:
                self._end_block()

    def end(self) -> dict[str, Any]:
        """Make it durable; returns what `Column` must know."""
        if self._filled:
            self._end_block()
        for file in (self._file, self._digests):
            file.flush()
            os.fsync(file.fileno())
        return {"dtype": self._kind, "shape": [self._rows, *self._shape]}

    def _end_block(self) -> None:
        self._digests.write(self._hash.digest())
        self._hash, self._filled = hashlib.sha256(), 0


def _digests(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _check_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.is_file() else 0
    if found != size:
        raise IntegrityError(f"{path} has {found} bytes, expected {size}: {_way_out(path)}")


def _way_out(path: Path) -> str:
    return f"delete {path.parent}, it is made again from the shards"


def _seal(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
