"""The code of a training, a judging and a search: equal work is found, different work never.

Who looks a family or a modality up in its table names the entry that it means, so a change to one family, or to text,
is none to another or to pictures.
"""

import hashlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from flows.identity.meaning import READ, Sources
from flows.identity.reach import Code, code_of
from infra.documents import read_json
from infra.settings import settings
from infra.stack.spec import state_folder
from infra.storage import write_json
from models import target

ROOT: Final = Path(__file__).parents[2]


def training_code(family: str, modality: str) -> Code:
    """Return the code that decides what training a family on data of a modality gives.

    Raises:
        ValueError: an unknown family; the message lists the known ones.
    """
    target(family)
    return remembered(training_entries(Sources(ROOT), family, modality))


def judging_code(families: Collection[str], modality: str) -> Code:
    """Return the code that decides how what these families make of a modality is judged."""
    return remembered(judging_entries(Sources(ROOT), families, modality))


def training_entries(sources: Sources, family: str, modality: str) -> tuple[str, ...]:
    """Return where the training of a family begins."""
    return (
        *("flows.training.attempt:train", _families(sources)[family]),
        *_data(sources, modality),
    )


def judging_entries(sources: Sources, families: Collection[str], modality: str) -> tuple[str, ...]:
    """Return where judging begins."""
    known = _families(sources)
    judges = sources.table("flows.evaluating.modalities:MODULES")
    return (
        *("flows.evaluating.evaluate:evaluate_on_ray", "flows.evaluating.gate:check"),
        *((judges["embedding"],) if modality == "image" else ()),  # of pictures, too
        *((judges["mesh"],) if any(".text_to_3d." in known[family] for family in families) else ()),
        *(
            judges.get(modality, judges["audio"]),
            *_data(sources, modality),
        ),  # speech is heard as sound
        *(known[family] for family in sorted(set(families))),
    )


def search_code() -> Code:
    """Return the code that decides what a search tries and whom it stops."""
    modules = ("flows.tuning.plan", "flows.tuning.asha", "flows.tuning.search")
    return remembered(modules)


def node_code(family: str, modality: str) -> Code:
    """Return the code that the workers of a training run."""
    begin, *rest = training_entries(Sources(ROOT), family, modality)
    return remembered(("flows.training.worker:work", begin, *rest))


def _data(sources: Sources, modality: str) -> tuple[str, ...]:
    """Return what a modality's samples are, and what reads them."""
    tables = ("data.modalities:MODALITIES", "data.reading.readers:READERS")
    return tuple(sources.table(one)[modality] for one in tables)


def _families(sources: Sources) -> dict[str, str]:
    return sources.table("models:FAMILIES") | sources.table("models:JUDGES")


def remembered(entries: Sequence[str]) -> Code:
    """Return the code that is reached from `module:name` or whole modules; read once while no source changes."""
    memory, now = settings().state / "code.json", stamp()
    asked = " ".join(entries)
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError, LookupError):
        past = read_json(memory)
        known = past["codes"] if past["sources"] == now else {}
        found = known[asked]
        return Code(found["digest"], found["parts"], tuple(found["files"]))
    found = code_of(Sources(ROOT), entries)
    with suppress(OSError):  # where nothing may be written it is read each time
        state_folder()
        write_json(memory, {"sources": now, "codes": {**known, asked: asdict(found)}})
    return found


def stamp() -> str:
    """Return a hash of the names and bytes of all sources that are read."""
    digest = hashlib.sha256()
    for path in sorted(path for package in READ for path in (ROOT / package).rglob("*.py")):
        digest.update(
            path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0"
        )
    return digest.hexdigest()[:16]
