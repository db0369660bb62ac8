"""A training that goes on with another number of workers learns the same batches in the same order."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import models
from flows.recipe import Resources
from flows.training.attempt import train
from flows.training.nodes import Thing, inspect, things
from flows.training.ranks import Ranks
from flows.training.rows import check_rows
from flows.training.run_folder import RunFolder
from flows.training.spec import TrainingSpec
from tests.flows.training_kit import TOY, prepare, spec_of, train_without_ray


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "shades")


def go_on(spec: TrainingSpec, folder: RunFolder, workers: int) -> None:
    if workers == 1:
        train(spec, folder, Ranks(), lease=folder.lease())
    else:
        train_without_ray(spec, folder.path.parent)


@pytest.mark.parametrize(("family", "before", "after"), [("toy", 2, 1), ("ddpm", 1, 2)])
def test_a_training_goes_on_with_another_number_of_workers(
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    before: int,
    after: int,
) -> None:
    monkeypatch.setitem(models.FAMILIES, "toy", TOY)  # type: ignore[arg-type]
    spec = spec_of(prepared, family=family, workers=2)
    folder = RunFolder(tmp_path / "changed" / spec.identity)
    folder.path.mkdir(parents=True)
    monkeypatch.setenv("ATELIER_FAULT", "checkpoint.published:enospc")
    with pytest.raises((OSError, AssertionError)):
        go_on(spec, folder, before)
    monkeypatch.delenv("ATELIER_FAULT")
    assert folder.step() == 4
    go_on(spec, folder, after)
    alone = RunFolder(tmp_path / "alone" / spec.identity)
    alone.path.mkdir(parents=True)
    go_on(spec, alone, 1)
    found, expected = (load_file(one.final / "model.safetensors") for one in (folder, alone))
    if family == "toy":  # no noise: the sums of the same rows, rounded otherwise
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert all(bool(value.isfinite().all()) for value in found.values())


def test_bounds_of_an_elastic_training_hold_its_number_of_workers() -> None:
    assert Resources(num_workers=2, elastic=(1, 4)).elastic == (1, 4)
    for elastic in ((3, 4), (1, 1), (4, 1)):
        with pytest.raises(ValueError, match=r"elastic \[.*\] must hold num_workers, which is 2"):
            Resources(num_workers=2, elastic=elastic)


def test_the_fewest_workers_of_an_elastic_training_must_share_its_batch_too(prepared: Path) -> None:
    """Else it ends when a node is lost."""
    spec = spec_of(prepared, workers=4)
    for elastic, says in (((2, 4), ""), ((3, 4), "batch_size 8 must be a multiple of 3")):
        resources = spec.resources.model_copy(update={"elastic": elastic})
        changed = spec.model_copy(update={"resources": resources})
        with pytest.raises(ValueError, match=says) if says else nullcontext():
            check_rows(changed)


def test_how_elastic_a_training_is_does_not_change_what_it_is(prepared: Path) -> None:
    spec = spec_of(prepared, workers=2)
    resources = spec.resources.model_copy(update={"elastic": (1, 2)})
    assert spec.model_copy(update={"resources": resources}).identity == spec.identity


@pytest.fixture
def expected(prepared: Path, tmp_path: Path) -> list[Thing]:
    spec = spec_of(prepared)
    folder = RunFolder(tmp_path / spec.identity)
    folder.path.mkdir()
    (folder.path / "spec.json").write_text(spec.model_dump_json())
    return things(spec, folder)


def test_a_node_that_has_everything_may_train(expected: list[Thing]) -> None:
    assert {thing.kind for thing in expected} == {"mount", "data", "code"}
    assert inspect(expected) == ""


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [
        ("mount", "mount the folder of ATELIER_STORAGE_URI"),
        ("data", "see the prepared data at the same path"),
        ("code", "run the same code"),
    ],
)
def test_what_a_node_lacks_is_named_with_the_way_out(
    expected: list[Thing], kind: str, way_out: str
) -> None:
    for thing in (one for one in expected if one.kind == kind):
        gone = thing._replace(path=f"{thing.path}.gone")
        said = inspect([*expected, gone])
        assert said.startswith(f"cannot read {thing.path}.gone (No such file")
        assert way_out in said
        changed = [thing._replace(size=thing.size + 1)]
        if thing.sha256 is not None:
            changed.append(thing._replace(sha256="0" * 64))
        for other in changed:
            said = inspect([*expected, other])
            assert said.startswith(f"has another {thing.path}: ")
            assert way_out in said


def test_what_failed_for_good_is_told_to_the_call_whose_worker_it_was_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    earlier, later = folder.lease(), folder.lease()
    folder.fail(earlier, "DatasetError", "worker 1 on b: no data")
    assert folder.failure(earlier) == ("DatasetError", "worker 1 on b: no data")
    assert folder.failure(later) is None
