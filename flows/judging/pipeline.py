"""A pipeline version: which stage versions it pins, whether they fit, and how its pictures are drawn in turn."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.storage import verify

if TYPE_CHECKING:
    from torch import Tensor

    from models.family import Family

Picture = tuple[int, int, int]  # channels, height, width


class Accepts(BaseModel):
    """What a stage starts from: a prompt or nothing, and the picture of the stage before it or none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Literal["text", "none"]
    picture: Picture | None = None


class Gives(BaseModel):
    """What a stage hands on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    picture: Picture


class PinnedStage(BaseModel):
    """One stage of a pipeline version, pinned by digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class Pipeline(BaseModel):
    """pipeline.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    endpoint: str
    stages: Annotated[tuple[PinnedStage, ...], Field(min_length=1)]
    vocabulary: tuple[str, ...]
    image_size: tuple[int, int]  # width, height
    sample: float = 0.0  # share of the answers that the gateway keeps, see flows.drift
    try_prompts: tuple[str, ...] = ()


class StageMismatch(ValueError):
    """Two stages of a pipeline do not fit; the message names both sides."""


def interface(config: dict[str, Any]) -> tuple[Accepts, Gives]:
    """Return what a model with this config.json accepts and gives."""
    from models import Family, build

    model = build(config)
    assert isinstance(model, Family)
    size, channels = model.config.image_size, model.config.channels
    able = model.capabilities
    low = model.config.low_size if able.upscales else None
    return (
        Accepts(prompt=able.condition, picture=(channels, low, low) if low else None),
        Gives(picture=(channels, size, size)),
    )


def interface_hash(config: dict[str, Any]) -> str:
    """Return the hash of all that a stage's neighbours rely on: pictures in and out, condition, and vocabulary."""
    accepts, gives = interface(config)
    document = {
        "accepts": accepts.model_dump(mode="json"),
        "gives": gives.model_dump(mode="json"),
        "vocabulary": config["config"].get("vocabulary"),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_interfaces(stages: Sequence[tuple[PinnedStage, Path]]) -> None:
    """Check that each pinned stage, fetched to a folder, still has the interface that it was pinned with.

    Raises:
        StageMismatch: the first one that has another.
    """
    for stage, folder in stages:
        found = interface_hash(json.loads((folder / "config.json").read_text()))
        if stage.interface is not None and stage.interface != found:
            raise StageMismatch(
                f"{stage.name}:{stage.version} has interface {found}, but the pipeline pins "
                f"{stage.interface} as its {stage.stage}: judge the pipeline anew"
            )


def check_fit(stages: Sequence[PinnedStage]) -> None:
    """Check that each stage takes what the one before it gives.

    Raises:
        StageMismatch: the first pair that does not fit.
    """
    first = stages[0]
    if first.accepts.picture is not None:
        raise StageMismatch(
            f"{first.name}:{first.version} upscales a picture: no stage stands before it"
        )
    for left, right in itertools.pairwise(stages):
        if right.accepts.picture != left.gives.picture:
            wants = "no picture" if right.accepts.picture is None else _size(right.accepts.picture)
            raise StageMismatch(
                f"{left.name}:{left.version} gives {_size(left.gives.picture)}, "
                f"but {right.name}:{right.version} takes {wants}"
            )


def _size(picture: Picture) -> str:
    channels, height, width = picture
    return f"{width}x{height} pictures of {channels} channels"


def load_model(directory: Path) -> "Family":
    """Return the network of a fetched model version, in evaluation mode, after verifying its bytes."""
    from safetensors.torch import load_file

    from models import Family, build

    verify(directory)
    model = build(json.loads((directory / "config.json").read_text()))
    model.load_state_dict(load_file(directory / "model.safetensors"))
    assert isinstance(model, Family)
    return model.eval()


def draw(
    models: Sequence["Family"],
    stages: Sequence[PinnedStage],
    prompts: Sequence[str],
    seeds: Sequence[int],
    rows_at_once: int = 64,
) -> "Tensor":
    """Return the pipeline's pictures (N, C, H, W) in [0, 1]: each stage upscales what the one before it drew."""
    import torch

    from models.family import Request

    drawn = []
    for start in range(0, len(seeds), rows_at_once):
        part = slice(start, start + rows_at_once)
        pictures: Tensor | None = None
        for model, stage in zip(models, stages, strict=True):
            request = Request(
                seeds=tuple(seeds[part]),
                prompts=tuple(prompts[part]) if stage.accepts.prompt == "text" else (),
                steps=stage.steps,
                guidance=stage.guidance,
                low_BCHW=pictures,
            )
            with torch.no_grad():
                pictures = model.sample(request).cpu()
        assert pictures is not None
        drawn.append(pictures)
    return torch.cat(drawn)
