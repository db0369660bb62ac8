"""What `atelier prune` finds that nobody needs."""

from pathlib import Path

import pytest

from data.loaders import Loader
from flows import context
from flows.provenance.pruning import pieces
from infra.registry.mlflow_client import RegistryError
from infra.settings import settings
from tests.flows.training_kit import prepare
from tests.flows.versions_kit import NAME, Installation


def names(kind: str) -> set[str]:
    return {piece.name for piece in pieces() if piece.kind == kind}


def test_what_the_ledger_names_and_the_newest_stay_with_all_that_they_pin(
    here: Installation,
) -> None:
    context.promotions.cache_clear()
    served, forgotten, newest = (here.pipeline(seed) for seed in (0, 1, 2))
    here.promote(served)
    for one in (served, forgotten, newest):
        here.registry.fetch(one)
    gone = [piece for piece in pieces() if piece.kind == "version"]
    assert {piece.name for piece in gone} == {f"{NAME}:2", f"{NAME}.base:2", f"{NAME}.upscaler:2"}
    assert names("fetched copy") == {forgotten.digest[:12]}
    assert names("run") == {"base-1", "upscaler-1", "judging-1"}
    for piece in pieces():
        assert piece.megabytes > 0 or piece.kind == "run"
        piece.remove()
    assert pieces() == []
    assert [one.number for one in here.registry.versions(NAME)] == [1, 3]
    with pytest.raises(RegistryError):
        here.registry.get(f"{NAME}:2")
    for one in (served, newest):
        here.registry.fetch(one)


def test_a_run_goes_with_its_files_once_no_version_is_of_it(
    here: Installation, tmp_path: Path
) -> None:
    """A run that is not over can go on; one with a word about a version stays with it."""
    context.promotions.cache_clear()
    kept = here.pipeline(0)

    def run(identity: str, *, over: bool = True, **tags: str) -> str:
        found = here.registry.start_run(
            NAME, identity, {f"atelier.{k}": v for k, v in tags.items()}
        )
        (settings().runs / identity / "final").mkdir(parents=True)
        if over:
            here.registry.end_run(found)
        return found

    needless = run("alone")
    note = tmp_path / "note.txt"
    note.write_text("a" * 2**20)
    here.registry.log_file(needless, note)
    run("going-on", over=False)
    run("evaluate", version=kept.ref)
    [piece] = pieces()
    assert (piece.kind, piece.name, round(piece.megabytes)) == ("run", "alone", 1)
    piece.remove()
    assert pieces() == []
    assert sorted(path.name for path in settings().runs.iterdir()) == ["evaluate", "going-on"]
    assert {one.data.tags["atelier.identity"] for one in here.registry.ours()} == {
        *("base-0", "upscaler-0", "judge-99", "judging-0"),
        *("evaluate", "going-on"),
    }


def test_a_search_goes_with_its_trials_when_what_it_found_is_gone(here: Installation) -> None:
    context.promotions.cache_clear()
    here.pipeline(0)

    def search(identity: str, **tags: str) -> None:
        found = {"atelier.kind": "search", **{f"atelier.{k}": v for k, v in tags.items()}}
        parent = here.registry.start_run(NAME, identity, found)
        for number, status in ((0, "FINISHED"), (1, "FAILED")):
            trial = {"atelier.identity": f"{identity}/{number}", "mlflow.parentRunId": parent}
            here.registry.end_run(here.registry.start_run(NAME, f"trial {number}", trial), status)
        here.registry.end_run(parent)

    search("found-what-stays", version=f"{NAME}:1")
    search("found-what-is-gone", version=f"{NAME}:9")
    search("still-to-be-trained-in-full")
    assert names("run") == {
        *("found-what-is-gone", "found-what-is-gone/0", "found-what-is-gone/1"),
    }
    for piece in pieces():
        piece.remove()
    assert pieces() == []


def test_a_training_that_can_go_on_keeps_its_checkpoints(here: Installation) -> None:
    context.promotions.cache_clear()

    def run(name: str, *folders: str) -> Path:
        for folder in folders:
            (settings().runs / name / folder).mkdir(parents=True)
            (settings().runs / name / folder / "MANIFEST.json").write_text("{}")
        return settings().runs / name

    finished = run("a-1", "ckpt-1-40", "final")
    run("b-1", "ckpt-1-20")
    assert names("checkpoint") == {"a-1/ckpt-1-40"}
    for piece in pieces():
        piece.remove()
    assert [path.name for path in finished.iterdir()] == ["final"]
    assert pieces() == []


def test_rows_go_with_the_dataset_that_they_are_of(here: Installation, tmp_path: Path) -> None:
    context.promotions.cache_clear()
    prepared = prepare(tmp_path / "shades")
    Loader(prepared, "train", batch_size=2).batch(0)
    [rows] = (piece for piece in pieces() if piece.kind == "rows of a dataset")
    assert rows.megabytes > 0
    rows.remove()
    assert pieces() == []
    Loader(prepared, "train", batch_size=2).batch(0)  # they are made again
