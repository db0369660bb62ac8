"""MCVD, masked conditional video diffusion (Voleti et al. 2022, arXiv:2205.09853): what comes next, or between.

One network predicts, interpolates and makes whole clips, for which frames it is shown is drawn anew for every clip of
training. It has no layers over time: the frames lie one after the other in the channels of a picture's U-Net, those
that are known beside the noisy ones (the paper's "concat"). So any frame reaches any other within one convolution, and
a clip costs what a picture does, but for the first and the last layer.

What differs from the paper: the tasks are those of `make_a_video.Interpolation`, and the embedding tells which frames
are known beside their places, which are black where they are not.

Shape letters: B clips, F frames, C channels of a frame, X = F C, H and W pixels, E numbers of an embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.diffusion.ddpm import DDPMConfig, Denoiser
from models.diffusion.dit import zeroed
from models.text_to_video.frames import Paced
from models.text_to_video.make_a_video import Interpolation, InterpolationConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class MCVDConfig(InterpolationConfig):
    """As of frames between, of one network for all frames; `widths` are of all frames together."""

    tasks: tuple[str, ...] = ("half", "first", "start", "nothing")
    widths: tuple[int, ...] = (96, 160)
    low_gain: float = 1.0  # of what there is over black

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        InterpolationConfig.__post_init__(self)
        if not self.temporal:
            raise ValueError("temporal: all frames are seen at once, leave it out, got False")

    @property
    def planes(self) -> int:
        """Channels of all frames."""
        return self.shape[0]

    @property
    def low_shape(self) -> tuple[int, int]:
        """Channels and side of what is seen beside the noisy frames: all of them, guessed where not known."""
        return self.shape[0], self.image_size


class StackedDenoiser(Paced):
    """A picture's network, whose channels are those of all frames."""

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__(config)
        embedding = 2 * config.widths[0]
        self.known = nn.Linear(config.planes // config.channels, embedding)
        self.rate = zeroed(nn.Linear(64, embedding))

    def predict(
        self,
        x_BXHW: Tensor,
        low_BYHW: Tensor | None,
        embedding_BE: Tensor,
        context_BTD: Tensor | None,
    ) -> Tensor:
        """Return what the backbone makes of clips (B, F C, H, W), float32; low_BYHW has each frame with its mask."""
        assert low_BYHW is not None
        sides = (self.config.channels + 1, *low_BYHW.shape[2:])
        low_BFDHW = low_BYHW.reshape(len(low_BYHW), -1, *sides)
        guess_BXHW, known_BF = low_BFDHW[:, :, :-1].flatten(1, 2), low_BFDHW[:, :, -1, 0, 0]
        told_BE = embedding_BE + self.known(known_BF)
        return super().predict(x_BXHW, guess_BXHW, told_BE, context_BTD)


class MCVD(Interpolation):
    """Frames after others, between others, or of nothing, by one network that sees all of them at once."""

    Config = MCVDConfig
    presets: ClassVar[Mapping[str, MCVDConfig]] = {
        "tiny": MCVDConfig(
            image_size=8, frames=5, widths=(16, 24), text_width=16, heads=2, steps=4
        ),
        "base": MCVDConfig(t_mean=1.0, guidance=1.0),
    }
    config: MCVDConfig

    def __init__(self, config: MCVDConfig) -> None:
        super().__init__(config)
        self.gain_K = torch.full_like(self.gain_K, config.low_gain)

    def _network(self) -> Denoiser:
        return StackedDenoiser(self.config)

    def _guessed(self, frames_BFCHW: Tensor, task_B: Tensor) -> Tensor:
        if self.config.copies:
            return super()._guessed(frames_BFCHW, task_B)
        hidden_BF111 = ~self.known_KF[task_B][:, :, None, None, None]
        return frames_BFCHW.masked_fill(hidden_BF111, -1)  # black
