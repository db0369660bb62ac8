"""VITS of others, as Hugging Face's transformers has it (VitsModel): one network from signs to sound.

Kim et al. 2021, arXiv:2106.06103; Pratap et al. 2023, arXiv:2305.13516 (MMS, of 1,107 languages). The layers are
transformers' own, built from the checkpoint's config.json, and draw what a row's seed says (`noise.Seeded`): its sound
is transformers' own at the same noise. What autoencodes sound stays as it was learned, since the critics that it was
learned against are in no checkpoint. The text encoder, the flow and the durations learn: nats of a recording's latents.

Shape letters: B rows, T samples, S signs, F frames, C channels of the latent, H features of the text encoder.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds
from models.parts.noise import Seeded
from models.request import RANGES, Request, SpeechOptions
from models.text_to_speech.alignment import monotonic_path
from models.text_to_speech.signs import Signs
from models.text_to_speech.voices import Voiced

LEARNING: Final = ("network.text_encoder.", "network.flow.", "network.duration_predictor.")
LONGEST_S: Final = 60  # of one sample
LETTERS: Final = "abcdefghijklmnopqrstuvwxyz' "


def tiny() -> dict[str, Any]:
    """Return config.json of a VITS of two speakers that a CPU trains in a second."""
    return {
        **{"vocab_size": len(LETTERS) + 1, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"ffn_dim": 16, "flow_size": 8, "spectrogram_bins": 9, "num_speakers": 2, "speaker_embedding_size": 4},
        **{"upsample_initial_channel": 8, "upsample_rates": [2], "upsample_kernel_sizes": [4]},
        **{"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]], "depth_separable_num_layers": 1},
        **{"use_stochastic_duration_prediction": False, "duration_predictor_filter_channels": 16},
        **{"prior_encoder_num_flows": 2, "prior_encoder_num_wavenet_layers": 1, "wavenet_kernel_size": 3},
        **{"posterior_encoder_num_wavenet_layers": 1, "sampling_rate": 8000},
        **dict.fromkeys(OFF, 0.0),
    }  # fmt: skip


OFF: Final = (
    *("layerdrop", "hidden_dropout", "attention_dropout", "activation_dropout"),
    *("duration_predictor_dropout", "wavenet_dropout"),
)
"""Dropout, which fine-tuning here has none of."""


def letters() -> dict[str, Any]:
    """Return a reader of letters."""
    return {"vocabulary": {sign: place for place, sign in enumerate(("_", *LETTERS))}}


@dataclass(frozen=True, kw_only=True, slots=True)
class VitsCheckpointConfig(Voiced):
    """A checkpoint's own settings, and how it reads."""

    speakers: tuple[str, ...] = ("0", "1")  # by their numbers in the checkpoint
    network: Mapping[str, Any] = field(default_factory=tiny)  # config.json
    reader: Mapping[str, Any] = field(default_factory=letters)  # the fields of `Signs`
    sample_rate: int = 8000  # Hz

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        self.check_voices()
        bounds.within("sample_rate", self.sample_rate, bounds.SIZE)
        named, has = len(self.speakers), self.network.get("num_speakers", 1)
        if named != (has if has > 1 else 0):
            raise ValueError(f"speakers: the network has {has}, got {named} names")
        if (rate := self.network.get("sampling_rate", 16000)) != self.sample_rate:
            raise ValueError(
                f"sample_rate must be the network's, {rate} Hz, got {self.sample_rate}"
            )
        signs = Signs(**self.reader)
        last = max((*signs.vocabulary.values(), *signs.special.values(), signs.unknown or 0))
        if last >= (knows := self.network.get("vocab_size", 38)):
            raise ValueError(f"reader: it has a sign {last}, and the network knows {knows}")


