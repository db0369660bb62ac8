"""What passes between the gateway and the stages: plain values and arrays, no torch.

Shape letters: N samples of a request, C channels, H and W pixels, T sound samples, E numbers of an embedding.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infra.pipelines import Pin, Pipeline
from models.ports import Source, salted
from services.pipelines.by_reference import Reference

Pictures: TypeAlias = NDArray[np.float32]
"""(N, C, H, W) in [0, 1]; of volumes (N, 4, R, R, R), R voxels a side."""
Sounds: TypeAlias = NDArray[np.float32]
"""(N, T) in [-1, 1]."""
Vectors: TypeAlias = NDArray[np.float32]
"""(N, E)."""
Dialogue: TypeAlias = tuple[tuple[str, str], ...]
"""(role, text) in their order."""
Prompt: TypeAlias = str | tuple[int, ...]
"""A text, or the tokens of one."""
Fault: TypeAlias = Literal[
    "full",
    "invalid",
    "missing",
    "failed",
    "out_of_memory",
    "not_finite",
    "stopped",
    "too_long",
    "late",
    "lost",
]
"""Why a stage did not draw: see Refused."""
Reason: TypeAlias = Literal["stop", "length"]
"""Why a text ended: by itself or at a stop string, or for want of room."""

LONGEST_S: Final = 60.0  # of sound, all samples of a request together
Array: TypeAlias = NDArray[Any] | Reference
"""One row a sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSpec:
    """What a caller asks for, from the body of his request to the rows of a model: a sample a seed."""

    seeds: tuple[int, ...]
    entrance: str = "generate"  # of the pipeline
    prompts: tuple[str, ...] = ()  # one a seed; empty where nothing is asked for
    prompt_tokens: tuple[tuple[int, ...], ...] = ()  # one a seed, in place of prompts
    dialogues: tuple[Dialogue, ...] = ()  # one a seed, in place of prompts
    blend: tuple[str, float] | None = None  # another prompt, and how far on the way to it, 0..1
    given: Mapping[str, Array] = field(default_factory=dict)  # other inputs, by name
    uploads: Mapping[str, str] = field(default_factory=dict)  # sha256 of the files among them
    options: Mapping[str, Any] = field(default_factory=dict)  # of the family, by name; none is None
    speed: float | None = None  # of sound, once it is made
    parts: tuple[str, ...] = ()  # of the one prompt, to be said one after the other as one sound
    stop: tuple[str, ...] = ()  # strings that end a text and are not part of it
    echo: bool = False  # the prompt before its text, with the logprobs of its tokens where they are asked for
    best_of: int = (
        1  # candidates a picture, a seed each, of which the one nearest to its prompt is kept
    )
    previews: int = 0  # estimates of pictures to show on the way, evenly spaced over the steps
    until: float = math.inf  # by time.monotonic of this process, when nobody waits for it any more
    ahead: bool = False  # before all that waits: a version is tried, not used
    behind: bool = False  # after all that people wait for, a step at a time: a job's
    once: bool = (
        False  # not again on another replica when one is lost: perhaps this work is what killed it
    )

    @property
    def within_s(self) -> float:
        """How long it may take from now on."""
        return max(0.0, self.until - time.monotonic())

    @property
    def texts(self) -> dict[str, tuple[Any, ...]]:
        """What it says, in the one of three forms that it says it in; empty where it says nothing."""
        names = ("prompts", "prompt_tokens", "dialogues")
        return {name: value for name in names if (value := getattr(self, name))}

    def kept(self, rows: Sequence[int]) -> "GenerationSpec":
        """Return what was asked for of these rows alone."""
        take: dict[str, Any] = {
            name: tuple(value[row] for row in rows)
            for name, value in {"seeds": self.seeds, **self.texts}.items()
        }
        return replace(self, **take)

    def saying(self, first: int, end: int) -> "GenerationSpec":
        """Return what is asked for by some of the `parts`, a row each: every one has a seed of its own."""
        (seed,) = self.seeds
        seeds = tuple(salted(seed, f"part {n}" if n else "") for n in range(first, end))
        return replace(self, seeds=seeds, prompts=self.parts[first:end], parts=())

    def asked(self, row: int) -> str:
        """Return what row `row` was asked for, in words."""
        if self.dialogues:
            return "\n".join(f"{role}: {text}" for role, text in self.dialogues[row])
        if self.prompt_tokens:
            return " ".join(map(str, self.prompt_tokens[row]))
        return self.prompts[row] if self.prompts else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTask:
    """What one stage is to make of a request."""

    pin: Pin
    spec: GenerationSpec  # the stage's own: its inputs, its options, and seeds that are its node's alone
    entry: str = ""  # of the model, which draws nothing; empty: its sampler
    pieces: bool = False  # text as it is written
    onward: bool = False  # what is made goes to another stage, by reference where it is large
    within_s: float = math.inf  # what is not done by then is nobody's any more


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineTask:
    """What one pool is to make of a request with a pipeline all of whose stages are its own."""

    pipeline: Pipeline
    spec: GenerationSpec
    within_s: float = math.inf  # as of a StageTask

    @property
    def here(self) -> GenerationSpec:
        """What is asked for, by the clock of this process."""
        return replace(self.spec, until=time.monotonic() + self.within_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """An estimate of one picture, or of what is to be one, while it is being drawn."""

    row: int
    index: int  # 0 .. previews - 1
    picture: Pictures  # (C, H, W)


@dataclass(frozen=True, slots=True)
class Told:
    """A token: its part of the text, log p in nats, and the likeliest in its place with theirs."""

    text: str
    nats: float | None  # None of a prompt's first, as OpenAI has it
    likeliest: tuple[tuple[str, float], ...] = ()
    control: str = ""  # its name, where it is a control token and has no text


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of one text; a row's pieces in their order are its text."""

    row: int
    text: str
    logprobs: tuple[Told, ...] = ()  # of the tokens that are shown whole now


@dataclass(frozen=True, slots=True)
class Text:
    """A finished text."""

    text: str
    tokens: int  # that were written, those of a stop string among them
    reason: Reason
    logprobs: tuple[Told, ...] = field(default=(), compare=False)  # where asked for


@dataclass(frozen=True, slots=True)
class Drawn:
    """All pictures of a StageTask, in the order of its seeds, or what is to be one: codes, latents, embeddings."""

    pictures: Pictures | Reference  # by reference only onward
    warnings: tuple[str, ...] = ()  # what of the request was not read


@dataclass(frozen=True, slots=True)
class Sounded:
    """All sounds of a StageTask, in the order of its seeds."""

    sounds: Sounds | Reference  # or mels, onward (N, M, F); shorter ones end in silence
    sample_rate: int  # Hz
    warnings: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()  # samples of each, or frames; empty: all
    sources: tuple[tuple[Source, ...], ...] = ()  # what each is made of; empty: nobody can tell


@dataclass(frozen=True, slots=True)
class Written:
    """All texts of a StageTask, in the order of its seeds."""

    texts: tuple[Text, ...]
    prompt_tokens: tuple[int, ...]  # how many, one a seed
    echoes: tuple[Piece, ...] = ()  # the prompts, one a seed, where they are asked for
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedWork:
    """Texts to embed, and pictures after them."""

    pin: Pin
    texts: tuple[Prompt, ...]
    pixels: Pictures | None = None
    dimensions: int | None = None  # that an embedding must have; None: whatever it has
    ahead: bool = False  # see GenerationSpec
    behind: bool = False


@dataclass(frozen=True, slots=True)
class Embedded:
    """An embedding an input, in their order."""

    vectors: Vectors
    tokens: tuple[int, ...]  # one an input; a picture has none
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreWork:
    """One input whose likelihood is asked for: a file of a picture or of sound, or a text record."""

    pin: Pin
    content: bytes = b""
    record: Dialogue = ()
    caption: str | None = None
    seed: int = 0  # of what the family draws for it: grey levels to bits, a latent code
    ahead: bool = False  # see GenerationSpec


@dataclass(frozen=True, slots=True)
class Scored:
    """log p of one input, or its lower bound."""

    nats: float
    numbers: int  # pixels times channels, sound samples, or tokens
    warnings: tuple[str, ...] = ()


def named(message: str) -> str | None:
    """Return the field that a family's refusal begins with, if it does."""
    found = re.match(r"([a-z][a-z0-9_]*)(?=: | must )", message)
    texts = {"prompts": "prompt", "prompt_tokens": "prompt", "dialogues": "messages"}
    return found and texts.get(found[1], found[1])


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a stage did not draw; a value and not an exception, since a full queue is no failure of the replica.

    `full`: try again after `retry_after_s`. `invalid`: the request cannot be drawn by this model, whoever asks.
    `too_long`: nor can it, in the time that there is. `late`: that time is up.
    `missing`: the version cannot be loaded. `failed`: the model broke while drawing, `out_of_memory`: for want of that.
    `not_finite`: it gave numbers that
    are no picture. `stopped`: the replica is going away; another may draw it. `lost`: what it was to start
    from went with the replica that made it.
    """

    kind: Fault
    message: str
    retry_after_s: float = 0.0
    param: str | None = None  # of an invalid request


Made: TypeAlias = Drawn | Sounded | Written
Event: TypeAlias = Preview | Piece | Made | Refused
