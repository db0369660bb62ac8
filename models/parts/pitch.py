"""How high and how loud speech is, a value a frame: YIN (de Cheveigne and Kawahara 2002) and root mean square.

A voiced sound repeats itself after a period. YIN looks for the least lag at which what is left over, as a share of what
is left over at lesser lags (eq. 8), is below a threshold, and here nearly the least; where there is none the frame has
no voice.

Shape letters: B rows, T samples, F frames, N samples of a frame, L lags. Frames are those of a mel spectrogram: frame i
is around samples i hop to (i + 1) hop.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

LOW_HZ: Final = 60.0
HIGH_HZ: Final = 500.0
THRESHOLD: Final = 0.2  # of what is left over; of noise it is about 1
NEARLY: Final = 0.1  # as little left over as at the best lag: then the least lag is the period
SILENCE: Final = 1e-3  # of full scale, -60 dB: nothing below has a voice
WINDOW_S: Final = 0.025  # that is compared with itself


def f0(sound_BT: Tensor, sample_rate: int, hop: int, frames: int) -> Tensor:
    """Return the fundamental frequency of every frame in Hz (B, F) float32, 0 where there is no voice.

    Args:
        sound_BT: In [-1, 1], zero where there is none.
        sample_rate: Of it, in Hz.
        hop: Samples from frame to frame.
        frames: How many, from sample 0 on.

    Example:
        >>> tone_1T = (2 * torch.pi * 200 * torch.arange(8000)[None] / 8000).sin()
        >>> [round(hertz) for hertz in f0(tone_1T, 8000, 80, 100)[0, 10:13].tolist()]
        [200, 200, 200]
    """
    least, most = int(sample_rate / HIGH_HZ), int(sample_rate / LOW_HZ) + 1
    size = round(WINDOW_S * sample_rate)
    frame_BFN = framed(sound_BT, size + most + 1, hop, frames)
    left_BFL = _left_over(frame_BFN, size)
    lag_L = torch.arange(left_BFL.shape[2], device=left_BFL.device)
    share_BFL = left_BFL * lag_L / left_BFL.cumsum(2).clamp(min=1e-9)  # eq. 8; at lag 0 it is 0
    middle = share_BFL[..., least : most + 1]
    before, after = share_BFL[..., least - 1 : most], share_BFL[..., least + 1 : most + 2]
    # between lags, as a parabola through three has it
    shift_BFL = (before - after) / (2 * (before - 2 * middle + after)).clamp(min=1e-9)
    shift_BFL = shift_BFL.clamp(-0.5, 0.5)
    depth_BFL = middle - (before - after) * shift_BFL / 4
    dip_BFL = (depth_BFL < THRESHOLD) & (middle <= before) & (middle < after)
    deepest_BF1 = depth_BFL.masked_fill(~dip_BFL, 1.0).amin(2, keepdim=True)
    dip_BFL &= depth_BFL <= deepest_BF1 + NEARLY  # a formant's ripples are shallower, and before
    place_BF1 = dip_BFL.int().argmax(2, keepdim=True)  # the first one
    hertz_BF = sample_rate / (least + place_BF1 + shift_BFL.gather(2, place_BF1))[..., 0]
    loud_BF = frame_BFN.square().mean(2).sqrt() > SILENCE
    return torch.where(dip_BFL.any(2) & loud_BF, hertz_BF, 0.0).float()


def energy(sound_BT: Tensor, window: int, hop: int, frames: int) -> Tensor:
    """Return the natural logarithm of every frame's root mean square (B, F), at least that of `SILENCE`.

    Example:
        >>> energy(torch.full((1, 800), 0.5), 160, 80, 5)[0, 2].exp().item()
        0.5
    """
    frame_BFN = framed(sound_BT, window, hop, frames)
    return frame_BFN.square().mean(2).sqrt().clamp(min=SILENCE).log()


def framed(sound_BT: Tensor, size: int, hop: int, frames: int) -> Tensor:
    """Return the samples around every frame (B, F, N), zero where there is no sound."""
    before = (size - hop) // 2
    behind = max(0, (frames - 1) * hop + size - before - sound_BT.shape[1])
    padded_BT = F.pad(sound_BT.float(), (before, behind))
    return padded_BT.unfold(1, size, hop)[:, :frames]


def _left_over(frame_BFN: Tensor, size: int) -> Tensor:
    """Return the squared difference of a window and the one a lag later (B, F, L), eq. 6, by Fourier transforms."""
    x_BFN = frame_BFN.double()  # differences of sums: single precision would lose quiet ones
    count = x_BFN.shape[2]
    lags = count - size
    points = 1 << (count - 1).bit_length()  # no lag that is looked at wraps around
    spectrum = torch.fft.rfft(x_BFN, n=points)
    first = torch.fft.rfft(x_BFN[..., :size], n=points)
    shared_BFL = torch.fft.irfft(spectrum * first.conj(), n=points)[..., : lags + 1]
    power_BFN = F.pad(x_BFN.square().cumsum(2), (1, 0))
    later_BFL = power_BFN[..., size:] - power_BFN[..., : lags + 1]
    left_BFL: Tensor = later_BFL[..., :1] + later_BFL - 2 * shared_BFL
    return left_BFL.clamp(min=0)
