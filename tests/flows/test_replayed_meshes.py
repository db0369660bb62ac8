"""A mesh's receipt is checked by the command line, and the mesh made again from it and compared by where it is."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import context
from flows.cli import lineage_verbs
from flows.provenance.tracing import compare_meshes, redraw, trace
from infra.media.meshes import Mesh, decoded, encoded, mesh_of
from infra.pipelines import PinnedStage, Pipeline
from infra.receipts.provenance import sign
from infra.receipts.receipts import GENERATOR, Receipt, StageReceipt, attach, read
from models import describe
from models.request import Request
from tests.command_kit import commands
from tests.flows.versions_kit import Installation
from tests.services.meshes_kit import WORDS, Ball
from tests.services.served_kit import with_toys

KINDS: tuple[Any, ...] = ("glb", "obj")
Made = Callable[..., Path]


@pytest.fixture
def made(here: Installation, tmp_path: Path) -> Iterator[Made]:
    """A mesh of either kind, as a gateway answers it."""
    with with_toys():
        model = Ball(Ball.presets["tiny"]).eval()
        version = here.publish("balls.base", model, "balls")
        stage = PinnedStage(
            stage="base", name=version.name, version=version.number, sha256=version.digest,
            family=describe(model)["family"], inputs={"text": "text"}, outputs={"volume": "volume 4x8x8x8"},
        )  # fmt: skip
        facts: Any = {"modality": "mesh", "abilities": ("meshes",), "resolution": 8}
        pipeline = here.publish_wired(
            Pipeline(endpoint="balls", stages=(stage,), vocabulary=WORDS, **facts)
        )
        receipt = Receipt(
            endpoint="balls", version=pipeline.ref, digest=pipeline.digest, place="production", epoch=1,
            stages=(StageReceipt(name=stage.name, version=stage.version, sha256=stage.sha256),),
            prompt="a red ball", seed=7, generator=GENERATOR, created=datetime.now(UTC), request_id="mesh_1",
        )  # fmt: skip

        def mesh(kind: Any, **changes: Any) -> Path:
            asked = receipt.model_copy(update=changes)
            [volume] = model.sample(Request(seeds=(7,), prompts=("a red ball",)))
            content = encoded(mesh_of(volume.detach().numpy()), kind).content
            file = tmp_path / f"ball.{kind}"
            file.write_bytes(attach(content, sign(asked, content, context.signing())))
            return file

        yield mesh


def test_a_mesh_is_verified_by_the_command_line_until_a_byte_is_another(made: Made) -> None:
    for kind in KINDS:
        file = made(kind)
        good = commands.run("verify", str(file))
        assert good.returncode == 0, good.stdout + good.stderr
        assert f"ball.{kind}: verified" in good.stdout
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 1
        file.write_bytes(bytes(content))
        bad = commands.run("verify", str(file))
        assert bad.returncode == 1
        assert "NOT VERIFIED" in bad.stdout
    file.write_bytes(encoded(mesh_of(np.ones((4, 2, 2, 2))), "glb").content)
    unsigned = commands.run("verify", str(file))
    assert unsigned.returncode == 1
    assert "no receipt in" in unsigned.stdout + unsigned.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_mesh_is_made_again_and_is_the_same(made: Made, kind: str, tmp_path: Path) -> None:
    file, again = made(kind), tmp_path / f"again.{kind}"
    lineage_verbs.replay(file, again)
    np.testing.assert_array_equal(*(decoded(one.read_bytes()).faces for one in (file, again)))
    assert (read(again).request_id, read(again).seed) == ("replay", 7)


@pytest.mark.parametrize("changes", [{"seed": 3}, {"prompt": "a green ball"}])
def test_another_mesh_differs_by_where_or_by_colour(made: Made, changes: dict[str, Any]) -> None:
    file = made("glb", **changes)
    found = trace(file)
    compared = compare_meshes(found, file.read_bytes(), redraw(found, "glb"), where="here")
    assert not compared.same
    assert "vertices differ, by at most " in compared.says


def test_rounding_alone_is_the_same_mesh(made: Made) -> None:
    file = made("obj")
    found, mesh = trace(file), decoded(file.read_bytes())
    near = Mesh(mesh.vertices + np.float32(1e-3), mesh.faces, mesh.colours)
    moved = attach(encoded(near, "obj").content, found.receipt)
    compared = compare_meshes(found, file.read_bytes(), moved, where="here")
    assert compared.same
    assert compared.differing == 2 * len(mesh.vertices)
