"""What takes room and nobody needs: versions that no ledger row names, checkpoints of finished trainings, copies.

Kept is what the ledger names or ever named, what is being promoted, the newest version of every name, and the stages
and the judge that any of these pin. A run that is not finished keeps its checkpoints: it can go on.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.repro import sweep
from flows.judging.gate import Evaluation
from flows.served import pins, pipeline_of
from flows.workshop import ledger, promotions, registry
from infra.registry import Version
from infra.settings import settings
from infra.storage import MANIFEST


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that can go."""

    kind: str
    name: str
    megabytes: float
    remove: Callable[[], None]


def pieces() -> list[Piece]:
    """Return what can go, the largest first; nothing is removed."""
    versions = [one for name in registry().names() for one in registry().versions(name)]
    kept = _kept(versions)
    found = [
        Piece("version", one.ref, _size(registry().place(one)), partial(registry().remove, one))
        for one in versions
        if one.digest not in kept
    ]
    here = settings().state / "versions"
    found += [_folder("fetched copy", path) for path in here.glob("*") if path.name not in kept]
    for final in settings().runs.glob("*/final"):
        found += [
            _folder("checkpoint", path, f"{final.parent.name}/{path.name}")
            for path in final.parent.glob("ckpt-*")
        ]
    return sorted(found, key=lambda piece: -piece.megabytes)


def sweep_data(*, really: bool) -> str:
    """Have DVC's cache drop what no dvc.lock of the workspace names; returns DVC's words."""
    return sweep(settings().project, really=really)


def _kept(versions: list[Version]) -> set[str]:
    """Return the digests that must stay."""
    known = {one.digest: one for one in versions}
    named = {
        row.to_digest
        for name in {one.name for one in versions}
        for row in ledger().history(name)
        if row.to_digest is not None
    }
    named |= {intent.digest for intent in promotions().open()}
    newest = {one.name: one.digest for one in versions}  # they stand in the order of their numbers
    kept = named | set(newest.values())
    for digest in list(kept & known.keys()):
        kept |= _pinned(known[digest])
    return kept


def _pinned(version: Version) -> set[str]:
    """Return the digests of a pipeline's stages and of the judge that looked at it; none of a stage."""
    directory = registry().fetch(version)
    if not (directory / "pipeline.json").is_file():
        return set()
    judged = Evaluation.model_validate_json((directory / "evaluation.json").read_bytes())
    judge = {judged.judge.sha256} if judged.judge else set()
    return judge | {pin["digest"] for pin in pins(pipeline_of(directory))}


def _folder(kind: str, path: Path, name: str = "") -> Piece:
    return Piece(kind, name or path.name[:12], _size(path), partial(_remove, path))


def _remove(path: Path) -> None:
    """Remove a folder; its manifest first, so that half of it is none."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _size(path: Path | None) -> float:
    """Return how many megabytes a folder has; 0 where it is elsewhere."""
    if path is None:
        return 0.0
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) / 2**20
