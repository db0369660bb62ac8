"""A small pipeline of clips: a dot of the seed's colour that moves, step by step, and what goes on from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infra.pipelines import FURTHER, PinnedStage, Pipeline
from models import describe
from models.family import Batch, Capabilities, Family, Losses
from models.parts import words
from models.parts.noise import normals
from models.ports import Port
from models.request import DiffusionOptions, Request

WORDS = ("a", "red", "green", "circle", "square", "moving", "left", "right")


@dataclass(frozen=True, kw_only=True, slots=True)
class MovingOptions(DiffusionOptions):
    frame_rate: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MovingConfig:
    frames: int = 6
    frame_rate: float = 8.0
    image_size: int = 16
    channels: int = 3
    vocabulary: tuple[str, ...] = WORDS
    max_words: int = 8


class Moving(Family):
    """Clips whose square moves a pixel a frame, to the left where the caption says so.

    Or a picture that moves, or a clip's negative.
    """

    Config = MovingConfig
    Options = MovingOptions
    presets = {"tiny": MovingConfig()}  # noqa: RUF012
    config: MovingConfig

    def __init__(self, config: MovingConfig) -> None:
        super().__init__()
        self.config = config
        self.loudness = nn.Parameter(torch.tensor(0.9))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(modality="clip", condition="text")

    @property
    def inputs(self) -> Any:
        size = (self.config.channels, self.config.image_size, self.config.image_size)
        return {
            "text": Port("text"),
            "image": Port("pixels", size, optional=True),
            "clip": Port("clip", (self.config.frames, *size), optional=True),
            "negative": Port("clip", (self.config.frames, *size), optional=True),
        }

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - learns nothing
        return Losses(self.loudness, 1)

    def encode(self, captions: Sequence[str]) -> Tensor:
        return words.encode(captions, self.config.vocabulary, self.config.max_words)

    def sample(self, request: Request) -> Tensor:
        self.check(request)
        c = self.config
        if "negative" in request.given:
            return 1 - request.given["negative"]
        size = (c.channels, c.image_size, c.image_size)
        first_BCHW = 0.2 + 0.05 * normals(request.seeds, size, self.loudness.device)
        if "image" in request.given:
            first_BCHW = request.given["image"]
        elif "clip" in request.given:
            first_BCHW = request.given["clip"][:, -1]
        else:
            first_BCHW[:, :, 4:9, 4:9] = self.loudness
        steps = [-1 if "left" in one.split() else 1 for one in request.prompts]
        rows = [
            torch.stack([one.roll(step * number, 2) for number in range(c.frames)])
            for one, step in zip(first_BCHW, steps, strict=True)
        ]
        return torch.stack(rows).clamp(0, 1)


def publish_clips(workshop: Any, name: str = "moving", *, alters: bool = False) -> Pipeline:
    """Put a pipeline of clips in production, with entrances for pictures and for clips to go on from or to change."""
    model = Moving(Moving.presets["tiny"]).eval()
    version = workshop.publish(f"{name}.base", {}, model)
    ports = {
        "text": "text",
        "image": "pixels? 3x16x16",
        "clip": "clip? 6x3x16x16",
        "negative": "clip? 6x3x16x16",
    }
    stage = PinnedStage(
        stage="base",
        name=version["name"],
        version=version["number"],
        sha256=version["digest"],
        family=describe(model)["family"],
        inputs=ports,
        outputs={"frames": "clip 6x3x16x16"},
    )

    def entrance(**wires: str) -> Any:
        node = {"stage": "base", "wires": {"text": "request.text", **wires}}
        return {"nodes": {"base": node}, "output": "base.frames"}

    ways = ("alterations",) if alters else ()
    pipeline = Pipeline.model_validate(
        {
            "endpoint": name,
            "modality": "clip",
            "abilities": ("videos", "extensions", "animations", *ways),
            "stages": (stage,),
            "entrances": {
                "generate": entrance(),
                "extend": entrance(clip="request.clip"),
                "animate": entrance(image="request.image"),
                **({"alter": entrance(negative="request.clip")} if alters else {}),
            },
            "vocabulary": WORDS,
            "image_size": (16, 16),
            "frames": 6,
            "frame_rate": 8.0,
        }
    )
    document = {"pipeline.json": pipeline.model_dump(mode="json")}
    workshop.promote(workshop.publish(name, document))
    return pipeline


def publish_cascade(workshop: Any, models: Sequence[Family], graph: Pipeline) -> None:
    """Put a graph of these models that moving shapes are drawn by in production, by its own name."""
    stages = []
    for model, pinned in zip(models, graph.stages, strict=True):
        version = workshop.publish(f"{graph.endpoint}.{pinned.stage}", {}, model)
        here = {"name": version["name"], "version": version["number"], "sha256": version["digest"]}
        stages.append(pinned.model_copy(update={**here, "family": describe(model)["family"]}))
    side = models[-1].config.image_size
    told = {"modality": "clip", "image_size": (side, side), "frames": 9, "frame_rate": 8.0}
    ways = (name for way, name in FURTHER.items() if way in graph.entrances)
    told["abilities"] = ("videos", *ways)
    document = graph.model_copy(update={**told, "stages": tuple(stages)}).model_dump(mode="json")
    workshop.promote(workshop.publish(graph.endpoint, {"pipeline.json": document}))
