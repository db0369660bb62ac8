"""A user's own text: a .txt or .md file, or a folder of them, in UTF-8.

A file is a document. A long one is cut at ends of lines into consecutive pieces, the first 90 % of which are learned
from, the next 5 % validate and the last 5 % test: a place that is tested lies beyond all that was learned, never
between. Shorter files are whole documents, split by the hash of what they say.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from data.makers import Made, MakerError, Sample, Split, TextEntry, text_made
from data.modalities.text import record_bytes

ENDINGS: Final = (".txt", ".md")
MAX_BYTES: Final = 1 << 30  # of one file
LEAST_PIECES: Final = 20  # of a document that has all three splits in itself


class Config(TextEntry):
    """The entry of params.yaml."""

    maker: Literal["text"]
    piece: Annotated[int, Field(ge=16, le=1 << 20)] = 4096  # characters of a long document's pieces


def made(config: Config, project: Path) -> Made:
    """Return the documents.

    Raises:
        MakerError: no such file or folder, or no text in it.
    """
    path = project / config.path
    return text_made(_samples(path, files_of(path), config.piece), config)


def files_of(path: Path) -> list[Path]:
    """Return the file itself, or all text files below the folder, in order.

    Raises:
        MakerError: as `made`.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise MakerError(f"no file or folder {path}: give your text with --path")
    root = path.resolve()
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in ENDINGS and file.is_file() and file.resolve().is_relative_to(root)
    )
    if not found:
        raise MakerError(f"{path} has no file that ends in {' or '.join(ENDINGS)}")
    return found


def read_text(path: Path) -> tuple[str, str]:
    """Return a file's text with lines that end in a line feed, or none and why it cannot be read."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return "", f"{path.stat().st_size} bytes, at most {MAX_BYTES}"
        content = path.read_bytes()
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return "", f"not valid UTF-8: byte {error.start}, in line {line}"
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return (text, "") if text.strip() else ("", "empty file")


def _samples(path: Path, files: list[Path], piece: int) -> Iterator[Sample]:
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        text, problem = read_text(file)
        if problem:
            yield Sample(name, b"", problem=problem)
            continue
        pieces = cut(text, piece)
        if len(pieces) < LEAST_PIECES:
            yield Sample(name, record_bytes([("text", text)]))
            continue
        for number, (part, split) in enumerate(zip(pieces, splits_of(len(pieces)), strict=True)):
            if part.strip():
                yield Sample(f"{name}#{number:05d}", record_bytes([("text", part)]), split=split)


def cut(text: str, piece: int) -> list[str]:
    """Return consecutive pieces of at most `piece` characters that end with a line where a line is not longer.

    Joined they are the text.
    """
    pieces, first = [], 0
    while len(text) - first > piece:
        end = text.rfind("\n", first, first + piece) + 1
        last = end if end > first else first + piece
        pieces.append(text[first:last])
        first = last
    return [*pieces, text[first:]] if first < len(text) else pieces


def splits_of(pieces: int) -> list[Split]:
    """Return the splits of consecutive pieces, by position: 90 % training, 5 % validation, 5 % test."""
    held = max(1, round(0.05 * pieces))
    names: list[tuple[Split, int]] = [("train", pieces - 2 * held), ("validation", held)]
    return [split for split, count in [*names, ("test", held)] for _ in range(count)]
