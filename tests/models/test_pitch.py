"""What of a sound is voiced, how high and how loud it is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.parts import pitch

VOWELS = {"a": (730, 1090), "i": (270, 2290), "u": (300, 870)}
"""The first two formants in Hz (Peterson and Barney 1952)."""


def tone(hertz: float, rate: int, seconds: float = 0.5) -> Tensor:
    return (2 * math.pi * hertz * torch.arange(int(rate * seconds)) / rate).sin()[None] * 0.5


def vowel(name: str, hertz: float, rate: int = 8000) -> Tensor:
    """Harmonics of a voice, the stronger the nearer they are to a formant."""
    harmonics = torch.arange(1, int(rate / 2 / hertz)) * hertz
    gain = sum(1 / (1 + ((harmonics - formant) / 80) ** 2) for formant in VOWELS[name]) + 0.02
    time_T = torch.arange(rate // 2) / rate
    waves_HT = (2 * math.pi * harmonics[:, None] * time_T).cos()
    sound_T = (gain[:, None] * waves_HT).sum(0)  # type: ignore[index]
    return 0.5 * (sound_T / sound_T.abs().max())[None]


@settings(max_examples=30, deadline=None)
@given(hertz=st.floats(65, 450), rate=st.sampled_from([8000, 16000, 22050]))
def test_a_tone_is_as_high_as_it_is_in_every_frame_inside(hertz: float, rate: int) -> None:
    found_F = pitch.f0(tone(hertz, rate), rate, rate // 100, 50)[0, 5:45]
    torch.testing.assert_close(found_F, torch.full_like(found_F, hertz), rtol=0.01, atol=0)


@pytest.mark.parametrize("name", VOWELS)
@pytest.mark.parametrize("hertz", [90.0, 140.0, 220.0])
def test_a_vowel_is_as_high_as_its_voice_and_not_as_its_formants(name: str, hertz: float) -> None:
    found_F = pitch.f0(vowel(name, hertz), 8000, 80, 50)[0, 5:45]
    torch.testing.assert_close(found_F, torch.full_like(found_F, hertz), rtol=0.01, atol=0)


def test_silence_and_noise_have_no_voice() -> None:
    noise_BT = torch.randn(4, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    assert (pitch.f0(noise_BT, 8000, 80, 100) > 0).float().mean() < 0.02
    assert not pitch.f0(torch.zeros(1, 8000), 8000, 80, 100).any()
    assert not pitch.f0(tone(200, 8000) * 1e-4, 8000, 80, 50).any()


def test_a_frame_is_the_same_alone_or_before_more_silence() -> None:
    sounds_BT = torch.cat([tone(120, 8000), tone(240, 8000)])
    padded_BT = torch.nn.functional.pad(sounds_BT, (0, 1000))
    for found in (
        lambda x_BT: pitch.f0(x_BT, 8000, 80, 50),
        lambda x_BT: pitch.energy(x_BT, 256, 80, 50),
    ):
        together = found(padded_BT)
        torch.testing.assert_close(together[:1], found(sounds_BT[:1]))
        torch.testing.assert_close(together[1:], found(sounds_BT[1:]))


def test_energy_is_the_root_mean_square_of_what_is_around_a_frame() -> None:
    found_F = pitch.energy(tone(200, 8000), 320, 80, 50)[0, 5:45]
    torch.testing.assert_close(found_F.exp(), torch.full_like(found_F, 0.5 / math.sqrt(2)))
    assert pitch.energy(torch.zeros(1, 800), 320, 80, 11).exp().max() == pytest.approx(1e-3)
