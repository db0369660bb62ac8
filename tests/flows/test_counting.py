"""Counting instead of descending: each row once, sums added up over workers, the rest as in any training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows.training.loop import Diverged
from flows.training.ray_train import Trained, fit
from flows.training.run_folder import RunFolder
from flows.training.spec import TrainingSpec
from infra.storage import verify
from models import build
from models.classical.naive_bayes import NaiveBayes
from tests.data.prepare_kit import prepare as prepare_speech
from tests.data.speech_kit import digits, tone
from tests.flows.training_kit import prepare, spec_of, train_without_ray, weights_of

ROWS = 61  # neither one worker's batches nor two workers' come out even
KINDS: list[tuple[str, dict[str, Any], int]] = [
    ("naive-bayes", {"likelihood": "bernoulli"}, 1),
    ("naive-bayes", {"likelihood": "gaussian"}, 1),
    ("naive-bayes", {"likelihood": "multinomial"}, 1),
    ("lda", {"shrinkage": 0.1}, 1),
    ("lda", {"shrinkage": "ledoit-wolf"}, 2),
]
NAMES = [f"{family}-{next(iter(config.values()))}" for family, config, _ in KINDS]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "shades", rows=ROWS, validation=11)


def spec(
    prepared: Path, kind: tuple[str, dict[str, Any], int], workers: int = 0, **training: Any
) -> TrainingSpec:
    family, config, passes = kind
    rules = {"steps": passes, **training}
    return spec_of(prepared, family=family, config=config, workers=workers, **rules)


def count(wanted: TrainingSpec, runs: Path, **options: Any) -> Trained:
    return fit(wanted, run_id=None, tracking_uri=None, runs=runs, **options)


@pytest.mark.parametrize("kind", KINDS[1:3] + KINDS[-1:], ids=NAMES[1:3] + NAMES[-1:])
def test_two_workers_count_what_one_counts(
    kind: tuple[str, dict[str, Any], int], prepared: Path, tmp_path: Path
) -> None:
    alone = load_file(count(spec(prepared, kind), tmp_path).directory / "model.safetensors")
    final = train_without_ray(spec(prepared, kind, workers=2), tmp_path)
    together = load_file(final / "model.safetensors")
    assert float(alone["count_Y"].sum()) == float(together["count_Y"].sum()) == ROWS
    document = json.loads((final / "config.json").read_bytes())
    for name in alone.keys() - {"whiten_DD", "colour_DD"}:
        torch.testing.assert_close(alone[name], together[name], rtol=1e-9, atol=1e-9)
    nats = []
    for weights in (
        alone,
        together,
    ):  # eigenvectors have free signs: the roots are compared by what they give
        model: Any = build(document)
        model.load_state_dict(weights)
        picture = torch.linspace(0, 1, 3 * 64).view(1, 3, 8, 8)
        nats.append(model.log_joint(picture))
    torch.testing.assert_close(nats[0], nats[1], rtol=1e-9, atol=1e-9)


def test_a_result_is_like_any_other_trainings(prepared: Path, tmp_path: Path) -> None:
    told = []
    trained = count(spec(prepared, KINDS[0]), tmp_path, on_progress=told.append)
    facts = verify(trained.directory)
    assert (facts["kind"], facts["steps"], trained.attempts) == ("training", 1, 1)
    assert (trained.directory / "samples.png").is_file()
    assert [(now.step, now.steps) for now in told] == [(1, 1)]
    assert told[0].loss == trained.metrics["loss"]
    assert trained.metrics["validation_accuracy"] == 1
    assert {"validation_loss", "accuracy", "samples_per_s"} <= trained.metrics.keys()
    again = count(spec(prepared, KINDS[0]), tmp_path)
    assert again.attempts == 1


def test_shuffled_captions_teach_no_class(prepared: Path, tmp_path: Path) -> None:
    good, broken = (
        count(spec(prepared, KINDS[0], shuffle_captions=shuffled), tmp_path).metrics
        for shuffled in (False, True)
    )
    assert broken["validation_loss"] > good["validation_loss"] + 50


@pytest.mark.parametrize("fault", ["checkpoint.written", "checkpoint.published", "final.sealed"])
def test_an_interrupted_pass_is_done_again_and_counted_once(
    fault: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = count(spec(prepared, KINDS[-1]), tmp_path / "undisturbed")
    monkeypatch.setenv("ATELIER_FAULT", f"{fault}:enospc")
    for _ in range(2):  # the second attempt goes on from the first pass where there is a checkpoint
        with pytest.raises(OSError, match="No space left"):
            count(spec(prepared, KINDS[-1]), tmp_path)
    monkeypatch.delenv("ATELIER_FAULT")
    trained = count(spec(prepared, KINDS[-1]), tmp_path)
    assert weights_of(trained.directory) == weights_of(whole.directory)
    assert trained.metrics["validation_loss"] == whole.metrics["validation_loss"]


def test_a_number_of_steps_that_is_not_the_number_of_passes_is_refused(
    prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"lda counts in 2 pass\(es\) .* got training\.steps 5"):
        count(spec(prepared, KINDS[-1], steps=5), tmp_path)
    assert not RunFolder(next(tmp_path.iterdir())).checkpoints()


def test_a_model_that_gives_a_picture_no_likelihood_is_not_published(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = NaiveBayes.settle

    def without_smoothing(model: NaiveBayes, number: int = 0) -> None:
        settle(model, number)
        model.mean_YD.copy_(model.sum_YD / model.count_Y[:, None])

    monkeypatch.setattr(NaiveBayes, "settle", without_smoothing)
    with pytest.raises(Diverged, match=r"is (inf|nan) after 1 passes; raise the smoothing"):
        count(spec(prepared, KINDS[0]), tmp_path)


def test_the_search_is_told_the_validation_nats(prepared: Path, tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    wanted = spec(prepared, KINDS[0], validate_every=1)
    trained = count(wanted, tmp_path, on_validation=lambda *found: told.append(found))
    assert told == [(1, trained.metrics["validation_loss"])]


def speech(folder: Path) -> Path:
    """Write and prepare spoken digits of two voices: tones of their own length, 18 of them."""
    digits(folder / "files", of=3)
    entry = {
        "maker": "speech",
        "path": "files/recordings",
        "pattern": "{text}_{speaker}_{index}.wav",
    }
    return prepare_speech(folder, {**entry, "test": {"index": ["2"]}})


def test_two_workers_keep_the_recordings_that_one_keeps(tmp_path: Path) -> None:
    """They are gathered as rows, each worker's own: what comes of them has one order."""
    prepared = speech(tmp_path)
    weights = []
    for workers in (0, 2):
        wanted = spec_of(prepared, family="unit-selection", workers=workers, steps=4)
        wanted = wanted.model_copy(update={"image_size": None})
        if workers:
            weights.append(train_without_ray(wanted, tmp_path / "runs"))
        else:
            weights.append(count(wanted, tmp_path / "runs").directory)
    alone, together = (load_file(one / "model.safetensors") for one in weights)
    assert len(alone["inventory.recording_RX"]) > 6
    torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-6)


def test_a_frame_of_validation_counts_alike_in_short_sounds_and_long_ones(tmp_path: Path) -> None:
    for number in range(80):
        name = f"{number % 4}_ann_{number // 4}.wav"
        tone(tmp_path / "files/recordings" / name, number, 0.2 + 0.02 * number)
    entry = {"maker": "speech", "path": "files/recordings"}
    pattern = {"pattern": "{text}_{speaker}_{index}.wav", "test": {"index": ["2"]}}
    prepared = prepare_speech(tmp_path, {**entry, **pattern})
    found = []
    for rows in (1, 8):  # each sound by itself, and all together
        wanted = spec_of(prepared, family="griffin-lim", workers=0, steps=1, batch_size=rows)
        wanted = wanted.model_copy(update={"image_size": None})
        found.append(count(wanted, tmp_path / f"runs-{rows}").metrics["validation_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
