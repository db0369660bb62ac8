from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from data.makers import Sample, solids
from data.makers.shapes import COLOURS
from infra.media.pictures import decode

SAMPLES = 384


def samples(count: int, **more: int) -> list[Sample]:
    config = solids.Config(maker="solids", count=count, image_size=16, **more)
    return list(solids.made(config, Path()).samples)


def pixels(sample: Sample) -> np.ndarray:
    return decode(sample.content, 16, 3).pixels.astype(float)


@pytest.fixture(scope="module")
def drawn() -> list[Sample]:
    return samples(SAMPLES)


def silhouette(solid: str, azimuth: float, elevation: float) -> np.ndarray:
    """Which pixels of 64 a side show the solid, of a ball of 0.8, at angles in degrees."""
    angles = np.radians([azimuth, elevation])
    return solids.normals(solid, *angles, radius=0.8, side=64).any(-1)


def extent(seen: np.ndarray) -> tuple[int, int]:
    """Return width and height."""
    return int(seen.any(0).sum()), int(seen.any(1).sum())


def test_every_solid_has_every_colour_and_two_views_of_three_are_from_the_side(
    drawn: list[Sample],
) -> None:
    captions = [sample.caption for sample in drawn]
    assert len(set(captions)) == len(solids.CAPTIONS) == 32
    for caption in solids.CAPTIONS:
        share = 2 if caption.endswith("side") else 1
        assert captions.count(caption) == share * SAMPLES // len(solids.ORDER)
    for sample in drawn:
        assert solids.values_of(sample.caption)[:2] == sample.attributes


def test_two_pairs_of_a_colour_and_a_solid_are_held_out_from_both_views() -> None:
    made = solids.made(solids.Config(maker="solids"), Path())
    assert made.held_out == [
        *("a red ring seen from above", "a red ring seen from the side"),
        *("a yellow cylinder seen from above", "a yellow cylinder seen from the side"),
    ]


def test_a_picture_depends_on_seed_and_index_alone(drawn: list[Sample]) -> None:
    few = samples(5)
    assert few == drawn[:5]
    assert all(a.content != b.content for a, b in zip(few, samples(5, seed=1), strict=True))


def test_the_camera_goes_about_a_right_handed_world_from_plus_z_towards_plus_x() -> None:
    front, right, top = (
        solids.camera_of(*np.radians(angles)) for angles in [(0, 0), (90, 0), (0, 90)]
    )
    np.testing.assert_allclose(front, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(right, [[0, 0, -1], [0, 1, 0], [1, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(top, [[1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-12)


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 0), (130, 35), (-20, 90)])
def test_a_sphere_is_round_from_everywhere(azimuth: float, elevation: float) -> None:
    radius = 0.85 * 0.8
    seen = solids.normals("sphere", *np.radians([azimuth, elevation]), radius=0.8, side=64)
    place = ((np.arange(64) + 0.5) / 32 - 1) * solids.FRAME
    x, y = np.meshgrid(place, -place)
    inside = np.hypot(x, y) < radius
    assert (seen.any(-1) == inside).mean() > 0.99
    both = inside & seen.any(-1)
    np.testing.assert_allclose(seen[both], _on_ball(x, y, radius)[both], atol=0.05)


def _on_ball(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.stack([x, y, np.sqrt(np.clip(radius**2 - x**2 - y**2, 0, None))], -1) / radius


@pytest.mark.parametrize("azimuth", [0, 77, 180])
def test_a_cone_is_a_triangle_from_the_side_and_a_disc_from_above(azimuth: float) -> None:
    rows = silhouette("cone", azimuth, 0).sum(1)
    widths = rows[rows > 0]
    np.testing.assert_allclose(widths, np.linspace(0, widths[-1], len(widths)), atol=2.5)
    disc = silhouette("cone", azimuth, 90)
    wide, high = extent(disc)
    assert wide == high
    assert abs(disc.sum() / (np.pi * (wide / 2) ** 2) - 1) < 0.03


@pytest.mark.parametrize("azimuth", [0, 77])
def test_a_cylinder_is_a_square_from_the_side_and_a_disc_from_above(azimuth: float) -> None:
    side, disc = silhouette("cylinder", azimuth, 0), silhouette("cylinder", azimuth, 90)
    assert side.sum() == np.prod(extent(side))
    assert extent(side) == extent(disc)
    assert abs(disc.sum() / (np.pi * (extent(disc)[0] / 2) ** 2) - 1) < 0.06


def test_a_ring_has_a_hole_from_above_and_lies_flat_from_the_side() -> None:
    above, side = silhouette("ring", 0, 90), silhouette("ring", 60, 0)
    assert not above[30:34, 30:34].any()
    assert extent(above)[0] == extent(above)[1] > 40
    wide, high = extent(side)
    assert side[32, 32]
    assert wide > 3 * high


@pytest.mark.parametrize("solid", solids.SOLIDS)
@pytest.mark.parametrize("elevation", [-10, 20, 60, 90])
def test_a_solid_stays_within_the_ball_that_its_size_is(solid: str, elevation: float) -> None:
    place = ((np.arange(64) + 0.5) / 32 - 1) * solids.FRAME
    away = np.hypot(*np.meshgrid(place, place))
    assert away[silhouette(solid, 30, elevation)].max() <= 0.8


def test_the_middle_has_the_colour_that_the_caption_says(drawn: list[Sample]) -> None:
    for sample in drawn:
        colour, solid = sample.attributes
        if solid == "ring":  # has its hole there
            continue
        middle = pixels(sample)[7:9, 7:9].mean((0, 1))
        near = {
            name: middle @ levels / np.linalg.norm(levels) / np.linalg.norm(middle)
            for name, levels in COLOURS.items()
            if name in solids.COLOURS
        }
        assert max(near, key=near.__getitem__) == colour


def test_backgrounds_are_flat_and_vary_widely_for_every_colour(drawn: list[Sample]) -> None:
    pictures = np.stack([pixels(sample) for sample in drawn])
    corners = pictures[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == corners[:, :1]).all()
    for colour in solids.COLOURS:
        mine = corners[[sample.attributes[0] == colour for sample in drawn], 0]
        assert (mine.std(0) > 50).all()
        grey = np.ptp(mine, axis=1) == 0
        assert 0.3 < grey.mean() < 0.7


def test_solids_are_told_apart_linearly_by_what_differs_from_the_background(
    drawn: list[Sample],
) -> None:
    pictures = np.stack([pixels(sample) for sample in drawn])
    x = np.linalg.norm(pictures - pictures[:, :1, :1], axis=-1).reshape(SAMPLES, -1)
    x /= x.max(1, keepdims=True)
    y = [sample.attributes[1] for sample in drawn]
    learned = LogisticRegression(max_iter=200).fit(x[: SAMPLES // 2], y[: SAMPLES // 2])
    assert learned.score(x[SAMPLES // 2 :], y[SAMPLES // 2 :]) > 0.9
