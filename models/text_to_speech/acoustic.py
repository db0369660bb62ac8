"""Networks of an acoustic model: phonemes in their context, numbers of each, and a flow's velocity over mel frames.

Attention has no places of its own: convolutions before it say where a phoneme stands. The decoder's are the gated,
dilated ones of DiffSinger (Liu et al. 2022, arXiv:2105.02446). What is outside a row changes nothing inside.

Shape letters: B rows, S phonemes, F frames, M mels, W width, C = M + W.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.diffusion import objectives
from models.diffusion.unet import sinusoids
from models.parts.attention import EncoderLayer
from models.parts.dropout import Dropout


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
