"""A volume becomes a closed mesh in its colours, and a mesh a file that others open."""

import io
import json
import struct
from collections import Counter
from typing import Any

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from infra.media import meshes
from infra.media.mesh_views import view
from infra.media.meshes import EmptyMeshError, Mesh, MeshError, decoded, encoded, mesh_of

KINDS: tuple[Any, ...] = ("glb", "obj")
ORANGE = np.array([0.9, 0.4, 0.02])
MIDDLE = np.array([0.3, 0.1, -0.2])  # x, y, z


def ball(resolution: int = 16, radius: float = 0.5) -> np.ndarray:
    """An orange ball in an empty volume, a voxel's width soft."""
    centres = (2 * np.arange(resolution) + 1) / resolution - 1
    z, y, x = np.meshgrid(centres, centres, centres, indexing="ij")
    away = np.sqrt(sum((at - mid) ** 2 for at, mid in zip((x, y, z), MIDDLE, strict=True)))
    opacity = np.clip((radius - away) * resolution / 2 + 0.5, 0, 1)
    return np.stack([*((opacity > 0) * one for one in ORANGE), opacity])


BALL = mesh_of(ball())
FILES = {kind: encoded(BALL, kind).content for kind in KINDS}


def is_closed(mesh: Mesh) -> bool:
    """Whether each side of a triangle is the side of another one that runs the other way."""
    corners = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).tolist()
    sides = Counter(map(tuple, corners))
    return all(count == sides[end, start] for (start, end), count in sides.items())


def test_a_ball_stands_where_it_stood_and_is_as_large() -> None:
    away = np.linalg.norm(BALL.vertices - MIDDLE, axis=1)
    assert np.abs(away - 0.5).max() < 0.01
    assert is_closed(BALL)
    a, b, c = (BALL.vertices[BALL.faces[:, corner]].astype(float) for corner in range(3))
    volume = np.einsum("mi,mi->", a, np.cross(b, c)) / 6  # above 0: seen from outside
    assert volume == pytest.approx(4 / 3 * np.pi * 0.5**3, rel=0.05)  # its triangles are chords


def test_empty_voxels_darken_no_edge() -> None:
    assert np.abs(BALL.colours.astype(int) - (ORANGE * 255)).max() < 1


def test_between_two_colours_the_more_opaque_counts_more() -> None:
    volume = np.zeros((4, 2, 2, 2))
    volume[..., 0] = np.reshape([1, 0, 0, 1.0], (4, 1, 1))
    volume[..., 1] = np.reshape([0, 0, 1, 0.25], (4, 1, 1))
    mesh = mesh_of(volume)
    # the surface lies two thirds of the way: red 1/3 x 1, blue 2/3 x 1/4
    edge = mesh.colours[np.isclose(mesh.vertices[:, 0], -1 / 2 + 2 / 3)]
    assert len(edge) == 4
    np.testing.assert_allclose(edge, np.tile((170, 0, 85), (4, 1)), atol=1)


@given(
    volume=st.integers(1, 4).flatmap(
        lambda side: arrays(
            np.float32,
            (4, side, side, side),
            elements=st.sampled_from([0, 0.2, 0.5, 0.50000006, 0.7, 1]),
        )
    )
)
def test_any_volume_becomes_a_closed_mesh_within_it_or_is_empty(volume: np.ndarray) -> None:
    if volume[3].max() <= 0.5:
        with pytest.raises(EmptyMeshError, match="nothing is opaque"):
            mesh_of(volume)
        return
    mesh = mesh_of(volume)
    assert is_closed(mesh)
    assert np.abs(mesh.vertices).max() <= 1
    assert mesh.faces.max() == len(mesh.vertices) - 1 == len(mesh.colours) - 1


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros((3, 4, 4, 4)), r"no volume has the shape \(3, 4, 4, 4\)"),
        (np.ones((4, 4, 4, 2)), "no volume has the shape"),
        (np.full((4, 2, 2, 2), np.nan), "not finite"),
        (np.zeros((4, 2, 2, 2)), "nothing is opaque: 0 at most"),
    ],
)
def test_what_has_no_surface_is_refused_in_a_line(volume: np.ndarray, message: str) -> None:
    with pytest.raises(MeshError, match=message):
        mesh_of(volume)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mesh_comes_back_as_it_was_and_equal_meshes_give_equal_files(kind: Any) -> None:
    levels = np.arange(3 * len(BALL.vertices)).reshape(-1, 3) % 256
    mesh = Mesh(BALL.vertices, BALL.faces, levels.astype(np.uint8))
    made = encoded(mesh, kind)
    assert made == encoded(Mesh(*(one.copy() for one in parts(mesh))), kind)
    found = decoded(made.content)
    np.testing.assert_allclose(found.vertices, mesh.vertices, atol=1e-7)
    np.testing.assert_array_equal(found.faces, mesh.faces)
    np.testing.assert_array_equal(found.colours, mesh.colours)


