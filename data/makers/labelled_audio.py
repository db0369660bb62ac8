"""A user's own sounds with labels: a folder of WAV, FLAC, Ogg or MP3 files.

The labels are in `labels.csv` (`file_name`, `text`; any other column is an attribute, but `split`), or in the files'
names, after a pattern such as `{digit}_{speaker}_{index}.wav`. A caption is the text and after it the attributes'
values that it does not have; a digit becomes its word. A field of the pattern that is called `index`, or that says
what is tested, is none. The text is an attribute too where it is one of few.
"""

import csv
import io
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final, Literal

from data.makers import DIGITS, AudioEntry, Made, MakerError, Sample, Split
from data.makers.captions import MAX_CLASSES, PICTURES_PER_CLASS
from data.makers.files import check_name, check_there, read_file
from data.makers.words import normal

LIST: Final = "labels.csv"
ENDINGS: Final = (".wav", ".flac", ".ogg", ".mp3")
LJSPEECH: Final = "metadata.csv"
KNOWN: Final = ("file_name", "text", "split")
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")


class Config(AudioEntry):
    """The entry of params.yaml."""

    maker: Literal["labelled-audio"]
    pattern: str | None = None  # of the files' names; None: labels.csv
    test: Mapping[
        str, tuple[str, ...]
    ] = {}  # field of the pattern: its values that are only tested


@dataclass(frozen=True, slots=True)
class Labelled:
    """A file and what is said of it."""

    file: str
    text: str
    attributes: Mapping[str, str]
    split: Split | None = None

    @property
    def caption(self) -> str:
        """The text, and the attributes' values that it does not have."""
        words = self.text.split()
        return " ".join([*words, *(v for v in self.attributes.values() if v not in words)])

    def value(self, name: str) -> str:
        """Return the value of one of `_attributes`."""
        return self.text if name == "text" else self.attributes[name]


def made(config: Config, project: Path) -> Made:
    """Return the sounds that the list or the pattern names.

    Raises:
        MakerError: no folder, no list or pattern, or a line or name that cannot be used (it is named).
    """
    folder = project / config.path
    if not folder.is_dir():
        raise MakerError(f"no folder {folder}: give the folder of your sounds with --path")
    if config.pattern is None:
        labelled = list(_listed(folder / LIST))
        check_there(folder, (one.file for one in labelled))
    else:
        labelled = list(named(folder, config.pattern, config.test))
    attributes = _attributes(labelled)
    return Made(
        samples=_samples(folder, labelled, tuple(attributes)),
        modality="audio",
        settings={"sample_rate": config.sample_rate, "clip_samples": config.clip_samples},
        attributes=attributes,
        vocabulary=sorted({word for one in labelled for word in one.caption.split()}),
    )


