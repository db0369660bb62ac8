"""Volumes: voxels of a colour and an opacity, and pictures of them from any side.

A volume is a cube that spans [-1, 1] on each axis of a right-handed world as glTF has it: +y is up, and who looks from
+z at its front has +x to his right. It is laid out (4, z, y, x): red, green, blue and opacity, the share of light that
a voxel's thickness stops, all in [0, 1]. Only what lies in the unit ball is there: a picture shows all of it from
everywhere.

Pictures are made by volume rendering (Max 1995; Mildenhall et al. 2020, arXiv:2003.08934, eq. 3), along parallel rays.

Shape letters: N volumes, V views, R voxels a side, H and W pixels, S samples of a ray, one a voxel's thickness.
"""

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

FRAME: Final = 1.1  # half the side of what a picture shows, in the plane through the centre
SOLID: Final = 1 - 1e-4  # the most opacity that is told from more
SURFACE: Final = 0.5  # the opacity at which there is something
HEIGHT: Final = math.radians(20)  # from which views all about a thing look down


def axes(azimuth_V: Tensor, elevation_V: Tensor) -> Tensor:
    """Return a camera's directions (V, 3, 3), each (x, y, z): to its right, up, and from the centre to it.

    Args:
        azimuth_V: radians about the vertical; 0 looks at the front, more comes round to the right.
        elevation_V: radians above the horizon.

    Example:
        >>> front, side = axes(torch.tensor([0.0, 1.5708]), torch.zeros(2)).round().int()
        >>> front[2].tolist(), side[2].tolist()
        ([0, 0, 1], [1, 0, 0])
    """
    (sa, ca), (se, ce) = ((one.sin(), one.cos()) for one in (azimuth_V, elevation_V))
    right = torch.stack([ca, torch.zeros_like(ca), -sa], -1)
    up = torch.stack([-sa * se, ce, -ca * se], -1)
    towards = torch.stack([sa * ce, se, ca * ce], -1)
    return torch.stack([right, up, towards], 1)


def around(count: int) -> Tensor:
    """Return the directions of cameras evenly about a volume, the front first, (count, 3, 3), a little from above."""
    azimuth_V = torch.arange(count) * (2 * math.pi / count)
    return axes(azimuth_V, torch.full_like(azimuth_V, HEIGHT))


def points(axes_V33: Tensor, side: int, samples: int) -> Tensor:
    """Return where rays are looked at, (V, H, W, S, 3), from the camera on; H = W = `side`."""
    device = axes_V33.device
    places = FRAME * (2 * torch.arange(side, device=device) + 1 - side) / side
    depths = (samples - 1 - 2 * torch.arange(samples, device=device)) / samples
    right, up, towards = axes_V33[:, :, None, None, None].unbind(1)
    across, along, deep = places[:, None, None], -places[:, None, None, None], depths[:, None]
    return across * right + along * up + deep * towards


def ball(resolution: int, device: torch.device | None = None) -> Tensor:
    """Return how far the centre of each voxel is from the volume's, (R, R, R)."""
    places = (2 * torch.arange(resolution, device=device) + 1) / resolution - 1
    squares = places.square()
    return (squares[:, None, None] + squares[:, None] + squares).sqrt()


def thickness(opacity: Tensor) -> Tensor:
    """Return the optical thickness of voxels of an opacity: light that meets them is dimmed to exp(-thickness)."""
    return -torch.log1p(-opacity.clamp(max=SOLID))


def solid(volumes_N4RRR: Tensor) -> Tensor:
    """Return volumes of which that alone is left whose opacity is above 1/2, opaque: what a mesh is cut from."""
    opacity = (volumes_N4RRR[:, 3:] > SURFACE).float()
    return torch.cat([volumes_N4RRR[:, :3], opacity], 1)


def render(
    colours_3RRR: Tensor, thickness_RRR: Tensor, axes_V33: Tensor, side: int
) -> tuple[Tensor, Tensor]:
    """Return one volume seen from V sides: pictures (V, 3, H, W) before black, and how opaque they are (V, 1, H, W).

    Before a background of another colour a picture is `pictures + (1 - opaque) * colour`.
    """
    at_VHWS3 = points(axes_V33, side, thickness_RRR.shape[0])
    views, *_, samples, _ = at_VHWS3.shape
    volume = torch.cat([colours_3RRR, thickness_RRR[None]])[None]
    where = at_VHWS3.reshape(1, views, side * side, samples, 3)
    found = F.grid_sample(volume, where, align_corners=False)[0].reshape(
        4, views, side, side, samples
    )
    thick = found[3] * (at_VHWS3.square().sum(-1) <= 1)  # (V, H, W, S)
    before = thick.cumsum(-1) - thick
    weight = (-before).exp() - (-before - thick).exp()
    pictures = (weight * found[:3]).sum(-1).transpose(0, 1)
    return pictures, weight.sum(-1)[:, None]


def seen(volumes_N4RRR: Tensor, axes_V33: Tensor, side: int, background: float = 1.0) -> Tensor:
    """Return pictures (N, V, 3, H, W) in [0, 1] of volumes, each from V sides, before one grey.

    Example:
        >>> sides = axes(torch.tensor([0.0, 3.14]), torch.zeros(2))
        >>> seen(torch.zeros(1, 4, 8, 8, 8), sides, 16).shape
        torch.Size([1, 2, 3, 16, 16])
    """
    found = []
    for volume in volumes_N4RRR:
        pictures, opaque = render(volume[:3], thickness(volume[3]), axes_V33, side)
        found.append((pictures + (1 - opaque) * background).clamp(0, 1))
    return torch.stack(found)
