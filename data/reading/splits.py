"""One split of a prepared dataset: shards, verified before they are parsed, and the rows that are made of them once."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from data.modalities import modality
from data.reading.mapped import Array, DatasetError, Mapped, mapped
from infra.documents import MOST_OF_OURS, read_json
from infra.storage import IntegrityError, sha256_of

FORMAT: Final = 1
LAYOUT: Final = 1  # of the rows that are made of shards; another one is made anew


class Split:
    """A split's shards on disk; of clips as clips or, where `stills` are asked for, as pictures, a row a frame.

    Of pictures of several sizes those of one: what is read together is of one shape.

    Raises:
        DatasetError: no such folder or split, or nothing in the split.
    """

    def __init__(
        self, prepared: Path, name: str, *, stills: bool = False, size: str | None = None
    ) -> None:
        self.folder, self.name, self.header = prepared, name, read_header(prepared)
        splits = self.header["splits"]
        if name not in splits:
            raise DatasetError(
                f"{prepared} has no split {name!r}; choose one of {', '.join(splits)}"
            )
        self.size = size
        found = [
            (number, shard)
            for number, shard in enumerate(splits[name]["shards"])
            if size in {None, shard.get("size")}
        ]
        self.numbers = [number for number, _ in found]  # of the shards, among the split's
        self.shards: list[dict[str, Any]] = [shard for _, shard in found]
        self.rows: int = sum(shard["rows"] for shard in self.shards)
        if size is not None:
            self.header["size"] = size
        kind = modality(self.header.get("modality", "image"))
        self.modality = kind.stills() if stills else kind
        if not self.rows:
            raise DatasetError(
                f"the {name} split of {prepared} is empty: prepare more {self.modality.noun}s"
            )

    def facts(self, image_size: int | None) -> dict[str, Any]:
        """Return what a network must know.

        Raises:
            DatasetError: the dataset cannot be learned at that size.
        """
        try:
            return self.modality.network_facts(self.header, image_size)
        except ValueError as error:
            raise DatasetError(str(error)) from None

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows of one shard after the other.

        Raises:
            IntegrityError: a shard is not the one that was prepared.
        """
        import pyarrow.parquet as pq

        for shard in self.shards:
            with self._reading(shard) as path:
                content = path.read_bytes()
            self._compare(path, hashlib.sha256(content).hexdigest(), shard)
            yield pq.read_table(pa.BufferReader(content))

    def rows_as(self, *what: Any, make: Callable[[], Iterator[Mapping[str, Array]]]) -> Mapped:
        """Return the split's rows, which `make` made of its tables, by this process or another one before.

        Args:
            what: JSON values; equal ones get equal rows.
            make: yields parts of the columns.

        Raises:
            DatasetError: there is no room for the rows, or their folder cannot be written.
            IntegrityError: a shard is not the one that was prepared, or the rows are not what was written.
        """
        digest = sha256_of(self.folder / "dataset.json")
        sized = [] if self.size is None else [self.size]
        named = json.dumps([LAYOUT, digest, self.name, *what, *sized])
        stamps = [self._stamp(shard) for shard in self.shards]
        key = hashlib.sha256(named.encode()).hexdigest()[:32]
        found = mapped(key, {"dataset": digest, "shards": stamps}, make)
        if found.facts["shards"] != stamps:  # not the files that the rows were made of
            for shard in self.shards:
                with self._reading(shard) as path:
                    sha256 = sha256_of(path)
                self._compare(path, sha256, shard)
        return found

    def _stamp(self, shard: Mapping[str, Any]) -> list[int]:
        """Return a shard's size and time of change, which tell whether it must be compared again."""
        with self._reading(shard) as path:
            found = path.stat()
        return [found.st_size, found.st_mtime_ns]

    @contextmanager
    def _reading(self, shard: Mapping[str, Any]) -> Iterator[Path]:
        path = self.folder / shard["file"]
        try:
            yield path
        except OSError as error:
            raise IntegrityError(f"cannot read {path}: {error.strerror}; prepare again") from None

    def _compare(self, path: Path, sha256: str, shard: Mapping[str, Any]) -> None:
        if sha256 != shard["sha256"]:
            raise IntegrityError(f"{path} was altered: its sha256 is not dataset.json's")


def sizes_in(prepared: Path, name: str) -> list[str | None]:
    """Return the sizes of a split's pictures, one after the other; of what is of one shape None alone.

    Raises:
        DatasetError: never prepared, or written by a newer version.
    """
    split = read_header(prepared)["splits"].get(name, {"shards": ()})
    return list(dict.fromkeys(shard.get("size") for shard in split["shards"])) or [None]


def read_header(prepared: Path) -> dict[str, Any]:
    """Return dataset.json of a prepared folder.

    Raises:
        DatasetError: never prepared, or written by a newer version.
    """
    path = prepared / "dataset.json"
    try:
        header: dict[str, Any] = read_json(path, most=MOST_OF_OURS)
    except OSError:
        raise DatasetError(
            f"{prepared} holds no prepared dataset: run `atelier data prepare {prepared.name}`"
        ) from None
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error}): prepare again") from None
    if header.get("format") != FORMAT:
        raise DatasetError(f"{path} has format {header.get('format')}, this version reads {FORMAT}")
    return header
