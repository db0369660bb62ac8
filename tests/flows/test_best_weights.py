"""`keep: best`: the result is the averaged weights of the least validation loss, and `patience` ends a training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows.provenance.cards import model_card
from flows.recipe import Training
from flows.training.ray_train import Trained, fit
from flows.training.run_folder import RunFolder
from tests.flows.training_kit import prepare, spec_of, train_without_ray, weights_of

RESTLESS: dict[str, Any] = {
    "steps": 24,
    "validate_every": 2,
    "checkpoint_every": 2,
    "keep_checkpoints": 12,
    "ema_half_life": 0,
    "clip_norm": 100,
    "optimizers": {"model": {"learning_rate": 0.2, "warmup_steps": 0, "schedule": "constant"}},
    "keep": "best",
}
"""Steps so large that the loss goes up and down."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared") / "shades", validation=16)


def train(
    prepared: Path, runs: Path, losses: dict[int, float] | None = None, **rules: Any
) -> Trained:
    found: dict[int, float] = {} if losses is None else losses
    spec = spec_of(prepared, **{**RESTLESS, **rules})
    return fit(spec, run_id=None, tracking_uri=None, runs=runs, on_validation=found.__setitem__)


def test_the_result_is_the_weights_of_the_least_validation_loss(
    prepared: Path, tmp_path: Path
) -> None:
    losses: dict[int, float] = {}
    trained = train(prepared, tmp_path, losses)
    best = min(losses, key=losses.__getitem__)
    assert 0 < best < 24, losses
    assert trained.metrics["best_step"] == best
    assert trained.metrics["validation_loss"] == losses[best]
    assert trained.steps == 24
    folder = RunFolder(next(tmp_path.iterdir()))
    then = load_file(folder.path / f"ckpt-1-{best}" / "average.safetensors")
    result = load_file(trained.directory / "model.safetensors")
    assert all(torch.equal(result[name], value) for name, value in then.items())
    last = train(prepared, tmp_path / "last", keep="last")
    assert weights_of(last.directory) != weights_of(trained.directory)


def test_patience_ends_a_training_that_gets_no_better(prepared: Path, tmp_path: Path) -> None:
    whole: dict[int, float] = {}
    train(prepared, tmp_path / "whole", whole)
    least, best, ends = float("inf"), 0, 24
    for step, loss in whole.items():
        if loss < least:
            least, best = loss, step
        elif step - best >= 2 * 2:
            ends = step
            break
    assert ends < 24, whole
    losses: dict[int, float] = {}
    trained = train(prepared, tmp_path, losses, patience=2)
    assert (trained.steps, trained.metrics["best_step"]) == (ends, best)
    assert max(losses) == ends
    said = [json.loads(line) for line in _journal(tmp_path).splitlines()]
    notes = [line["note"] for line in said if "note" in line]
    assert notes == [f"2 validation losses in a row were no lower than at step {best}: it ends"]


def test_a_card_says_how_many_steps_were_done(prepared: Path) -> None:
    facts = {"git_commit": "c0", "run_id": "r", "environment": {}, "metrics": {}}
    spec = spec_of(prepared, **RESTLESS)
    assert ": 8 of 24 steps of 8 samples, seed" in model_card(spec, facts, 8)
    assert ": 24 steps of 8 samples, seed" in model_card(spec, facts, 24)


def _journal(runs: Path) -> str:
    folder = next(path for path in runs.iterdir() if path.name != "whole")
    return "".join(path.read_text() for path in sorted(folder.glob("journal/*.jsonl")))


def test_an_interrupted_training_keeps_the_same_best_weights(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(prepared, tmp_path / "whole", patience=2)
    monkeypatch.setenv("ATELIER_FAULT", "final.sealed:enospc")
    with pytest.raises(OSError, match="No space left"):
        train(prepared, tmp_path / "broken", patience=2)
    monkeypatch.delenv("ATELIER_FAULT")
    again = train(prepared, tmp_path / "broken", patience=2)
    assert again.attempts == 2
    assert again.metrics["best_step"] == whole.metrics["best_step"]
    assert weights_of(again.directory) == weights_of(whole.directory)


def test_two_workers_end_together(prepared: Path, tmp_path: Path) -> None:
    spec = spec_of(prepared, workers=2, **{**RESTLESS, "patience": 1})
    final = train_without_ray(spec, tmp_path)
    assert json.loads((final / "MANIFEST.json").read_text())["steps"] < 24


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"keep": "best"}, "set validate_every, too"),
        ({"patience": 3, "validate_every": 2}, "set keep: best, too"),
    ],
)
def test_what_is_best_must_be_measured(rules: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Training(steps=4, **rules)
