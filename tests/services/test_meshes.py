"""Meshes are asked for, awaited and fetched as jobs, cut from what a network drew, signed; or fail, and say why."""

import dataclasses
import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from infra.keys import Keys
from infra.media.meshes import decoded
from infra.receipts.mesh_receipts import rest_sha256
from infra.receipts.provenance import check
from models.text_to_3d.dreamfusion import DreamFusion
from tests.services.clips_kit import publish_clips
from tests.services.meshes_kit import publish_meshes
from tests.services.served_kit import listening, with_toys

RED = {"model": "balls", "prompt": "a red ball"}
WAIT = {"prefer": "wait=30"}


@pytest.fixture(scope="module")
def house(own_workshop: Any) -> Iterator[Any]:
    """A gateway that works its jobs off, and a client of each of two keys."""
    keys = Keys(own_workshop.database)
    first, second = (
        {"authorization": f"Bearer {keys.create(name)}"} for name in ("first", "second")
    )
    with with_toys():
        publish_meshes(own_workshop)
        publish_clips(own_workshop)
        own_workshop.publish_wired("dreams", {"base": dreaming()})
        stage = own_workshop.stage()
        app = own_workshop.worked(own_workshop.gateway(stage), stage)
        with (
            listening(app) as address,
            httpx.Client(base_url=address, headers=first, timeout=60) as client,
            httpx.Client(base_url=address, headers=second) as other,
        ):
            yield SimpleNamespace(client=client, other=other, workshop=own_workshop)
    stage.close()


def dreaming() -> DreamFusion:
    """A small DreamFusion that nobody has trained, in steps so large that something becomes opaque."""
    torch.manual_seed(0)
    tiny = DreamFusion.presets["tiny"]
    words = ("a", "red", "ball")
    return DreamFusion(dataclasses.replace(tiny, vocabulary=words, rate=1.0, steps=16)).eval()


def made(house: Any, **more: Any) -> dict[str, Any]:
    answer = house.client.post("/v1/meshes", json={**RED, **more}, headers=WAIT)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["status"] == "completed", found["error"]
    return found


def content(house: Any, mesh: dict[str, Any], **options: Any) -> httpx.Response:
    found: httpx.Response = house.client.get(f"/v1/meshes/{mesh['id']}/content", **options)
    return found


def test_a_mesh_is_asked_for_awaited_described_and_fetched(house: Any) -> None:
    mesh = made(house, seed=7)
    assert mesh["id"].startswith("mesh_")
    assert (mesh["object"], mesh["model"], mesh["version"]) == ("mesh", "balls", "balls:1")
    assert (mesh["progress"], mesh["format"], mesh["seed"]) == (100, "glb", 7)
    assert (mesh["prompt"], mesh["error"], mesh["stages"]) == ("a red ball", None, ["base"])
    assert mesh["created_at"] <= mesh["completed_at"] < mesh["expires_at"]
    file = content(house, mesh)
    assert file.headers["content-type"] == "model/gltf-binary"
    assert len(file.content) == mesh["file_size_bytes"]
    assert mesh["inference_time_s"] > 0
    found = decoded(file.content)
    assert 0.35 < np.linalg.norm(found.vertices, axis=1).mean() < 0.85
    np.testing.assert_array_equal(np.unique(found.colours, axis=0), [[255, 0, 0]])


def test_the_file_says_what_made_it_and_is_good_altered_or_unsigned(house: Any) -> None:
    mesh = made(house, seed=3)
    file, signing = content(house, mesh).content, house.workshop.signing()
    receipt, checks = check(file, signing)
    assert all(one.passed for one in checks)
    assert (receipt.seed, receipt.prompt, receipt.version) == (3, "a red ball", "balls:1")
    assert receipt.request_id == mesh["id"]
    altered = file.replace(b"roughnessFactor", b"roughnessFactoR")
    assert [one.name for one in check(altered, signing)[1] if not one.passed] == ["content"]
    answer = house.client.post("/v1/content_provenance_checks", files={"file": file})
    assert answer.json()["results"][0]["validation_state"] == "trusted"


def test_the_same_seed_gives_the_same_mesh_and_another_one_another(house: Any) -> None:
    def rest(seed: int) -> str:
        return rest_sha256(io.BytesIO(content(house, made(house, seed=seed)).content))

    assert rest(5) == rest(5) != rest(6)


def test_dreamfusion_is_served_with_its_options_and_the_same_by_seed(house: Any) -> None:
    def rest(**more: Any) -> str:
        mesh = made(house, model="dreams", **more)
        return rest_sha256(io.BytesIO(content(house, mesh).content))

    assert rest(seed=4) == rest(seed=4) != rest(seed=5)
    told = content(house, made(house, model="dreams", seed=4, num_inference_steps=20)).content
    receipt, checks = check(told, house.workshop.signing())
    assert receipt.steps == 20
    assert all(one.passed for one in checks)


