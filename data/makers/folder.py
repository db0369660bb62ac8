"""A user's own captioned pictures, in a folder.

Either Hugging Face's imagefolder layout, `metadata.csv` or `metadata.jsonl` with `file_name` and `text` (or `caption`),
or a `captions.tsv` of lines `file<TAB>caption`. Names are relative to the folder and stay inside it. What is wrong with
one picture becomes a fact about it, so that validation can name them all at once; what is wrong with the list is an
error. The `datasets` library reads the same layout, but takes seconds to import, keeps a cache of its own and stops at
the first missing file: the format is kept, the reader is not (a test compares the two).
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Final, Literal

from pydantic import Field

from data.makers import Entry, Made, MakerError, Sample
from data.makers.files import check_name, check_there, read_file
from data.makers.words import normal, pieces
from infra.documents import DocumentError, parse_json

LISTS: Final = ("metadata.csv", "metadata.jsonl", "captions.tsv")
MAX_CLASSES: Final = 256
PICTURES_PER_CLASS: Final = 8  # in the median, before captions count as classes


class Config(Entry):
    """The entry of params.yaml."""

    maker: Literal["folder"]
    image_size: Annotated[int, Field(ge=8, le=512)] = 32
    pieces: Annotated[int, Field(ge=32, le=65_536)] | None = None
    """Captions are cut into so many pieces of words at most, and no word of a prompt is unknown; None: into words."""


def made(config: Config, project: Path) -> Made:
    """Return the pictures that the folder's list names.

    Raises:
        MakerError: no folder, no list, a line of it that cannot be used, or a file that is not there (named).
    """
    folder = project / config.path
    captions = read_captions(folder)
    check_there(folder, (file for file, _ in captions))
    counts = Counter(normal(caption) for _, caption in captions)
    counts.pop("", None)
    classes = sorted(counts)
    words = sorted({word for caption in classes for word in caption.split()})
    few = 1 < len(classes) <= MAX_CLASSES and median(counts.values()) >= PICTURES_PER_CLASS
    return Made(
        samples=_pictures(folder, captions, classed=few),
        settings={"image_size": config.image_size, "channels": 3},
        attributes={"caption": classes} if few else {},
        vocabulary=words if config.pieces is None else pieces(counts.elements(), config.pieces),
    )


def read_captions(folder: Path) -> list[tuple[str, str]]:
    """Return (file, caption) in the order of the folder's list.

    Raises:
        MakerError: as `made`.
    """
    if not folder.is_dir():
        raise MakerError(f"no folder {folder}: give the folder of your pictures with --path")
    lists = [folder / name for name in LISTS if (folder / name).is_file()]
    if not lists:
        raise MakerError(
            f"{folder} has none of {', '.join(LISTS)}: list every picture with its caption in one"
        )
    if len(lists) > 1:
        raise MakerError(f"{folder} has {lists[0].name} and {lists[1].name}: keep one list")
    rows = list(_lines(lists[0]))
    if not rows:
        raise MakerError(f"{lists[0]} lists no picture")
    for number, file, _ in rows:
        check_name(lists[0], number, file)
    return [(file, caption) for _, file, caption in rows]


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, file, caption)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MakerError(f"cannot read {path} as UTF-8: {error}") from None
    if path.suffix == ".tsv":
        yield from _tab_separated(path, text)
        return
    for number, row in _records(path, text):
        file = row.get("file_name")
        caption = row.get("text", row.get("caption"))
        if not isinstance(file, str) or not isinstance(caption, str | None):
            raise MakerError(
                f"{path}:{number}: `file_name` and `text` must be text, got {row!r:.80}"
            )
        if "text" not in row and "caption" not in row:
            raise MakerError(f"{path}:{number}: no column `text` or `caption`")
        yield number, file, caption or ""


def _records(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            if "file_name" not in (reader.fieldnames or ()):
                raise MakerError(f"{path}:1: no column `file_name`")
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise MakerError(f"{path}:{reader.line_num + 1}: not CSV: {error}") from None
        return
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, f"{path}:{number}")
        except DocumentError as error:
            raise MakerError(str(error)) from None
        if not isinstance(row, dict):
            raise MakerError(f"{path}:{number}: not an object with `file_name` and `text`")
        yield number, row


def _tab_separated(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        file, tab, caption = line.partition("\t")
        if not line.strip():
            continue
        if not tab:
            raise MakerError(f"{path}:{number}: no tab between file and caption: {line!r:.80}")
        yield number, file.strip(), caption.strip()


def _pictures(
    folder: Path, captions: Sequence[tuple[str, str]], *, classed: bool
) -> Iterator[Sample]:
    root = folder.resolve()
    for file, caption in captions:
        content, problem = read_file(root, file)
        said = normal(caption)
        values = (said,) if classed else ()
        yield Sample(file, content, said, problem=problem, attributes=values)
