"""Folders of recordings as people lay them out, with tones for voices: every one another pitch and length."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.data.prepare_kit import sound_file

SENTENCES = tuple(
    f"{subject} {verb} {count} {thing}."
    for subject in ("She", "Tom")
    for verb in ("has", "saw")
    for count in ("two", "nine")
    for thing in ("cats", "grey birds", "things")
)  # 24, all different


def tone(path: Path, number: int, seconds: float | None = None, **how: object) -> Path:
    """Write the number-th sound: 0.7 s or more, no two alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    length = 0.7 + 0.04 * number if seconds is None else seconds
    return sound_file(path, length, hertz=110 + 7 * number, **how)  # type: ignore[arg-type]


def ljspeech(folder: Path, rate: int = 8000) -> Path:
    """Write an LJSpeech folder; the last row has no normalised text."""
    rows = []
    for number, text in enumerate(SENTENCES):
        tone(folder / "wavs" / f"LJ-{number:02d}.wav", number, rate=rate)
        said = "" if number == len(SENTENCES) - 1 else text.lower()
        rows.append(f'LJ-{number:02d}|{text} "So"|{said}')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def vctk(folder: Path) -> Path:
    for number, text in enumerate(SENTENCES[:6]):
        who = f"p{225 + number % 2}"
        name = f"{who}_{number:03d}"
        tone(folder / "wav48_silence_trimmed" / who / f"{name}_mic1.flac", number, kind="FLAC")
        tone(folder / "wav48_silence_trimmed" / who / f"{name}_mic2.flac", 50 + number, kind="FLAC")
        path = folder / "txt" / who / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


def common_voice(folder: Path) -> Path:
    lines = ["client_id\tpath\tsentence\tup_votes"]
    for number, text in enumerate(SENTENCES[:6]):
        who = ("ab" if number % 2 else "cd") * 32
        tone(folder / "clips" / f"en_{number}.mp3", number, kind="MP3", rate=16000)
        lines.append(f'{who}\ten_{number}.mp3\tThe "{text}\t2')
    (folder / "validated.tsv").write_text("\n".join(lines) + "\n")
    (folder / "other.tsv").write_text("client_id\tpath\tsentence\nx\tnowhere.mp3\tNo.\n")
    return folder


def audio_folder(folder: Path, splits: Sequence[str] = ()) -> Path:
    """Write Hugging Face's layout: JSON lines, or a CSV file in a folder for each split."""
    rows: dict[str, list[Mapping[str, object]]] = {}
    for number, text in enumerate(SENTENCES[:6]):
        part = splits[number % len(splits)] if splits else ""
        tone(folder / part / f"{number}.wav", number)
        row = {"file_name": f"{number}.wav", "transcription": text, "speaker_id": number % 2}
        rows.setdefault(part, []).append(row)
    for part, listed in rows.items():
        if not part:
            (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, listed)))
            continue
        lines = ["file_name,transcription,speaker_id"]
        lines += [
            f"{row['file_name']},{row['transcription']},{row['speaker_id']}" for row in listed
        ]
        (folder / part / "metadata.csv").write_text("\n".join(lines))
    return folder


def labelled(folder: Path) -> Path:
    lines = ["file_name,text,speaker,split"]
    for number, text in enumerate(SENTENCES[:6]):
        tone(folder / f"{number}.wav", number)
        lines.append(f'{number}.wav,"{text}",ann,{("train", "val", "test")[number % 3]}')
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def beside(folder: Path) -> Path:
    for number, text in enumerate(SENTENCES[:6]):
        path = tone(folder / ("ann", "bob")[number % 2] / "one" / f"{number}.wav", number)
        path.with_suffix(".txt").write_text(text)
    return folder


def digits(folder: Path, of: int = 2) -> Path:
    """Write names as those of spoken digits: 0_ann_3.wav, in a folder below."""
    number = 0
    for digit in range(3):
        for speaker in ("ann", "bob"):
            for index in range(of):
                tone(
                    folder / "recordings" / f"{digit}_{speaker}_{index}.wav",
                    number,
                    0.3 + 0.01 * number,
                )
                number += 1
    return folder
