"""SpeechT5 of others, as Hugging Face's transformers has it: signs to mels, a few frames a step, and these to sound.

Ao et al. 2022, arXiv:2110.07205. SpeechT5ForTextToSpeech and SpeechT5HifiGan are transformers' own, built from the
checkpoint's configs. The layers before the decoder drop half of what they see in use, too, as Tacotron 2 does: what
they drop is a row's seed's to say (`noise.Seeded`), so that its sound is transformers' own at the same masks. All but
the vocoder and the voices learns: the error of mels before and after the last layers, and where speech ends.

Shape letters: B rows, T samples, S signs, F frames, G groups of frames that a step makes, M mels, W width, E numbers
of a voice, V voices.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

import torch
from tokenizers import Tokenizer, models, normalizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds
from models.parts.mel import Mel
from models.parts.noise import Seeded
from models.request import Request, VoiceOptions
from models.text_to_speech.voices import Voiced

OFF: Final = (
    *("hidden_dropout", "attention_dropout", "activation_dropout", "positional_dropout"),
    *("speech_decoder_postnet_dropout", "encoder_layerdrop", "decoder_layerdrop"),
)
"""Dropout of training alone, which fine-tuning here has none of."""
END_WEIGHT: Final = 5.0  # of the last frame among all, where speech ends
SPACE: Final = "\u2581"
LETTERS: Final = f"{SPACE}abcdefghijklmnopqrstuvwxyz'.,"


def signs(names: Sequence[str], charsmap: bytes = b"") -> str:
    """Return the JSON document of a tokenizer of signs, as SentencePiece's of kind CHAR reads and SpeechT5 ends a text.

    Args:
        names: the pieces, `<unk>` and `</s>` among them.
        charsmap: what Unicode's signs become before they are read, as SentencePiece has it compiled.
    """
    ids = {name: place for place, name in enumerate(names)}
    found = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token="<unk>", fuse_unk=True))
    spaces = [normalizers.Replace(" ", SPACE), normalizers.Prepend(SPACE)]
    mapped = [normalizers.Precompiled(charsmap)] if charsmap else []
    plain = [normalizers.Strip(), _single_spaces(), *spaces]
    found.normalizer = normalizers.Sequence([*mapped, *plain])
    end = "</s>"
    found.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, ids[end])]
    )
    return str(found.to_str())


def _single_spaces() -> Any:
    from tokenizers import Regex

    return normalizers.Replace(Regex(" {2,}"), " ")


def tiny() -> dict[str, Any]:
    """Return config.json of a network that a CPU trains in a second."""
    return {
        **{"vocab_size": len(LETTERS) + 4, "hidden_size": 16, "encoder_layers": 1, "decoder_layers": 1},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16},
        **{"decoder_ffn_dim": 16, "num_mel_bins": 8, "speech_decoder_prenet_units": 16},
        **{"speaker_embedding_dim": 4, "speech_decoder_postnet_layers": 2, "speech_decoder_postnet_units": 8},
        **{"max_speech_positions": 400, "max_text_positions": 100, "encoder_max_relative_position": 8},
        **dict.fromkeys(OFF, 0.0),
    }  # fmt: skip


def tiny_vocoder() -> dict[str, Any]:
    """Return config.json of its vocoder."""
    return {
        **{
            "model_in_dim": 8,
            "sampling_rate": 8000,
            "upsample_initial_channel": 8,
            "initializer_range": 0.3,
        },
        **{"upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4]},
        **{"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]]},
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechT5Config(Voiced):
    """A checkpoint's own settings, how it reads, and whose voices came with it."""

    speakers: tuple[str, ...] = ("ann", "bob")  # one at least
    network: Mapping[str, Any] = field(default_factory=tiny)  # config.json
    vocoder: Mapping[str, Any] = field(default_factory=tiny_vocoder)  # its config.json
    reader: str = signs(
        ("<s>", "<pad>", "</s>", "<unk>", *LETTERS)
    )  # its tokenizer's JSON document
    numbers: bool = False  # are read as English words
    mel: Mel = Mel(n_fft=32, hop=8, window=32, mels=8)  # noqa: RUF009 - it is frozen
    sample_rate: int = 8000  # Hz
    longest: float = 20.0  # frames for a sign, at most

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        self.check_voices()
        object.__setattr__(self, "mel", Mel.of(self.mel))
        if not self.speakers:
            raise ValueError(
                "speakers: SpeechT5 speaks in a voice that it is given, and there is none"
            )
        bounds.within("longest", self.longest, (0.1, 100))
        makes, hears = self.network.get("num_mel_bins", 80), self.vocoder.get("model_in_dim", 80)
        if not makes == hears == self.mel.mels:
            raise ValueError(
                f"mel.mels must be {makes}, the network's, got {self.mel.mels}; the vocoder has {hears}"
            )
        rate, hop = (
            self.vocoder.get("sampling_rate", 16000),
            math.prod(self.vocoder.get("upsample_rates", (4,) * 4)),
        )
        if not self.sample_rate == self.mel.sample_rate == rate:
            raise ValueError(
                f"sample_rate must be the vocoder's, {rate} Hz, got {self.sample_rate}, and mels of"
                f" {self.mel.sample_rate} Hz"
            )
        if self.mel.hop != hop:
            raise ValueError(
                f"mel.hop must be the samples that the vocoder makes of a frame, {hop}, got {self.mel.hop}"
            )
        if (found := Tokenizer.from_str(self.reader).get_vocab_size()) > (
            knows := self.network.get("vocab_size", 81)
        ):
            raise ValueError(f"reader: it has {found} signs, and the network knows {knows}")


