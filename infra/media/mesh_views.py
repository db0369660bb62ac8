"""A picture of a mesh from four sides, for who has no viewer at hand.

Shape letters: N vertices, M triangles, P points on them, H and W pixels.
"""

import io
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infra.media.meshes import Mesh, MeshFile

SIDES: Final = 4  # evenly about it, the front first
ELEVATION: Final = math.radians(20)
PIXELS: Final = 256  # a side of one view
MARGIN: Final = 1.1  # how much wider a view is than what stands in it
LIGHT: Final = np.array([0.3, 0.8, 0.5]) / np.linalg.norm([0.3, 0.8, 0.5])  # beside the camera
DARKEST: Final = 0.5  # of what is turned from the light


def sheet(mesh: Mesh) -> MeshFile:
    """Return a PNG of a mesh from its front, right, back and left, a little from above, on nothing."""
    views = [view(mesh, 2 * math.pi * number / SIDES, ELEVATION) for number in range(SIDES)]
    file = io.BytesIO()
    Image.fromarray(np.hstack(views), "RGBA").save(file, "PNG")
    return MeshFile(file.getvalue(), "image/png")


def view(mesh: Mesh, azimuth: float, elevation: float, side: int = PIXELS) -> NDArray[np.uint8]:
    """Return a mesh from one side, (H, W, 4) RGBA, along parallel rays.

    Args:
        mesh: What is seen.
        azimuth: Radians about the vertical; 0 is the front, more comes round to the right.
        elevation: Radians above the horizon.
        side: Pixels, H and W.
    """
    (sa, ca), (se, ce) = ((math.sin(one), math.cos(one)) for one in (azimuth, elevation))
    camera = np.array([[ca, 0, -sa], [-sa * se, ce, -ca * se], [sa * ce, se, ca * ce]])
    largest = MARGIN * float(np.linalg.norm(mesh.vertices, axis=1).max())
    corners = (mesh.vertices @ camera.T * side / (2 * largest))[mesh.faces]  # right, up, nearer; px
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facing = normals[:, 2] > 0
    corners, normals, faces = corners[facing], normals[facing], mesh.faces[facing]
    lit = (normals @ LIGHT / np.linalg.norm(normals, axis=1)).clip(0, 1)
    triangle, weights = _points(corners)
    right, up, nearer = np.einsum("pc,pcd->dp", weights, corners[triangle])
    colours = np.einsum("pc,pcd->pd", weights, mesh.colours[faces[triangle]].astype(np.float64))
    colours *= (DARKEST + (1 - DARKEST) * lit)[triangle, None]
    pixels = (side / 2 - up).astype(int) * side + (side / 2 + right).astype(int)
    order = np.argsort(nearer, kind="stable")  # the nearest is written last, and stays
    shown = np.zeros((side * side, 4), np.uint8)
    shown[pixels[order], :3] = colours[order].round()
    shown[pixels[order], 3] = 255
    return shown.reshape(side, side, 4)


def _points(corners_M33: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return points on triangles, less than a pixel apart: of which triangle (P,), and its corners' weights (P, 3)."""
    edges = corners_M33 - np.roll(corners_M33, 1, axis=1)
    steps = np.ceil(1.5 * np.linalg.norm(edges[..., :2], axis=2).max(1)).astype(int).clip(1)
    triangles, weights = [], []
    for count in np.unique(steps):
        those = np.flatnonzero(steps == count)
        parts = [(i, j, count - i - j) for i in range(count + 1) for j in range(count + 1 - i)]
        triangles.append(np.repeat(those, len(parts)))
        weights.append(np.tile(np.array(parts) / count, (len(those), 1)))
    return np.concatenate(triangles), np.concatenate(weights)
