"""An acoustic model after Matcha-TTS (Mehta et al. 2024, arXiv:2309.03199): phonemes to a mel spectrogram.

An encoder gives each phoneme a mean mel frame, and monotonic alignment search (Kim et al. 2020, arXiv:2005.11129) finds
the frames that each phoneme has; a predictor learns how many. Pitch and energy are predicted a phoneme, too, and real
ones are shown in training (FastSpeech 2, Ren et al. 2021, arXiv:2006.04558). A flow, matched along straight lines,
draws what the means leave over.

Shape letters: B rows, T samples, S phonemes, F frames, M mels, W width, N speakers. Mels have deviation 1 inside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion import flow, objectives, samplers
from models.family import Batch, Capabilities, Family, Losses, Rows
from models.parts import bounds, pitch
from models.parts.mel import PRESETS, Mel
from models.parts.noise import normals
from models.parts.rows import drawn, join, to_end
from models.ports import Port
from models.request import RANGES, Request, SpeechOptions
from models.text_to_speech.acoustic import (
    TOKENS,
    Decoder,
    Durations,
    Encoder,
    Predictor,
    mels_of,
    noise,
    path_of,
)
from models.text_to_speech.alignment import nearest_path, uniform_path
from models.text_to_speech.front_end import SYMBOLS, Spoken

BOUNDS: Final[Mapping[str, bounds.Range]] = {
    **dict.fromkeys(("width", "heads", "layers"), (1, 4096)),
    "dilations": (1, 1024),
    "dropout": bounds.SHARE,
    "spread": (0.01, 10),
    "temperature": (0, 2),
    "steps": (1, 100),
    **RANGES,
}
USUAL_HZ: Final = 150.0  # of a voice
USUAL_ENERGY: Final = (-3.5, 1.0)  # mean and deviation, log of a share of full scale
USUAL_MEL: Final = (-6.0, 2.0)  # mean and deviation before any was seen


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchaOptions(SpeechOptions):
    """How it speaks, and how finely it is drawn."""

    steps: int | None = None  # of the flow
    pitch: float | None = None  # semitones above its own


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchaConfig(Spoken):
    """What is learned, how it is drawn, and the sizes of the network."""

    sample_rate: int = 8000  # Hz
    mel: Mel = PRESETS["8khz"]
    steps: int = 8
    temperature: float = 0.2  # of the noise that a flow begins with, as a deviation
    spread: float = 0.6  # deviation of mels around the encoder's means
    alignment: Literal["learned", "uniform"] = "learned"  # uniform is the broken control

    width: int = 96
    layers: int = 2  # of the encoder
    heads: int = 2
    dilations: tuple[int, ...] = (1, 2, 4, 1, 2, 4)  # of the decoder's layers, in frames
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        object.__setattr__(self, "mel", Mel.of(self.mel))
        self.mel.must_hear(self.sample_rate)
        self.check_spoken()
        bounds.check(self, {name: BOUNDS[name] for name in BOUNDS.keys() - RANGES.keys()})
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be divisible by heads, got {self.heads}")


class Heard(NamedTuple):
    """What of a phoneme is heard beside its mel: all of (B, S)."""

    pitch: Tensor  # octaves above USUAL_HZ, 0 where it has no voice
    voiced: Tensor  # the share of its frames that have one
    energy: Tensor  # deviations above the usual


class Matcha(Family):
    """Mel spectrograms of texts, by a speaker."""

    Config = MatchaConfig
    Options = MatchaOptions
    presets: ClassVar[Mapping[str, MatchaConfig]] = {
        "tiny": MatchaConfig(
            mel=PRESETS["tiny"], width=16, layers=1, dilations=(1, 2), steps=2, dropout=0.0
        ),
        "base": MatchaConfig(),
        "large": MatchaConfig(
            sample_rate=22050, mel=PRESETS["22khz"], width=256, layers=6, dilations=(1, 2, 4, 8) * 4
        ),
    }
    measures: ClassVar[tuple[str, ...]] = ("mel_l1", "duration_error", "length_error")
    adapts: ClassVar[tuple[str, ...]] = (
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.out",
    )
    config: MatchaConfig

    def __init__(self, config: MatchaConfig) -> None:
        super().__init__()
        self.config = config
        c, width, mels = config, config.width, config.mel.mels
        sizes = (width, c.heads, c.layers, c.dropout)
        self.encoder = Encoder(len(SYMBOLS), max(1, len(c.speakers)), *sizes)
        self.mean = nn.Linear(width, mels)
        self.durations = Durations(width, c.dropout)
        self.variances = Predictor(width, 3, c.dropout)
        self.heard = nn.Linear(3, width)
        self.decoder = Decoder(mels, width, c.dilations, c.spread)
        self.seen: (
            Tensor  # frames, and the sums of their mels and of the squares of these (2 M + 1,)
        )
        mean, spread = USUAL_MEL
        usual = torch.tensor([mean] * mels + [mean**2 + spread**2] * mels + [1.0])
        self.register_buffer("seen", usual.double())

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(modality="audio", condition="text", stepwise=True)

    @property
    def outputs(self) -> Mapping[str, Port]:
        """Return what it gives: mels of its settings."""
        return {"mel": self.config.mel.port}

    def follow(self, seen: Mapping[str, Tensor], taken: Tensor) -> None:  # noqa: ARG002 - 0 then
        """Add what was seen to the sums that mels are scaled by."""
        self.seen += seen["mels"].double().sum(0)

    def _scale(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the deviation of all mels seen, (M, 1) each."""
        mels = self.config.mel.mels
        mean_M, square_M = self.seen[:mels] / self.seen[-1], self.seen[mels:-1] / self.seen[-1]
        spread_M = (square_M - mean_M.square()).clamp(min=1e-4).sqrt()
        return mean_M.float()[:, None], spread_M.float()[:, None]

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the sum of all losses a frame: of the means, of the flow, and of what is predicted a phoneme.

        Each is a sum over what is inside its row, and they share one count.
        """
        tokens_BS = self._tokens(batch)
        log_mel_BMF, frames_B, inside_B1F = mels_of(self.config.mel, batch)
        fits_B = frames_B >= (tokens_BS > 0).sum(1)  # else no path has a frame a phoneme
        frames_B, inside_B1F = frames_B * fits_B, inside_B1F * fits_B[:, None, None]
        mean_M1, spread_M1 = self._scale()
        mel_BMF = (log_mel_BMF - mean_M1) / spread_M1
        x_BSW = self.encoder(tokens_BS, batch["speaker"])
        mean_BSM = self.mean(x_BSW).float()
        path_BSF = self._aligned(mean_BSM, mel_BMF, tokens_BS, frames_B)
        heard = self._heard(batch["sound"], path_BSF)
        mean_BMF, said_BCF = self._said(x_BSW, mean_BSM, heard, path_BSF)
        count = frames_B.sum().clamp(min=1)
        size = mel_BMF.shape[1] * count
        parts = {
            "mean": ((mel_BMF - mean_BMF).square() * inside_B1F).sum() / size,
            "flow": self._flow(mel_BMF - mean_BMF.detach(), said_BCF, inside_B1F) / size,
            **self._predicted(x_BSW, tokens_BS, path_BSF, heard, count),
        }
        kept_BMF = log_mel_BMF * inside_B1F
        sums = (kept_BMF.sum(2), kept_BMF.square().sum(2), frames_B[:, None].float())
        total = torch.stack([*parts.values()]).sum()
        return Losses(total, frames_B.sum(), parts, {"mels": torch.cat(sums, 1)})

    def _flow(self, left_BMF: Tensor, said_BCF: Tensor, inside_B1F: Tensor) -> Tensor:
        """Return the summed squared error of the flow's velocity at random times."""
        times_B3 = flow.training_times(len(left_BMF), 0.0, left_BMF.device)
        alpha, sigma = times_B3[:, 1, None, None], times_B3[:, 2, None, None]
        eps = noise(left_BMF)
        x_BMF = (alpha * left_BMF + sigma * eps) * inside_B1F
        velocity = self.decoder(x_BMF, times_B3, said_BCF, inside_B1F)
        loss: Tensor = ((velocity - (eps - left_BMF)).square() * inside_B1F).sum()
        return loss

    def _predicted(
        self, x_BSW: Tensor, tokens_BS: Tensor, path_BSF: Tensor, heard: Heard, count: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of durations, pitch, voicing and energy, each a frame."""
        inside_BS = tokens_BS > 0
        pitch_BS, voiced_BS, energy_BS = self.variances(x_BSW, inside_BS).unbind(2)
        told = {
            "duration": self.durations.errors(x_BSW, path_BSF, inside_BS),
            "pitch": (pitch_BS - heard.pitch).square() * (heard.voiced > 0),
            "voicing": F.binary_cross_entropy_with_logits(
                voiced_BS, heard.voiced, reduction="none"
            ),
            "energy": (energy_BS - heard.energy).square(),
        }
        inside_BS = inside_BS & (path_BSF.sum(2) > 0)
        return {name: TOKENS * (one * inside_BS).sum() / count for name, one in told.items()}

    def _tokens(self, batch: Batch) -> Tensor:
        tokens_BS = self.tokens_of(batch)
        assert tokens_BS is not None
        return tokens_BS

    @torch.no_grad()
    def _aligned(
        self, mean_BSM: Tensor, mel_BMF: Tensor, tokens_BS: Tensor, frames_B: Tensor
    ) -> Tensor:
        """Return which phoneme each frame is of (B, S, F): the likeliest path, under Gaussians around the means."""
        count_B = (tokens_BS > 0).sum(1)
        if self.config.alignment == "uniform":
            return uniform_path(count_B, frames_B, (tokens_BS.shape[1], mel_BMF.shape[2]))
        return nearest_path(mean_BSM, mel_BMF, count_B, frames_B)

    @torch.no_grad()
    def _heard(self, sound_BT: Tensor, path_BSF: Tensor) -> Heard:
        """Return pitch, voicing and energy of every phoneme, over the frames that it has."""
        mel, frames = self.config.mel, path_BSF.shape[2]
        hertz_BF = pitch.f0(sound_BT, mel.sample_rate, mel.hop, frames)
        energy_BF = pitch.energy(sound_BT, mel.window, mel.hop, frames)
        energy_BF = (energy_BF - USUAL_ENERGY[0]) / USUAL_ENERGY[1]
        voiced_BF = (hertz_BF > 0).float()
        octave_BF = (hertz_BF.clamp(min=1) / USUAL_HZ).log2() * voiced_BF
        with torch.autocast(path_BSF.device.type, enabled=False):
            summed_BS3 = path_BSF @ torch.stack([octave_BF, voiced_BF, energy_BF], 2)
        octave_BS, voiced_BS, energy_BS = summed_BS3.unbind(2)
        count_BS = path_BSF.sum(2).clamp(min=1)
        return Heard(octave_BS / voiced_BS.clamp(min=1), voiced_BS / count_BS, energy_BS / count_BS)

    def _said(
        self, x_BSW: Tensor, mean_BSM: Tensor, heard: Heard, path_BSF: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean (B, M, F) and what the decoder sees (B, M + W, F) of every frame."""
        told_BSW = x_BSW + self.heard(torch.stack(heard, 2).to(x_BSW.dtype))
        mean_BMF = mean_BSM.mT @ path_BSF
        said_BWF = told_BSW.mT.float() @ path_BSF
        return mean_BMF, torch.cat([mean_BMF.detach(), said_BWF], 1)

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return what drawn mels and durations differ by from real ones (N,).

        `mel_l1` is the mean absolute difference of natural log mels, drawn with the real durations, pitch and energy of
        the phonemes, as aligned. `duration_error` is the mean absolute difference of a predicted and an aligned
        duration in seconds a phoneme; `length_error` that of the whole row, as a share of it.
        """
        tokens_BS = self._tokens(batch)
        log_mel_BMF, frames_B, inside_B1F = mels_of(self.config.mel, batch)
        mean_M1, spread_M1 = self._scale()
        x_BSW = self.encoder(tokens_BS, batch["speaker"])
        mean_BSM = self.mean(x_BSW)
        given = (mean_BSM, (log_mel_BMF - mean_M1) / spread_M1, tokens_BS, frames_B)
        path_BSF = self._aligned(*given)
        heard = self._heard(batch["sound"], path_BSF)
        steps = self.config.steps
        rows = self._rows(range(len(x_BSW)), frames_B, x_BSW, mean_BSM, heard, path_BSF, steps)
        made_BMF = to_end(self, rows)
        frames = made_BMF.shape[2]  # of the longest row
        off_BMF = (made_BMF - log_mel_BMF[..., :frames]).abs() * inside_B1F[..., :frames]
        real_BS, inside_BS = path_BSF.sum(2), tokens_BS > 0
        ours_BS = self.durations.frames(x_BSW, inside_BS, 1.0)
        off_B = ((ours_BS - real_BS).abs() * inside_BS).sum(1) / inside_BS.sum(1)
        return {
            "mel_l1": off_BMF.sum((1, 2)) / (frames_B * off_BMF.shape[1]),
            "duration_error": off_B * self.config.mel.hop / self.config.sample_rate,
            "length_error": (ours_BS.sum(1) - frames_B).abs() / frames_B,
        }

    def steps_of(self, request: Request) -> int:
        """Return the steps of the flow."""
        steps: int = request.options.get("steps", self.config.steps)
        return steps

    def sample(self, request: Request) -> Tensor:
        """Return log mels (B, M, F), silent after each row's end; a seed gives its row alone or in a batch."""
        return drawn(self, request)

    @torch.no_grad()
    def begin(self, request: Request) -> Rows:
        """Return rows of noise around the means, of as many frames as their texts are to have.

        Raises:
            ValueError: a text, voice, speed or pitch that it cannot speak; see `check`.
        """
        self.check(request)
        asked = request.options
        for name in {"steps", *RANGES} & asked.keys():
            bounds.within(name, asked[name], BOUNDS[name])
        device = self.seen.device
        rows = []
        for seed, text in zip(request.seeds, request.prompts, strict=True):  # each row alone
            tokens_1S = self.encode([text])
            assert tokens_1S is not None
            rows.append(self._begun(seed, tokens_1S.to(device), asked))
        return join(rows)

    def _begun(self, seed: int, tokens_1S: Tensor, asked: Mapping[str, Any]) -> Rows:
        inside_1S = tokens_1S > 0
        speaker_1 = self.config.encode_voices([asked.get("voice", "")]).to(tokens_1S.device)
        x_1SW = self.encoder(tokens_1S, speaker_1)
        frame_s = self.config.mel.hop / self.config.sample_rate
        frames_1S = self.durations.frames(x_1SW, inside_1S, asked.get("speed", 1.0))
        path_1SF = path_of(frames_1S, frame_s)
        pitch_1S, voiced_1S, energy_1S = self.variances(x_1SW, inside_1S).unbind(2)
        octaves = asked.get("pitch", 0.0) / 12
        voiced_1S = voiced_1S.sigmoid()
        heard = Heard((pitch_1S + octaves) * (voiced_1S > 0.5), voiced_1S, energy_1S)
        steps = asked.get("steps", self.config.steps)
        frames_1 = torch.tensor([path_1SF.shape[2]])
        return self._rows([seed], frames_1, x_1SW, self.mean(x_1SW), heard, path_1SF, steps)

    def _rows(
        self,
        seeds: Sequence[int],
        frames_B: Tensor,
        x_BSW: Tensor,
        mean_BSM: Tensor,
        heard: Heard,
        path_BSF: Tensor,
        steps: int,
    ) -> Rows:
        """Return rows before their first step; frames are along dimension 1, so that rows of any length join."""
        c, count, device = self.config, len(x_BSW), x_BSW.device
        _, said_BCF = self._said(x_BSW, mean_BSM, heard, path_BSF)
        noise_BFM = normals(seeds, (path_BSF.shape[2], c.mel.mels), device)
        table_S7 = flow.table("euler", flow.sampling_times(steps))
        return {
            "x": c.temperature * noise_BFM,
            "said": said_BCF.mT,
            "frames": frames_B.cpu(),
            "table": table_S7.expand(count, -1, -1),
            "index": torch.zeros(count, dtype=torch.long),
            "count": torch.full((count,), steps),
        }

    def done(self, rows: Rows) -> Tensor:
        """Return (B,) bool: the rows that have taken all their steps."""
        return rows["index"] >= rows["count"]

    @torch.no_grad()
    def step(self, rows: Rows) -> Rows:
        """Return the rows one Euler step further, each by its own table; finished rows stay as they are."""
        x_BMF, live_B, device = rows["x"].mT, ~self.done(rows), rows["x"].device
        index_B = rows["index"].clamp(max=rows["table"].shape[1] - 1)
        step_B7 = rows["table"][torch.arange(len(index_B)), index_B].to(device)
        inside_B1F = self._inside(rows)
        times_B3 = step_B7[:, :3]
        velocity = self.decoder(x_BMF * inside_B1F, times_B3, rows["said"].mT, inside_B1F)
        x0_BMF = objectives.clean("flow", velocity, x_BMF, x_BMF, times_B3[:, 2, None, None])
        moved_BMF = samplers.advance(step_B7[:, 3:], x_BMF, x0_BMF, None, None)
        moved_BMF = torch.where(live_B.to(device)[:, None, None], moved_BMF, x_BMF)
        return {**rows, "x": moved_BMF.mT, "index": rows["index"] + live_B}

    def preview(self, rows: Rows) -> Tensor:
        """Return the mels as far as the flow has come."""
        return self.finish(rows)

    def finish(self, rows: Rows) -> Tensor:
        """Return log mels (B, M, F), and silence after each row's end."""
        mel, inside_B1F = self.config.mel, self._inside(rows)
        mean_M1, spread_M1 = self._scale()
        inner_BMF = rows["x"].mT + rows["said"].mT[:, : mel.mels]
        found_BMF = (inner_BMF * spread_M1 + mean_M1).clamp(min=mel.floor)
        found_BMF = torch.where(inside_B1F > 0, found_BMF, mel.floor)
        return found_BMF[..., : int(rows["frames"].max())]

    def _inside(self, rows: Rows) -> Tensor:
        """Return which frames are inside their rows (B, 1, F)."""
        inside_BF = torch.arange(rows["x"].shape[1]) < rows["frames"][:, None]
        return inside_BF[:, None].float().to(rows["x"].device)
