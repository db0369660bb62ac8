"""Solids: "a red cone seen from the side", a single solid from a random camera, on a flat background.

32 captions = 4 colours x 4 solids x 2 views; both views of two pairs of a colour and a solid never reach the training
split. The world is glTF's, right-handed with +y up, and solids stand along y. A camera of azimuth a and elevation e
looks at the centre from (sin a cos e, sin e, cos a cos e), so that of azimuth 0 has +x to its right, and sees
[-FRAME, FRAME] by parallel rays. Azimuths are even; so are elevations within a view, and two pictures of three are from
the side, which is nearly DreamFusion's even elevations from -10 to 90 degrees (Poole et al. 2022, arXiv:2209.14988,
section 3.2). All are solids of revolution: how a cube is turned no caption says, and what looks right from everywhere
is then a cylinder. As there, the light comes from near the camera. Backgrounds vary so widely that none belongs to a
solid.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data.makers import Entry, Made, Sample
from data.makers.shapes import SUPERSAMPLING, held_out_of, tinted
from infra.media.pictures import Pixels, png

Floats: TypeAlias = npt.NDArray[np.float64]
Distance: TypeAlias = Callable[[Floats], Any]
"""Of points (3, N) the distance from a solid of the unit ball or less than it, negative inside."""


def _sphere(p: Floats) -> Any:
    return np.linalg.norm(p, axis=0) - 0.85


def _cylinder(p: Floats) -> Any:
    return np.maximum(np.hypot(p[0], p[2]), abs(p[1])) - 0.62


def _cone(p: Floats) -> Any:
    """Return the distance from the nearer of base and flank, whose apex is at y = 0.95."""
    flank = (1.5 * np.hypot(p[0], p[2]) + 0.78 * (p[1] - 0.95)) / np.hypot(1.5, 0.78)
    return np.maximum(flank, -0.55 - p[1])


def _ring(p: Floats) -> Any:
    return np.hypot(np.hypot(p[0], p[2]) - 0.68, p[1]) - 0.28


SOLIDS: Final[Mapping[str, Distance]] = {
    "sphere": _sphere,
    "cylinder": _cylinder,
    "cone": _cone,
    "ring": _ring,
}
COLOURS: Final = ("red", "green", "blue", "yellow")
VIEWS: Final[Mapping[str, tuple[float, float]]] = {
    "seen from the side": (-10, 60),
    "seen from above": (60, 90),
}
"""Elevations, in degrees."""
ATTRIBUTES: Final[Mapping[str, tuple[str, ...]]] = {"colour": COLOURS, "solid": tuple(SOLIDS)}
PAIRS: Final = tuple(f"a {one} {solid}" for one, solid in itertools.product(COLOURS, SOLIDS))
ORDER: Final = tuple(
    f"{pair} {view}" for pair, view in itertools.product(PAIRS, (*VIEWS, "seen from the side"))
)
CAPTIONS: Final = tuple(dict.fromkeys(ORDER))
HELD_OUT: Final = tuple(one for one in CAPTIONS if one.partition(" seen")[0] in held_out_of(PAIRS))
FRAME: Final = 1.1  # from the picture's middle to its edges
RADIUS: Final = (0.78, 0.92)  # of the ball around a solid
AMBIENT: Final = 0.4  # of the light, from everywhere
OFFSET: Final = (0.3, 0.8)  # of the light from the camera, both at a distance of one
NEAR: Final = 1e-3  # what counts as the surface
CONTRAST: Final = 60  # levels, the least between the background and the solid in any light


class Config(Entry):
    """The entry of params.yaml."""

    maker: Literal["solids"]
    path: Path = Path("data/makers/solids.py")
    count: Annotated[int, Field(ge=1, le=1_000_000)] = 6000
    image_size: Annotated[int, Field(ge=8, le=512)] = 32
    seed: Annotated[int, Field(ge=0)] = 0


def made(config: Config, project: Path) -> Made:  # noqa: ARG001 - drawn, not read
    """Return the drawn pictures; each depends on (seed, index) alone."""
    return Made(
        samples=_samples(config),
        settings={"image_size": config.image_size, "channels": 3},
        attributes=ATTRIBUTES,
        vocabulary=sorted({word for caption in CAPTIONS for word in caption.split()}),
        held_out=sorted(HELD_OUT),
    )


def _samples(config: Config) -> Iterator[Sample]:
    for index in range(config.count):
        caption = ORDER[index % len(ORDER)]
        pixels = draw(caption, np.random.default_rng((config.seed, index)), config.image_size)
        yield Sample(f"{index:06d}.png", png(pixels), caption, attributes=values_of(caption)[:2])


def draw(caption: str, generator: np.random.Generator, side: int = 32) -> Pixels:
    """Return a picture (side, side, 3); camera, size, colour, light and background vary with the generator."""
    colour, solid, view = values_of(caption)
    azimuth = generator.uniform(0, 2 * np.pi)
    elevation = np.radians(generator.uniform(*VIEWS[view]))
    big = side * SUPERSAMPLING
    seen = normals(solid, azimuth, elevation, generator.uniform(*RADIUS), big)
    around, offset = generator.uniform(0, 2 * np.pi), generator.uniform(*OFFSET)
    light = np.array([offset * np.cos(around), offset * np.sin(around), 1])
    diffuse = np.clip(seen @ light / np.linalg.norm(light), 0, 1)[..., None]
    fill = np.array(tinted(colour, generator))
    lit = (AMBIENT + (1 - AMBIENT) * diffuse) * fill
    picture = np.where(seen.any(-1, keepdims=True), lit, _background(fill, generator))
    parts = picture.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING, 3)
    pixels: Pixels = parts.mean((1, 3)).round().astype(np.uint8)
    return pixels


def normals(
    solid: str, azimuth: float, elevation: float, radius: float = 0.85, side: int = 32
) -> Floats:
    """Return what a camera sees of a solid: the surface's normals (side, side, 3) to its right, up and towards it.

    They are 0 where a ray meets nothing. Rays advance by the distance from the solid (sphere tracing, Hart 1996).

    Args:
        solid: its name.
        azimuth: of the camera, in radians.
        elevation: of the camera, in radians.
        radius: of the ball around the solid.
        side: of the picture, in pixels.
    """
    distance, camera = SOLIDS[solid], camera_of(azimuth, elevation)
    steps = ((np.arange(side) + 0.5) * 2 / side - 1) * FRAME / radius
    right, up = (axis.reshape(-1) for axis in np.meshgrid(steps, -steps))
    alive = np.flatnonzero(right**2 + up**2 < 1)
    rays = np.stack([right, up, np.sqrt(np.clip(1 - right**2 - up**2, 0, 1))])  # from the ball
    far, met = -rays[2], np.zeros(side * side, bool)
    while alive.size:
        clear = distance(camera.T @ rays[:, alive])
        met[alive] = clear < NEAR
        rays[2, alive] -= np.maximum(clear, NEAR)
        alive = alive[(clear >= NEAR) & (rays[2, alive] > far[alive])]
    normal = np.zeros((side * side, 3))
    normal[met] = (camera @ _gradient(distance, camera.T @ rays[:, met])).T
    return normal.reshape(side, side, 3)


def camera_of(azimuth: float, elevation: float) -> Floats:
    """Return the camera's right, up and the direction from the centre to it, a row each, in the world."""
    (sin_a, sin_e), (cos_a, cos_e) = np.sin([azimuth, elevation]), np.cos([azimuth, elevation])
    return np.array(
        [
            [cos_a, 0, -sin_a],
            [-sin_a * sin_e, cos_e, -cos_a * sin_e],
            [sin_a * cos_e, sin_e, cos_a * cos_e],
        ]
    )


def values_of(caption: str) -> tuple[str, str, str]:
    """Return colour, solid and view."""
    _, colour, solid, view = caption.split(maxsplit=3)
    return colour, solid, view


def _gradient(distance: Distance, points: Floats) -> Floats:
    """Return the unit normals (3, N) at points of the surface, by differences."""
    slope = np.stack(
        [distance(points + step) - distance(points - step) for step in NEAR * np.eye(3)[..., None]]
    )
    normal: Floats = slope / np.linalg.norm(slope, axis=0)
    return normal


def _background(fill: Any, generator: np.random.Generator) -> Floats:
    """Return a grey or a colour (3,) that is far from the solid's in any light."""
    lights = np.linspace(AMBIENT, 1, 7)[:, None] * fill
    while True:
        levels = np.broadcast_to(generator.uniform(0, 255, generator.choice((1, 3))), 3)
        if np.linalg.norm(lights - levels, axis=1).min() > CONTRAST:
            return levels
