"""Vocos (Siuzdak 2023, arXiv:2306.00814): mels to Fourier coefficients at their own rate, and one inverse transform.

ConvNeXt blocks (Liu et al. 2022, arXiv:2201.03545) run once a frame and not once a sample, which is why it is fast. The
head gives every coefficient's phase as a point on the circle, by an angle that may wind (section 3.2), and how much
larger its magnitude is than the mels, spread over their filters, have it. The paper's gives the magnitude itself: after
as many steps, 50 on spoken digits, the mels of what came back were then 1.17 off and not .23. The game and its critics
are HiFi-GAN's; the paper's has hinge losses and a critic of spectra.

Shape letters: B rows, M mels, F frames, C channels, K frequencies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts import bounds
from models.parts.mel import PRESETS
from models.text_to_speech.vocoder import Vocoder, VocoderConfig, near_0

KERNEL: Final = 7
LOUDEST: Final = 1e2  # magnitude


@dataclass(frozen=True, kw_only=True, slots=True)
class VocosConfig(VocoderConfig):
    """The generator's sizes beside what every vocoder has."""

    width: int = 128  # channels
    hidden: int = 384  # of a block's inner layer
    layers: int = 5

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        VocoderConfig.__post_init__(self)
        bounds.check(self, dict.fromkeys(("width", "hidden", "layers"), bounds.SIZE))


class Block(nn.Module):
    """ConvNeXt: a convolution a channel, and two layers a frame, scaled, around a shortcut."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.across = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), 1 / layers))

    def forward(self, x_BFC: Tensor) -> Tensor:
        """Return features of the same shape."""
        y_BFC = self.norm(self.across(x_BFC.mT).mT)
        out_BFC: Tensor = self.down(F.gelu(self.up(y_BFC)))
        return x_BFC + self.scale * out_BFC


class Generator(nn.Module):
    """Mels to sound."""

    def __init__(self, config: VocosConfig) -> None:
        super().__init__()
        self.mel = config.mel
        self.first = nn.Conv1d(config.mel.mels, config.width, KERNEL, padding=KERNEL // 2)
        self.norm = nn.LayerNorm(config.width)
        sizes = config.width, config.hidden, config.layers
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(config.layers))
        self.last = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.mel.n_fft + 2)

    def forward(self, mel_BMF: Tensor) -> Tensor:
        """Return sound (B, T)."""
        x_BFC = self.norm(self.first(near_0(mel_BMF)).mT)
        for block in self.blocks:
            x_BFC = block(x_BFC)
        louder_BKF, angle_BKF = self.head(self.last(x_BFC)).float().mT.chunk(2, 1)
        loud_BKF = self.mel.envelope(mel_BMF) * louder_BKF.exp()
        return self.mel.inverse_stft(torch.polar(loud_BKF.clamp(max=LOUDEST), angle_BKF))


class Vocos(Vocoder):
    """A vocoder that draws spectra."""

    Config = VocosConfig
    presets: ClassVar[Mapping[str, VocosConfig]] = {
        "tiny": VocosConfig(
            mel=PRESETS["tiny"],
            width=16,
            hidden=32,
            layers=2,
            segment=8,
            periods=(2, 3),
            scales=1,
            critic_widths=(4, 8),
        ),
        "small": VocosConfig(),
        "base": VocosConfig(
            mel=PRESETS["22khz"],
            sample_rate=22050,
            width=512,
            hidden=1536,
            layers=8,
            segment=64,
            periods=(2, 3, 5, 7, 11),
            scales=3,
            critic_widths=(32, 128, 512, 1024),
        ),
    }
    config: VocosConfig

    def __init__(self, config: VocosConfig) -> None:
        super().__init__(config, Generator(config))

    @property
    def context(self) -> int:
        """How many frames after it a frame's sound may depend on: the convolutions' reach, and the window's."""
        mel = self.config.mel
        return (self.config.layers + 1) * (KERNEL // 2) + -(-mel.n_fft // mel.hop)
