"""How folders of recordings are laid out: which sounds there are, what is said in each, and by whom.

Each layout is a function that returns nothing where a folder is not laid out so; `LAYOUTS` are tried in their order.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data.makers import MakerError, Split
from data.makers.files import SPLITS, check_name
from data.makers.labelled_audio import named
from infra.documents import DocumentError, parse_json

ENDINGS: Final = (".wav", ".flac", ".ogg", ".mp3")
NAMELESS: Final = "speaker"
"""What the one speaker is called where nothing tells a name."""
TEXTS: Final = ("normalized_text", "text", "transcription", "transcript", "sentence", "caption")
"""Columns that hold what is said; of several the first here."""
SPEAKERS: Final = ("speaker", "speaker_id", "client_id", "speaker_name")
FILES: Final = ("file_name", "path", "file", "audio")
BESIDE: Final = (".normalized.txt", ".txt", ".lab")
"""How a text is called that lies beside its sound."""
SHORT: Final = 8  # letters of a speaker that is named by a long hash
KNOWN: Final = (
    "metadata.csv of id|text|normalised beside wavs/ (LJSpeech); metadata.csv or metadata.jsonl with"
    " file_name, text and speaker; labels.csv; validated.tsv with client_id, path and sentence (Common"
    " Voice); wav48/SPEAKER and txt/SPEAKER (VCTK); NAME.txt beside NAME.wav; or names such as"
    " zero_george_0.wav (--pattern says others)"
)


@dataclass(frozen=True, slots=True)
class Said:
    """A sound, what is said in it, and who speaks."""

    file: str
    text: str
    speaker: str = NAMELESS
    split: Split | None = None


def laid_out(
    folder: Path, pattern: str | None, test: Mapping[str, Sequence[str]]
) -> Sequence[Said]:
    """Return what a folder's layout says of its sounds, or what names after a pattern do.

    Raises:
        MakerError: no layout that is known, or a line that cannot be used (it is named).
    """
    if pattern is not None:
        return _by_names(folder, pattern, test)
    if test:
        raise MakerError("what is only tested is told by a field of --pattern: give one")
    for layout in LAYOUTS:
        if found := layout(folder):
            return found
    raise MakerError(f"{folder} is laid out in no way that is known: {KNOWN}")


def ljspeech(folder: Path) -> list[Said]:
    """Lines of id|text|normalised text in metadata.csv, and wavs/ID.wav; the normalised text is taken, if any."""
    path = folder / "metadata.csv"
    if not path.is_file() or "|" not in (text := _read(path)).partition("\n")[0]:
        return []
    found = []
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        values = [value.strip() for value in line.split("|")]
        if len(values) not in {2, 3}:
            raise MakerError(
                f"{path}:{number}: {len(values)} fields, expected id|text or id|text|normalised"
            )
        check_name(path, number, values[0])
        found.append(Said(_with_ending(folder, f"wavs/{values[0]}"), values[-1] or values[1]))
    return found


def audio_folder(folder: Path) -> list[Said]:
    """Hugging Face's: metadata.csv or metadata.jsonl in the folder, or in folders that are called as splits are."""
    found = list[Said]()
    for part in [folder, *sorted(path for path in folder.iterdir() if path.name in SPLITS)]:
        split = SPLITS.get(part.name) if part != folder else None
        before = "" if part == folder else f"{part.name}/"
        for name in ("metadata.csv", "metadata.jsonl"):
            if (path := part / name).is_file():
                found += _table(path, before, split)
    return found


def labels(folder: Path) -> list[Said]:
    """A labels.csv of file_name, text and perhaps speaker and split."""
    path = folder / "labels.csv"
    return list(_table(path, "", None)) if path.is_file() else []


def common_voice(folder: Path) -> list[Said]:
    """validated.tsv, or else train.tsv, dev.tsv and test.tsv together, or the one TSV; sounds lie in clips/.

    Common Voice's own splits share no speaker, and a voice that was never learned cannot be asked for: rows are split
    anew.
    """
    lists = sorted(folder.glob("*.tsv"))
    best = [path for path in lists if path.stem == "validated"]
    split = [path for path in lists if path.stem in SPLITS]
    if not (chosen := best or split or (lists if len(lists) == 1 else [])):
        return []
    before = "clips/" if (folder / "clips").is_dir() else ""
    return [one for path in chosen for one in _table(path, before, None)]


def vctk(folder: Path) -> list[Said]:
    """txt/SPEAKER/NAME.txt, and NAME.wav, or NAME_mic1.flac, in SPEAKER of the folder whose name begins with wav."""
    texts, sounds = folder / "txt", sorted(folder.glob("wav*"))
    if not texts.is_dir() or not sounds:
        return []
    said = {
        f"{path.parent.name}/{path.stem}": _read(path).strip() for path in texts.glob("*/*.txt")
    }
    heard = {
        f"{path.parent.name}/{re.sub('_mic1$', '', path.stem)}": path.relative_to(folder).as_posix()
        for path in sorted(sounds[-1].glob("*/*"))
        if path.suffix.lower() in ENDINGS and not path.stem.endswith("_mic2")
    }
    return [
        Said(
            heard.get(name, f"{sounds[-1].name}/{name}.wav"),
            said.get(name, ""),
            name.partition("/")[0],
        )
        for name in sorted(said.keys() | heard.keys())
    ]


