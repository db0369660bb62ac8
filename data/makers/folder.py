"""A user's own captioned pictures, in a folder.

Either Hugging Face's imagefolder layout, `metadata.csv` or `metadata.jsonl` with `file_name` and `text` (or `caption`),
or a `captions.tsv` of lines `file<TAB>caption`; or one of them in each of the folders train, validation and test. Where
all files lie in such folders, these are the splits. Names are relative to the list's folder and stay inside it. What is
wrong with one picture becomes a fact about it, so that validation can name them all at once; what is wrong with the
list is an error. The `datasets` library reads the same layout, but takes seconds to import, keeps a cache of its own
and stops at the first missing file: the format is kept, the reader is not (a test compares the two).
"""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from data.makers import Made, MakerError, Sample
from data.makers.captions import CaptionedEntry, captioned, sample
from data.makers.files import SPLITS, check_name, check_there, in_folders, read_file
from infra.documents import DocumentError, parse_json

LISTS: Final = ("metadata.csv", "metadata.jsonl", "captions.tsv")


class Config(CaptionedEntry):
    """The entry of params.yaml."""

    maker: Literal["folder"]


def made(config: Config, project: Path) -> Made:
    """Return the pictures that the folder's list names.

    Raises:
        MakerError: no folder, no list, a line of it that cannot be used, or a file that is not there (named).
    """
    folder = project / config.path
    captions = read_captions(folder)
    check_there(folder, (file for file, _ in captions))

    def pictures(classed: bool) -> Iterator[Sample]:
        root, splits = folder.resolve(), in_folders([file for file, _ in captions])
        for (file, caption), split in zip(captions, splits, strict=True):
            yield sample(file, read_file(root, file), caption, classed=classed, split=split)

    return captioned(config, (caption for _, caption in captions), pictures)


def read_captions(folder: Path) -> list[tuple[str, str]]:
    """Return (file, caption) in the order of the folder's list, or of those of its splits' folders.

    Raises:
        MakerError: as `made`.
    """
    if not folder.is_dir():
        raise MakerError(f"no folder {folder}: give the folder of your pictures with --path")
    parts = [one for one in sorted(folder.iterdir()) if one.name.lower() in SPLITS and one.is_dir()]
    found = _listed(folder) or [row for part in parts for row in _listed(part)]
    if not found:
        raise MakerError(
            f"{folder} has none of {', '.join(LISTS)}: list every file with its caption in one"
        )
    return [(file.relative_to(folder).as_posix(), caption) for file, caption in found]


def _listed(folder: Path) -> list[tuple[Path, str]]:
    """Return the files and captions of a folder's own list; none where it has no list."""
    lists = [folder / name for name in LISTS if (folder / name).is_file()]
    if not lists:
        return []
    if len(lists) > 1:
        raise MakerError(f"{folder} has {lists[0].name} and {lists[1].name}: keep one list")
    rows = list(_lines(lists[0]))
    if not rows:
        raise MakerError(f"{lists[0]} lists no picture")
    for number, file, _ in rows:
        check_name(lists[0], number, file)
    return [(folder / file, caption) for _, file, caption in rows]


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
            columns = ", ".join(filter(None, row))  # what is beyond them has None for a name
            raise MakerError(f"{path}:{number}: no column `text` or `caption`; it has {columns}")
        if None in row:
            raise MakerError(
                f"{path}:{number}: more values than columns: put a text with commas in quotes"
            )
        yield number, file, caption or ""


def _records(path: Path, text: str) -> Iterator[tuple[int, Mapping[str | None, object]]]:
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            columns = reader.fieldnames or ()
            if "file_name" not in columns:
                raise MakerError(f"{path}:1: no column `file_name`; it has {', '.join(columns)}")
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
