"""Super-resolution: what a later stage of a cascade learns from the picture of the stage before.

The network sees the low-resolution picture with noise on it, some of them blurred before, and is told how strong the
noise is, so that it forgives what the stage before gets wrong (Ho et al. 2021, arXiv:2106.15282, conditioning
augmentation). It learns the residual, what the picture has over its enlarged low one (Li et al. 2021,
arXiv:2104.14951), times a gain that brings it to the deviation of a picture.

Shape letters: B rows, C channels, H and W pixels, h and w those of the low picture. All are in [-1, 1].
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from models.diffusion import schedules

Low: TypeAlias = tuple[Tensor, Tensor]
"""A low-resolution picture (B, C, h, w) and the strength (B,) of the noise in it."""


def check(low_size: int, image_size: int, patch: int, sizes: Sequence[str]) -> None:
    """Refuse low pictures that no network of patches of this side can see beside its pictures.

    Raises:
        ValueError: names the size and what it must be.
    """
    if low_size < 1 or image_size % low_size:
        raise ValueError(f"low_size must divide image_size {image_size}, got {low_size}")
    if low_size % (unit := folded(low_size, image_size, patch)):
        raise ValueError(f"low_size must be a multiple of {unit} for patch {patch}, got {low_size}")
    if sizes:
        raise ValueError(f"low_size belongs to squares, got {low_size} with {sizes}")


def folded(low_size: int, image_size: int, patch: int) -> int:
    """Return the side of the squares of low pixels that stand beside a patch of the picture, as channels."""
    return max(1, low_size * patch // image_size)


def training_pair(
    picture: Tensor, side: int, strongest: float, gain: float, blurred: float
) -> tuple[Tensor, Low]:
    """Return the residual (B, C, H, W) that is learned, and the noisy low picture that it is learned from.

    A share `blurred` of the low pictures is blurred before, too.
    """
    low = F.interpolate(picture, side, mode="area")
    if blurred:
        chosen_B = torch.rand(len(low), device=low.device) < blurred
        low = torch.where(chosen_B[:, None, None, None], blur(low), low)
    level_B = schedules.with_ends(torch.rand(len(low), device=low.device)) * strongest
    noisy = low + level_B[:, None, None, None] * torch.randn_like(low)
    return residual(picture, enlarged(noisy, picture.shape[-1]), gain), (noisy, level_B)


def blur(low: Tensor, sigma: float = 0.6) -> Tensor:
    """Return the picture blurred by 3 x 3 pixels of a Gaussian, its edges mirrored; one of one pixel stays.

    As DALL-E 2 does (Ramesh et al. 2022, arXiv:2204.06125, section 2.1).
    """
    if low.shape[2:] == (1, 1):
        return low
    offset_3 = torch.arange(-1, 2, device=low.device)
    weight_3 = torch.exp(-0.5 * (offset_3 / sigma).square())
    weight_33 = torch.outer(weight_3, weight_3) / weight_3.sum() ** 2
    channels = low.shape[1]
    padded = F.pad(low, (1, 1, 1, 1), mode="reflect")
    found: Tensor = F.conv2d(padded, weight_33.expand(channels, 1, 3, 3), groups=channels)
    return found


def enlarged(low: Tensor, side: int) -> Tensor:
    """Return the low picture at `side` pixels a side, bicubic."""
    return F.interpolate(low, (side, side), mode="bicubic").clamp(-1, 1)


def residual(picture: Tensor, enlarged_BCHW: Tensor, gain: float | Tensor) -> Tensor:
    """Return what the picture has over the enlarged low one, times `gain`."""
    return gain * (picture - enlarged_BCHW)


def restored(residual_BCHW: Tensor, enlarged_BCHW: Tensor, gain: float | Tensor) -> Tensor:
    """Return the picture that a residual stands for."""
    return enlarged_BCHW + residual_BCHW / gain
