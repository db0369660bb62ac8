"""Vocoders learn from recordings by the training loop that everything learns by."""

from pathlib import Path

import pytest

from flows.training.ray_train import fit
from tests.data import speech_kit
from tests.data.prepare_kit import prepare
from tests.flows.training_kit import spec_of


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepared folder of short recordings of unequal length."""
    folder = tmp_path_factory.mktemp("digits")
    return prepare(folder, {"maker": "speech", "path": str(speech_kit.digits(folder / "d", of=8))})


@pytest.mark.parametrize("family", ["vocos", "hifi-gan", "griffin-lim"])
def test_a_vocoder_learns_speech_and_shows_what_it_makes_of_real_mels(
    digits: Path, tmp_path: Path, family: str
) -> None:
    steps = 1 if family == "griffin-lim" else 12
    spec = spec_of(digits, family=family, steps=steps).model_copy(update={"image_size": None})
    learned = fit(spec, run_id=None, tracking_uri=None, runs=tmp_path)
    assert (learned.directory / "samples.png").is_file()
    assert (learned.directory / "model.safetensors").is_file()
