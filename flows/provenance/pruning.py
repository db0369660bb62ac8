"""What takes room and nobody needs: versions that no ledger row names, with their runs; checkpoints; copies; rows.

Kept is what the ledger names or ever named, what is being promoted, the newest version of every name, the stages and
the judge that any of these pin, and what any of all these was fine-tuned from or needed, without which it could not be
trained again; and the runs, searches and trials from which these come or that are about them. A run that is not
finished stays with its checkpoints and with what it started from: it can go on. Rows stay while their dataset is
prepared here.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from data.reading.mapped import unneeded
from data.repro import sweep
from flows.context import ledger, promotions, registry
from flows.evaluating.gate import Evaluation
from flows.promotion.release import pins
from infra.documents import read_json
from infra.pipelines import read_pipeline
from infra.registry.registry import Version
from infra.registry.runs import folder_of
from infra.settings import settings
from infra.storage import MANIFEST, sha256_of

if TYPE_CHECKING:
    from mlflow.entities import Run


MAKERS: Final = ("lifecycle", "retrain", "train", "tune")
"""The flows that make versions."""


class PruneError(RuntimeError):
    """Nothing can be removed now; one line that says why."""


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
    copies, started = (settings().runs / "bases").glob("*"), _started_from()
    found += [_folder("fetched copy", path) for path in copies if path.name not in started]
    datasets = (settings().project / "data" / "prepared").glob("*/dataset.json")
    unread = unneeded({sha256_of(path) for path in datasets})
    found += [_folder("rows of a dataset", path) for path in unread]
    found += [_folder("outputs of a stage", path) for path in _outputs(kept | started)]
    found += _runs([one for one in versions if one.digest in kept])
    going = {piece.name for piece in found if piece.kind == "run"}
    for final in settings().runs.glob("*/final"):
        found += [
            _folder("checkpoint", path, f"{final.parent.name}/{path.name}")
            for path in final.parent.glob("ckpt-*")
            if final.parent.name not in going
        ]
    return sorted(found, key=lambda piece: -piece.megabytes)


def refuse_beside_trainings() -> None:
    """Refuse to remove anything while a flow makes versions: nothing names yet what it has made.

    Raises:
        PruneError: names the flow runs.
    """
    from prefect import get_client
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    running = filters.FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_filter=filters.FlowFilter(name=filters.FlowFilterName(any_=list(MAKERS))),
            flow_run_filter=filters.FlowRunFilter(state=filters.FlowRunFilterState(type=running)),
        )
    if found:
        names = ", ".join(sorted(run.name for run in found))
        raise PruneError(f"nothing was removed: {names} at work; prune again when that has ended")


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
    kept = named | set(newest.values()) | _started_from()
    left = list(kept)
    while left:
        if (version := known.get(left.pop())) is not None:
            more = _needed(version) - kept
            kept |= more
            left += more
    return kept


def _outputs(kept: set[str]) -> list[Path]:
    """Return what stages made of datasets, for others to learn from, where nobody keeps the stage."""
    found = (settings().project / "data" / "prepared" / ".outputs").glob(f"*/{MANIFEST}")
    return [path.parent for path in found if read_json(path).get("digest") not in kept]


def _started_from() -> set[str]:
    """Return the digests that trainings start from which are not finished: they can go on."""
    runs = settings().runs
    specs = [*runs.glob("*/spec.json"), *runs.glob("*/trials/*/spec.json")]
    going = [read_json(path) for path in specs if not (path.parent / "final").is_dir()]
    named = [[one.get("base"), *one.get("needs", {}).values()] for one in going]
    return {one["digest"] for several in named for one in several if one}


def _runs(kept: list[Version]) -> list[Piece]:
    """Return MLflow's runs that are over and of none of these versions, with what they left in the runs' folder."""
    runs = registry().ours()
    facts = {one.tags.get(f"atelier.{fact}") for one in kept for fact in ("run_id", "search")}
    refs = {one.ref for one in kept}
    staying = {
        run.info.run_id
        for run in runs
        if run.info.run_id in facts
        or run.data.tags.get("atelier.version") in refs
        or not _over(run)
    }
    gone, stays = [], set()
    for run in runs:
        if run.data.tags.get("mlflow.parentRunId", run.info.run_id) in staying:
            stays.add(run.data.tags["atelier.identity"])
        else:
            gone.append(run)
    folders = {path.name: path for path in settings().runs.glob("*") if path.name not in stays}
    return [_run(run, folders.get(run.data.tags["atelier.identity"])) for run in gone]


def _over(run: "Run") -> bool:
    """Whether a run has its version; that of a search is made after it, and a killed `tune` goes on with it."""
    tags = run.data.tags
    whole = tags.get("atelier.kind") != "search" or "atelier.version" in tags
    return bool(run.info.status == "FINISHED" and whole)


def _run(run: "Run", folder: Path | None) -> Piece:
    def remove() -> None:
        registry().remove_run(run)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    megabytes = _size(folder_of(str(run.info.artifact_uri))) + _size(folder)
    return Piece("run", run.data.tags["atelier.identity"], megabytes, remove)


def _needed(version: Version) -> set[str]:
    """Return the digests of a pipeline's stages and of the judge that looked at it; of a stage what it is made of."""
    if version.kind != "pipeline":
        named = ("atelier.base_digest", "atelier.needs_digests")
        return {digest for tag in named for digest in version.tags.get(tag, "").split()}
    directory = registry().fetch(version)
    judged = Evaluation.model_validate_json((directory / "evaluation.json").read_bytes())
    judge = {judged.judge.sha256} if judged.judge else set()
    return judge | {pin["digest"] for pin in pins(read_pipeline(directory))}


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
