"""pipeline.json: what a pipeline version is made of, for whoever writes, registers, serves, judges or moves it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Picture: TypeAlias = tuple[int, int, int]  # channels, height, width
Modality: TypeAlias = Literal["image", "audio", "text"]
Ability: TypeAlias = Literal[
    "images", "speech", "completions", "chat", "embeddings", "scores", "samples"
]
PIPELINE: Final = "pipeline.json"
SAMPLING: Final = (
    *("steps", "guidance", "seconds", "max_tokens"),
    *("temperature", "top_k", "top_p"),
)
"""What of a stage's sampling a recipe sets and a pipeline version pins; None leaves it to the family."""
SAMPLED: Final = ("images", "speech", "completions", "chat", "samples")
"""The abilities that come with samples."""


class PipelineError(ValueError):
    """A folder holds no pipeline version that can be read; one line."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Accepts(_Part):
    """What a stage starts from: a prompt or nothing, and what the stage before it gives: one of the rest, or none."""

    prompt: Literal["text", "none"] = "none"
    picture: Picture | None = None
    sample_rate: int | None = None  # of sound, Hz
    tokenizer: str | None = None  # of tokens, as in `Gives`


class Gives(_Part):
    """What a stage hands on: a picture, sound at a sample rate, or tokens."""

    modality: Modality = "image"
    picture: Picture | None = None
    sample_rate: int | None = None  # Hz
    tokenizer: str | None = None  # the first 16 digits of the document's sha256


class Tokenizer(_Part):
    """Which tokenizer a model of text reads by."""

    kind: str  # "WordLevel", "BPE"
    tokens: int
    sha256: str  # of its JSON document


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A model version, named by its digest."""

    name: str
    number: int
    digest: str

    @property
    def ref(self) -> str:
        """The version as people write it: "shapes.base:3"."""
        return f"{self.name}:{self.number}"


class PinnedStage(_Part):
    """One stage of a pipeline version, pinned by digest, with how it is sampled where that is not asked for."""

    stage: str
    name: str
    version: int
    sha256: str
    family: str
    interface: str | None = None  # hash of what it accepts, gives and reads; None: an old pin
    accepts: Accepts
    gives: Gives
    steps: int | None = None
    guidance: float | None = None
    seconds: float | None = None  # of sound
    max_tokens: int | None = None  # of text
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    @property
    def pin(self) -> Pin:
        """The version to draw with."""
        return Pin(name=self.name, number=self.version, digest=self.sha256)


class Pipeline(_Part):
    """The stages of a pipeline version in the order they draw, and what it can be asked for."""

    format: Literal[1] = 1
    endpoint: str
    modality: Modality = "image"
    abilities: tuple[Ability, ...] = ()  # of the last stage; empty: written before there were any
    stages: Annotated[tuple[PinnedStage, ...], Field(min_length=1)]
    vocabulary: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None  # width, height
    sample_rate: int | None = None  # Hz, of sound
    tokenizer: Tokenizer | None = None  # of text
    sample: float = 0.0  # share of the answers in production that the gateway keeps
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
    def able(self) -> tuple[Ability, ...]:
        """What it can be asked for."""
        given = self.abilities or ("images",)
        if "samples" in given or not set(given) & set(SAMPLED):
            return given
        return (*given, "samples")


def is_pipeline(directory: Path) -> bool:
    """Return whether a fetched version is a pipeline's."""
    return (directory / PIPELINE).is_file()


def read_pipeline(directory: Path) -> Pipeline:
    """Return what a fetched pipeline version is made of.

    Raises:
        PipelineError: it holds no pipeline.json, or one that a newer Atelier wrote or nobody did.
    """
    path = directory / PIPELINE
    try:
        return Pipeline.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the document"
        raise PipelineError(f"{path} is no pipeline of format 1: {field}: {first['msg']}") from None