def beside(folder: Path) -> list[Said]:
    """NAME.txt beside NAME.wav, at any depth; the outermost folder is the speaker's."""
    found, told = [], False
    for path in _sounds(folder):
        texts = [path.with_name(path.stem + ending) for ending in BESIDE]
        text = next((one for one in texts if one.is_file()), None)
        told = told or text is not None
        parts = path.relative_to(folder).parts
        speaker = parts[0] if len(parts) > 1 else NAMELESS
        said = _read(text).strip() if text else ""
        found.append(Said(path.relative_to(folder).as_posix(), said, speaker))
    return found if told else []


def names(folder: Path) -> list[Said]:
    """zero_george_0.wav or 0_george_0.wav in one folder: the word, who says it, how many times before."""
    found = _sounds(folder)
    if not found or not all(re.fullmatch(r"[^_]+_[^\W\d_]+_\d+", path.stem) for path in found):
        return []
    parents, endings = {path.parent for path in found}, {path.suffix for path in found}
    if len(parents) > 1 or len(endings) > 1:
        return []
    parent = parents.pop().relative_to(folder).as_posix()
    before = "" if parent == "." else f"{parent}/"
    return _by_names(folder, f"{before}{{text}}_{{speaker}}_{{index}}{endings.pop()}", {})


LAYOUTS: Final[tuple[Callable[[Path], list[Said]], ...]] = (
    *(ljspeech, audio_folder, labels, common_voice, vctk, beside, names),
)


def _by_names(folder: Path, pattern: str, test: Mapping[str, Sequence[str]]) -> list[Said]:
    """Return what names after a pattern say: who speaks in the field `speaker`, what in the others."""
    found = []
    for one in named(folder, pattern, test):
        words = [word for field, word in one.attributes.items() if field != "speaker"]
        speaker = one.attributes.get("speaker", NAMELESS)
        found.append(Said(one.file, " ".join(words).replace("-", " "), speaker, one.split))
    return found


def _table(path: Path, before: str, split: Split | None) -> Iterator[Said]:
    """Yield the rows of a list with a name for each column; a column `split` says more than the folder does."""
    rows = list(_rows(path))
    if not rows:
        raise MakerError(f"{path} lists no sound")
    file, text, speaker = (
        next((name for name in names if name in rows[0][1]), "")
        for names in (FILES, TEXTS, SPEAKERS)
    )
    for column, names in ((file, FILES), (text, TEXTS)):
        if not column:
            found = ", ".join(rows[0][1])
            raise MakerError(
                f"{path}:{rows[0][0]}: no column of {', '.join(names)}; it has {found}"
            )
    short = _shortened(row.get(speaker) for _, row in rows)
    for number, row in rows:
        told = row.get("split") or ""
        if told and told not in SPLITS:
            raise MakerError(f"{path}:{number}: split {told!r} is none of {', '.join(SPLITS)}")
        name = row.get(file) or ""
        check_name(path, number, name)
        name = name if Path(name).suffix else f"{name}.mp3"  # older Common Voice leaves it out
        who = row.get(speaker) or NAMELESS
        yield Said(
            f"{before}{name}",
            (row.get(text) or "").strip(),
            short.get(who, who),
            SPLITS.get(told, split),
        )


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str | None]]]:
    """Yield a list's rows with their lines' numbers, values as text."""
    text = _read(path)
    if path.suffix != ".jsonl":
        tabs = path.suffix == ".tsv"
        reader = csv.DictReader(
            io.StringIO(text, newline=""),
            delimiter="\t" if tabs else ",",
            quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
            strict=True,
        )
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise MakerError(f"{path}:{reader.line_num}: not as many values as columns")
                yield reader.line_num, row
        except csv.Error as error:
            raise MakerError(f"{path}:{reader.line_num + 1}: not CSV: {error}") from None
        return
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        try:
            document = parse_json(line, f"{path}:{number}")
        except DocumentError as error:
            raise MakerError(str(error)) from None
        if not isinstance(document, dict):
            raise MakerError(f"{path}:{number}: not an object with `file_name` and `text`")
        yield (
            number,
            {key: None if value is None else str(value) for key, value in document.items()},
        )


def _shortened(names: Iterable[str | None]) -> dict[str, str]:
    """Return speakers named by long hashes by the letters that tell them apart."""
    known = {name for name in names if name}
    size = SHORT
    while len({name[:size] for name in known}) < len(known):
        size += 1
    return {name: name[:size] for name in known if len(name) > 4 * SHORT}


def _with_ending(folder: Path, name: str) -> str:
    """Return a sound's name as it lies in the folder, a WAV file where there is none."""
    if name.lower().endswith(ENDINGS):
        return name
    there = (ending for ending in ENDINGS if (folder / f"{name}{ending}").is_file())
    return f"{name}{next(there, '.wav')}"


def _lines(text: str) -> io.StringIO:
    """Return a text's lines; what else `str.splitlines` takes for an end, as U+2028, may stand in a transcript."""
    return io.StringIO(text, newline=None)


def _sounds(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MakerError(f"cannot read {path} as UTF-8: {error}") from None
