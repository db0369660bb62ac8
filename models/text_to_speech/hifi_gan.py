"""HiFi-GAN (Kong et al. 2020, arXiv:2010.05646): mels grow to sound by transposed convolutions.

Each stage multiplies the rate and halves the channels; after it, residual blocks of several kernels and dilations are
added up (multi-receptive field fusion, figure 1). The presets v1 and v2 are the paper's; small is for 8 kHz on a CPU.

Shape letters: B rows, T samples, M mels, F frames, C channels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from models.parts import bounds
from models.parts.mel import PRESETS
from models.text_to_speech.critics import SLOPE
from models.text_to_speech.vocoder import Vocoder, VocoderConfig, near_0, widths_of


@dataclass(frozen=True, kw_only=True, slots=True)
class HiFiGANConfig(VocoderConfig):
    """The generator's sizes beside what every vocoder has."""

    rates: tuple[int, ...] = (5, 4, 4)  # of each stage; their product is the hop
    width: int = 128  # channels before the first stage
    kernels: tuple[int, ...] = (3, 7)  # of the residual blocks, odd
    dilations: tuple[int, ...] = (1, 3)  # of a block's layers

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        VocoderConfig.__post_init__(self)
        sizes = ("rates", "width", "kernels", "dilations")
        bounds.check(self, dict.fromkeys(sizes, bounds.SIZE))
        if math.prod(self.rates) != self.mel.hop:
            grown = math.prod(self.rates)
            raise ValueError(f"rates must multiply to the mel's hop {self.mel.hop}, got {grown}")
        if self.width % 2 ** len(self.rates):
            most = 2 ** len(self.rates)
            raise ValueError(f"width must be a multiple of {most}, got {self.width}")
        if even := [size for size in self.kernels if size % 2 == 0]:
            raise ValueError(f"each of kernels must be odd, got {even[0]}")


class ResidualBlock(nn.Module):
    """Pairs of convolutions, the first of each dilated, around a shortcut."""

    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        side = kernel // 2
        self.dilated = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=side * dilation, dilation=dilation)
            for dilation in dilations
        )
        self.plain = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=side) for _ in dilations)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Return features of the same shape."""
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            x_BCT = x_BCT + plain(F.leaky_relu(dilated(F.leaky_relu(x_BCT, SLOPE)), SLOPE))
        return x_BCT


class Generator(nn.Module):
    """Mels to sound."""

    def __init__(self, config: HiFiGANConfig) -> None:
        super().__init__()
        widths = widths_of(config.width, config.rates)
        self.first = nn.Conv1d(config.mel.mels, config.width, 7, padding=3)
        self.grow, self.fuse = nn.ModuleList(), nn.ModuleList()
        for rate, before, after in zip(config.rates, widths, widths[1:], strict=False):
            size = 2 * rate + rate % 2
            layer = nn.ConvTranspose1d(before, after, size, rate, padding=(size - rate) // 2)
            self.grow.append(layer)
            blocks = [ResidualBlock(after, kernel, config.dilations) for kernel in config.kernels]
            self.fuse.append(nn.ModuleList(blocks))
        self.last = nn.Conv1d(widths[-1], 1, 7, padding=3)

    def forward(self, mel_BMF: Tensor) -> Tensor:
        """Return sound (B, T) in [-1, 1]."""
        x_BCT = self.first(near_0(mel_BMF))
        for grow, fuse in zip(self.grow, self.fuse, strict=True):
            assert isinstance(fuse, nn.ModuleList)
            x_BCT = grow(F.leaky_relu(x_BCT, SLOPE))
            total_BCT = fuse[0](x_BCT)
            for block in list(fuse)[1:]:
                total_BCT = total_BCT + block(x_BCT)
            x_BCT = total_BCT / len(fuse)
        sound_B1T: Tensor = self.last(F.leaky_relu(x_BCT, SLOPE)).tanh()
        return sound_B1T[:, 0]


class HiFiGAN(Vocoder):
    """A vocoder that grows samples."""

    Config = HiFiGANConfig
    presets: ClassVar[Mapping[str, HiFiGANConfig]] = {
        "tiny": HiFiGANConfig(
            mel=PRESETS["tiny"],
            rates=(4, 4),
            width=16,
            kernels=(3,),
            dilations=(1, 3),
            segment=8,
            periods=(2, 3),
            scales=1,
            critic_widths=(4, 8),
        ),
        "small": HiFiGANConfig(),
        "v2": HiFiGANConfig(
            mel=PRESETS["22khz"],
            sample_rate=22050,
            rates=(8, 8, 2, 2),
            kernels=(3, 7, 11),
            dilations=(1, 3, 5),
            periods=(2, 3, 5, 7, 11),
            scales=3,
            critic_widths=(32, 128, 512, 1024),
        ),
        "v1": HiFiGANConfig(
            mel=PRESETS["22khz"],
            sample_rate=22050,
            rates=(8, 8, 2, 2),
            width=512,
            kernels=(3, 7, 11),
            dilations=(1, 3, 5),
            periods=(2, 3, 5, 7, 11),
            scales=3,
            critic_widths=(32, 128, 512, 1024),
        ),
    }
    config: HiFiGANConfig

    def __init__(self, config: HiFiGANConfig) -> None:
        super().__init__(config, Generator(config))

    @property
    def context(self) -> int:
        """How many frames after it a frame's sound may depend on: the reach of all convolutions."""
        config = self.config
        side = max(config.kernels) // 2
        reach, rate = 3.0, 1
        for factor in config.rates:
            reach += 2 / rate
            rate *= factor
            reach += side * sum(dilation + 1 for dilation in config.dilations) / rate
        return math.ceil(reach + 3 / rate) + 1
