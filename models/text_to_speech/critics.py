"""Critics of sound: HiFi-GAN's and MelGAN's, and how well a sound does before them.

They look at a sound folded by periods (Kong et al. 2020, arXiv:2010.05646, section 2.2) and at several rates (Kumar et
al. 2019, arXiv:1910.06711). They have no weight normalisation: its gains would be trained beside an optimiser that
scales every weight's step anyway. Every mean is over what there is of a row.

Shape letters: B rows, T samples, C channels, L places of a critic's features in time, P samples of a period.
"""

import itertools
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE: Final = 0.1  # of LeakyReLU below 0
STRIDE: Final = 3  # of a period critic's layers
ROUNDED: Final = 1 - 1e-6  # 7 of 13 frames are 7, and 7 / 13 * 13 is a little more


class PeriodCritic(nn.Module):
    """Sees a sound as rows of one period, and down their columns only (figure 2b)."""

    def __init__(self, widths: Sequence[int], period: int) -> None:
        super().__init__()
        self.period = period
        widths = (1, *widths)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, (5, 1), (STRIDE, 1), (2, 0))
            for before, after in itertools.pairwise(widths)
        )
        self.head = nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, sound_BT: Tensor) -> list[Tensor]:
        """Return the features (B, C, L, P) of all layers, the scores last."""
        folded_BT = F.pad(sound_BT, (0, -sound_BT.shape[1] % self.period))
        x = folded_BT.view(len(sound_BT), 1, -1, self.period)
        return _features(x, self.layers, self.head)


class ScaleCritic(nn.Module):
    """Sees a sound at a lower rate, through long windows."""

    def __init__(self, widths: Sequence[int], scale: int) -> None:
        super().__init__()
        self.scale = scale
        first, *rest = widths
        layers: list[nn.Module] = [nn.Conv1d(1, first, 15, padding=7)]
        before = first
        for width in rest:
            layers.append(
                nn.Conv1d(before, width, 21, stride=4, padding=10, groups=_groups(before, width))
            )
            before = width
        self.layers, self.head = nn.ModuleList(layers), nn.Conv1d(before, 1, 3, padding=1)

    def forward(self, sound_BT: Tensor) -> list[Tensor]:
        """Return the features (B, C, L) of all layers, the scores last."""
        x_BCT = sound_BT[:, None]
        if self.scale > 1:
            x_BCT = F.avg_pool1d(x_BCT, 2 * self.scale, self.scale, self.scale // 2)
        return _features(x_BCT, self.layers, self.head)


def _groups(before: int, after: int) -> int:
    """Return into how many groups channels part, 4 where they can."""
    return 4 if before % 4 == after % 4 == 0 else 1


def _features(x: Tensor, layers: nn.ModuleList, head: nn.Module) -> list[Tensor]:
    found = []
    for layer in layers:
        x = F.leaky_relu(layer(x), SLOPE)
        found.append(x)
    return [*found, head(x)]


class Critics(nn.ModuleList):
    """A critic a period and a rate; none where they are not asked for."""

    def __init__(self, periods: Sequence[int], scales: int, widths: Sequence[int]) -> None:
        of_periods = [PeriodCritic(widths, period) for period in periods]
        super().__init__(
            [*of_periods, *(ScaleCritic(widths, 2**octave) for octave in range(scales))]
        )

    def told_apart(
        self, real_BT: Tensor, made_BT: Tensor, share_B: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the critics' loss (B,), HiFi-GAN's equation 1, and the last one's scores of real and made sound (B,).

        `share_B` says how much of each row there is.
        """
        losses_B, on = torch.zeros_like(share_B), {}
        both_BT = torch.cat([real_BT, made_BT])
        for critic in self:
            real, made = critic(both_BT)[-1].float().chunk(2)
            losses_B = losses_B + mean((1 - real).square(), share_B) + mean(made.square(), share_B)
            on = {"real": mean(real, share_B), "made": mean(made, share_B)}
        return losses_B, on

    def pleased(self, real_BT: Tensor, made_BT: Tensor, share_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the generator's loss (B,), equation 2, and how far features of real and made sound are apart, 4."""
        fooled_B, feature_B = torch.zeros_like(share_B), torch.zeros_like(share_B)
        both_BT = torch.cat([real_BT, made_BT])
        for critic in self:
            *features, score = critic(both_BT)
            fooled_B = fooled_B + mean((1 - score.float().chunk(2)[1]).square(), share_B)
            for feature in features:
                real, made = feature.float().chunk(2)
                feature_B = feature_B + mean((real.detach() - made).abs(), share_B)
        return fooled_B, feature_B


def inside(share_B: Tensor, size: int) -> Tensor:
    """Return which of so many places in time (B, L) have sound, 1. or 0."""
    end_B1 = (share_B * size * ROUNDED).ceil()[:, None]
    return (torch.arange(size, device=share_B.device) < end_B1).float()


def mean(value: Tensor, share_B: Tensor, dim: int = 2) -> Tensor:
    """Return a row's mean (B,) over what has sound, where dimension `dim` is time."""
    inside_BL = inside(share_B, value.shape[dim])
    others = [one for one in range(1, value.dim()) if one != dim]
    value_BL = value.mean(others) if others else value
    return (value_BL * inside_BL).sum(1) / inside_BL.sum(1).clamp(min=1)


def weighed(value_B: Tensor, frames_B: Tensor) -> Tensor:
    """Return the mean of rows, each weighed by its frames."""
    return (value_B * frames_B).sum() / frames_B.sum().clamp(min=1)
