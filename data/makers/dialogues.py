"""A user's own dialogues: JSON lines in the shape of OpenAI's chat, `{"messages": [{"role", "content"}, ...]}`.

One file (.jsonl, .gz too), split by the hash of the dialogues, or a folder with train.jsonl and val.jsonl or test.jsonl
or both. A dialogue is, perhaps after a system's word, user and assistant in turn, and ends with the assistant.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from data.makers import Made, MakerError, Sample, Split, TextEntry, text_made
from data.makers.files import SPLITS, lines_of
from data.modalities.text import Record, record_bytes
from infra.documents import DocumentError, parse_json


class Config(TextEntry):
    """The entry of params.yaml."""

    maker: Literal["dialogues"]


def made(config: Config, project: Path) -> Made:
    """Return the dialogues.

    Raises:
        MakerError: no such file, or a line that is no dialogue (file and line are named).
    """
    files = _files(project / config.path)
    found = {split: list(_dialogues(file)) for file, split in files}
    samples = (
        Sample(f"{file.name}:{number}", record_bytes(dialogue), split=split)
        for file, split in files
        for number, dialogue in found[split]
    )
    return text_made(samples, config)


def _files(path: Path) -> list[tuple[Path, Split | None]]:
    if path.is_file():
        return [(path, None)]
    if not path.is_dir():
        raise MakerError(f"no file or folder {path}: give your dialogues with --path")
    files = sorted(
        file for file in path.iterdir() if file.name.removesuffix(".gz").endswith(".jsonl")
    )
    if not files:
        raise MakerError(f"{path} has no .jsonl file")
    if len(files) == 1:
        return [(files[0], None)]
    found: dict[Split, Path] = {}
    for file in files:
        split = SPLITS.get(file.name.partition(".")[0].lower())
        if split is None or split in found:
            raise MakerError(f"{file}: call the files of a folder train, val and test, one each")
        found[split] = file
    if "train" not in found:
        raise MakerError(f"{path} has no train.jsonl")
    return [(file, split) for split, file in found.items()]


def _dialogues(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (line number, dialogue)."""
    for number, line in lines_of(path):
        if not line.strip():
            continue
        try:
            row = parse_json(line.decode(), f"{path}:{number}")
        except UnicodeDecodeError as error:
            raise MakerError(f"{path}:{number}: not valid UTF-8 (byte {error.start})") from None
        except DocumentError as error:
            raise MakerError(str(error)) from None
        yield number, _dialogue(path, number, row)


def _dialogue(path: Path, number: int, row: Any) -> Record:
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list):
        raise MakerError(f"{path}:{number}: no list `messages`")
    found = []
    for message in messages:
        role, content = (
            (message.get("role"), message.get("content"))
            if isinstance(message, dict)
            else (None, None)
        )
        if not isinstance(role, str) or not isinstance(content, str):
            raise MakerError(
                f"{path}:{number}: a message needs `role` and `content` as text, got {message!r:.80}"
            )
        found.append((role, content))
    return tuple(found)
