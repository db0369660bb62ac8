"""Small families of sound and of embeddings, for what is served and not for what is learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.diffusion.ddpm import DDPM
from models.family import Batch, Capabilities, Entry, Family, Losses
from models.parts import words
from models.parts.mel import PRESETS, Mel
from models.parts.noise import normals
from models.parts.rows import lasting
from models.parts.tokens import of_signs, tokenizer
from models.ports import Port
from models.request import Prompt, Record, Request, SoundOptions, SpeechOptions, TextOptions
from models.text_to_speech.front_end import Spoken

SIGNS = "abcdefghijklmnopqrstuvwxyz "


@dataclass(frozen=True, kw_only=True, slots=True)
class VoiceConfig:
    sample_rate: int = 8000
    vocabulary: tuple[str, ...] = ("low", "high")


class Voice(Family):
    """A tone whose pitch is the label, under a little noise of the seed."""

    Config = VoiceConfig
    Options = SoundOptions
    presets = {"tiny": VoiceConfig()}  # noqa: RUF012
    config: VoiceConfig

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        self.config = config
        self.loudness = nn.Parameter(torch.tensor(0.5))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(modality="audio", condition="text", likelihood=True)

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        return Losses(-self.log_prob(batch).mean(), len(batch["sound"]))

    def encode(self, captions: Sequence[str]) -> Tensor:
        return words.encode(captions, self.config.vocabulary, 1)

    def log_prob(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002
        nats: Tensor = -batch["sound"].square().sum(1) / 2 - batch["tokens"][:, 0]
        return nats

    def sample(self, request: Request) -> Tensor:
        self.check(request)
        count = max(1, round(request.options.get("seconds", 0.1) * self.config.sample_rate))
        pitch_B = self.encode(request.prompts)[:, 0] * 220.0
        time_T = torch.arange(count) / self.config.sample_rate
        tone_BT = torch.sin(2 * torch.pi * pitch_B[:, None] * time_T)
        noise_BT = normals(request.seeds, (count,), self.loudness.device)
        return self.loudness * (tone_BT + 0.05 * noise_BT).clamp(-1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeakerConfig(Spoken):
    mel: Mel = PRESETS["tiny"]
    sample_rate: int = 8000

    def __post_init__(self) -> None:
        object.__setattr__(self, "mel", Mel.of(self.mel))


class Speaker(Family):
    """Says every letter as a tone of eight frames, a bit higher or lower by the voice, under noise of the seed."""

    Config = SpeakerConfig
    Options = SpeechOptions
    presets = {"tiny": SpeakerConfig(speakers=("ann", "bob"))}  # noqa: RUF012
    config: SpeakerConfig

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.config = config
        self.loudness = nn.Parameter(torch.tensor(0.0))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(modality="audio", condition="text")

    @property
    def outputs(self) -> Mapping[str, Port]:
        return {"mel": self.config.mel.port}

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        return Losses(self.loudness.square(), len(batch["sound"]))

    def sample(self, request: Request) -> Tensor:
        self.check(request)
        mel, voice = self.config.mel, request.options.get("voice", "")
        (shift,) = self.config.encode_voices([voice]).tolist()
        frames = round(8 / request.options.get("speed", 1.0))
        rows = []
        for seed, prompt in zip(request.seeds, request.prompts, strict=True):
            heights = torch.tensor([ord(letter) % 4 + 2 * shift for letter in prompt])
            row_MF = torch.full((mel.mels, len(prompt) * frames), -6.0)
            row_MF[heights.repeat_interleave(frames), torch.arange(row_MF.shape[1])] = -1.0
            noise_1MF = normals((seed,), tuple(row_MF.shape), self.loudness.device)
            rows.append((row_MF + 0.1 * noise_1MF[0])[None])
        return lasting(rows, "mel")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderConfig:
    tokenizer: str = of_signs(SIGNS)
    width: int = 8


class Reader(Family):
    """The mean of a text's token vectors; writes nothing."""

    Config = ReaderConfig
    Options = TextOptions
    presets = {"tiny": ReaderConfig()}  # noqa: RUF012
    config: ReaderConfig

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        self.vectors = nn.Embedding(tokenizer(config.tokenizer).size, config.width)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(modality="text", embeds=True)

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - learns nothing
        return Losses(self.vectors.weight.sum(), 1)

    def sample(self, request: Request) -> Tensor:  # noqa: ARG002 - writes nothing
        raise ValueError("this model writes nothing")

    def embed(self, texts: Sequence[Prompt]) -> Tensor:
        read = tokenizer(self.config.tokenizer)
        if any(len(text) > 100 for text in texts):
            raise ValueError("a text has more than the 100 characters that this model reads")
        return torch.stack(
            [self.vectors(torch.tensor(read.encode(text))).mean(0) for text in texts]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NegativeConfig:
    image_size: int = 16
    channels: int = 3


class Negative(Family):
    """A picture with light and dark exchanged: a stage that draws nothing and reads nothing."""

    Config = NegativeConfig
    presets = {"tiny": NegativeConfig()}  # noqa: RUF012
    config: NegativeConfig

    def __init__(self, config: NegativeConfig) -> None:
        super().__init__()
        self.config = config
        self.white = nn.Parameter(torch.ones(()))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    @property
    def inputs(self) -> Mapping[str, Port]:
        return {"light": self.outputs["pixels"]}

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        return Losses((self.white - 1).square(), len(batch["pixels"]))

    def sample(self, request: Request) -> Tensor:
        self.check(request)
        return self.white - request.given["light"]


class Blind(DDPM):
    """Draws what is no picture before it is decoded."""

    @property
    def outputs(self) -> Mapping[str, Port]:
        [pixels] = super().outputs.values()
        return {"latent": Port("latent", pixels.shape, space="negative")}


class Inverting(Negative):
    """Decodes by exchanging light and dark."""

    presets = {"tiny": NegativeConfig(image_size=8)}  # noqa: RUF012

    @property
    def entries(self) -> Mapping[str, Entry]:
        latent = {"latent": Port("latent", self.outputs["pixels"].shape, space="negative")}
        return {"decode": Entry(latent, self.outputs)}

    def enter(self, entry: str, given: Mapping[str, Tensor]) -> Tensor:
        assert entry == "decode"
        return self.white - given["latent"]


TOYS: dict[str, str] = {
    "toy-voice": f"{__name__}:Voice",
    "toy-reader": f"{__name__}:Reader",
    "toy-negative": f"{__name__}:Negative",
    "toy-blind": f"{__name__}:Blind",
    "toy-inverting": f"{__name__}:Inverting",
    "toy-speaker": "tests.services.toys:Speaker",
    "toy-moving": "tests.services.clips_kit:Moving",
    "toy-ball": "tests.services.meshes_kit:Ball",
}


def record(*turns: tuple[str, str]) -> Record:
    return turns


def described(model: Any) -> dict[str, Any]:
    """What pipeline.json says of a pipeline of this one model."""
    able = model.capabilities
    known: dict[str, dict[str, Any]] = {
        "audio": {"abilities": ["speech", "scores", "samples"], "sample_rate": 8000},
        "text": {
            "abilities": [
                *(["completions"] if able.condition == "text" else []),
                *(["samples"] if able.stepwise else []),
                *(["chat"] if able.chats else []),
                *(["embeddings"] if able.embeds else []),
                *(["scores"] if able.likelihood else []),
            ]
        },
        "image": {
            "abilities": ["images", "samples", *(["scores"] if able.likelihood else [])],
            "image_size": [getattr(model.config, "image_size", 0)] * 2,
        },
    }
    words = getattr(model.config, "tokenizer", "")
    tokens = tokenizer(words).facts if words else None
    return {"modality": able.modality, "tokenizer": tokens, **known[able.modality]}
