"""Previews of families that start from real samples: what they are shown of them is what they can be drawn from."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.training.previews import png_of_samples
from tests.models.families_kit import batch_of, tiny

CLIPS = {
    **{"make-a-video-decoder": 3, "make-a-video-interpolation": 5, "make-a-video-upsampler": 3},
    "mcvd": 5,
}


@pytest.mark.parametrize(("name", "frames"), CLIPS.items())
def test_clips_are_shown_as_film_strips(name: str, frames: int, tmp_path: Path) -> None:
    model: Any = tiny(name)
    found = png_of_samples(model, tmp_path, batch_of(model, 2))
    assert found is not None
    tile = 8 * 6 + 4  # enlarged six times, two dark pixels around it
    assert Image.open(io.BytesIO(found)).size == (frames * tile, 2 * tile)


def test_volumes_are_shown_from_all_sides(tmp_path: Path) -> None:
    words = ("red", "thing", "seen", "from", "above", "below")
    views = ("seen from below", "seen from above")
    model: Any = tiny("dreamfusion", vocabulary=words, views=views, max_words=5)
    asks = {"captions": ["red thing seen from above", "red thing seen from below"]}
    (tmp_path / "dataset.json").write_text(json.dumps(asks))
    found = png_of_samples(model, tmp_path, batch_of(model, 2))
    assert found is not None
    tile = 16 * 6 + 4
    assert Image.open(io.BytesIO(found)).size == (6 * tile, 2 * tile)
