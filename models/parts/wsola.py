"""Pieces of sound joined, and sound made longer or shorter, where waves are alike: WSOLA (Verhelst & Roelands 1993).

A piece begins where, within reach, it is most like what would have come, so that periods meet; both cross-fade there.
Nothing is drawn. Sounds are one row, (T,) in [-1, 1].
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW_S: Final = 0.03  # of a piece when the time is scaled
REACH_S: Final = 0.008  # half a period of the lowest voices


def offset(wanted_L: Tensor, sound_T: Tensor, first: int, least: int, most: int) -> int:
    """Return by how many samples from `first`, least to most, the sound is most like what is wanted."""
    pieces_NL = sound_T[first + least : first + most + len(wanted_L)].unfold(0, len(wanted_L), 1)
    alike_N = (pieces_NL @ wanted_L) / (pieces_NL.square().sum(1) + 1e-6).sqrt()
    return least + int(alike_N.argmax())


def rising(samples: int, like: Tensor) -> Tensor:
    """Return half a Hann window: with its own reverse it adds up to one."""
    place = torch.arange(samples, dtype=like.dtype, device=like.device) + 0.5
    return (0.5 * torch.pi * place / samples).sin().square()


def spliced(pieces: Sequence[tuple[Tensor, int, int]], overlap: int, reach: int) -> Tensor:
    """Return pieces of sounds one after the other; each is a sound, where the piece begins in it, and where it ends.

    Two of them share `overlap` samples, half before the join and half behind it, as far as their sounds go on there;
    the second one moves by up to `reach` samples to fit. At the ends nothing is faded.

    Example:
        >>> ramp = torch.linspace(0, 1, 100)
        >>> bool((spliced([(ramp, 0, 50), (ramp, 50, 100)], 8, 0) - ramp).abs().max() < 1e-6)
        True
    """
    half, side = overlap // 2, 2 * overlap + reach
    fade_L = rising(overlap, pieces[0][0])
    out: list[Tensor] = []
    tail_L = None
    for number, (sound_T, first, last) in enumerate(pieces):
        padded_T = F.pad(sound_T, (side, side))
        begin, end = first + side, last + side
        if tail_L is not None:
            room = max(0, min(reach, end - begin - overlap))
            begin += offset(tail_L, padded_T, begin - half, -reach, room) - half
            out.append(tail_L + (padded_T[begin : begin + overlap] - tail_L) * fade_L)
            begin += overlap
        stop = end if number == len(pieces) - 1 else max(begin, end - half)
        out.append(padded_T[begin:stop])
        tail_L = padded_T[stop : stop + overlap]
    return torch.cat(out)


def stretched(sound_T: Tensor, speed: float, sample_rate: int) -> Tensor:
    """Return the sound `speed` times as fast, at the same pitch: round(T / speed) samples."""
    size, reach = round(WINDOW_S * sample_rate) // 2 * 2, round(REACH_S * sample_rate)
    step, wanted = size // 2, round(len(sound_T) / speed)
    padded_T = F.pad(sound_T, (step + reach, 2 * size + reach + round(step * speed)))
    window_L = torch.cat([rising(step, sound_T), rising(step, sound_T).flip(0)])
    out_T = sound_T.new_zeros(wanted + 2 * size)
    place = reach  # of the piece that was taken last
    for number, start in enumerate(range(0, wanted + step, step)):
        first = reach + round(number * step * speed)
        if number:  # most like what followed the piece before
            place = first + offset(
                padded_T[place + step : place + step + size], padded_T, first, -reach, reach
            )
        out_T[start : start + size] += padded_T[place : place + size] * window_L
    return out_T[step : step + wanted]
