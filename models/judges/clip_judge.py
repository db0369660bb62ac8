"""A judge that names the attributes of clips: those that a frame shows of every frame, and all of them of the whole.

A network of pictures sees each frame, another one each with what changes until the next. Trained on real clips alone.

Shape letters: B clips, F frames, C channels, H and W pixels, A attributes, S of them that a frame shows, E features.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Losses, Trainable
from models.judges.attribute_judge import AttributeJudge, AttributeJudgeConfig, soften
from models.parts import bounds

CHUNK: Final = 64  # clips judged at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipJudgeConfig:
    """What is judged and the network's size; `moving` are the attributes that no single frame shows."""

    image_size: int = 32
    channels: int = 3
    frames: int = 9
    attributes: tuple[tuple[str, tuple[str, ...]], ...] = (("direction", ("left", "right")),)
    moving: tuple[str, ...] = ("direction",)
    width: int = 24
    features: int = 64

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        _ = self.of_frames
        bounds.within("frames", self.frames, (2, math.inf))
        if few := [name for name, values in self.attributes if len(values) < 2]:
            raise ValueError(f"attribute {few[0]!r} needs at least 2 values to be judged")

    @property
    def of_frames(self) -> AttributeJudgeConfig:
        """The judge of single frames; of clips where no frame shows anything it still sees how they differ."""
        shown = tuple(one for one in self.attributes if one[0] not in self.moving)
        return AttributeJudgeConfig(
            image_size=self.image_size,
            channels=self.channels,
            attributes=shown or self.attributes,
            width=self.width,
            features=self.features,
        )

    @property
    def shown(self) -> tuple[int, ...]:
        """The places of the attributes that a frame shows."""
        names = [name for name, _ in self.attributes]
        return tuple(place for place, name in enumerate(names) if name not in self.moving)


class ClipJudge(Trainable):
    """Predicts each attribute's value; `forward` is the sum of the heads' cross entropies.

    Example:
        >>> judge = ClipJudge(ClipJudge.presets["tiny"]).eval()
        >>> frames = torch.rand(2, 3, 1, 8, 8)
        >>> judge.predict(frames).shape, judge.predict_frames(frames).shape, judge.features(frames).shape
        (torch.Size([2, 2]), torch.Size([2, 3, 1]), torch.Size([2, 16]))
    """

    Config = ClipJudgeConfig
    presets: ClassVar[Mapping[str, ClipJudgeConfig]] = {
        "tiny": ClipJudgeConfig(
            image_size=8,
            channels=1,
            frames=3,
            attributes=(("shade", ("dark", "light")), ("direction", ("left", "right"))),
            width=8,
            features=16,
        ),
        "base": ClipJudgeConfig(),
    }
    config: ClipJudgeConfig

    def __init__(self, config: ClipJudgeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.features
        self.frame = AttributeJudge(config.of_frames)
        self.pair = AttributeJudge(replace(config.of_frames, channels=2 * config.channels))
        self.pair.heads = nn.ModuleList()
        self.out = nn.Linear(2 * width, width)
        self.heads = nn.ModuleList(nn.Linear(width, len(values)) for _, values in config.attributes)

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the summed cross entropy in nats, of frames and of clips, and each head's accuracy.

        Raises:
            ValueError: the batch has no attributes, or another number of them than the judge.
        """
        wanted_BA = batch.get("attributes")
        if wanted_BA is None or wanted_BA.shape[1] != len(self.heads):
            found = "no" if wanted_BA is None else str(wanted_BA.shape[1])
            raise ValueError(f"the judge has {len(self.heads)} attributes, the batch {found}")
        frames = batch["frames"]
        if self.training:
            frames = soften(frames.flatten(0, 1)).view_as(frames)
        seen_BFE = self._of_each(self.frame, frames)
        total, parts = torch.zeros((), device=frames.device), dict[str, Tensor]()
        for head, place in zip(self.frame.heads, self.config.shown, strict=False):
            logits = head(F.silu(seen_BFE.flatten(0, 1))).float()
            wanted_N = wanted_BA[:, place].repeat_interleave(seen_BFE.shape[1])
            total = total + F.cross_entropy(logits, wanted_N)
        told_BE = F.silu(self._whole(frames, seen_BFE))
        for place, (head, (name, _)) in enumerate(
            zip(self.heads, self.config.attributes, strict=True)
        ):
            logits, wanted_B = head(told_BE).float(), wanted_BA[:, place]
            total = total + F.cross_entropy(logits, wanted_B)
            parts[f"accuracy_{name}"] = (logits.argmax(1) == wanted_B).float().mean().detach()
        return Losses(total, len(wanted_BA), parts)

    @torch.no_grad()
    def features(self, frames: Tensor) -> Tensor:
        """Return the features (B, E) float32 of clips (B, F, C, H, W), before the last non-linearity.

        Raises:
            ValueError: clips of another size than the judge's.
        """
        c = self.config
        if tuple(frames.shape[2:]) != (c.channels, c.image_size, c.image_size):
            raise ValueError(
                f"the judge sees frames ({c.channels}, {c.image_size}, {c.image_size}),"
                f" got {tuple(frames.shape[2:])}"
            )
        device = next(self.parameters()).device
        parts = [frames[start : start + CHUNK] for start in range(0, len(frames), CHUNK)]
        return torch.cat([self._embed(part.to(device)).float() for part in parts])

    @torch.no_grad()
    def predict(self, frames: Tensor) -> Tensor:
        """Return (B, A) int64: the index of the likeliest value of each attribute of a clip."""
        told_BE = F.silu(self.features(frames))
        return torch.stack([head(told_BE).argmax(1) for head in self.heads], dim=1)

    @torch.no_grad()
    def predict_frames(self, frames: Tensor) -> Tensor:
        """Return (B, F, S) int64: as much of each frame by itself, for the attributes that one shows."""
        flat = self.frame.predict(frames.flatten(0, 1))
        return flat.view(*frames.shape[:2], -1)[..., : len(self.config.shown)]

    def accuracy(self, frames: Tensor, attributes: Tensor) -> dict[str, float]:
        """Return each attribute's accuracy by name and `joint`: the share of clips with every attribute right."""
        predicted_BA = self.predict(frames)
        right_BA = predicted_BA == attributes.to(predicted_BA.device)
        names = [name for name, _ in self.config.attributes]
        shares = right_BA.double().mean(0).tolist()
        return {**dict(zip(names, shares, strict=True)), "joint": float(right_BA.all(1).double().mean())}  # fmt: skip

    def _embed(self, frames: Tensor) -> Tensor:
        return self._whole(frames, self._of_each(self.frame, frames))

    def _of_each(self, network: AttributeJudge, frames: Tensor) -> Tensor:
        """Return a network's features of every frame (B, F, E)."""
        return network.embedded(frames.flatten(0, 1)).view(*frames.shape[:2], -1)

    def _whole(self, frames: Tensor, seen_BFE: Tensor) -> Tensor:
        """Return the features of clips (B, E): of frames and of what changes, each in the mean over time."""
        pairs = torch.cat([frames[:, :-1], frames.diff(dim=1)], 2)
        changed_BE = F.silu(self._of_each(self.pair, pairs)).mean(1)
        told: Tensor = self.out(torch.cat([F.silu(seen_BFE).mean(1), changed_BE], 1))
        return told
