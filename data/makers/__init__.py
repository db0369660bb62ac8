"""Makers bring samples and captions in, as encoded files or records; MAKERS is the table of contents.

A maker is a module with `Config`, its entry in params.yaml, and `made(config, project)`, which checks what can be
checked before a sample is read and returns a `Made`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from data.tokenizing import TokenizerSettings

MAKERS: Final[Mapping[str, str]] = {
    "shapes": "data.makers.shapes",
    "digits": "data.makers.digits",
    "mnist": "data.makers.mnist",
    "folder": "data.makers.folder",
    "webdataset": "data.makers.webdataset",
    "parquet": "data.makers.parquet",
    "cifar10": "data.makers.cifar10",
    "scenes": "data.makers.scenes",
    "numbers": "data.makers.numbers",
    "chat": "data.makers.chat",
    "text": "data.makers.text",
    "pairs": "data.makers.pairs",
    "dialogues": "data.makers.dialogues",
    "vowels": "data.makers.vowels",
    "labelled-audio": "data.makers.labelled_audio",
    "clips": "data.makers.clip_folder",
    "moving": "data.makers.moving",
    "solids": "data.makers.solids",
    "spoken": "data.makers.spoken",
    "speech": "data.makers.speech",
    "moving-mnist": "data.makers.moving_mnist",
}
OWN: Final = (
    *("folder", "webdataset", "parquet", "clips"),
    *("text", "pairs", "dialogues", "labelled-audio", "speech"),
)
"""Makers that read a user's own files from anywhere."""
DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Split: TypeAlias = Literal["train", "validation", "test"]


class MakerError(ValueError):
    """Files that a dataset cannot be made from, in one line that names file and folder."""


class Entry(BaseModel):
    """A dataset of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: ClassVar[str] = "image"

    maker: str
    path: Path  # what it is made from: files, or the program that draws it

    @property
    def size(self) -> str:
        """What a sample is like, in a word or two for a list."""
        return f"{getattr(self, 'image_size')} px"  # noqa: B009 - each maker of pictures has it


class TextEntry(Entry):
    """A dataset of text."""

    modality: ClassVar[str] = "text"

    tokenizer: TokenizerSettings = TokenizerSettings()

    @property
    def size(self) -> str:
        """The tokenizer that is trained on it."""
        return f"{self.tokenizer.kind}, {self.tokenizer.size} at most"


class AudioEntry(Entry):
    """A dataset of sounds."""

    modality: ClassVar[str] = "audio"

    sample_rate: Annotated[int, Field(ge=4000, le=48_000)] = 8000  # Hz
    clip_samples: Annotated[int, Field(ge=64, le=48_000 * 60)] = (
        8000  # every row's; longer sounds are refused
    )

    @property
    def size(self) -> str:
        """Rate and length."""
        return f"{self.sample_rate} Hz, {self.clip_samples / self.sample_rate:.2g} s"


class ClipEntry(Entry):
    """A dataset of clips."""

    modality: ClassVar[str] = "clip"

    image_size: Annotated[int, Field(ge=8, le=512)] = 32
    frames: Annotated[int, Field(ge=2, le=256)] = 9  # every clip's
    frame_rate: Annotated[float, Field(gt=0, le=120)] = 8  # a second

    @property
    def size(self) -> str:
        """Pixels a side, frames and their rate."""
        return f"{self.image_size} px, {self.frames} frames at {self.frame_rate:g}/s"


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as found: its bytes (empty: could not be read) and what it shows.

    image, audio and speech: an encoded file. clip and text: what `clip_bytes` and `record_bytes` of `data.modalities`
    write.
    """

    file: str
    content: bytes
    caption: str = ""
    split: Split | None = None  # where the source has splits of its own
    problem: str = ""  # why there is no content
    attributes: tuple[str, ...] = ()  # a value for each attribute of `Made`, in its order


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A dataset before anyone has looked at its samples."""

    samples: Iterable[Sample]
    modality: str = "image"
    settings: Mapping[
        str, Any
    ]  # of the modality: image_size and channels; sample_rate and clip_samples; tokenizer; those of a clip
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    vocabulary: Sequence[str] = ()
    held_out: Sequence[str] = ()  # captions that training never sees
    captioned: bool = True
    validation_rows: int | None = None  # so many, by hash, of a source's own training split


def text_made(samples: Iterable[Sample], config: TextEntry, **rest: Any) -> Made:
    """Return a dataset of text, which has no captions."""
    settings = {"tokenizer": config.tokenizer.model_dump()}
    return Made(samples=samples, modality="text", settings=settings, captioned=False, **rest)


def clips_made(samples: Iterable[Sample], config: ClipEntry, channels: int, **rest: Any) -> Made:
    """Return a dataset of clips; `moving` are the attributes that no single frame shows."""
    settings = {
        "image_size": config.image_size,
        "channels": channels,
        "frames": config.frames,
        "frame_rate": config.frame_rate,
        "moving": list(rest.pop("moving", ())),
    }
    return Made(samples=samples, modality="clip", settings=settings, **rest)


def maker(name: str) -> Any:
    """Return the module of a maker.

    Raises:
        MakerError: the name is unknown; the message lists the known ones.
    """
    if name not in MAKERS:
        raise MakerError(f"unknown maker {name!r}; choose one of {', '.join(MAKERS)}")
    return import_module(MAKERS[name])