class VitsCheckpoint(Family):
    """Sound of texts, by another's checkpoint."""

    Config = VitsCheckpointConfig
    Options = SpeechOptions
    presets: ClassVar[Mapping[str, VitsCheckpointConfig]] = {
        "tiny": VitsCheckpointConfig(),
        "base": VitsCheckpointConfig(),  # of a version that training starts from, which brings its own
    }
    brought: ClassVar[tuple[str, ...]] = ("speakers", "network", "reader", "sample_rate")
    adapts: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")
    config: VitsCheckpointConfig

    def __init__(self, config: VitsCheckpointConfig) -> None:
        from transformers import VitsConfig, VitsModel

        super().__init__()
        self.config, self._signs = config, Signs(**config.reader)
        self.network: Any = VitsModel(VitsConfig(**config.network))
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name.startswith(LEARNING)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what does not learn stays as it is in use."""
        super().train(mode=False)
        self.training = mode
        for name, part in self.named_modules():
            part.training = mode and f"{name}.".startswith(LEARNING)
        return self

    def player_parameters(self, player: str) -> list[nn.Parameter]:  # noqa: ARG002 - one player
        """Return what learns, or an adapter in it."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @property
    def capabilities(self) -> Capabilities:
        """Return what it can do."""
        return Capabilities(modality="audio", condition="text")

    @property
    def hop(self) -> int:
        """Return the samples of a frame."""
        return math.prod(self.network.config.upsample_rates)

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Return texts as tokens (B, S) int64: a sign's number and 1, and 0 behind the last of each.

        Raises:
            ValueError: a text has nothing to say, or signs that it cannot read.
        """
        rows = [1 + torch.tensor(self._signs.ids(text)) for text in captions]
        return pad_sequence(rows, batch_first=True)

    @property
    def readable(self) -> str:
        """Return a letter of its own."""
        letters = sorted(sign for sign in self._signs.vocabulary if sign.isalpha())
        return letters[0] if letters else "a"

    def unknown(self, text: str) -> list[str]:
        """Return the words of a text with signs that it cannot read."""
        return self._signs.unread(text)

    def hint(self, word: str) -> str:
        """Return which signs of a word it cannot read."""
        return self._signs.hint(word)

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return -log p of a recording's latents, in nats a frame and channel, and the loss of durations a frame."""
        tokens_BS = self.tokens_of(batch)
        assert tokens_BS is not None
        frames_B = -(-batch["length"] // self.hop)
        count_B = (tokens_BS > 0).sum(1)
        frames_B = frames_B * (frames_B >= count_B)  # else no path has a frame a sign
        voice_BE1 = self._voices(batch.get("speaker"), len(tokens_BS))
        hidden_BSH, mean_BSC, log_std_BSC = (one.float() for one in self._read(tokens_BS))
        inside_B1F = self._inside(batch["sound"], frames_B)
        with torch.no_grad():
            latent_BCF, *_ = self.network.posterior_encoder(
                self._spectra(batch["sound"]), inside_B1F, voice_BE1
            )
        z_BCF = self.network.flow(latent_BCF, inside_B1F, voice_BE1).float()
        path_BSF = self._aligned(mean_BSC, log_std_BSC, z_BCF, count_B, frames_B)
        mean_BCF, log_std_BCF = mean_BSC.mT @ path_BSF, log_std_BSC.mT @ path_BSF
        off_BCF = ((z_BCF - mean_BCF) * (-log_std_BCF).exp()).square() / 2
        count = frames_B.sum().clamp(min=1)
        nats = ((log_std_BCF + off_BCF) * inside_B1F).sum() / (count * z_BCF.shape[1])
        duration = self._durations(hidden_BSH, path_BSF, voice_BE1, frames_B > 0) / count
        parts = {"nats": nats, "duration": duration}
        return Losses(nats + duration, frames_B.sum(), parts)

    def _voices(self, speaker_B: Tensor | None, count: int) -> Tensor | None:
        if not self.config.speakers:
            return None
        if speaker_B is None:
            speaker_B = torch.zeros(count, dtype=torch.long, device=self.network.device)
        found: Tensor = self.network.embed_speaker(speaker_B)[..., None]
        return found

    def _read(self, tokens_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the text encoder makes of signs (B, S, H), and means and log deviations of latents (B, S, C)."""
        encoder, inside_BS = self.network.text_encoder, tokens_BS > 0
        inside_BS1 = inside_BS[..., None].float()
        ids_BS = (tokens_BS - 1).clamp(min=0)
        x_BSH = encoder.embed_tokens(ids_BS) * math.sqrt(encoder.config.hidden_size) * inside_BS1
        seen_B1SS = torch.where(inside_BS, 0.0, torch.finfo(torch.float32).min)[:, None, None]
        seen_B1SS = seen_B1SS.expand(-1, 1, inside_BS.shape[1], -1)
        for layer in encoder.encoder.layers:
            x_BSH = layer(x_BSH, padding_mask=inside_BS1, attention_mask=seen_B1SS)[0]
        x_BSH = x_BSH * inside_BS1
        mean_BSC, log_std_BSC = (encoder.project(x_BSH.mT).mT * inside_BS1).chunk(2, 2)
        return x_BSH, mean_BSC, log_std_BSC

    def _spectra(self, sound_BT: Tensor) -> Tensor:
        """Return magnitudes (B, K, F) of the frames, silence before the first sample and after the last."""
        size = 2 * (self.network.config.spectrogram_bins - 1)
        side, rest = (size - self.hop) // 2, -sound_BT.shape[1] % self.hop
        window_N = torch.hann_window(size, device=sound_BT.device)
        spectrum_BKF = torch.stft(
            F.pad(sound_BT.float(), (side, side + rest)), size, self.hop,
            window=window_N, center=False, return_complex=True,
        )  # fmt: skip
        return (spectrum_BKF.real.square() + spectrum_BKF.imag.square() + 1e-6).sqrt()

    def _inside(self, sound_BT: Tensor, frames_B: Tensor) -> Tensor:
        """Return which frames are inside their rows (B, 1, F)."""
        frame_F = torch.arange(-(-sound_BT.shape[1] // self.hop), device=frames_B.device)
        return (frame_F < frames_B[:, None])[:, None].float()

    @torch.no_grad()
    def _aligned(
        self,
        mean_BSC: Tensor,
        log_std_BSC: Tensor,
        z_BCF: Tensor,
        count_B: Tensor,
        frames_B: Tensor,
    ) -> Tensor:
        """Return which sign each frame is of (B, S, F): the likeliest path under the signs' Gaussians."""
        weight_BSC = (-2 * log_std_BSC).exp()
        own_BS1 = (log_std_BSC + mean_BSC.square() * weight_BSC / 2).sum(2, keepdim=True)
        with torch.autocast(z_BCF.device.type, enabled=False):  # differences of large sums
            near_BSF = (mean_BSC * weight_BSC) @ z_BCF - weight_BSC @ z_BCF.square() / 2 - own_BS1
        return monotonic_path(near_BSF, count_B, frames_B)

    def _durations(
        self, hidden_BSH: Tensor, path_BSF: Tensor, voice_BE1: Tensor | None, fits_B: Tensor
    ) -> Tensor:
        """Return the summed loss of how many frames each sign has: nats where they are drawn, else squares of logs."""
        frames_B1S = path_BSF.sum(2)[:, None]
        said_B1S = (frames_B1S > 0).float()
        predictor = self.network.duration_predictor
        if self.network.config.use_stochastic_duration_prediction:
            nats_B = predictor(hidden_BSH.mT, said_B1S, voice_BE1, durations=frames_B1S)
            return torch.where(fits_B, nats_B.float(), 0).sum()
        log_B1S = predictor(hidden_BSH.mT, said_B1S, voice_BE1).float()
        off_B1S: Tensor = (log_B1S - frames_B1S.clamp(min=1).log()).square() * said_B1S
        return off_B1S.sum()

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Return sound (B, T) in [-1, 1] at `sample_rate`, silent after each row's end; each row is made alone.

        Raises:
            ValueError: a prompt, voice or speed that it cannot speak; see `check`.
        """
        self.check(request)
        asked = request.options
        speed = asked.get("speed", 1.0)
        bounds.within("speed", speed, RANGES["speed"])
        voice = int(self.config.encode_voices([asked.get("voice", "")])[0])
        rows = [
            self._said(seed, text, voice, speed)
            for seed, text in zip(request.seeds, request.prompts, strict=True)
        ]
        return pad_sequence(rows, batch_first=True).clamp(-1, 1)

    def _refuse_long(self, log_B1S: Tensor, rate: float) -> None:
        """Refuse durations that would fill the memory, before sound is made of them."""
        seconds = float(log_B1S.exp().sum()) / rate * self.hop / self.config.sample_rate
        if not seconds <= LONGEST_S:
            raise ValueError(
                f"prompt: it takes {seconds:.0f} s to say; at most {LONGEST_S} s are made"
            )

    def _said(self, seed: int, text: str, voice: int, speed: float) -> Tensor:
        tokens_1S = self.encode([text]).to(self.network.device)
        rate, durations = self.network.speaking_rate * speed, self.network.duration_predictor
        refuse = durations.register_forward_hook(
            lambda *called: self._refuse_long(called[-1], rate)
        )
        with Seeded(seed), refuse:
            found = self.network(
                tokens_1S - 1,
                speaker_id=voice if self.config.speakers else None,
                speaking_rate=rate,
            )
        sound_T: Tensor = found.waveform[0].float()
        return sound_T
