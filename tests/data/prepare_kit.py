"""The four stages of one dataset in a folder of its own, without DVC; and a Toy's own text and sound on disk."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data import stages


def prepare(project: Path, entry: dict[str, Any], name: str = "mine") -> Path:
    """Return the prepared folder of an entry of params.yaml."""
    (project / "params.yaml").write_text(yaml.safe_dump({"datasets": {name: entry}}))
    for verb in ("make", "facts", "validate", "shards"):
        stages.VERBS[verb](name, project)
    return project / "data" / "prepared" / name


def refused(project: Path, entry: dict[str, Any]) -> list[str]:
    """Return the lines that say why an entry is refused."""
    try:
        prepare(project, entry)
    except stages.Refused as error:
        return str(error).splitlines()
    raise AssertionError("it was accepted")


def sound_file(
    path: Path,
    seconds: float = 0.3,
    *,
    hertz: float = 220,
    rate: int = 8000,
    level: float = 0.5,
    kind: str = "WAV",
    channels: int = 1,
) -> Path:
    """Write a tone; returns the file."""
    import soundfile

    x_T = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    file = io.BytesIO()
    soundfile.write(file, np.stack([x_T] * channels, 1), rate, format=kind)
    path.write_bytes(file.getvalue())
    return path
