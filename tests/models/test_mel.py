"""Log-mel spectrograms: the filters of others, frames that padding does not change, and sounds that come back."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.parts.mel import PRESETS, Mel


def tone(hz: float, samples: int = 4000, rate: int = 8000) -> Tensor:
    """Return a sine (1, T)."""
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(samples) / rate)[None]


def vowel(samples: int = 4000, rate: int = 8000) -> Tensor:
    """Return harmonics of 120 Hz under two formants, about those of "a" (1, T)."""
    harmonic = torch.arange(1, 30)[:, None] * 120.0
    loud = sum(1 / (1 + ((harmonic - hz) / 150).square()) for hz in (700, 1200))
    assert isinstance(loud, Tensor)
    waves = torch.sin(2 * math.pi * harmonic * torch.arange(samples) / rate)
    return 0.2 * (loud * waves).sum(0, keepdim=True)


@pytest.mark.parametrize(
    ("name", "known"),
    [  # librosa 0.11.0: filters.mel(sr=8000, n_fft=256, n_mels=40, fmin=0, fmax=4000)[m, k]
        ("8khz", {(0, 1): 0.009558937512, (0, 2): 0.015861319378, (10, 19): 0.006723845378}),
        ("8khz", {(20, 37): 0.0, (39, 125): 0.001839748002}),
        # librosa 0.11.0: filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=8000)[m, k]
        ("22khz", {(0, 1): 0.015527720563, (20, 32): 0.0, (79, 365): 0.001574929463}),
    ],
)
def test_the_filters_are_librosas(name: str, known: dict[tuple[int, int], float]) -> None:
    filters = PRESETS[name].filters()
    for place, value in known.items():
        assert filters[place].item() == pytest.approx(value, abs=1e-8)


def test_a_tone_is_loudest_in_the_mel_whose_filter_has_it() -> None:
    mel = Mel()
    loudest = mel.log_mel(tone(1000))[0].mean(1).argmax()
    assert loudest == mel.filters()[:, 32].argmax()  # 1000 Hz is bin 32 of 256 at 8000 Hz


@settings(max_examples=10, deadline=None)
@given(samples=st.integers(100, 900), more=st.integers(0, 500))
def test_padding_a_sound_changes_none_of_its_frames(samples: int, more: int) -> None:
    mel = Mel()
    sound = torch.randn(1, samples, generator=torch.Generator().manual_seed(samples)) * 0.1
    length = torch.tensor([samples])
    alone = mel.log_mel(sound, length)
    padded = mel.log_mel(torch.nn.functional.pad(sound, (0, more)), length)
    frames = mel.frames_of(samples)
    assert alone.shape == (1, 40, frames)
    assert padded.shape[2] == mel.frames_of(samples + more)
    torch.testing.assert_close(padded[..., :frames], alone, atol=1e-5, rtol=0)
    assert (padded[..., frames:] == mel.floor).all()
    assert mel.lengths(padded).tolist() == [frames]


@pytest.mark.parametrize("name", PRESETS)
def test_the_spectra_of_a_sound_give_it_back(name: str) -> None:
    mel = PRESETS[name]
    sound = torch.randn(2, 5 * mel.hop, generator=torch.Generator().manual_seed(0)) * 0.1
    torch.testing.assert_close(mel.inverse_stft(mel.stft(sound)), sound, atol=1e-6, rtol=0)


def test_a_tone_comes_back_from_its_mels_at_its_pitch() -> None:
    mel = Mel()
    found = mel.griffin_lim(mel.log_mel(tone(440)), 16)[0]
    spectrum = torch.fft.rfft(found * torch.hann_window(4000)).abs()
    assert abs(spectrum.argmax().item() * 2 - 440) <= 25  # a filter is 57 Hz wide here


def test_a_vowel_comes_back_nearer_by_more_steps() -> None:
    mel = Mel()
    wanted = mel.log_mel(vowel())
    error = {
        steps: (mel.log_mel(mel.griffin_lim(wanted, steps)) - wanted).abs().mean().item()
        for steps in (0, 32)
    }
    assert error[32] < 0.25 < error[0]


def test_a_sound_from_mels_is_the_same_alone_and_beside_longer_ones() -> None:
    mel = Mel()
    short, long = vowel(1600), tone(300)
    length = torch.tensor([1600, 4000])
    both = torch.cat([torch.nn.functional.pad(short, (0, 2400)), long])
    alone = mel.griffin_lim(mel.log_mel(short), 8)
    beside = mel.griffin_lim(mel.log_mel(both, length), 8)
    torch.testing.assert_close(beside[:1, :1600], alone, atol=1e-4, rtol=0)
    assert (beside[0, 1600 + mel.n_fft :] == 0).all()


def test_silence_comes_back_as_silence() -> None:
    mel = Mel()
    assert (mel.log_mel(torch.zeros(1, 800)) == mel.floor).all()
    assert (mel.griffin_lim(torch.full((1, 40, 10), mel.floor), 4) == 0).all()


def test_settings_are_told_apart_by_their_space() -> None:
    spaces = {mel.space for mel in (*PRESETS.values(), Mel(hop=64), Mel(high_hz=3800.0))}
    assert len(spaces) == len(PRESETS) + 2
    assert Mel.of({"hop": 64}).space == Mel(hop=64).space


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"hop": 300}, "window must be between 300 and 256, got 256"),
        ({"hop": 81}, "both even or both odd, got 256 and 81"),
        ({"high_hz": 5000.0}, "high_hz must be between 0 and 4000.0, got 5000.0"),
        ({"low_hz": 4000.0}, "low_hz must be between 0"),
        ({"mels": 400}, "400 are too many for n_fft 256"),
        ({"hopp": 64}, "mel has no setting 'hopp'"),
        ("9khz", "mel has no preset '9khz'; choose one of tiny, 8khz"),
    ],
)
def test_settings_that_cannot_be_are_refused(asked: object, refused: str) -> None:
    with pytest.raises(ValueError, match=refused):
        Mel.of(asked)  # type: ignore[arg-type]
