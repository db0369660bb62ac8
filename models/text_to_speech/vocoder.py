"""What vocoders share: mels in, sound out, and the game that a generator of sound plays against critics of it.

HiFi-GAN's game (Kong et al. 2020, arXiv:2010.05646, section 2.3): least squares between generator and critics (eq. 1,
2), the critics' features of real and made sound brought together (eq. 4), and the absolute error of the log-mel
spectrogram (eq. 3), on random segments (`critics.py`). Beside it there may be spectra at three resolutions (Yamamoto et
al. 2020, arXiv:1910.11480, eq. 4 to 6): frames that lie otherwise than the mels' are right only where phases fit.

A segment never begins so late that it would end after its sound, unless the sound is shorter: then both sounds are
silent where there is none, and every mean is over what there is, each row weighed by its frames.

Shape letters: B rows, T samples, M mels, F frames, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds
from models.parts.mel import PRESETS, Mel
from models.ports import Port
from models.request import Request
from models.text_to_speech.critics import Critics, inside, mean, weighed

LEAST_WINDOW: Final = 16  # a quarter's frames are a quarter of it apart
QUIET: Final = 1e-7  # power of a coefficient, added so that silence has a logarithm


@dataclass(frozen=True, kw_only=True, slots=True)
class VocoderConfig:
    """What is heard, and what the players play for."""

    mel: Mel = PRESETS["8khz"]
    sample_rate: int = 8000  # Hz; the mel's
    segment: int = 32  # frames of a training row
    mel_weight: float = 45.0
    spectra_weight: float = 0.0  # of spectra at three resolutions; 0: there are none
    feature_weight: float = 2.0
    adversary: float = 1.0  # weight of the critics; 0: there are none
    periods: tuple[int, ...] = (2, 3, 5)  # of a critic each, in samples
    scales: int = 2  # of a critic each, every one at half the rate of the one before
    critic_widths: tuple[int, ...] = (16, 32, 64, 64)  # channels

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        object.__setattr__(self, "mel", Mel.of(self.mel))
        self.mel.must_hear(self.sample_rate)
        bounds.check(self, dict.fromkeys(("segment", "periods", "critic_widths"), bounds.SIZE))
        bounds.within("scales", self.scales, (1, 8))
        weights = ("mel_weight", "spectra_weight", "feature_weight", "adversary")
        bounds.check(self, dict.fromkeys(weights, bounds.WEIGHT))
        samples, coarsest = self.segment * self.mel.hop, 2 ** (self.scales - 1)
        if self.adversary and samples < coarsest:
            raise ValueError(
                f"segment: its {samples} samples are none at the lowest of {self.scales} scales, which"
                f" takes {coarsest}: raise segment or lower scales"
            )
        if self.spectra_weight and self.mel.n_fft < LEAST_WINDOW:
            raise ValueError(
                f"spectra_weight: mel.n_fft must be at least {LEAST_WINDOW} for three resolutions, got"
                f" {self.mel.n_fft}"
            )


class OfMels(Family):
    """What makes sound of log mels, learned or not."""

    config: Any  # with `mel`

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(modality="audio")

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return the mels that it makes sound of."""
        return {"mel": self.config.mel.port}

    def given_of(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mels of real sounds."""
        return {"mel": self.config.mel.log_mel(batch["sound"], batch["length"])}


class Vocoder(OfMels):
    """A generator of sound from mels, and the critics that it learns from; a subclass brings the generator."""

    players: ClassVar[tuple[str, ...]] = ("critic", "generator")
    measures: ClassVar[tuple[str, ...]] = ("mel_error",)
    generator: nn.Module  # log mels (B, M, F) to sound (B, F hop) about [-1, 1]

    def __init__(self, config: VocoderConfig, generator: nn.Module) -> None:
        super().__init__()
        self.config, self.generator = config, generator
        c = config
        asked = (c.periods, c.scales) if c.adversary else ((), 0)
        self.critics = Critics(*asked, c.critic_widths)

    @property
    def context(self) -> int:
        """How many frames after it a frame's sound may depend on."""
        raise NotImplementedError

    def player_parameters(self, player: str) -> list[nn.Parameter]:
        """Return the parameters of "critic", all of them together, or "generator"."""
        return list((self.critics if player == "critic" else self.generator).parameters())

    def turns(self, player: str) -> int:
        """Return the optimiser steps of a player at each step: none of critics that there are not."""
        return 1 if player == "generator" or self.config.adversary else 0

    def forward(self, batch: Batch, player: str = "critic") -> Losses:
        """Return a player's loss on a random segment of every row, a mean over its frames."""
        mel_BMF, sound_BT, frames_B = self._segments(batch)
        inside_BT = inside(frames_B / self.config.segment, sound_BT.shape[1])
        if player == "critic":
            with torch.no_grad():  # the generator does not learn to please here
                made_BT = self._made(mel_BMF) * inside_BT
            return self._critic_losses(sound_BT, made_BT, frames_B)
        return self._generator_losses(sound_BT, self._made(mel_BMF) * inside_BT, frames_B)

    def _made(self, mel_BMF: Tensor) -> Tensor:
        sound_BT: Tensor = self.generator(mel_BMF)
        return sound_BT.float()

    def _segments(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return mels (B, M, F) and sound (B, T) of segments, and how many frames (B,) of each there are."""
        mel, size = self.config.mel, self.config.segment
        whole_B = mel.frames_of(batch["length"])
        start_B = starts(whole_B, size)
        beside = -(-mel.n_fft // mel.hop)  # frames whose sound is seen in another one
        first_B = start_B - beside
        wide_BT = cut_sound(batch["sound"], first_B, size + 2 * beside, mel.hop)
        wide_BMF = mel.log_mel(wide_BT, batch["length"] - first_B * mel.hop)
        mel_BMF = wide_BMF[:, :, beside:-beside]
        sound_BT = wide_BT[:, beside * mel.hop : -beside * mel.hop]
        return mel_BMF, sound_BT, whole_B.clamp(max=size)

    def _critic_losses(self, real_BT: Tensor, made_BT: Tensor, frames_B: Tensor) -> Losses:
        losses_B, on = self.critics.told_apart(real_BT, made_BT, frames_B / self.config.segment)
        scores = {name: weighed(value_B.detach(), frames_B) for name, value_B in on.items()}
        return Losses(weighed(losses_B, frames_B), frames_B.sum(), scores)

    def _generator_losses(self, real_BT: Tensor, made_BT: Tensor, frames_B: Tensor) -> Losses:
        share_B = frames_B / self.config.segment
        total_B, parts = played(self.config, self.critics, real_BT, made_BT, share_B)
        told = {name: weighed(value_B.detach(), frames_B) for name, value_B in parts.items()}
        return Losses(weighed(total_B, frames_B), frames_B.sum(), told)

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Return sound (B, T) in [-1, 1] of the request's mels; after a row's last frame it is silent.

        Raises:
            ValueError: no mels, or others.
        """
        self.check(request)
        config, device = self.config, next(self.parameters()).device
        mel_BMF = request.given["mel"].to(device).float()
        # silence behind, as where a longer row stands beside: so a row sounds alike alone
        sound_BT = self._made(config.mel.padded(mel_BMF, self.context))
        sound_BT = sound_BT[:, : mel_BMF.shape[2] * config.mel.hop].clamp(-1, 1)
        mel: Mel = config.mel
        return mel.silenced(sound_BT, mel_BMF)

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return `mel_error` (N,): the mean absolute error of log mels after real sound went there and back."""
        return {"mel_error": mel_error(self, self.config.mel, batch)}


def starts(whole_B: Tensor, size: int) -> Tensor:
    """Return where segments of so many frames begin (B,), by lot: within a row's frames, if it has as many."""
    last_B = (whole_B - size).clamp(min=0)
    return (torch.rand_like(last_B.float()) * (last_B + 1)).long().minimum(last_B)


def cut(rows_BCF: Tensor, start_B: Tensor, size: int) -> Tensor:
    """Return `size` frames of each row from a place on; rows have these."""
    place_BF = start_B[:, None] + torch.arange(size, device=start_B.device)
    return rows_BCF.gather(2, place_BF[:, None].expand(-1, rows_BCF.shape[1], -1))


def cut_sound(sound_BT: Tensor, start_B: Tensor, size: int, hop: int) -> Tensor:
    """Return the sound of `size` frames from a frame on, and silence before a row's first and after its last."""
    place_BT = start_B[:, None] * hop + torch.arange(size * hop, device=start_B.device)
    long_BT = F.pad(sound_BT, (1, 1))  # a sample of silence on both sides
    return long_BT.gather(1, place_BT.clamp(-1, sound_BT.shape[1]) + 1)


def played(
    config: VocoderConfig, critics: Critics, real_BT: Tensor, made_BT: Tensor, share_B: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what a generator pays (B,) for a sound in place of a real one, and its parts (B,)."""
    difference_BMF = config.mel.log_mel(made_BT) - config.mel.log_mel(real_BT)
    mel_B = mean(difference_BMF.abs(), share_B, dim=2)
    fooled_B, feature_B = critics.pleased(real_BT, made_BT, share_B)
    total_B = config.mel_weight * mel_B + config.adversary * (
        fooled_B + config.feature_weight * feature_B
    )
    parts = {"mel": mel_B, "fooled": fooled_B, "features": feature_B}
    if config.spectra_weight:
        parts["spectra"] = spectra_apart(config.mel.n_fft, real_BT, made_BT, share_B)
        total_B = total_B + config.spectra_weight * parts["spectra"]
    return total_B, parts


def spectra_apart(n_fft: int, real_BT: Tensor, made_BT: Tensor, share_B: Tensor) -> Tensor:
    """Return spectral convergence plus the mean error of log magnitudes (B,), over windows of all, half and a quarter.

    Frames are a quarter of their window apart, with silence around the sound.
    """
    apart_B, both_BT = torch.zeros_like(share_B), torch.cat([real_BT, made_BT])
    for size in (n_fft, n_fft // 2, n_fft // 4):
        window_N = torch.hann_window(size, device=both_BT.device)
        padded_BT = F.pad(both_BT, (size // 2, size // 2))
        both_BKF = torch.stft(
            padded_BT, size, size // 4, window=window_N, center=False, return_complex=True
        )
        power_BKF = both_BKF.real.square() + both_BKF.imag.square() + QUIET
        real_BKF, made_BKF = power_BKF.sqrt().chunk(2)
        off_B, loud_B = (made_BKF - real_BKF).norm(dim=(1, 2)), real_BKF.norm(dim=(1, 2))
        log_B = mean((made_BKF.log() - real_BKF.log()).abs(), share_B, dim=2)
        apart_B = apart_B + off_B / loud_B + log_B
    return apart_B / 3


def mel_error(model: Family, mel: Mel, batch: Batch) -> Tensor:
    """Return the mean absolute error of the log mels (B,) of what a vocoder makes of real sounds' mels."""
    length_B, count = batch["length"], len(batch["length"])
    real_BMF = mel.log_mel(batch["sound"], length_B)
    made_BT = model.sample(Request(seeds=tuple(range(count)), given={"mel": real_BMF}))
    made_BMF = mel.log_mel(made_BT[:, : real_BMF.shape[2] * mel.hop])
    share_B = mel.frames_of(length_B) / real_BMF.shape[2]
    return mean((made_BMF - real_BMF).abs(), share_B, dim=2)


def near_0(mel_BMF: Tensor) -> Tensor:
    """Return log mels as a network takes them: silence is -1.9, and nothing much above 1."""
    return mel_BMF / 4 + 1


def widths_of(first: int, stages: Sequence[int]) -> list[int]:
    """Return the channels before and after each stage, halved by every one."""
    return [first // 2**number for number in range(len(stages) + 1)]