def _listed(path: Path) -> Iterator[Labelled]:
    """Yield the lines of labels.csv."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        if (path.parent / LJSPEECH).is_file():
            raise MakerError(
                f"{path.parent} is laid out as LJSpeech, which is sentences: `atelier data prepare speech --path"
                f" {shlex.quote(str(path.parent))}` reads it as it is"
            ) from None
        raise MakerError(
            f"{path.parent} has no {LIST}: list every file with its text there, or give a --pattern"
            " of the names such as {word}_{speaker}_{index}.wav"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise MakerError(f"cannot read {path} as UTF-8: {error}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    found = 0
    try:
        columns = reader.fieldnames or ()
        for name in KNOWN[:2]:
            if name not in columns:
                raise MakerError(f"{path}:1: no column `{name}`; it has {', '.join(columns)}")
        for row in reader:
            found += 1
            yield _line(path, reader.line_num, row)
    except csv.Error as error:
        raise MakerError(f"{path}:{reader.line_num + 1}: not CSV: {error}") from None
    if not found:
        raise MakerError(f"{path} lists no sound")


def _line(path: Path, number: int, row: Mapping[str | None, str | None]) -> Labelled:
    if None in row or None in row.values():
        raise MakerError(f"{path}:{number}: not as many values as columns")
    values = {str(name): str(value) for name, value in row.items()}
    check_name(path, number, values["file_name"])
    attributes = {name: _word(value) for name, value in values.items() if name not in KNOWN}
    for name, value in attributes.items():
        if not value:
            raise MakerError(f"{path}:{number}: no {name}")
    split = next((one for one in SPLITS if one == values.get("split")), None)
    if values.get("split") and split is None:
        raise MakerError(
            f"{path}:{number}: split {values['split']!r} is none of {', '.join(SPLITS)}"
        )
    return Labelled(values["file_name"], normal(values["text"]), attributes, split)


def named(folder: Path, pattern: str, test: Mapping[str, Sequence[str]]) -> Iterator[Labelled]:
    """Yield the folder's sounds, their labels by their names.

    Raises:
        MakerError: a pattern without fields, no sound, or one of another name or with a label that is no word.
    """
    expression, fields = _expression(pattern)
    if unknown := sorted(set(test) - set(fields)):
        raise MakerError(f"the pattern {pattern!r} has no field {unknown[0]!r} to test by")
    labels = [field for field in fields if field != "index" and field not in test]
    files = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.suffix.lower() in ENDINGS
    )
    if not files:
        raise MakerError(f"{folder} has no file that ends in {', '.join(ENDINGS)}")
    for file in files:
        found = expression.fullmatch(unicodedata.normalize("NFC", file))
        if found is None:
            raise MakerError(f"{folder / file} is not named like {pattern}")
        split: Split | None = None
        if test:
            split = "test" if any(found[name] in test[name] for name in test) else "train"
        words = {name: _word(found[name]) for name in labels}
        if empty := [name for name, word in words.items() if not word]:
            raise MakerError(f"{folder / file}: its {empty[0]} {found[empty[0]]!r} is no word")
        yield Labelled(file, "", words, split)


def _expression(pattern: str) -> tuple[re.Pattern[str], list[str]]:
    parts = re.split(r"\{([a-z_]+)\}", unicodedata.normalize("NFC", pattern))
    fields = parts[1::2]
    if not set(fields) - {"index"} or len(set(fields)) < len(fields):
        raise MakerError(
            f"the pattern {pattern!r} needs different fields such as {{word}}_{{speaker}}_{{index}}.wav"
        )
    places = [
        f"(?P<{part}>[^/]+?)" if number % 2 else re.escape(part)
        for number, part in enumerate(parts)
    ]
    return re.compile("".join(places)), fields


def _word(value: str) -> str:
    """Return a label as one word; a digit as it is said."""
    word = normal(value).replace(" ", "-")
    return DIGITS[int(word)] if re.fullmatch("[0-9]", word) else word


def _attributes(labelled: Sequence[Labelled]) -> dict[str, Sequence[str]]:
    """Return the values of the attributes that every sound has, and of the text where it counts as a class."""
    found: dict[str, Sequence[str]] = {}
    counts = Counter(one.text for one in labelled if one.text)
    few = 1 < len(counts) <= MAX_CLASSES and median(counts.values()) >= PICTURES_PER_CLASS
    if few and sum(counts.values()) == len(labelled):
        found["text"] = sorted(counts)
    for name in labelled[0].attributes:
        values = {one.attributes[name] for one in labelled}
        found[name] = sorted(values, key=lambda value: (_place(value), value))
    return found


def _place(value: str) -> int:
    """Return a digit's value, so that digits stand in their order."""
    return DIGITS.index(value) if value in DIGITS else len(DIGITS)


def _samples(folder: Path, labelled: Sequence[Labelled], names: Sequence[str]) -> Iterator[Sample]:
    root = folder.resolve()
    for one in labelled:
        content, problem = read_file(root, one.file)
        values = tuple(one.value(name) for name in names)
        yield Sample(one.file, content, one.caption, one.split, problem, values)
