"""Volumes to meshes, and meshes to files and back: glTF 2.0 binary (GLB) and Wavefront OBJ.

A volume (4, R, R, R) has channels red, green, blue and opacity in [0, 1], axes (channel, z, y, x) of a right-handed
world as glTF has it: +y up, +z to the viewer of the front, +x to his right. It spans [-1, 1] on each axis; voxel i has
its centre at (2 i + 1) / R - 1.

Shape letters: R voxels a side, N vertices, M triangles.
"""

import io
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Kind: TypeAlias = Literal["glb", "obj"]
MEDIA_TYPES: Final = {"glb": "model/gltf-binary", "obj": "model/obj"}
SURFACE: Final = 0.5  # the opacity at which there is something
APART: Final = 1e-4
"""How near to the surface a voxel may lie: a corner that several edges share would leave holes, or have no normal."""
MOST_BYTES: Final = 2**26  # of a file that is read
COLOUR: Final = "_COLOR_0"
"""What trimesh is told that glTF's COLOR_0 is: under its own name it would be cut to eight bits of linear light, of
which dark colours have a handful."""


class MeshError(ValueError):
    """A mesh that cannot be made or used; the message is the reason, in a few words."""


class EmptyMeshError(MeshError):
    """A volume in which nothing is opaque enough to have a surface."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """Coloured triangles, closed, wound anticlockwise as seen from outside."""

    vertices: NDArray[np.float32]  # (N, 3): x, y, z
    faces: NDArray[np.int32]  # (M, 3), places of vertices
    colours: NDArray[np.uint8]  # (N, 3): sRGB


@dataclass(frozen=True, slots=True)
class MeshFile:
    """A finished file."""

    content: bytes
    media_type: str


def mesh_of(volume: NDArray[np.floating[Any]]) -> Mesh:
    """Return the surface at which a volume's opacity passes 1/2, by marching cubes; around the volume it is 0.

    Between two voxels a colour counts as much as it is opaque, so that empty ones darken no edge.

    Raises:
        MeshError: another shape, or numbers that are not finite.
        EmptyMeshError: no voxel is above 1/2.
    """
    sides = volume.shape[1:]
    if volume.ndim != 4 or volume.shape[0] != 4 or len({*sides}) != 1 or not sides[0]:
        raise MeshError(f"no volume has the shape {volume.shape}: (4, R, R, R)")
    if not np.isfinite(volume).all():
        raise MeshError("the volume has numbers that are not finite")
    from scipy.ndimage import map_coordinates
    from skimage.measure import marching_cubes

    around = np.pad(volume.astype(np.float32).clip(0, 1), [(0, 0), *[(1, 1)] * 3])
    opacity = around[3]
    if (most := opacity.max()) <= SURFACE:
        raise EmptyMeshError(f"nothing is opaque: {most:.2g} at most, above {SURFACE} is a surface")
    near, there = abs(opacity - SURFACE) < APART, opacity > SURFACE
    opacity[near] = np.where(there, SURFACE + APART, SURFACE - APART)[near]
    places_zyx, faces, _, _ = marching_cubes(opacity, SURFACE)
    weight, *seen = (
        map_coordinates(one, places_zyx.T, order=1) for one in (opacity, *(around[:3] * opacity))
    )
    colours = np.stack(seen, 1) / weight[:, None]
    vertices = (2 * places_zyx[:, ::-1] - 1) / sides[0] - 1
    return Mesh(
        np.ascontiguousarray(vertices, np.float32),
        np.ascontiguousarray(faces, np.int32),
        (colours * 255).round().clip(0, 255).astype(np.uint8),
    )


def encoded(mesh: Mesh, kind: Kind) -> MeshFile:
    """Return a mesh as a file with smooth normals; equal meshes give equal files.

    The GLB has colours in linear light, as glTF defines them, on a matt material; the OBJ has them as they are behind
    the coordinates, where MeshLab, Blender and others read them.

    Raises:
        MeshError: it has no triangles.
    """
    if not len(mesh.faces):
        raise MeshError("a mesh without triangles is no file")
    from trimesh import Trimesh
    from trimesh.exchange.gltf import export_glb
    from trimesh.exchange.obj import export_obj
    from trimesh.visual import ColorVisuals, TextureVisuals
    from trimesh.visual.material import PBRMaterial

    plain = {"vertices": mesh.vertices, "faces": mesh.faces, "process": False}
    if kind == "obj":
        shown = Trimesh(**plain, visual=ColorVisuals(vertex_colors=mesh.colours))
        text: str = export_obj(shown, include_normals=True, header="atelier")
        return MeshFile(f"{text}\n".encode(), MEDIA_TYPES[kind])
    matt = PBRMaterial(metallicFactor=0.0, roughnessFactor=1.0)
    shown = Trimesh(
        **plain,
        visual=TextureVisuals(material=matt),
        vertex_attributes={COLOUR: _linear(mesh.colours)},
    )
    content: bytes = export_glb(shown, include_normals=True, tree_postprocessor=_named)
    return MeshFile(content, MEDIA_TYPES[kind])


def kind_of(content: bytes) -> Kind:
    """Return what a file is by its first bytes; an OBJ has none of its own, so it is whatever is no GLB."""
    return "glb" if content[:4] == b"glTF" else "obj"


def decoded(content: bytes) -> Mesh:
    """Return the mesh in a GLB or OBJ with a colour a vertex.

    Raises:
        MeshError: unknown kind, damaged, too large, without triangles or without colours.
    """
    if len(content) > MOST_BYTES:
        raise MeshError(f"{len(content)} bytes, at most {MOST_BYTES} are read")
    import trimesh

    kind = kind_of(content)
    try:
        scene = trimesh.load_scene(io.BytesIO(content), kind, process=False, maintain_order=True)
        [found] = scene.geometry.values()
        shown, vertices, faces = found.visual, found.vertices, found.faces
        levels = _levels(shown.vertex_attributes["color"]) if kind == "glb" else shown.vertex_colors
    except (ValueError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
        raise MeshError(f"not a GLB or OBJ that can be read: {error}") from None
    return Mesh(
        np.asarray(vertices, np.float32),
        np.asarray(faces, np.int32),
        np.asarray(levels, np.uint8)[:, :3],
    )


def _named(tree: dict[str, Any]) -> None:
    """Give a glTF document's colours their name, and say who wrote it."""
    tree["asset"]["generator"] = "atelier"
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    attributes[COLOUR.removeprefix("_")] = attributes.pop(COLOUR)


def _linear(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return sRGB levels as linear light in [0, 1] (IEC 61966-2-1)."""
    found = colours / 255
    light = np.where(found <= 0.04045, found / 12.92, ((found + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


def _levels(light: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return linear light as sRGB levels."""
    found = light.clip(0, 1)
    shown = np.where(found <= 0.0031308, 12.92 * found, 1.055 * found ** (1 / 2.4) - 0.055)
    return (255 * shown).round().astype(np.uint8)
