"""A judge that names a picture's attributes: a small convolutional network with one head an attribute.

It is trained on real pictures alone and judges generated ones: alignment by `predict`, distances between
distributions by `features`. In training the pictures are slightly blurred and made noisy, so that a sampler's
softness is not mistaken for another shape.

Shape letters: B pictures, C channels, H and W pixels, A attributes, F features. Pixels are in [0, 1].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Losses, Trainable
from models.parts.sizes import squared

MOST_NOISE: Final = 0.06  # standard deviation of the noise that training adds, at most
CHUNK: Final = 512  # pictures judged at a time, so that a whole split needs little memory


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributeJudgeConfig:
    """What is judged (picture size, attributes with their values) and the network's size."""

    image_size: int = 32  # pixels a side
    sizes: tuple[str, ...] = ()  # of pictures that are stretched to that square; empty: none are
    channels: int = 3
    attributes: tuple[tuple[str, tuple[str, ...]], ...] = (("digit", tuple("0123456789")),)
    width: int = 24  # channels of the first layer; they double at each halving of the side
    features: int = 64

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        if not self.attributes:
            raise ValueError("attributes is empty: a judge needs a dataset that names attributes")
        if few := [name for name, values in self.attributes if len(values) < 2]:
            raise ValueError(f"attribute {few[0]!r} needs at least 2 values to be judged")
        if len({name for name, _ in self.attributes} - {"joint"}) < len(self.attributes):
            raise ValueError("attributes need names of their own, other than 'joint'")
        if self.width < 8 or self.width % 8:
            raise ValueError(f"width must be a multiple of 8, got {self.width}")
        if self.image_size < 4 or self.image_size % self.patch:
            raise ValueError(
                f"image_size must be at least 4 and a multiple of {self.patch}, got {self.image_size}"
            )

    @property
    def patch(self) -> int:
        """Side of the squares of pixels that enter as channels: cheap on a CPU, exact for the network."""
        return 1 if self.image_size < 16 else 2 if self.image_size < 64 else 4


class AttributeJudge(Trainable):
    """Predicts each attribute's value; `forward` is the sum of the heads' cross entropies.

    Example:
        >>> judge = AttributeJudge(AttributeJudge.presets["tiny"]).eval()
        >>> judge.predict(torch.rand(3, 1, 8, 8)).shape, judge.features(torch.rand(3, 1, 8, 8)).shape
        (torch.Size([3, 1]), torch.Size([3, 16]))
    """

    Config = AttributeJudgeConfig
    presets: ClassVar[Mapping[str, AttributeJudgeConfig]] = {
        "tiny": AttributeJudgeConfig(image_size=8, channels=1, width=8, features=16),
        "base": AttributeJudgeConfig(),
    }
    config: AttributeJudgeConfig

    def __init__(self, config: AttributeJudgeConfig) -> None:
        super().__init__()
        self.config = config
        width, side = config.width, config.image_size // config.patch
        for _ in range(2):
            side = (side + 1) // 2
        self.body = nn.Sequential(
            nn.Conv2d(config.channels * config.patch**2, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.GroupNorm(8, 4 * width),
            nn.SiLU(),
            nn.Flatten(),  # keeps the place: one attribute may be where the thing stands
            nn.Linear(4 * width * side * side, config.features),
        )
        self.heads = nn.ModuleList(
            nn.Linear(config.features, len(values)) for _, values in config.attributes
        )

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the summed cross entropy in nats and each head's accuracy on the batch.

        Raises:
            ValueError: the batch has no attributes, or another number of them than the judge.
        """
        wanted_BA = batch.get("attributes")
        if wanted_BA is None or wanted_BA.shape[1] != len(self.heads):
            found = "no" if wanted_BA is None else str(wanted_BA.shape[1])
            raise ValueError(f"the judge has {len(self.heads)} attributes, the batch {found}")
        pixels_BCHW = batch["pixels"]
        if self.training:
            pixels_BCHW = soften(pixels_BCHW)
        features_BF = self.embedded(pixels_BCHW)
        total = torch.zeros((), device=features_BF.device)
        parts: dict[str, Tensor] = {}
        for column, (head, (name, _)) in enumerate(
            zip(self.heads, self.config.attributes, strict=True)
        ):
            logits, wanted_B = head(F.silu(features_BF)).float(), wanted_BA[:, column]
            total = total + F.cross_entropy(logits, wanted_B)
            parts[f"accuracy_{name}"] = (logits.argmax(1) == wanted_B).float().mean().detach()
        return Losses(total, len(wanted_BA), parts)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Return the features (B, F) float32 of pictures (B, C, H, W), before the last non-linearity.

        Raises:
            ValueError: pictures of another size than the judge's.
        """
        c = self.config
        pixels = squared(pixels, c.image_size) if c.sizes else pixels
        if tuple(pixels.shape[1:]) != (c.channels, c.image_size, c.image_size):
            raise ValueError(
                f"the judge sees pictures ({c.channels}, {c.image_size}, {c.image_size}), "
                f"got {tuple(pixels.shape[1:])}"
            )
        device = next(self.parameters()).device
        parts = [pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK)]
        return torch.cat([self.embedded(part.to(device)).float() for part in parts])

    @torch.no_grad()
    def predict(self, pixels: Tensor) -> Tensor:
        """Return (B, A) int64: the index of the likeliest value of each attribute."""
        features_BF = F.silu(self.features(pixels))
        return torch.stack([head(features_BF).argmax(1) for head in self.heads], dim=1)

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> list[Tensor]:
        """Return each attribute's probabilities of its values, (B, values) float32 that sum to 1."""
        features_BF = F.silu(self.features(pixels))
        return [head(features_BF).float().softmax(1) for head in self.heads]

    def accuracy(self, pixels: Tensor, attributes: Tensor) -> dict[str, float]:
        """Return each attribute's accuracy by name and `joint`: the share with every attribute right."""
        predicted_BA = self.predict(pixels)
        right_BA = predicted_BA == attributes.to(predicted_BA.device)
        shares = right_BA.double().mean(0).tolist()
        names = [name for name, _ in self.config.attributes]
        joint = float(right_BA.all(1).double().mean())
        return {**dict(zip(names, shares, strict=True)), "joint": joint}

    def embedded(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the features (B, F) of one batch, with gradients."""
        c = self.config
        x = squared(pixels_BCHW, c.image_size) if c.sizes else pixels_BCHW
        x = F.pixel_unshuffle(x * 2 - 1, c.patch)
        features_BF: Tensor = self.body(x.contiguous(memory_format=torch.channels_last))
        return features_BF


def soften(pixels_BCHW: Tensor) -> Tensor:
    """Return the pictures, each mixed with its 3 x 3 mean by a random share and with a little noise added."""
    size = (len(pixels_BCHW), 1, 1, 1)
    share, level = torch.rand(2, *size, device=pixels_BCHW.device, dtype=pixels_BCHW.dtype)
    mean_BCHW: Tensor = F.avg_pool2d(pixels_BCHW, 3, stride=1, padding=1, count_include_pad=False)
    noise_BCHW = torch.randn_like(pixels_BCHW) * (level * MOST_NOISE)
    softened: Tensor = pixels_BCHW + share * (mean_BCHW - pixels_BCHW) + noise_BCHW
    return softened
