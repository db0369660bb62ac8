"""PixelCNN against its definition: it sums to one, sees all that came before and no more, and draws what it says."""

import itertools

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.autograd.functional import jacobian as jacobian_of
from torch.nn import functional as F

from models.parts.levels import drawn
from tests.models.densities_kit import (
    influence,
    sharp,
)


def test_there_is_no_blind_spot() -> None:
    """With layers enough, every pixel before is seen: (r - 1, c + 1), too, which one masked stack misses at first."""
    found = influence(sharp("pixelcnn", image_size=5, layers=5, first_kernel=3))
    assert (found[torch.tril(torch.ones_like(found), -1).bool()] > 0).all()
    one = influence(sharp("pixelcnn", image_size=5, layers=1, first_kernel=3)).view(5, 5, 5, 5)
    assert one[2, 2, 1, 3] > 0
    above = set(itertools.product((0, 1), (1, 2, 3)))  # a vertical kernel of 2 x 3 in the row above
    seen = {(r, c) for r, c in itertools.product(range(5), repeat=2) if one[2, 2, r, c] > 0}
    assert seen == {*above, (2, 1)}


class Masked(torch.nn.Module):
    """What the paper mends: stacked masked 3 x 3 kernels, one stack."""

    def forward(self, x_B1HW: Tensor) -> Tensor:
        first = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])[None, None]
        others = torch.tensor([[1.0, 1, 1], [1, 1, 0], [0, 0, 0]])[None, None]
        for kernel in (first, *[others] * 3):
            x_B1HW = F.conv2d(x_B1HW, kernel.double(), padding=1)
        return x_B1HW


def test_the_detector_sees_the_blind_spot_of_one_masked_stack() -> None:
    start = torch.rand(1, 1, 7, 7).double()
    found = jacobian_of(Masked(), start)  # type: ignore[no-untyped-call]
    assert isinstance(found, Tensor)
    assert found[0, 0, 4, 2, 0, 0, 3, 3] > 0
    assert found[0, 0, 4, 2, 0, 0, 3, 4] == 0  # blind: it is before, and near
    ours = influence(sharp("pixelcnn", image_size=7, layers=4, first_kernel=3)).view(7, 7, 7, 7)
    assert ours[4, 2, 3, 4] > 0


def test_a_level_is_drawn_by_its_share_of_the_line() -> None:
    logits = torch.tensor([[0.25, 0.5, 0.25]]).log()
    found = [drawn(logits, torch.tensor([u])).item() for u in (0.0, 0.2, 0.3, 0.7, 0.8, 1.0)]
    assert found == [0, 0, 1, 1, 2, 2]


def test_pixels_are_rounded_to_levels_or_become_bits() -> None:
    seventeen = torch.from_numpy(load_digits().images).float()[:20, None]
    as_bytes = (seventeen * 255 / 16).round() / 255  # as the dataset stores them
    assert torch.equal(sharp("pixelcnn", levels=17).observed(as_bytes), seventeen)
    assert torch.equal(
        sharp("pixelcnn", binarize="threshold").observed(as_bytes), (seventeen >= 8).float()
    )
    redrawn = sharp("pixelcnn").observed(torch.full((500, 1, 8, 8), 0.3))
    assert redrawn.mean().item() == pytest.approx(0.3, abs=0.02)