class SpeechT5(Family):
    """Sound of texts in given voices, by another's checkpoint."""

    Config = SpeechT5Config
    Options = VoiceOptions
    presets: ClassVar[Mapping[str, SpeechT5Config]] = {
        "tiny": SpeechT5Config(longest=3.0),
        "base": SpeechT5Config(),  # of a version that training starts from, which brings its own
    }
    brought: ClassVar[tuple[str, ...]] = (
        *("speakers", "network", "vocoder", "reader", "numbers", "mel", "sample_rate"),
    )
    adapts: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")
    config: SpeechT5Config
    voices_VE: Tensor

    def __init__(self, config: SpeechT5Config) -> None:
        from transformers import SpeechT5Config as Sizes
        from transformers import SpeechT5ForTextToSpeech, SpeechT5HifiGan, SpeechT5HifiGanConfig

        super().__init__()
        self.config = config
        self.network: Any = SpeechT5ForTextToSpeech(Sizes(**config.network))
        self.vocoder: Any = SpeechT5HifiGan(SpeechT5HifiGanConfig(**config.vocoder))
        self.vocoder.requires_grad_(requires_grad=False)
        width = self.network.config.speaker_embedding_dim
        self.register_buffer("voices_VE", torch.randn(len(config.speakers), width))
        self._reader = Tokenizer.from_str(config.reader)
        self._unknown = self._reader.token_to_id("<unk>")
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; norms over a batch keep the means that they have, whoever shares the batch."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.eval()
        self.vocoder.eval()
        return self

    def player_parameters(self, player: str) -> list[nn.Parameter]:  # noqa: ARG002 - one player
        """Return what learns, or an adapter in it."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @property
    def capabilities(self) -> Capabilities:
        """Return what it can do."""
        return Capabilities(modality="audio", condition="text")

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Return texts as tokens (B, S) int64: a sign's number and 1, and 0 behind the last of each.

        Raises:
            ValueError: a text is too long, or has signs that it cannot read.
        """
        rows = [1 + torch.tensor(self._ids(text)) for text in captions]
        return pad_sequence(rows, batch_first=True)

    def _ids(self, text: str) -> list[int]:
        if odd := self.unknown(text):
            raise ValueError(f"unknown word {odd[0]!r}{self.hint(odd[0])}")
        found: list[int] = self._reader.encode(self._worded(text)).ids
        if len(found) == 1:
            raise ValueError(f"prompt: nothing in {text[:40]!r} can be said")
        if len(found) > (most := self.network.config.max_text_positions):
            raise ValueError(
                f"prompt: it has {len(found)} signs, and this model reads {most}: shorten it"
            )
        return found

    def _worded(self, text: str) -> str:
        if not self.config.numbers:
            return text
        from transformers.models.speecht5.number_normalizer import EnglishNumberNormalizer

        return str(EnglishNumberNormalizer()(text))

    def unknown(self, text: str) -> list[str]:
        """Return the words of a text with a letter or digit that it cannot read; of a mark nothing is heard."""
        return list(
            dict.fromkeys(word for word in self._worded(text).split() if self._lacking(word))
        )

    def hint(self, word: str) -> str:
        """Return which signs of a word it cannot read."""
        return f": this model reads no {', '.join(map(repr, self._lacking(word)))}"

    def _lacking(self, word: str) -> list[str]:
        letters = [sign for sign in dict.fromkeys(word) if sign.isalnum()]
        return [sign for sign in letters if self._unknown in self._reader.encode(sign).ids]

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the absolute errors of mels, before and after the last layers, and the nats of where speech ends."""
        tokens_BS = self.tokens_of(batch)
        assert tokens_BS is not None
        step = self.network.config.reduction_factor
        frames_B = self.config.mel.frames_of(batch["length"])
        log_mel_BMF = self.config.mel.log_mel(batch["sound"], batch["length"]) / math.log(10)
        mel_BFM = F.pad(log_mel_BMF, (0, -log_mel_BMF.shape[2] % step)).mT
        place_F = torch.arange(mel_BFM.shape[1], device=frames_B.device)
        inside_BF = (place_F < frames_B[:, None]).float()
        # a step makes all of its frames, the last one too
        made_BF = (place_F < (-(-frames_B // step) * step)[:, None]).float()
        told = mel_BFM, made_BF, batch.get("speaker")
        before_BFM, after_BFM, end_BF = self._predicted(tokens_BS, *told)
        off_BFM = (before_BFM - mel_BFM).abs() + (after_BFM - mel_BFM).abs()
        last_BF = (place_F >= frames_B[:, None] - 1).float()
        weight = torch.tensor(END_WEIGHT, device=frames_B.device)
        nats_BF = F.binary_cross_entropy_with_logits(
            end_BF, last_BF, reduction="none", pos_weight=weight
        )
        count = frames_B.sum().clamp(min=1)
        parts = {
            "mel": (off_BFM.mean(2) * inside_BF).sum() / count,
            "end": (nats_BF * inside_BF).sum() / count,
        }
        return Losses(torch.stack([*parts.values()]).sum(), frames_B.sum(), parts)

    def _predicted(
        self, tokens_BS: Tensor, mel_BFM: Tensor, made_BF: Tensor, speaker_B: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mels before and after the last layers (B, F, M), and logits of the end (B, F), told the real past."""
        trunk, step = self.network.speecht5, self.network.config.reduction_factor
        inside_BS = (tokens_BS > 0).long()
        read_BSW = trunk.encoder(
            (tokens_BS - 1).clamp(min=0), attention_mask=inside_BS
        ).last_hidden_state
        past_BGM = F.pad(mel_BFM[:, step - 1 :: step], (0, 0, 1, 0))[:, :-1]
        if speaker_B is None:
            speaker_B = torch.zeros(len(tokens_BS), dtype=torch.long, device=tokens_BS.device)
        hidden_BGW = trunk.decoder.wrapped_decoder(
            hidden_states=self._heard(past_BGM, self.voices_VE[speaker_B]),
            encoder_hidden_states=read_BSW,
            encoder_attention_mask=inside_BS,
            use_cache=False,
        ).last_hidden_state
        last = self.network.speech_decoder_postnet
        before_BFM = last.feat_out(hidden_BGW).view(mel_BFM.shape).float()
        x_BMF = before_BFM.mT
        for layer in last.layers:  # in use there is nothing beyond a row's end
            x_BMF = layer(x_BMF * made_BF[:, None])
        return before_BFM, before_BFM + x_BMF.mT, last.prob_out(hidden_BGW).flatten(1).float()

    def _heard(self, past_BGM: Tensor, voice_BE: Tensor) -> Tensor:
        """Return what the decoder sees of the past (B, G, W): of what is dropped in use, what is seen on average."""
        prenet = self.network.speecht5.decoder.prenet
        share = (
            self.network.config.speech_decoder_prenet_dropout
        )  # that is kept, as transformers has it
        x = past_BGM
        for layer in prenet.layers:
            x = layer(x).relu() * (share / (1 - share))
        x = prenet.encode_positions(prenet.final_layer(x))
        voice_BGE = F.normalize(voice_BE)[:, None].expand(-1, x.shape[1], -1)
        found: Tensor = prenet.speaker_embeds_layer(torch.cat([x, voice_BGE], 2)).relu()
        return found

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Return sound (B, T) in [-1, 1] at `sample_rate`, silent after each row's end; each row is made alone.

        Raises:
            ValueError: a prompt or voice that it cannot speak; see `check`.
        """
        self.check(request)
        voice = int(self.config.encode_voices([request.options.get("voice", "")])[0])
        rows = [
            self._said(seed, text, voice)
            for seed, text in zip(request.seeds, request.prompts, strict=True)
        ]
        return pad_sequence(rows, batch_first=True).clamp(-1, 1)

    def _said(self, seed: int, text: str, voice: int) -> Tensor:
        tokens_1S = self.encode([text]).to(self.voices_VE.device)
        with Seeded(seed):
            sound_T: Tensor = self.network.generate_speech(
                tokens_1S - 1,
                speaker_embeddings=self.voices_VE[voice, None],
                maxlenratio=self.config.longest,
                vocoder=self.vocoder,
            )
        return sound_T.float()
