"""Networks of an acoustic model: phonemes in their context, numbers of each, and a flow's velocity over mel frames.

Attention has no places of its own: convolutions before it say where a phoneme stands. The decoder's are the gated,
dilated ones of DiffSinger (Liu et al. 2022, arXiv:2105.02446). What is outside a row changes nothing inside.

Shape letters: B rows, S phonemes, F frames, M mels, W width, C = M + W.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from models.diffusion import objectives
from models.diffusion.unet import sinusoids
from models.family import Batch
from models.parts.attention import EncoderLayer
from models.parts.dropout import Dropout
from models.parts.mel import Mel

LONGEST: Final = 3000  # frames of a drawn row
BLOCK: Final = 32  # frames whose noise is drawn at once
TOKENS: Final = (
    8.0  # weight of what is predicted a phoneme, of which there is one in about so many frames
)


class Convolutions(nn.Module):
    """Layers of a convolution over neighbours, a rectifier and a norm, with dropout; blind to what is outside."""

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.dropout = Dropout(dropout)

    def forward(self, x_BSW: Tensor, inside_BS1: Tensor) -> Tensor:
        """Return (B, S, W)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_BSW = norm(conv((x_BSW * inside_BS1).mT).mT.relu())
            x_BSW = self.dropout(x_BSW)
        return x_BSW


