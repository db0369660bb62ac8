"""Uploads are untrusted: what cannot be read, or would fill the memory, is refused in a line."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from services.media.codecs import LONGEST_SOUND, MediaError, learned_pixels, learned_sound


def sound_file(samples: NDArray[Any], kind: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, format=kind, subtype=subtype)
    return file.getvalue()


def picture_file(kind: str) -> bytes:
    levels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).convert("P" if kind == "GIF" else "RGB").save(file, kind)
    return file.getvalue()


PICTURES = {kind: picture_file(kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")}
TONE = (np.sin(np.arange(800) / 9) * 9000).astype(np.int16)
SOUNDS = {
    "WAV": sound_file(TONE, "WAV", "PCM_16"),
    "WAV of floats": sound_file(TONE / np.float32(32768), "WAV", "FLOAT"),
    "FLAC": sound_file(TONE, "FLAC", "PCM_16"),
}
CHANGES = st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=4)


def damaged(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    found = bytearray(content)
    for place, value in changes:
        found[place % len(found)] = value
    return bytes(found)


@pytest.mark.parametrize("kind", PICTURES)
@settings(max_examples=60, deadline=None)
@given(changes=CHANGES)
def test_a_damaged_picture_is_read_or_refused(kind: str, changes: list[tuple[int, int]]) -> None:
    with contextlib.suppress(MediaError):
        assert learned_pixels(damaged(PICTURES[kind], changes), 8, 3).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", SOUNDS)
@settings(max_examples=60, deadline=None)
@given(changes=CHANGES)
def test_a_damaged_sound_is_read_or_refused(kind: str, changes: list[tuple[int, int]]) -> None:
    with contextlib.suppress(MediaError):
        assert np.isfinite(learned_sound(damaged(SOUNDS[kind], changes), 8000)).all()


def test_sounds_that_would_fill_the_memory_are_refused_before_they_are_unpacked() -> None:
    silence = sound_file(np.zeros(LONGEST_SOUND + 1, np.int16), "FLAC", "PCM_16")
    assert len(silence) < 50_000
    with pytest.raises(MediaError, match="1048577 samples, 1 to 1048576 fit"):
        learned_sound(silence, 8000)
    with pytest.raises(MediaError, match="3 channels, at most 2 are read"):
        learned_sound(sound_file(np.zeros((80, 3), np.int16), "FLAC", "PCM_16"), 8000)


def test_a_sound_with_a_sample_that_is_no_number_is_refused() -> None:
    samples = np.array([0.0, np.nan], np.float32)
    with pytest.raises(MediaError, match="a sample of the sound is no number"):
        learned_sound(sound_file(samples, "WAV", "FLOAT"), 8000)
