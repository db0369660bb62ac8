"""A step whose gradient is not finite changes nothing and is counted; many in a row end the training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import models
from flows.training.loop import Diverged
from flows.training.ray_train import Trained, fit
from flows.training.run_folder import RunFolder
from flows.training.skips import Skips
from flows.training.spec import TrainingSpec
from infra.storage import verify
from tests.flows.training_kit import SICK, prepare, spec_of, train_without_ray

WORKERS = pytest.mark.parametrize(
    "workers", [0, pytest.param(2, marks=pytest.mark.slow)], ids=["alone", "two-workers"]
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "shades")


@pytest.fixture(autouse=True)
def sick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.FAMILIES, "sick", SICK)  # type: ignore[arg-type]


def spec(prepared: Path, sick: tuple[int, ...], **training: Any) -> TrainingSpec:
    """Of six steps, with a checkpoint after each."""
    rules = {"steps": 6, "checkpoint_every": 1, "keep_checkpoints": 6, **training}
    return spec_of(prepared, family="sick", config={"sick": sick}, **rules)


def trained(wanted: TrainingSpec, runs: Path) -> Trained:
    return fit(wanted, run_id=None, tracking_uri=None, runs=runs)


def after(folder: Path, step: int) -> dict[str, Tensor]:
    """Return all tensors of the checkpoint after so many steps, the random generators apart."""
    found = {}
    for kind in ("model", "average", "optimizer"):
        for name, value in load_file(folder / f"ckpt-1-{step}" / f"{kind}.safetensors").items():
            found[f"{kind}/{name}"] = value
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if torch.equal(one[name], other[name])]


@WORKERS
def test_a_step_that_is_no_number_is_skipped_by_all_workers_and_counted(
    prepared: Path, tmp_path: Path, workers: int
) -> None:
    """With two, the gradient of one alone is no number."""
    wanted = spec(prepared, (3,), workers=workers)
    final = train_without_ray(wanted, tmp_path) if workers else trained(wanted, tmp_path).directory
    states = {step: after(final.parent, step) for step in (3, 4, 5)}
    assert same(states[3], states[4]) == [*states[3]], "nothing has changed"
    assert same(states[4], states[5]) == []
    assert all(bool(value.isfinite().all()) for value in states[5].values())
    assert after(final.parent, 6)["model/taken"] == 5
    assert verify(final)["metrics"]["skipped_steps"] == 1


def test_a_skipped_first_step_leaves_an_optimiser_that_has_seen_nothing(
    prepared: Path, tmp_path: Path
) -> None:
    found = after(trained(spec(prepared, (0,)), tmp_path).directory.parent, 1)
    assert found["model/norm.running_mean"].abs().max() == 0
    assert all(value.abs().max() == 0 for name, value in found.items() if "optimizer" in name)


@WORKERS
def test_steps_that_are_no_numbers_in_a_row_end_the_training_with_the_weights_before(
    prepared: Path, tmp_path: Path, workers: int
) -> None:
    wanted = spec(prepared, (2, 3, 4, 5), max_skipped=3, workers=workers)
    if workers:
        train_without_ray(wanted, tmp_path, succeeds=False)
    else:
        says = (
            r"is nan at step 5 of 6, like the 2 steps before it \(training.max_skipped\); the last"
        )
        with pytest.raises(Diverged, match=says):
            trained(wanted, tmp_path)
    folder = RunFolder(tmp_path / wanted.identity)
    assert not folder.final.exists()
    assert folder.step() == 4
    assert same(after(folder.path, 2), after(folder.path, 4)) == [*after(folder.path, 2)]


def test_a_training_that_took_no_step_has_diverged_however_short_it_was(
    prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(Diverged, match="is nan at step 2 of 2"):
        trained(spec(prepared, (0, 1), steps=2), tmp_path)


@pytest.mark.parametrize("gone", [0, 5], ids=["before the first", "before the last"])
def test_weights_are_measured_also_where_no_step_was_taken_since_the_last_line(
    tmp_path: Path, gone: int
) -> None:
    """Else a training that keeps the best weights ends with none."""
    prepared = prepare(tmp_path / "validated" / "shades", validation=16)
    losses: dict[int, float] = {}
    every = 6 if gone else 1
    wanted = spec(prepared, (gone,), keep="best", validate_every=every)
    found = fit(
        wanted,
        run_id=None,
        tracking_uri=None,
        runs=tmp_path,
        on_validation=losses.__setitem__,
        on_progress=lambda _: None,
    )
    assert [*losses] == [*range(every, 7, every)]
    assert found.metrics["validation_loss"] == min(losses.values())
    assert found.metrics["skipped_steps"] == 1


def test_a_row_of_skipped_steps_goes_over_lines_of_metrics_and_ends_at_one_that_is_taken() -> None:
    rules = spec_of(Path("nowhere"), max_skipped=3).training
    names, good, bad = ("loss", "skipped"), (1.0, 0.0), (float("nan"), 1.0)
    skips = Skips(rules, {})
    assert skips.trouble(torch.tensor([bad, bad]), names, 1) == ""
    assert skips.means(torch.tensor([bad, bad]), names) == {}
    assert skips.trouble(torch.tensor([good, bad, bad]), names, 3) == ""
    assert skips.means(torch.tensor([good, bad, bad]), names) == {"loss": 1.0, "skipped_steps": 4}
    assert skips.trouble(torch.tensor([bad]), names, 6).startswith("loss is nan at step 6 of 12")
