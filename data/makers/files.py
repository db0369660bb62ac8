"""Reading a source's files: unpacked within bounds, inside their folder, by name."""

import gzip
import os
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from data.makers import MakerError, Split

MAX_UNPACKED: Final = 1 << 30  # bytes of a file that is read whole
MAX_BYTES: Final = 64 << 20  # of one sample's file
LONGEST_NAME: Final = 255  # bytes of a file's name, on every disk that people have
SPLITS: Final[dict[str, Split]] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}
"""What people call their splits."""


def split_of(file: Path) -> Split | None:
    """Return the split that a file of many rows is named after, as `train-00000-of-00001.parquet`, or None."""
    return SPLITS.get(file.name.partition("-")[0].partition(".")[0].lower())


def in_folders(files: Sequence[str]) -> list[Split | None]:
    """Return the splits whose folders the files lie in, where all of them do: `train` may be what a picture shows."""
    first = [PurePosixPath(file).parts[:-1][:1] for file in files]
    found = [SPLITS.get(folder[0].lower()) if folder else None for folder in first]
    return found if all(found) else [None] * len(files)


def unpacked(path: Path) -> bytes:
    """Return a file's bytes, unpacked where it ends in .gz.

    Raises:
        MakerError: it cannot be read, or has more than a gibibyte.
    """
    try:
        if path.suffix != ".gz":
            size, content = path.stat().st_size, b""
            if size <= MAX_UNPACKED:
                return path.read_bytes()
        else:
            with gzip.open(path) as file:
                content = file.read(MAX_UNPACKED + 1)
            size = len(content)
    except (OSError, EOFError, zlib.error) as error:
        raise MakerError(f"cannot read {path}: {error}") from None
    if size > MAX_UNPACKED:
        raise MakerError(f"{path} has more than {MAX_UNPACKED} bytes unpacked")
    return content


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield a file's lines with their numbers, from 1, without what ends them.

    Raises:
        MakerError: as `unpacked`, or it is empty.
    """
    content = unpacked(path).removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise MakerError(f"{path} is empty")
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
        yield number, line.removesuffix(b"\r")


def check_name(path: Path, number: int, file: str) -> None:
    """Refuse a name in a list that is not relative to the folder, leaves it, or is one that no file can have.

    Raises:
        MakerError: list and line are named.
    """
    name = PurePosixPath(file)
    if not file or "\0" in file or "\\" in file or name.is_absolute() or ".." in name.parts:
        raise MakerError(f"{path}:{number}: {file!r} does not stay inside the folder")
    if any(len(part.encode("utf-8", "surrogatepass")) > LONGEST_NAME for part in name.parts):
        raise MakerError(
            f"{path}:{number}: {file[:40]!r}... is longer than the {LONGEST_NAME} bytes that a file's name can have"
        )


def check_there(root: Path, files: Iterable[str]) -> None:
    """Refuse a list with files that are not there, before any is read.

    Raises:
        MakerError: names the first of them, and where below the folder a file of its name lies.
    """
    missing = [file for file in files if not os.path.lexists(_spelled(root, file))]
    if not missing:
        return
    name = PurePosixPath(missing[0]).name
    elsewhere = sorted(path.relative_to(root).as_posix() for path in root.rglob(_literal(name)))
    hint = f"; did you mean {elsewhere[0]!r}?" if elsewhere else ""
    more = f" (and {len(missing) - 1} more are missing)" if len(missing) > 1 else ""
    raise MakerError(f"no such file {missing[0]!r} in {root}{hint}{more}")


def _literal(name: str) -> str:
    """Return the pattern that matches a name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def read_file(root: Path, file: str) -> tuple[bytes, str]:
    """Return the bytes of a sample's file, or none and the reason.

    A name is found however its accents are composed: a list may be in NFC and the disk in NFD, or the other way round.
    """
    try:
        path = _spelled(root, file).resolve()
        if not path.is_relative_to(root):
            return b"", "a link that leaves the folder"
        if not path.is_file():
            return b"", "no such file"
        if path.stat().st_size > MAX_BYTES:
            return b"", f"{path.stat().st_size} bytes, at most {MAX_BYTES}"
        content = path.read_bytes()
    except (OSError, RuntimeError) as error:
        return b"", f"cannot be read: {error}"
    return content, "" if content else "empty file"


def _spelled(root: Path, file: str) -> Path:
    """Return the path, each part as the disk has it."""
    path = root
    for part in PurePosixPath(file).parts:
        forms = [part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))]
        path = next((path / one for one in forms if os.path.lexists(path / one)), path / part)
    return path
