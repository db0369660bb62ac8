"""What is measured of clips: each number fails the broken clip that it is there for."""

import numpy as np
import pytest
import torch
from torch import Tensor

from data.makers import moving
from models.judges import clip_metrics as c


@pytest.fixture(scope="module")
def real() -> Tensor:
    """Forty clips of moving shapes, (40, 9, 3, 16, 16)."""
    drawn = [
        moving.draw(moving.CAPTIONS[5 * row % 192], np.random.default_rng(row), side=16)
        for row in range(40)
    ]
    return torch.from_numpy(np.stack(drawn)).permute(0, 1, 4, 2, 3).float() / 255


def shuffled(clips: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    order = [torch.randperm(clips.shape[1], generator=generator) for _ in clips]
    return torch.stack([clip[one] for clip, one in zip(clips, order, strict=True)])


def test_real_ways_are_straight_and_those_of_shuffled_frames_are_not(real: Tensor) -> None:
    assert float(c.jerk(real).mean()) < 0.02
    assert float(c.jerk(shuffled(real)).mean()) > 0.1
    assert float(c.jerk(real[:, :2]).max()) == 0


def test_a_thing_that_stays_where_it_is_does_not_move(real: Tensor) -> None:
    assert float(c.moved(real).min()) > 0.2
    still = real[:, :1].expand_as(real)
    assert float(c.moved(still).max()) < 1e-6
    nothing = torch.full((1, 4, 3, 8, 8), 0.3)
    assert c.centres(nothing).unique().tolist() == [0.5]


def test_noise_on_a_clip_hardly_moves_its_centre(real: Tensor) -> None:
    noisy = (
        real + 0.02 * torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    ).clamp(0, 1)
    assert float((c.centres(noisy) - c.centres(real)).norm(dim=2).mean()) < 0.02


def test_a_clip_is_constant_where_every_frame_shows_the_same() -> None:
    predicted = torch.tensor([[[1, 2], [1, 2]], [[1, 2], [1, 3]]])
    assert c.constancy(predicted).tolist() == [True, False]


def test_errors_are_summed_over_pixels_and_meaned_over_frames() -> None:
    drawn, real = torch.zeros(2, 4, 1, 8, 8), torch.zeros(2, 4, 1, 8, 8)
    drawn[0, 0] = 0.5
    assert c.frame_errors(drawn, real).tolist() == [8 * 8 * 0.25 / 4, 0]


@pytest.mark.parametrize("value_range", [1.0, c.RANGE])
def test_structural_similarity_is_that_of_windows_one_by_one(value_range: float) -> None:
    a, b = torch.rand(2, 3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    found, size = [], 12 - c.WINDOW + 1
    for x, y in zip(a[:, 0].numpy(), b[:, 0].numpy(), strict=True):
        values = []
        for row in range(size):
            for column in range(size):
                place = np.s_[row : row + c.WINDOW, column : column + c.WINDOW]
                u, v = x[place].ravel().astype(float), y[place].ravel().astype(float)
                both = np.cov(u, v)
                one, two = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
                values.append(
                    (2 * u.mean() * v.mean() + one)
                    * (2 * both[0, 1] + two)
                    / ((u.mean() ** 2 + v.mean() ** 2 + one) * (both[0, 0] + both[1, 1] + two))
                )
        found.append(np.mean(values))
    np.testing.assert_allclose(c.ssim(a, b, value_range).numpy(), found, rtol=1e-5)
    torch.testing.assert_close(c.ssim(a, a), torch.ones(3))
    with pytest.raises(ValueError, match="pictures of 6 pixels a side, 7 are needed"):
        c.ssim(a[..., :6], b[..., :6])
