"""What is to be made, what is seen on the way and what comes out, whatever the modality."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from infra.media.clips import Clip
from infra.pipelines import PinnedStage, Pipeline
from models.ports import Source
from services.gateway.errors import ApiError, invalid
from services.media.codecs import Bitmap, Sound, Volume
from services.pipelines.payload import (
    Embedded,
    EmbedWork,
    Event,
    GenerationSpec,
    Piece,
    Refused,
    Scored,
    ScoreWork,
    StageTask,
    Text,
)
from services.pipelines.payload import Made as Samples

One: TypeAlias = Bitmap | Clip | Sound | Text | Volume
"""A finished sample."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """Preview `index` of picture `row`, at the pipeline's size."""

    row: int
    index: int
    pixels: Bitmap


@dataclass(frozen=True, slots=True)
class Said:
    """The next part of one sound, ready to be heard: put behind one another, all of them are the sound."""

    sound: Sound


@dataclass(frozen=True, slots=True)
class Complete:
    """All samples, in the order of their seeds."""

    made: Sequence[One]
    prompt_tokens: tuple[int, ...] = ()  # of texts: how many, one a seed
    echoes: tuple[Piece, ...] = ()  # of texts: the prompts before them, where they are asked for
    warnings: tuple[str, ...] = ()  # what of the request was not read
    rows: tuple[int, ...] | None = None  # those that were kept of the candidates; None: all
    sources: tuple[tuple[Source, ...], ...] = ()  # of sounds: the recordings that each is made of

    @property
    def said(self) -> dict[str, list[str]]:
        """The warnings as a part of the answer; empty without any."""
        return {"warnings": list(self.warnings)} if self.warnings else {}


Progress: TypeAlias = Sketch | Piece | Said | Complete


class Stages(Protocol):
    """A stage, in this process or behind a handle."""

    async def draw(self, task: StageTask) -> Samples | Refused:
        """Return all samples of `task`, or why there are none."""
        ...

    async def check(self, task: StageTask) -> Refused | None:
        """Return why a task would be refused, whatever the stages before it made; None where it would not be."""
        ...

    def watch(self, task: StageTask) -> AsyncGenerator[Event]:
        """Yield previews, then the samples or why there are none."""
        ...

    async def embed(self, work: EmbedWork) -> Embedded | Refused:
        """Return an embedding a text, or why there is none."""
        ...

    async def score(self, works: Sequence[ScoreWork]) -> tuple[Scored, ...] | Refused:
        """Return a likelihood an input, or why one has none; a hop for all of them."""
        ...


class Outputs(Protocol):
    """Where a walk finds what its nodes have made already, and puts what they make."""

    async def find(self, node: str) -> Samples | None:
        """Return what a node has made; None: it is to be made."""
        ...

    async def keep(self, node: str, made: Samples, seconds: float) -> None:
        """Keep what a node has made in so many seconds."""
        ...


StageOf: TypeAlias = Callable[[PinnedStage], Stages]
"""Which pool draws a pinned stage."""


class Maker(Protocol):
    """Makes what a pipeline names."""

    async def draw(self, pipeline: Pipeline, spec: GenerationSpec) -> Complete:
        """Return the samples.

        Raises:
            ApiError: 429 when a stage's queue is full, 400 when the model cannot draw this, 500 or 503 otherwise.
        """
        ...

    def watch(self, pipeline: Pipeline, spec: GenerationSpec) -> AsyncGenerator[Progress]:
        """Yield what is seen on the way, then the samples; errors as in `draw`."""
        ...


def refusal(refused: Refused) -> ApiError:
    """Return what the client is told when a stage refuses."""
    if refused.kind == "full":
        return ApiError(
            429,
            f"the queue is full: {refused.message}",
            code="queue_full",
            retry_after_s=refused.retry_after_s,
        )
    if refused.kind == "invalid":
        return invalid(refused.message, refused.param)
    if refused.kind == "too_long":
        return invalid(refused.message, refused.param, "too_long")
    if refused.kind == "late":
        return ApiError(504, f"no answer: {refused.message}", code="timeout", retry=False)
    if refused.kind == "not_finite":
        return ApiError(500, "the model gave numbers that are not finite", code="not_finite")
    if refused.kind == "out_of_memory":
        message = "the model ran out of memory while drawing; ask for less"
        return ApiError(500, message, code="out_of_memory", retry=False)
    if refused.kind == "failed":
        return ApiError(500, "the model failed while drawing", code="model_failed")
    reason = "is not loaded" if refused.kind == "missing" else "is restarting"
    return ApiError(503, f"the model {reason}; try again", code="unavailable", retry_after_s=5)
