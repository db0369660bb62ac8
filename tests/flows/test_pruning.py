"""What `atelier prune` finds that nobody needs."""

from pathlib import Path

import pytest

from flows import workshop
from flows.pruning import pieces
from infra.mlflow_client import RegistryError
from infra.settings import settings
from tests.flows.versions_kit import NAME, Installation


def names(kind: str) -> set[str]:
    return {piece.name for piece in pieces() if piece.kind == kind}


def test_what_the_ledger_names_and_the_newest_stay_with_all_that_they_pin(
    here: Installation,
) -> None:
    workshop.promotions.cache_clear()
    served, forgotten, newest = (here.pipeline(seed) for seed in (0, 1, 2))
    here.promote(served)
    for one in (served, forgotten, newest):
        here.registry.fetch(one)
    gone = [piece for piece in pieces() if piece.kind == "version"]
    assert {piece.name for piece in gone} == {f"{NAME}:2", f"{NAME}.base:2", f"{NAME}.upscaler:2"}
    assert names("fetched copy") == {forgotten.digest[:12]}
    for piece in pieces():
        assert piece.megabytes > 0
        piece.remove()
    assert pieces() == []
    assert [one.number for one in here.registry.versions(NAME)] == [1, 3]
    with pytest.raises(RegistryError):
        here.registry.get(f"{NAME}:2")
    for one in (served, newest):
        here.registry.fetch(one)


def test_a_training_that_can_go_on_keeps_its_checkpoints(here: Installation) -> None:
    workshop.promotions.cache_clear()

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