class Encoder(nn.Module):
    """Phonemes of a speaker in their context."""

    def __init__(
        self, symbols: int, speakers: int, width: int, heads: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.phonemes = nn.Embedding(symbols, width, padding_idx=0)
        self.speakers = nn.Embedding(speakers, width)
        self.convolutions = Convolutions(width, 3, dropout)
        sizes = (width, heads, 4 * width, dropout)
        self.layers = nn.ModuleList(EncoderLayer(*sizes, "relu") for _ in range(layers))

    def forward(self, tokens_BS: Tensor, speaker_B: Tensor) -> Tensor:
        """Return (B, S, W)."""
        inside_BS = tokens_BS > 0
        x_BSW: Tensor = self.phonemes(tokens_BS)
        x_BSW = x_BSW + self.convolutions(x_BSW, inside_BS[..., None])
        x_BSW = x_BSW + self.speakers(speaker_B)[:, None]
        for layer in self.layers:
            x_BSW = layer(x_BSW, inside_BS[:, None, None])
        return x_BSW


class Predictor(nn.Module):
    """Numbers a phoneme, of its context alone: what is learned here does not move the encoder."""

    def __init__(self, width: int, numbers: int, dropout: float) -> None:
        super().__init__()
        self.convolutions = Convolutions(width, 2, dropout)
        self.out = nn.Linear(width, numbers)

    def forward(self, x_BSW: Tensor, inside_BS: Tensor) -> Tensor:
        """Return (B, S, numbers), float32."""
        found: Tensor = self.out(self.convolutions(x_BSW.detach(), inside_BS[..., None]))
        return found.float()


class Durations(Predictor):
    """How many frames a phoneme has on the average: the logarithm of that."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(width, 1, dropout)
        nn.init.constant_(self.out.bias, math.log(TOKENS))

    def errors(self, x_BSW: Tensor, path_BSF: Tensor, inside_BS: Tensor) -> Tensor:
        """Return how far predictions are off (B, S), of phonemes as they are aligned.

        It is the deviance of gamma distributions: as small differences go the squared error of the logarithm, whose own
        least is at a geometric mean, though, and so at sounds that are too short. This has it at the mean.
        """
        log_BS: Tensor = self(x_BSW, inside_BS)[..., 0]
        off_BS = path_BSF.sum(2).clamp(min=1).log() - log_BS
        return 2 * (off_BS.exp() - 1 - off_BS)

    def frames(
        self,
        x_BSW: Tensor,
        inside_BS: Tensor,
        speed: float,
        seeds: Sequence[int] = (),  # noqa: ARG002 - as where they are drawn
    ) -> Tensor:
        """Return how many frames each phoneme is given (B, S): one at least; the next has what rounding takes."""
        log_BS = self(x_BSW, inside_BS)[..., 0]
        mean_BS = (log_BS.exp() / speed).clamp(1, LONGEST) * inside_BS
        end_BS = (mean_BS.cumsum(1) + 0.5).floor()  # .round() would give .5 to the even number
        first_B1 = torch.zeros_like(end_BS[:, :1])
        frames_BS: Tensor = end_BS.diff(dim=1, prepend=first_B1).clamp(min=1) * inside_BS
        return frames_BS


def path_of(frames_1S: Tensor, frame_s: float) -> Tensor:
    """Return which phoneme each frame of a row is of (1, S, F), of how many each has.

    Raises:
        ValueError: they are more than are made.
    """
    if (count := int(frames_1S.sum())) > LONGEST:
        most = f"at most {LONGEST * frame_s:.0f} s are made"
        raise ValueError(f"prompt: it takes {count} frames; {most}")
    place_S = torch.arange(frames_1S.shape[1], device=frames_1S.device)
    of_F = place_S.repeat_interleave(frames_1S[0].long())
    return (of_F == place_S[:, None]).float()[None]


def noise(x_BCF: Tensor) -> Tensor:
    """Return noise of the rows' shape (B, C, F), by torch's generator.

    Some frames of all rows are drawn after others: what a row gets depends neither on how many follow nor on others.
    """
    rows, channels, frames = x_BCF.shape
    some = [
        torch.randn(rows, BLOCK, channels, device=x_BCF.device) for _ in range(0, frames, BLOCK)
    ]
    return torch.cat(some, 1)[:, :frames].mT


def mels_of(mel: Mel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return log mels (B, M, F), how many frames each row has (B,), and which are inside it (B, 1, F)."""
    length_B = batch["length"]
    log_mel_BMF, frames_B = mel.log_mel(batch["sound"], length_B), mel.frames_of(length_B)
    frame_F = torch.arange(log_mel_BMF.shape[2], device=length_B.device)
    return log_mel_BMF, frames_B, (frame_F < frames_B[:, None])[:, None].float()


class DecoderLayer(nn.Module):
    """A gated, dilated convolution over frames that sees what is said there, and the time of the flow."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.time = nn.Linear(width, width)
        self.conv = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.said = nn.Conv1d(width, 2 * width, 1)
        self.out = nn.Conv1d(width, 2 * width, 1)

    def forward(
        self, x_BWF: Tensor, said_BWF: Tensor, time_BW: Tensor, inside_B1F: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the next layer's input (B, W, F), and what goes to the end."""
        timed_BWF = (x_BWF + self.time(time_BW)[..., None]) * inside_B1F
        a, b = (self.conv(timed_BWF) + self.said(said_BWF)).chunk(2, 1)
        on_BWF, skip_BWF = self.out(a.tanh() * b.sigmoid()).chunk(2, 1)
        return (x_BWF + on_BWF) * 0.5**0.5, skip_BWF


class Decoder(nn.Module):
    """The velocity of the flow of what means leave over, given the means and what is said in every frame."""

    def __init__(self, mels: int, width: int, dilations: Sequence[int], spread: float) -> None:
        super().__init__()
        self.spread = spread
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.noisy = nn.Conv1d(mels, width, 1)
        self.said = nn.Conv1d(mels + width, width, 1)
        self.layers = nn.ModuleList(DecoderLayer(width, one) for one in dilations)
        self.hidden = nn.Conv1d(width, width, 1)
        self.out = nn.Conv1d(width, mels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x_BMF: Tensor, times_B3: Tensor, said_BCF: Tensor, inside_B1F: Tensor
    ) -> Tensor:
        """Return eps - x0 (B, M, F) at x = alpha x0 + sigma eps, of (time 0..1000, alpha, sigma)."""
        alpha, sigma = times_B3[:, 1, None, None], times_B3[:, 2, None, None]
        scale, keep, gain = objectives.precondition("flow", alpha, sigma, self.spread)
        time_BW, said_BWF = self.time(sinusoids(times_B3[:, 0])), self.said(said_BCF)
        h_BWF = self.noisy(scale * x_BMF)
        total_BWF: Tensor = torch.zeros_like(h_BWF)
        for layer in self.layers:
            h_BWF, skip_BWF = layer(h_BWF, said_BWF, time_BW, inside_B1F)
            total_BWF = total_BWF + skip_BWF
        total_BWF = self.hidden((total_BWF * len(self.layers) ** -0.5).relu()).relu()
        velocity: Tensor = keep * x_BMF + gain * self.out(total_BWF).float()
        return velocity
