"""What is heard in a sound, in closed form: its log-mel spectrum, and linear discriminants of that by attribute.

The recogniser is fitted to real sounds alone, in a second, and judges made ones: a network that does not hear what it
is asked for has the accuracy of chance, however likely its sounds are.

Shape letters: N sounds, T samples, A attributes, M mel bands, P parts of a sound. Sound is in [-1, 1].
"""

import math
from typing import Final

import torch
from torch import Tensor

WINDOW_S: Final = 0.032  # of a spectrum; the next one begins a quarter later
BANDS: Final = 24
PARTS: Final = 4  # of a sound, whose spectra are averaged: what comes first and what last
FLOOR: Final = 1e-6  # power that counts as silence
AT_ONCE: Final = 128  # sounds
FAINT: Final = 0.01  # of a sound's loudest place: below it noise would hide a copy


class Recogniser:
    """One linear discriminant an attribute, its covariance shrunk as Ledoit & Wolf (2004).

    Example:
        >>> time = torch.arange(2000) / 8000
        >>> hertz = torch.tensor([300.0, 310, 900, 910])[:, None]
        >>> sound, length = (2 * math.pi * hertz * time).sin(), torch.full((4,), 2000)
        >>> recogniser = Recogniser(sound, length, torch.tensor([[0], [0], [1], [1]]), 8000)
        >>> recogniser.predict(sound, length)[:, 0].tolist()
        [0, 0, 1, 1]
    """

    def __init__(
        self, sound_NT: Tensor, length_N: Tensor, attributes_NA: Tensor, sample_rate: int
    ) -> None:
        """Fit real sounds (N, T) of `length_N` samples each to the index of their value by attribute (N, A)."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        self._rate = sample_rate
        seen = features(sound_NT, length_N, sample_rate).numpy()
        self._discriminants = [
            LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(seen, column.numpy())
            if len(column.unique()) > 1
            else int(column[0])  # one value alone: there is nothing to tell
            for column in attributes_NA.T
        ]

    def predict(self, sound_NT: Tensor, length_N: Tensor) -> Tensor:
        """Return the index of each attribute's likeliest value (N, A)."""
        seen = features(sound_NT, length_N, self._rate).numpy()
        columns = [
            torch.full((len(seen),), one)
            if isinstance(one, int)
            else torch.from_numpy(one.predict(seen))
            for one in self._discriminants
        ]
        return torch.stack(columns, dim=1)


def features(sound_NT: Tensor, length_N: Tensor, sample_rate: int) -> Tensor:
    """Return (N, (P + 1) M): log-mel spectra averaged over each part of a sound, and how much they vary."""
    mel_NMF = (_power(sound_NT, sample_rate) + FLOOR).log()
    hop, rows = _hop(sample_rate), []
    for mel_MF, length in zip(mel_NMF, length_N.tolist(), strict=True):
        frames_MF = mel_MF[:, : max(PARTS, length // hop + 1)]
        parts = [part.mean(1) for part in frames_MF.tensor_split(PARTS, dim=1)]
        rows.append(torch.cat([*parts, frames_MF.std(1)]))
    return torch.stack(rows)


def spectra(sound_NT: Tensor, sample_rate: int) -> Tensor:
    """Return (N, 1, M, F): log-mel power of frames of 8 ms, against a sound's loudest place, as pictures to compare.

    A copy that is louder, shifted by a few samples or a little noisy looks like the sound that it is of.

    Example:
        >>> time = torch.arange(2000) / 8000
        >>> tone = (2 * math.pi * 440 * time).sin()[None]
        >>> torch.allclose(spectra(tone, 8000), spectra(tone / 2, 8000), atol=1e-5)
        True
    """
    power = _power(sound_NT, sample_rate)
    loudest = power.amax((1, 2), keepdim=True).clamp(min=FLOOR)
    return (power / loudest + FAINT).log()[:, None]


def _hop(sample_rate: int) -> int:
    return round(WINDOW_S * sample_rate) // 4


def _power(sound_NT: Tensor, sample_rate: int) -> Tensor:
    """Return the power in each mel band (N, M, F), a few sounds at a time: their spectra are eleven times as large."""
    window = round(WINDOW_S * sample_rate)
    sound_NT = torch.nn.functional.pad(sound_NT.float(), (0, max(0, window - sound_NT.shape[1])))
    hann = torch.hann_window(window)
    bands_MK, hop = _bands(window, sample_rate), _hop(sample_rate)
    parts = (
        torch.stft(part, window, hop, window=hann, return_complex=True).abs().square()
        for part in torch.split(sound_NT, AT_ONCE)
    )
    return torch.cat([bands_MK @ power_NKF for power_NKF in parts])


def _bands(window: int, sample_rate: int) -> Tensor:
    """Return triangles (M, window / 2 + 1), evenly spaced in mel (O'Shaughnessy 1987)."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = torch.linspace(0, top, BANDS + 2)
    place = 2595 * torch.log10(1 + torch.linspace(0, sample_rate / 2, window // 2 + 1) / 700)
    width = edges[1] - edges[0]
    return (1 - (place - edges[1:-1, None]).abs() / width).clamp(min=0)
