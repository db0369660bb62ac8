"""The training loop on text and on sound: the same loop, told by the dataset what there is to learn."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from data.loaders import facts_of
from flows.train import check_specs
from flows.training import validation
from flows.training.ray_train import Trained, fit
from flows.training.spec import TrainingSpec
from models import build, configure, trainable
from tests.data import prepare_kit
from tests.flows.sequences_kit import BIGRAM, LINEAR
from tests.flows.training_kit import spec_of, weights_of

ADAM = {"model": {"learning_rate": 0.05, "warmup_steps": 1}}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {**models.FAMILIES, "bigram": BIGRAM, "linear": LINEAR}
    monkeypatch.setattr(models, "FAMILIES", table)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entry = {"maker": "scenes", "count": 600}
    return prepare_kit.prepare(tmp_path_factory.mktemp("scenes"), entry)


@pytest.fixture(scope="module")
def vowels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entry = {"maker": "vowels", "count": 120, "clip_samples": 2400}
    return prepare_kit.prepare(tmp_path_factory.mktemp("vowels"), entry)


def spec(prepared: Path, family: str, **training: Any) -> TrainingSpec:
    rules = {"steps": 60, "optimizers": ADAM, "validate_every": 20, "log_every": 20, **training}
    return spec_of(prepared, family=family, **rules).model_copy(update={"image_size": None})


def train(wanted: TrainingSpec, runs: Path) -> Trained:
    return fit(wanted, run_id=None, tracking_uri=None, runs=runs)


def test_a_bigram_model_learns_the_scenes(scenes: Path, tmp_path: Path) -> None:
    first = train(spec(scenes, "bigram", steps=1), tmp_path)
    learned = train(spec(scenes, "bigram", steps=200), tmp_path)
    assert first.metrics["loss"] > 3.5  # about as long as a vocabulary of 50 is
    assert learned.metrics["loss"] < 0.6 * first.metrics["loss"]
    assert learned.metrics["validation_loss"] < 0.6 * first.metrics["validation_loss"]
    model = build(json.loads((learned.directory / "config.json").read_bytes()))
    assert "fay" in model.config.tokenizer
    assert (learned.directory / "samples.png").is_file()  # what it writes


def test_a_predictor_learns_the_vowels(vowels: Path, tmp_path: Path) -> None:
    first = train(spec(vowels, "linear", steps=1), tmp_path)
    learned = train(spec(vowels, "linear"), tmp_path)
    assert learned.metrics["loss"] < 0.5 * first.metrics["loss"]
    assert learned.metrics["validation_loss"] < 0.5 * first.metrics["validation_loss"]
    model = build(json.loads((learned.directory / "config.json").read_bytes()))
    assert (model.config.sample_rate, model.config.clip_samples) == (8000, 2400)


def test_a_validation_loss_is_a_mean_over_what_counts_however_its_rows_are_batched(
    vowels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sounds have unequal lengths: a mean of the batches' means would be another one."""
    wanted, cpu = spec(vowels, "linear"), torch.device("cpu")
    torch.manual_seed(0)
    model = trainable("linear")(configure("linear", "tiny", {}, facts_of(vowels)))
    whole = validation.Validation(wanted, model)
    [batch] = whole._batches
    monkeypatch.setattr(validation, "ROWS", 1)
    parts = validation.Validation(wanted, model)
    assert len(parts._batches) == len(batch["sound"]) > 1
    assert parts.loss(model, cpu) == pytest.approx(whole.loss(model, cpu), rel=1e-6)
    own = [model(one).total.item() for one in parts._batches]
    assert sum(own) / len(own) != pytest.approx(whole.loss(model, cpu), rel=1e-6)


def test_training_on_text_that_broke_off_goes_on_with_the_same_rows(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = spec(scenes, "bigram", steps=12)
    whole = train(wanted, tmp_path / "whole")
    monkeypatch.setenv("ATELIER_FAULT", "checkpoint.published:enospc")
    with pytest.raises(OSError, match="No space left"):
        train(wanted, tmp_path / "broken")
    monkeypatch.delenv("ATELIER_FAULT")
    again = train(wanted, tmp_path / "broken")
    assert again.attempts == 2
    assert weights_of(again.directory) == weights_of(whole.directory)


def test_a_size_in_pixels_or_captions_to_shuffle_do_not_suit_text(
    scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="image_size 8 is for pictures, and mine is text"):
        check_specs([spec(scenes, "bigram").model_copy(update={"image_size": 8})])
    with pytest.raises(ValueError, match="is plain text: it has no captions"):
        train(spec(scenes, "bigram", shuffle_captions=True), tmp_path)
    check_specs([spec(scenes, "bigram")])