def parts(mesh: Mesh) -> tuple[np.ndarray, ...]:
    return mesh.vertices, mesh.faces, mesh.colours


def test_a_glb_has_linear_colours_normals_and_a_matt_material() -> None:
    content = FILES["glb"]
    assert content[:8] == b"glTF" + struct.pack("<I", 2)
    assert struct.unpack_from("<I", content, 8) == (len(content),)
    (length,) = struct.unpack_from("<I", content, 12)
    document = json.loads(content[20 : 20 + length])
    [mesh] = document["meshes"]
    [primitive] = mesh["primitives"]
    assert {*primitive["attributes"]} == {"POSITION", "NORMAL", "COLOR_0"}
    assert document["materials"][0]["pbrMetallicRoughness"] == {
        "metallicFactor": 0.0, "roughnessFactor": 1.0
    }  # fmt: skip
    scene = trimesh.load_scene(io.BytesIO(content), "glb", process=False)
    [found] = scene.geometry.values()
    light = ((ORANGE[:2] + 0.055) / 1.055) ** 2.4  # IEC 61966-2-1
    colours = found.visual.vertex_attributes["color"]
    np.testing.assert_allclose(colours[:, :2], np.tile(light, (len(colours), 1)), atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(found.vertex_normals, axis=1), 1, atol=1e-5)


def test_an_obj_has_its_colours_behind_the_coordinates() -> None:
    lines = FILES["obj"].decode().splitlines()
    assert lines[0] == "# atelier"
    numbers = next(line for line in lines if line.startswith("v ")).split()[1:]
    np.testing.assert_allclose([float(one) for one in numbers[3:]], ORANGE, atol=0.01)


def test_the_types_are_those_that_iana_lists() -> None:
    assert encoded(BALL, "glb").media_type == "model/gltf-binary"
    assert encoded(BALL, "obj").media_type == "model/obj"


@pytest.mark.parametrize("content", [b"", b"glTF", b"v 0 0", b"hello, world", FILES["glb"][:-40]])
def test_what_is_no_whole_mesh_is_refused_in_a_line(content: bytes) -> None:
    with pytest.raises(MeshError, match="not a GLB or OBJ") as caught:
        decoded(content)
    assert "\n" not in str(caught.value)


def test_too_much_is_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meshes, "MOST_BYTES", 100)
    with pytest.raises(MeshError, match="at most 100 are read"):
        decoded(FILES["glb"])


def test_each_side_is_seen_from_its_own_side_alone() -> None:
    volume = np.zeros((4, 8, 8, 8))  # z, y, x
    volume[3, 2:6, 2:6, 2:6] = 1
    volume[0, 4:, :, :] = 1  # the front is red
    volume[2, :4, :, :] = 1  # the back is blue
    volume[1, :, :, 4:] = 1  # and the right is green, too
    mesh = mesh_of(volume)
    red, green, blue = np.eye(3, dtype=bool)
    for azimuth, left, right in (
        (0, red, red | green),
        (90, red | green, blue | green),
        (180, blue | green, blue),
        (270, blue, red),
    ):
        seen = view(mesh, np.radians(azimuth), 0.0, 64) > 100
        np.testing.assert_array_equal(seen[32, [22, 42], :3], [left, right], str(azimuth))
    assert view(mesh, 0.0, 0.0, 64)[0, 0, 3] == 0  # nothing is there


def test_a_picture_of_a_mesh_has_no_holes_and_is_as_large_as_it() -> None:
    seen = view(BALL, 0.0, 0.3, 64)
    disc = seen[..., 3] > 0
    rows = np.flatnonzero(disc.any(1))
    for row in rows:
        shown = np.flatnonzero(disc[row])
        assert disc[row, shown[0] : shown[-1] + 1].all()
    largest = 1.1 * np.linalg.norm(BALL.vertices, axis=1).max()
    assert len(rows) == pytest.approx(64 * 0.5 / largest, abs=2)