def test_an_obj_is_asked_for_by_name_in_a_form_too(house: Any) -> None:
    form = {**RED, "prompt": "a green ball", "output_format": "obj", "seed": "1"}
    fields = {name: (None, value) for name, value in form.items()}
    mesh = house.client.post("/v1/meshes", files=fields, headers=WAIT).json()
    file = content(house, mesh)
    assert (mesh["format"], file.headers["content-type"]) == ("obj", "model/obj")
    assert check(file.content, house.workshop.signing())[0].seed == 1
    np.testing.assert_array_equal(np.unique(decoded(file.content).colours, axis=0), [[0, 255, 0]])


def test_a_preview_is_a_picture_from_four_sides(house: Any) -> None:
    mesh = made(house, seed=2)
    answer = content(house, mesh, params={"variant": "preview"})
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (4 * 256, 256)
        assert image.getpixel((128, 128))[0] > 100  # type: ignore[index]
    for known, status in ((answer.headers["etag"], 304), ("*", 304), ('"another"', 200)):
        again = content(
            house, mesh, params={"variant": "preview"}, headers={"if-none-match": known}
        )
        assert again.status_code == status


def test_a_mesh_is_linked_ranged_and_nobody_else_s(house: Any) -> None:
    mesh = made(house, seed=2)
    whole = content(house, mesh).content
    assert httpx.get(mesh["url"]).content == whole
    assert mesh["url"].partition("?")[0].endswith(".glb")
    assert content(house, mesh, headers={"range": "bytes=0-3"}).content == b"glTF"
    for path in (f"/v1/meshes/{mesh['id']}", f"/v1/meshes/{mesh['id']}/content"):
        answer = house.other.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "mesh_not_found")
    assert house.client.get(f"/v1/videos/{mesh['id']}").status_code == 404


def test_meshes_are_listed_apart_from_clips_and_forgotten(house: Any) -> None:
    clip = house.client.post("/v1/videos", json={"model": "moving", "prompt": "a red circle"})
    ids = [made(house, seed=seed)["id"] for seed in (1, 2)]
    listed = house.client.get("/v1/meshes", params={"limit": 2}).json()
    assert [one["id"] for one in listed["data"]] == ids[::-1]
    assert clip.json()["id"] not in [one["id"] for one in listed["data"]]
    gone = house.client.delete(f"/v1/meshes/{ids[0]}").json()
    assert gone == {"id": ids[0], "object": "mesh.deleted", "deleted": True}
    assert house.client.get(f"/v1/meshes/{ids[0]}").status_code == 404


def test_events_tell_of_the_end(house: Any) -> None:
    mesh = made(house, seed=4)
    told = house.client.get(f"/v1/meshes/{mesh['id']}/events").text
    assert "event: mesh.completed" in told


def test_what_has_no_surface_fails_and_says_so(house: Any) -> None:
    asked = {**RED, "prompt": "nothing"}
    mesh = house.client.post("/v1/meshes", json=asked, headers=WAIT).json()
    assert (mesh["status"], mesh["error"]["code"]) == ("failed", "mesh_empty")
    assert "try another seed" in mesh["error"]["message"]
    answer = content(house, mesh)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "mesh_not_completed")


def test_the_same_key_and_words_are_one_job(house: Any) -> None:
    key = {"idempotency-key": "one"}
    first, again = (house.client.post("/v1/meshes", json=RED, headers=key).json() for _ in "12")
    assert first["id"] == again["id"]
    other = house.client.post("/v1/meshes", json={**RED, "seed": 1}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_conflict")


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"image": "data:image/png;base64,AAAA"}, "image", "unknown parameter 'image'"),
        ({"output_format": "stl"}, "output_format", "'glb' or 'obj'"),
        ({"prompt": ""}, "prompt", "it is empty"),
        ({"prompt": "a blue ball"}, "prompt", "blue"),
        ({"model": "moving"}, "model", "gives no meshes at /v1/meshes; it gives clips"),
        ({"model": "nobody"}, "model", "does not exist"),
        ({"num_inference_steps": 0}, "num_inference_steps", "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(
    house: Any, more: dict[str, Any], param: str, says: str
) -> None:
    answer = house.client.post("/v1/meshes", json={**RED, **more})
    error = answer.json()["error"]
    assert answer.status_code in {400, 404}
    assert error["param"] == param
    assert says in error["message"]


def test_a_clip_is_not_asked_of_who_makes_meshes(house: Any) -> None:
    answer = house.client.post("/v1/videos", json=RED)
    assert (
        "balls gives no clips at /v1/videos; it gives meshes" in answer.json()["error"]["message"]
    )


def test_the_model_s_card_says_what_it_makes(house: Any) -> None:
    card = house.client.get("/v1/models/balls").json()
    assert (card["modality"], card["capabilities"]) == ("mesh", ["mesh_generation"])
    assert card["resolution"] == 8
