"""Pictures changed before they are learned, each as its own row of the epoch says: mirrored, or by EDM's pipe.

What is drawn for a row is of (the recipe's seed, the row's place), so it is the same for any number of workers and
parts, and after a restart; in the next epoch the row has another place.

Shape letters: B rows, C channels, H and W pixels (H = W), U numbers drawn for a row.
"""

from collections.abc import Sequence
from math import pi
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from flows.recipe import Augment
from models.parts.noise import uniforms

STAGE: Final = 2**32  # of the key: no stage of a request has it
DRAWN: Final = 14  # numbers a row
CPU: Final = torch.device("cpu")


def drawn(seed: int, places: Sequence[int]) -> Tensor:
    """Return the numbers (B, U) in [0, 1) of the rows at these places of the training's order."""
    return uniforms([seed] * len(places), (DRAWN,), CPU, stage=STAGE, draws=places)


def augmented(batch: dict[str, Tensor], u_BU: Tensor, rules: Augment) -> dict[str, Tensor]:
    """Return the batch with its pictures changed; by EDM's pipe also with their `augmentation` (B, 9)."""
    mirrored = (u_BU[:, 0] < rules.flip)[:, None, None, None]
    pixels = torch.where(mirrored, batch["pixels"].flip(3), batch["pixels"])
    if not rules.edm:
        return {**batch, "pixels": pixels}
    pixels, said_B9 = edm_pipe(pixels, u_BU[:, 1:], rules.edm)
    return {**batch, "pixels": pixels, "augmentation": said_B9}


def edm_pipe(pixels: Tensor, u_BU: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Return pictures (B, C, H, W) in [0, 1] changed as in Karras et al. 2022, table 6, and what is said of it (B, 9).

    Half of them are mirrored. With probability p each they are turned upside down (half of those), scaled, rotated,
    stretched along an axis (half of those a random one) and moved; nine zeros say that nothing was done. Pixels between
    pixels are bicubic, where the paper's authors filter by wavelets.
    """
    u, normal = u_BU.unbind(1), torch.special.ndtri(u_BU.double() + 2**-25).float().unbind(1)
    mirrored, upset = (u[0] < 0.5).float(), (u[1] < p / 2).float()
    larger = torch.where(u[2] < p, normal[3], 0)
    angle = torch.where(u[4] < p, (2 * u[5] - 1) * pi, 0)
    longer = torch.where(u[6] < p, normal[7], 0)
    axis = torch.where(u[8] < 0.5, (2 * u[9] - 1) * pi, 0)
    x, y = (torch.where(u[10] < p, shift, 0) for shift in normal[11:13])
    turned, stretched = (angle.cos() - 1, angle.sin()), (longer * axis.cos(), longer * axis.sin())
    said_B9 = torch.stack([mirrored, upset, larger, *turned, *stretched, x, y], 1)
    for flips, side in ((mirrored, 3), (upset, 2)):
        pixels = torch.where(flips[:, None, None, None] > 0, pixels.flip(side), pixels)
    back = _scaled(-0.2 * larger, -0.2 * larger) @ _rotated(angle)  # from where a pixel comes
    back = back @ _rotated(-axis) @ _scaled(-0.2 * longer, 0.2 * longer) @ _rotated(axis)
    shift = 0.25 * torch.stack([x, y], 1)[:, :, None]  # an eighth of the side, which is 2
    grid = F.affine_grid(torch.cat([back, -back @ shift], 2), list(pixels.shape), False)
    moved = F.grid_sample(pixels, grid, "bicubic", "reflection", align_corners=False).clamp(0, 1)
    still = (said_B9[:, 2:] == 0).all(1)[:, None, None, None]
    return torch.where(still, pixels, moved), said_B9


def _scaled(x: Tensor, y: Tensor) -> Tensor:
    """Return (B, 2, 2): 2 to the power of x along the first and of y along the second coordinate."""
    return torch.diag_embed(torch.stack([x, y], 1).exp2())


def _rotated(angle: Tensor) -> Tensor:
    """Return (B, 2, 2): a rotation by an angle in radians, from the first coordinate to the second."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
