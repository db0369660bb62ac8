"""Training on clips: a family of clips learns them whole and shows strips, one of pictures learns their frames."""

import io
from pathlib import Path

import pytest
from PIL import Image

from flows.train import check_specs
from flows.training.ray_train import fit
from flows.training.spec import TrainingSpec
from tests.data.prepare_kit import prepare
from tests.flows.training_kit import spec_of


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entry = {"maker": "moving", "count": 96, "image_size": 16, "frames": 5}
    return prepare(tmp_path_factory.mktemp("moving"), entry, "moved")


def trained(spec: TrainingSpec, runs: Path) -> Image.Image:
    check_specs([spec])
    found = fit(spec, run_id=None, tracking_uri=None, runs=runs)
    return Image.open(io.BytesIO((found.directory / "samples.png").read_bytes()))


def test_a_family_of_clips_shows_its_samples_as_strips(moved: Path, tmp_path: Path) -> None:
    spec = spec_of(moved, family="make-a-video-interpolation", steps=2, validate_every=1)
    assert not spec.stills
    sheet = trained(spec, tmp_path)
    across, down = (side / (8 * 6 + 4) for side in sheet.size)  # tiles of 8 pixels, six times
    assert (across, down) == (5, 4)


def test_a_family_of_pictures_learns_their_frames(moved: Path, tmp_path: Path) -> None:
    spec = spec_of(moved, steps=2, validate_every=1)
    assert spec.stills
    assert trained(spec, tmp_path).size == (4 * (8 * 12 + 4), 4 * (8 * 12 + 4))


def test_a_judge_of_clips_and_one_of_frames_learn_their_attributes(moved: Path) -> None:
    specs = [spec_of(moved, family=name) for name in ("clip-judge", "attribute-judge")]
    assert [spec.stills for spec in specs] == [False, True]
    check_specs(specs)
