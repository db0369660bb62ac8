"""The Griffin-Lim vocoder: no network, and so the baseline of those that are.

Phases are made to agree with one another (`parts.mel`). Magnitudes come by least squares from mels, of which there are
fewer, and start from the mean of training's magnitudes, which is what it counts: within a mel, where the mel itself
says nothing, frequencies are then as loud as they are on average.

Shape letters: B rows, T samples, M mels, F frames, K frequencies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from models.family import Batch, Losses
from models.parts import bounds
from models.parts.mel import PRESETS, Mel
from models.request import Request
from models.text_to_speech.vocoder import OfMels


@dataclass(frozen=True, kw_only=True, slots=True)
class GriffinLimConfig:
    """What is heard, and how often phases are made to agree."""

    mel: Mel = PRESETS["8khz"]
    sample_rate: int = 8000  # Hz; the mel's
    steps: int = 32

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        object.__setattr__(self, "mel", Mel.of(self.mel))
        self.mel.must_hear(self.sample_rate)
        bounds.within("steps", self.steps, (1, 1000))


class GriffinLim(OfMels):
    """A vocoder of counts."""

    Config = GriffinLimConfig
    presets: ClassVar[Mapping[str, GriffinLimConfig]] = {
        "tiny": GriffinLimConfig(mel=PRESETS["tiny"], steps=4),
        "small": GriffinLimConfig(),
        "base": GriffinLimConfig(mel=PRESETS["22khz"], sample_rate=22050),
    }
    counts: ClassVar[bool] = True
    config: GriffinLimConfig
    frames: Tensor
    sum_K: Tensor
    usual_K: Tensor

    def __init__(self, config: GriffinLimConfig) -> None:
        super().__init__()
        self.config = config
        bins = config.mel.n_fft // 2 + 1
        self.register_buffer("frames", torch.zeros((), dtype=torch.float64))
        self.register_buffer("sum_K", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("usual_K", torch.ones(bins, dtype=torch.float64))

    @property
    def sums(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the sums of the one pass."""
        return (("frames", "sum_K"),)

    @torch.no_grad()
    def absorb(self, batch: Batch, number: int = 0) -> None:  # noqa: ARG002 - one pass
        """Add the magnitudes of the rows' frames."""
        self.sum_K += self._magnitudes(batch).double().sum((0, 2))
        self.frames += self.config.mel.frames_of(batch["length"]).sum()

    @torch.no_grad()
    def settle(self, number: int = 0) -> None:  # noqa: ARG002 - one pass
        """Turn the sums into means.

        Raises:
            ValueError: there was no sound.
        """
        if not bool(self.sum_K.any()):
            raise ValueError("the sounds are silent: nothing can be learned from them")
        self.usual_K.copy_((self.sum_K / self.frames).clamp(min=1e-6))

    @torch.no_grad()
    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the error of magnitudes that come from mels, as a share of the real ones, whose sum it counts for."""
        real_BKF = self._magnitudes(batch)
        made_BKF = self.config.mel.magnitudes(self.given_of(batch)["mel"], self.usual_K)
        whole = real_BKF.double().sum()
        error = (made_BKF - real_BKF).abs().double().sum() / whole.clamp(min=1e-9)
        return Losses(error.float(), whole)

    def _magnitudes(self, batch: Batch) -> Tensor:
        """Return real ones (B, K, F), 0 after a sound's last frame."""
        mel, real_BKF = self.config.mel, self.config.mel.stft(batch["sound"]).abs()
        frame_F = torch.arange(real_BKF.shape[2], device=real_BKF.device)
        return real_BKF * (frame_F < mel.frames_of(batch["length"])[:, None])[:, None]

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Return sound (B, T) in [-1, 1] of the request's mels; after a row's last frame it is silent.

        Raises:
            ValueError: no mels, or others.
        """
        self.check(request)
        config, mel_BMF = self.config, request.given["mel"].to(self.usual_K.device).float()
        sound_BT = config.mel.griffin_lim(mel_BMF, config.steps, self.usual_K)
        return config.mel.silenced(sound_BT, mel_BMF)
