"""pipeline.json as the gateway reads it: the stages of a version and what it can be asked for."""

from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from services.errors import ApiError
from services.work import Pin

Modality: TypeAlias = Literal["image", "audio", "text"]
SAMPLED: Final = ("images", "speech", "completions", "chat", "samples")
"""The abilities that come with samples, so that /v1/samples has an answer."""
SAYS: Final = {
    "images": "pictures at /v1/images/generations",
    "speech": "sound at /v1/audio/speech",
    "completions": "text at /v1/completions",
    "chat": "chat at /v1/chat/completions",
    "embeddings": "embeddings at /v1/embeddings",
    "scores": "likelihoods at /v1/scores",
    "samples": "samples at /v1/samples",
}
CAPABILITIES: Final = {
    "images": "image_generation",
    "speech": "audio_speech",
    "completions": "completions",
    "chat": "chat_completions",
    "embeddings": "embeddings",
    "scores": "scores",
    "samples": "samples",
}
"""Names in the model's card, by ability."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)  # a newer writer may say more


class Accepts(_Part):
    """What a stage starts from."""

    prompt: Literal["text", "none"] = "none"
    picture: tuple[int, int, int] | None = None


class TokenizerFacts(_Part):
    """Which tokenizer a model of text reads by."""

    kind: str  # "WordLevel", "BPE"
    tokens: int
    sha256: str  # of its JSON document


class PinnedStage(_Part):
    """One stage of a pipeline version, and how it samples where a request does not say; None: as the family does."""

    stage: str
    name: str
    version: int
    sha256: str
    accepts: Accepts
    steps: int | None = None
    guidance: float | None = None
    seconds: float | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    @property
    def pin(self) -> Pin:
        """The version to draw with."""
        return Pin(name=self.name, number=self.version, digest=self.sha256)


class Plan(_Part):
    """pipeline.json: the stages in the order they draw."""

    format: Literal[1]
    endpoint: str
    stages: Annotated[tuple[PinnedStage, ...], Field(min_length=1)]
    modality: Modality = "image"
    abilities: tuple[str, ...] = ()  # none in files of before there were other things than pictures
    vocabulary: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None  # width, height
    sample_rate: int | None = None  # Hz
    tokenizer: TokenizerFacts | None = None  # of text
    sample: float = 0.0  # share of the answers in production that are kept, see services.samples
    try_prompts: tuple[str, ...] = ()

    @property
    def reads_text(self) -> bool:
        """Whether it draws what a prompt says."""
        return self.stages[0].accepts.prompt == "text"

    @property
    def size(self) -> str | None:
        """WIDTHxHEIGHT of a picture."""
        return None if self.image_size is None else f"{self.image_size[0]}x{self.image_size[1]}"

    @property
    def able(self) -> tuple[str, ...]:
        """What it can be asked for."""
        given = self.abilities or ("images",)
        if "samples" in given or not set(given) & set(SAMPLED):
            return given
        return (*given, "samples")

    def must(self, ability: str, name: str) -> None:
        """Check that a request of this kind can be answered.

        Raises:
            ApiError: 400 unsupported_capability, with what the version can do.
        """
        if ability not in self.able:
            can = ", ".join(SAYS[one] for one in self.able if one in SAYS) or "nothing known here"
            message = f"{name} gives no {SAYS[ability]}; it gives {can}"
            raise ApiError(400, message, code="unsupported_capability", param="model")

    def card(self) -> dict[str, Any]:
        """Return what /v1/models says of it."""
        first = self.stages[0]
        found: dict[str, Any] = {
            "modality": self.modality,
            "capabilities": [CAPABILITIES[one] for one in self.able if one in CAPABILITIES],
            "abilities": list(self.able),
            "reads_text": self.reads_text,
            "steps": first.steps,
            "guidance": first.guidance,
            "stages": [stage.pin.ref for stage in self.stages],
            "try_prompts": list(self.try_prompts),
        }
        if self.modality == "image":
            found["size"] = self.size
        if self.modality == "audio":
            found["sample_rate"] = self.sample_rate
            found["seconds"] = first.seconds
            found["response_formats"] = ["mp3", "opus", "aac", "flac", "wav", "pcm"]
        if self.modality == "text":
            found["max_tokens"] = first.max_tokens
            found["temperature"] = first.temperature
            found["tokenizer"] = self.tokenizer and self.tokenizer.model_dump()
        return found
