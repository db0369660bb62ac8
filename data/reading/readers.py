"""Which reader the splits of a modality have: READERS is the table, by names, so that one modality needs no other's."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Final

from data.reading.sources import Options, Source
from data.reading.splits import Split

READERS: Final[Mapping[str, str]] = {
    "image": "data.reading.captioned:Captioned",
    "text": "data.reading.examples:Examples",
    "audio": "data.reading.captioned:Captioned",
    "clip": "data.reading.captioned:Captioned",
    "speech": "data.reading.utterances:Utterances",
}


def open_split(prepared: Path, split: str, options: Options) -> Source:
    """Return the reader of a split.

    Raises:
        DatasetError: no such folder, split or size, or nothing in the split.
        IntegrityError: a shard is not the one that was prepared.
    """
    found = Split(prepared, split, stills=options.stills, size=options.size)
    module, _, name = READERS[found.modality.name].partition(":")
    source: Source = getattr(import_module(module), name)(found, options)
    return source
