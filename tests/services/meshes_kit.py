"""A small pipeline of meshes: a ball in the colour that its prompt names, as large as its seed says; or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.family import Batch, Capabilities, Family, Losses
from models.parts import words
from models.request import DiffusionOptions, Request

WORDS = ("a", "red", "green", "ball", "nothing")


@dataclass(frozen=True, kw_only=True, slots=True)
class BallConfig:
    resolution: int = 8
    vocabulary: tuple[str, ...] = WORDS
    max_words: int = 4


class Ball(Family):
    """Volumes with a ball in their middle, empty where the caption says nothing."""

    Config = BallConfig
    Options = DiffusionOptions
    presets = {"tiny": BallConfig()}  # noqa: RUF012
    config: BallConfig

    def __init__(self, config: BallConfig) -> None:
        super().__init__()
        self.config = config
        self.opacity = nn.Parameter(torch.tensor(1.0))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(modality="mesh", condition="text")

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - learns nothing
        return Losses(self.opacity, 1)

    def encode(self, captions: Sequence[str]) -> Tensor:
        return words.encode(captions, self.config.vocabulary, self.config.max_words)

    def sample(self, request: Request) -> Tensor:
        self.check(request)
        centres = (2 * torch.arange(self.config.resolution) + 1) / self.config.resolution - 1
        away = torch.cartesian_prod(centres, centres, centres).norm(dim=1).view(len(centres), -1)
        rows = []
        for seed, prompt in zip(request.seeds, request.prompts, strict=True):
            radius = -1 if "nothing" in prompt else 0.4 + seed % 10 / 25
            opacity = self.opacity * ((radius - away) * len(centres) / 2 + 0.5).clamp(0, 1)
            red = torch.full_like(away, float("red" in prompt))
            rows.append(torch.stack([red, 1 - red, torch.zeros_like(red), opacity]))
        return torch.stack(rows).view(len(rows), 4, *[len(centres)] * 3)


def publish_meshes(workshop: Any) -> None:
    """Put a pipeline of meshes in production, by the name of balls."""
    workshop.publish_wired("balls", {"base": Ball(Ball.presets["tiny"]).eval()})
