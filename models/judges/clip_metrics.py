"""Numbers about clips, each of which a broken model fails: shuffled frames, a frame that stays, a neighbour's copy.

Shape letters: N clips, F frames, C channels, H and W pixels, A attributes. Pixels are in [0, 1], places in sides of a
frame.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

FAINT: Final = 0.1  # of the greatest difference from the background: as much is noise
WINDOW: Final = 7  # pixels a side of a window of SSIM
RANGE: Final = (
    2.0  # of pixels in the SSIM of the literature on Moving MNIST, which took them for [-1, 1]
)


def centres(frames: Tensor) -> Tensor:
    """Return where the thing in each frame (N, F, C, H, W) is, (N, F, 2) as x and y.

    The mean place, weighed by the difference from the background, which is a clip's median; in the middle where there
    is nothing.
    """
    pixels_NCX = frames.transpose(1, 2).flatten(2)
    background = pixels_NCX.median(2).values[:, None, :, None, None]
    weight = (frames - background).abs().sum(2)
    weight = weight * (weight > FAINT * weight.amax((1, 2, 3), keepdim=True))
    places = [
        (torch.arange(size, device=frames.device) + 0.5) / size for size in frames.shape[:-3:-1]
    ]
    total = weight.sum((2, 3)).clamp(min=1e-12)
    x, y = ((weight.sum(2 + axis) * along).sum(2) / total for axis, along in enumerate(places))
    there = (weight.sum((2, 3)) > 1e-12)[..., None]
    return torch.where(there, torch.stack([x, y], 2), 0.5)


def jerk(frames: Tensor) -> Tensor:
    """Return by how much the way of the thing in each clip bends from frame to frame (N,), in sides.

    0 on a straight and even way, and of clips of two frames.

    Example:
        >>> place = torch.tensor([0, 1, 2, 3, 4])
        >>> even = torch.nn.functional.one_hot(place, 8).float().view(1, 5, 1, 1, 8)
        >>> jerk(even).item(), round(jerk(even[:, [3, 0, 4, 1, 2]]).item(), 3)
        (0.0, 0.75)
    """
    if frames.shape[1] < 3:
        return frames.new_zeros(len(frames))
    bend = centres(frames).diff(n=2, dim=1)
    found: Tensor = bend.norm(dim=2).mean(1)
    return found


def moved(frames: Tensor) -> Tensor:
    """Return how far the thing in each clip goes from its first frame to its last (N,), in sides."""
    place = centres(frames)
    found: Tensor = (place[:, -1] - place[:, 0]).norm(dim=1)
    return found


def constancy(predicted: Tensor) -> Tensor:
    """Return in which clips (N,) every frame shows the same, of predicted attributes (N, F, A)."""
    return (predicted == predicted[:, :1]).all(2).all(1)


def frame_errors(drawn: Tensor, real: Tensor) -> Tensor:
    """Return the squared error of each clip (N,), summed over a frame's pixels, in the mean of its frames.

    As the literature on Moving MNIST counts it (OpenSTL, arXiv:2306.11249).
    """
    return (drawn - real).square().sum((2, 3, 4)).mean(1)


def ssim(drawn: Tensor, real: Tensor, value_range: float = 1.0) -> Tensor:
    """Return the structural similarity of pictures (N, C, H, W), in the mean of windows of 7 x 7 pixels (N,).

    Wang et al. 2004 with equal weights in a window and sample covariances, as scikit-image has it.

    Raises:
        ValueError: pictures smaller than a window.
    """
    if min(drawn.shape[-2:]) < WINDOW:
        raise ValueError(f"pictures of {drawn.shape[-1]} pixels a side, {WINDOW} are needed")
    a, b = drawn.double(), real.double()
    mean_a, mean_b = (F.avg_pool2d(one, WINDOW, 1) for one in (a, b))
    sample = WINDOW**2 / (WINDOW**2 - 1)
    var_a, var_b, both = (
        sample * (F.avg_pool2d(x * y, WINDOW, 1) - mean_x * mean_y)
        for x, y, mean_x, mean_y in (
            (a, a, mean_a, mean_a),
            (b, b, mean_b, mean_b),
            (a, b, mean_a, mean_b),
        )
    )
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    found = top / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))
    return found.flatten(1).mean(1).float()


def clip_ssim(drawn: Tensor, real: Tensor, value_range: float = 1.0) -> Tensor:
    """Return the mean SSIM of the frames of each clip (N,)."""
    count = drawn.shape[1]
    return ssim(drawn.flatten(0, 1), real.flatten(0, 1), value_range).view(-1, count).mean(1)
