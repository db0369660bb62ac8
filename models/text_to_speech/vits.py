"""VITS (Kim, Kong and Son 2021, arXiv:2106.06103): one network from phonemes to sound.

A posterior encoder turns a sound's mels into latent frames, and a generator makes sound of them again, in HiFi-GAN's
game against critics. A flow turns the latents into what an encoder of phonemes says of them: a Gaussian a phoneme. To
speak is to draw from the Gaussians, as many frames as a predictor gives each phoneme, and to go back through the flow.

The paper's posterior sees linear spectra, and monotonic alignment search is by latents. Here they are mels, and the
search is by each phoneme's mean mels, as Matcha's: latents move while they are learned, and two draws of the same
recording's were aligned differently. Durations are drawn by a flow as there, or are their means. `by_text` brings the
two ways together, as NaturalSpeech (Tan et al. 2022, arXiv:2205.04421) does: some sounds of the game are made of what
their text tells.

Shape letters: B rows, T samples, S phonemes, F frames, M mels, Z numbers of a latent frame, W width, K frequencies.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds
from models.parts.mel import PRESETS
from models.parts.noise import normals
from models.request import RANGES, Request, SpeechOptions
from models.text_to_speech.acoustic import TOKENS, Durations, Encoder, mels_of, noise, path_of
from models.text_to_speech.alignment import nearest_path, uniform_path
from models.text_to_speech.critics import Critics, inside, weighed
from models.text_to_speech.drawn_durations import DrawnDurations
from models.text_to_speech.front_end import SYMBOLS, Spoken
from models.text_to_speech.latents import Flow, Generator, Posterior
from models.text_to_speech.vocoder import VocoderConfig, cut, cut_sound, played, starts

BOUNDS: Final[Mapping[str, bounds.Range]] = {
    **dict.fromkeys(("latent", "width", "heads", "layers"), (1, 4096)),
    **dict.fromkeys(("couplings", "generator_width", "generator_layers"), (1, 4096)),
    **dict.fromkeys(("posterior_dilations", "flow_dilations"), (1, 1024)),
    "dropout": bounds.SHARE,
    "temperature": (0, 2),
    "kl_weight": bounds.WEIGHT,
    "by_text": (0, 1),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class VITSConfig(VocoderConfig, Spoken):
    """What is learned, how it is drawn, and the sizes of the network."""

    kl_weight: float = 1.0
    by_text: float = 0.5  # share of a step's rows whose sound is made of what their text tells
    temperature: float = 0.667  # of the prior's noise, as a share of its deviation
    durations: Literal["mean", "drawn"] = "mean"
    alignment: Literal["learned", "uniform"] = "learned"  # uniform is the broken control

    latent: int = 32
    width: int = 96  # of the encoders and the flow
    layers: int = 2  # of the phonemes' encoder
    heads: int = 2
    dropout: float = 0.1
    posterior_dilations: tuple[int, ...] = (1, 2, 4)
    couplings: int = 4
    flow_dilations: tuple[int, ...] = (1, 2)  # of each coupling
    generator_width: int = 128
    generator_layers: int = 5

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        VocoderConfig.__post_init__(self)
        self.check_spoken()
        bounds.check(self, BOUNDS)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be divisible by heads, got {self.heads}")
        if self.latent % 2:
            raise ValueError(f"latent must be even, for a flow that halves it, got {self.latent}")


def usual(mel_BMF: Tensor) -> Tensor:
    """Return log mels of a deviation of about 1."""
    return (mel_BMF + 6) / 2


class Seen(NamedTuple):
    """What a posterior makes of rows."""

    log_mel: Tensor  # (B, M, F)
    frames: Tensor  # of each row (B,)
    inside: Tensor  # which they are, (B, 1, F)
    voice: Tensor  # who speaks, (B, W)
    mean: Tensor  # of the latents, (B, Z, F)
    log_scale: Tensor  # the logarithm of their deviation, (B, Z, F)


class VITS(Family):
    """Sounds of texts, by a speaker."""

    Config = VITSConfig
    Options = SpeechOptions
    presets: ClassVar[Mapping[str, VITSConfig]] = {
        "tiny": VITSConfig(
            mel=PRESETS["tiny"],
            segment=8,
            periods=(2, 3),
            scales=1,
            critic_widths=(4, 8),
            latent=8,
            width=16,
            layers=1,
            dropout=0.0,
            posterior_dilations=(1,),
            couplings=2,
            flow_dilations=(1,),
            generator_width=16,
            generator_layers=2,
        ),
        "base": VITSConfig(),
        "large": VITSConfig(
            mel=PRESETS["22khz"],
            sample_rate=22050,
            periods=(2, 3, 5, 7, 11),
            scales=3,
            critic_widths=(32, 128, 512, 1024),
            latent=192,
            width=192,
            layers=6,
            posterior_dilations=(1, 2, 4, 8) * 4,
            flow_dilations=(1, 2, 4, 8),
            generator_width=512,
            generator_layers=8,
        ),
    }
    players: ClassVar[tuple[str, ...]] = ("critic", "generator")
    measures: ClassVar[tuple[str, ...]] = ("mel_l1", "mel_error", "duration_error", "length_error")
    config: VITSConfig

    def __init__(self, config: VITSConfig) -> None:
        super().__init__()
        self.config = c = config
        voices = max(1, len(c.speakers))
        self.encoder = Encoder(len(SYMBOLS), voices, c.width, c.heads, c.layers, c.dropout)
        self.prior = nn.Linear(c.width, 2 * c.latent)
        self.mean = nn.Linear(c.width, c.mel.mels)  # of a phoneme, by which frames are aligned
        self.durations = (
            DrawnDurations(c.width, c.dropout)
            if c.durations == "drawn"
            else Durations(c.width, c.dropout)
        )
        self.voices = nn.Embedding(voices, c.width)
        self.posterior = Posterior(c.mel.mels, c.latent, c.width, c.posterior_dilations)
        self.flow = Flow(c.latent, c.width, c.flow_dilations, c.couplings)
        sizes = c.latent, c.width, c.generator_width, c.generator_layers
        self.generator = Generator(c.mel, *sizes)
        asked = (c.periods, c.scales) if c.adversary else ((), 0)
        self.critics = Critics(*asked, c.critic_widths)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(modality="audio", condition="text")

    def player_parameters(self, player: str) -> list[nn.Parameter]:
        """Return the parameters of "critic", all of them together, or of "generator": all others."""
        theirs = list(self.critics.parameters())
        if player == "critic":
            return theirs
        known = set(map(id, theirs))
        return [one for one in self.parameters() if id(one) not in known]

    def turns(self, player: str) -> int:
        """Return the optimiser steps of a player at each step: none of critics that there are not."""
        return 1 if player == "generator" or self.config.adversary else 0

    def forward(self, batch: Batch, player: str = "generator") -> Losses:
        """Return a player's loss, a mean over rows, each weighed by its frames.

        The game is played on a random segment of every row; all else is a mean over a row's frames.
        """
        tokens_BS = self._tokens(batch)
        if player == "critic":
            with torch.no_grad():  # the generator does not learn to please here
                segment, _ = self._made(batch, tokens_BS)
            loss_B, told = self.critics.told_apart(*segment)
        else:
            segment, said = self._made(batch, tokens_BS)
            loss_B, told = played(self.config, self.critics, *segment)
            loss_B = loss_B + self.config.kl_weight * said["kl"] + said["duration"] + said["mean"]
            told = {**told, **said}
        frames_B = self.config.mel.frames_of(batch["length"])
        fits_B = frames_B >= (tokens_BS > 0).sum(1)  # else no path has a frame a phoneme
        weight_B = frames_B * fits_B
        parts = {name: weighed(value_B.detach(), weight_B) for name, value_B in told.items()}
        return Losses(weighed(loss_B, weight_B), weight_B.sum(), parts)

    def _made(
        self, batch: Batch, tokens_BS: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor]]:
        """Return the segments that both players see, some made of what texts tell, and what texts tell wrongly (B,)."""
        seen = self._seen(batch)
        said, mean_BZF = self._said(tokens_BS, batch["speaker"], seen)
        return self._segments(batch, self._some_by_text(seen, mean_BZF)), said

    def _tokens(self, batch: Batch) -> Tensor:
        tokens_BS = self.tokens_of(batch)
        assert tokens_BS is not None
        return tokens_BS

    def _seen(self, batch: Batch) -> Seen:
        log_mel_BMF, frames_B, inside_B1F = mels_of(self.config.mel, batch)
        voice_BW = self.voices(batch["speaker"])
        found = self.posterior(log_mel_BMF, voice_BW, inside_B1F)
        return Seen(log_mel_BMF, frames_B, inside_B1F, voice_BW, *found)

    def _some_by_text(self, seen: Seen, mean_BZF: Tensor) -> Seen:
        """Return a `by_text` share of rows with the latents that their text has, in place of their sound's."""
        if not self.config.by_text:
            return seen
        said_BZF = self.flow.back(mean_BZF, seen.voice, seen.inside)
        by_text_B11 = torch.rand(len(said_BZF), 1, 1, device=said_BZF.device) < self.config.by_text
        mean_BZF = torch.where(by_text_B11, said_BZF, seen.mean)
        log_scale_BZF = seen.log_scale.masked_fill(by_text_B11, -math.inf)  # nothing is drawn
        return seen._replace(mean=mean_BZF, log_scale=log_scale_BZF)

    def _segments(self, batch: Batch, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """Return real and made sound (B, T) of random segments, and how much of each there is (B,)."""
        size, hop = self.config.segment, self.config.mel.hop
        start_B = starts(seen.frames, size)
        z_BZF = seen.mean + seen.log_scale.exp() * noise(seen.mean)
        z_BZF = cut(F.pad(z_BZF * seen.inside, (0, size)), start_B, size)
        inside_B1F = cut(F.pad(seen.inside, (0, size)), start_B, size)
        made_BT = self.config.mel.inverse_stft(self.generator(z_BZF, seen.voice, inside_B1F))
        real_BT = cut_sound(batch["sound"], start_B, size, hop)
        share_B = seen.frames.clamp(max=size) / size
        return real_BT, made_BT * inside(share_B, size * hop), share_B

    def _said(
        self, tokens_BS: Tensor, speaker_B: Tensor, seen: Seen
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return what a row's text tells wrongly (B,), a frame, and the means (B, Z, F) that it tells.

        Wrong may be its latents (the divergence) and its durations.
        """
        x_BSW = self.encoder(tokens_BS, speaker_B)
        mean_BSZ, log_scale_BSZ = self._prior(x_BSW)
        z_BZF = seen.mean + seen.log_scale.exp() * noise(seen.mean)
        z_BZF = self.flow(z_BZF, seen.voice, seen.inside)
        mean_BSM = self.mean(x_BSW).float()
        path_BSF = self._aligned(mean_BSM, seen, tokens_BS)
        apart_BMF = (mean_BSM.mT @ path_BSF - usual(seen.log_mel)).square() * seen.inside
        mean_BZF, log_scale_BZF = mean_BSZ.mT @ path_BSF, log_scale_BSZ.mT @ path_BSF
        off_BZF = (z_BZF - mean_BZF).square() * (-2 * log_scale_BZF).exp() / 2
        kl_BZF = (off_BZF + log_scale_BZF - seen.log_scale - 0.5) * seen.inside
        inside_BS = (tokens_BS > 0) & (path_BSF.sum(2) > 0)
        error_BS = self.durations.errors(x_BSW, path_BSF, tokens_BS > 0) * inside_BS
        frames_B = seen.frames.clamp(min=1)
        wrong = {
            "kl": kl_BZF.sum((1, 2)) / frames_B,
            "duration": TOKENS * error_BS.sum(1) / frames_B,
            "mean": apart_BMF.mean(1).sum(1) / frames_B,
        }
        return wrong, mean_BZF

    def _prior(self, x_BSW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the logarithm of the deviation of every phoneme's latents, (B, S, Z) each."""
        mean_BSZ, log_scale_BSZ = self.prior(x_BSW).float().chunk(2, 2)
        return mean_BSZ, log_scale_BSZ

    @torch.no_grad()
    def _aligned(self, mean_BSM: Tensor, seen: Seen, tokens_BS: Tensor) -> Tensor:
        """Return which phoneme each frame is of (B, S, F): the likeliest path, under Gaussians around mean mels."""
        count_B, mel_BMF = (tokens_BS > 0).sum(1), usual(seen.log_mel)
        if self.config.alignment == "uniform":
            return uniform_path(count_B, seen.frames, (tokens_BS.shape[1], mel_BMF.shape[2]))
        return nearest_path(mean_BSM, mel_BMF, count_B, seen.frames)

    def _drawn(self, seeds: Sequence[int], x_BSW: Tensor, path_BSF: Tensor) -> Tensor:
        """Return latents (B, Z, F) of the prior's space, each row from its own seed."""
        mean_BZF, log_scale_BZF = (told_BSZ.mT @ path_BSF for told_BSZ in self._prior(x_BSW))
        shape = path_BSF.shape[2], self.config.latent
        noise_BZF = normals(seeds, shape, x_BSW.device).mT
        return mean_BZF + self.config.temperature * log_scale_BZF.exp() * noise_BZF

    def _sound(self, z_BZF: Tensor, voice_BW: Tensor, inside_B1F: Tensor) -> Tensor:
        """Return the sound (B, T) of a posterior's latents, silent after each row's end."""
        mel = self.config.mel
        spectrum_BKF = self.generator(z_BZF, voice_BW, inside_B1F)
        # silence behind, as where a longer row stands beside: so a row sounds alike alone
        sound_BT = mel.inverse_stft(F.pad(spectrum_BKF, (0, -(-mel.n_fft // mel.hop))))
        sound_BT = sound_BT[:, : z_BZF.shape[2] * mel.hop].clamp(-1, 1)
        return sound_BT * inside_B1F[:, 0].repeat_interleave(mel.hop, 1)

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Return sound (B, T) in [-1, 1] at `sample_rate`, silent after each row's end.

        Raises:
            ValueError: a text, voice or speed that it cannot speak; see `check`.
        """
        self.check(request)
        speed, device = request.options.get("speed", 1.0), self.prior.weight.device
        bounds.within("speed", speed, RANGES["speed"])
        frame_s = self.config.mel.hop / self.config.sample_rate
        speaker_1 = self.config.encode_voices([request.options.get("voice", "")]).to(device)
        rows = []
        for seed, text in zip(request.seeds, request.prompts, strict=True):  # each row alone
            tokens_1S = self.config.encode([text]).to(device)
            x_1SW = self.encoder(tokens_1S, speaker_1)
            frames_1S = self.durations.frames(x_1SW, tokens_1S > 0, speed, [seed])
            rows.append(self._drawn([seed], x_1SW, path_of(frames_1S, frame_s))[0].T)
        z_BZF = pad_sequence(rows, batch_first=True).mT
        frames_B = torch.tensor([len(row) for row in rows], device=device)
        inside_BF = torch.arange(z_BZF.shape[2], device=device) < frames_B[:, None]
        given = self.voices(speaker_1).expand(len(rows), -1), inside_BF[:, None].float()
        return self._sound(self.flow.back(z_BZF, *given), *given)

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return what made mels and durations differ by from real ones (N,).

        `mel_l1` is the mean absolute difference of natural log mels where a text is said with the phonemes' real
        durations, as aligned; `mel_error` where the sound itself went to latents and back. `duration_error` is the mean
        absolute difference of a predicted and an aligned duration in seconds a phoneme; `length_error` that of the
        whole row, as a share of it.
        """
        tokens_BS, seen = self._tokens(batch), self._seen(batch)
        x_BSW, inside_BS = self.encoder(tokens_BS, batch["speaker"]), tokens_BS > 0
        given = seen.voice, seen.inside
        path_BSF = self._aligned(self.mean(x_BSW), seen, tokens_BS)
        said_BZF = self.flow.back(self._drawn(range(len(x_BSW)), x_BSW, path_BSF), *given)
        ours_BS = self.durations.frames(x_BSW, inside_BS, 1.0, range(len(x_BSW)))
        real_BS = path_BSF.sum(2)
        off_B = ((ours_BS - real_BS).abs() * inside_BS).sum(1) / inside_BS.sum(1)
        return {
            "mel_l1": self._off(said_BZF, seen),
            "mel_error": self._off(seen.mean, seen),
            "duration_error": off_B * self.config.mel.hop / self.config.sample_rate,
            "length_error": (ours_BS.sum(1) - seen.frames).abs() / seen.frames,
        }

    def _off(self, z_BZF: Tensor, seen: Seen) -> Tensor:
        """Return the mean absolute error of the log mels (B,) of what is made of latents."""
        made_BMF = self.config.mel.log_mel(self._sound(z_BZF, seen.voice, seen.inside))
        off_BF = (made_BMF - seen.log_mel).abs().mean(1) * seen.inside[:, 0]
        return off_BF.sum(1) / seen.frames
