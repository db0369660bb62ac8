"""A version travels as a signed folder: same digests, nothing altered, nothing foreign."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trials
from hypothesis import strategies as st

from flows import context
from flows.context import registry
from flows.provenance.bundle import ExchangeError, export, import_folder
from flows.provenance.lineage import graph_of
from flows.provenance.tracing import compare_pixels, redraw, trace
from infra.receipts.signing import Signing, Untrusted
from infra.storage import OWN, IntegrityError, seal
from tests.flows.conftest import Install, installations
from tests.flows.versions_kit import NAME, Installation


@pytest.fixture(scope="module")
def exported(
    empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, str]:
    """An exported folder, a picture of its version, and the signer's fingerprint."""
    folder = tmp_path_factory.mktemp("exported")
    with installations(empty_mlflow, folder) as make:
        there = make("there")
        start = there.stage("base", 50)  # so that numbers differ
        there.stage("base", 0, start)
        version = there.pipeline()
        picture = there.picture(version, folder / "picture.png", epoch=there.promote(version))
        export(version.ref, folder / "sent")
        return folder / "sent", picture, context.signing().fingerprint()


@pytest.fixture
def sent(
    exported: tuple[Path, Path, str], install: Install, tmp_path: Path
) -> tuple[Path, Path, str]:
    """A copy of what was exported; another, empty installation is on."""
    folder, picture, signer = exported
    install("here")
    return shutil.copytree(folder, tmp_path / "sent"), picture, signer


def test_a_version_keeps_its_digests_and_its_pictures_verify_and_replay_elsewhere(
    sent: tuple[Path, Path, str],
) -> None:
    folder, picture, signer = sent
    found = import_folder(folder, signer)
    index = json.loads((folder / "index.json").read_text())
    for one in index["versions"]:
        here = registry().by_digest(one["name"], one["digest"])
        assert here is not None
        assert here.tags["atelier.imported_from"] == signer
        assert registry().fetch(here).is_dir()
    assert found.version.digest == index["versions"][0]["digest"]
    stage = next(one for one in index["versions"] if one["name"] == f"{NAME}.base")
    assert stage["number"] == 2, "the numbers are to differ"
    assert found.version.tags["atelier.stages"] == f"{NAME}.base:1 {NAME}.upscaler:1"

    traced = trace(picture)
    assert traced.verdict == "agrees"
    assert f"installation {signer[:16]}" in traced.says
    again = compare_pixels(traced, picture.read_bytes(), redraw(traced), where="here")
    assert again.says == "identical: all 256 pixels"


def test_a_fine_tuned_version_names_its_base_where_that_never_came(
    sent: tuple[Path, Path, str],
) -> None:
    folder, _, signer = sent
    version = import_folder(folder, signer).version
    tuned = registry().get(f"{NAME}.base")
    digest = tuned.tags["atelier.base_digest"]
    assert registry().by_digest(f"{NAME}.base", digest) is None
    nodes = {node["identity"]: node for node in graph_of(version.ref).as_json()["nodes"]}
    assert nodes[f"base sha256 {digest}"]["title"] == tuned.tags["atelier.base"] == "toys.base:1"


def test_a_second_import_changes_nothing_and_the_signer_is_remembered(
    sent: tuple[Path, Path, str],
) -> None:
    folder, _, signer = sent
    first = import_folder(folder, signer)
    assert len(first.published) == 4
    second = import_folder(folder)
    assert second.published == []
    assert second.version == first.version
    assert [version.number for version in registry().versions(NAME)] == [1]


def test_an_unknown_signer_is_refused_with_the_command_that_trusts_it(
    sent: tuple[Path, Path, str],
) -> None:
    folder, _, signer = sent
    with pytest.raises(ExchangeError, match=f"atelier import {folder} --trust {signer}"):
        import_folder(folder)
    with pytest.raises(ExchangeError, match="not by 0000"):
        import_folder(folder, "0" * 64)
    assert registry().names() == []


@trials(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2**40), bit=st.integers(0, 7))
def test_one_flipped_bit_is_refused_by_file_name_and_nothing_is_published(
    sent: tuple[Path, Path, str], place: int, bit: int
) -> None:
    folder, _, signer = sent
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = files[place % len(files)]
    content = bytearray(file.read_bytes())
    at = place // len(files) % len(content)
    content[at] ^= 1 << bit
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        with pytest.raises((ExchangeError, Untrusted)) as refused:
            import_folder(folder, signer)
        assert file.name in str(refused.value)
    finally:
        file.write_bytes(before)
    assert registry().names() == []


def test_links_extra_files_and_missing_ones_are_refused_by_name(
    sent: tuple[Path, Path, str],
) -> None:
    folder, _, signer = sent
    (folder / "extra.txt").write_text("mine")
    with pytest.raises(ExchangeError, match=r"extra\.txt is not in the index"):
        import_folder(folder, signer)
    (folder / "extra.txt").unlink()
    (folder / "data.json").rename(folder.parent / "data.json")
    with pytest.raises(ExchangeError, match=r"data\.json is missing"):
        import_folder(folder, signer)
    (folder / "data.json").symlink_to(folder.parent / "data.json")
    with pytest.raises(ExchangeError, match=r"data\.json is a link"):
        import_folder(folder, signer)
    (folder / "data.json").unlink()
    os.mkfifo(folder / "data.json")
    with pytest.raises(ExchangeError, match=r"data\.json is a link or no plain file"):
        import_folder(folder, signer)
    assert registry().names() == []


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "versions/../../x", "a//b", ".hidden", "a\\b", "a/b/"]
)
def test_a_signed_index_cannot_name_files_outside_the_folder(
    sent: tuple[Path, Path, str], name: str
) -> None:
    folder, _, _ = sent
    index = json.loads((folder / "index.json").read_text())
    index["files"][name] = index["files"].pop("README.md")
    signed_anew(folder, index)
    with pytest.raises(ExchangeError, match=r"index\.json is not an index: files"):
        import_folder(folder)


def test_a_signed_folder_with_a_pickle_or_false_weights_is_refused(
    sent: tuple[Path, Path, str], tmp_path: Path
) -> None:
    folder, _, _ = sent
    index = json.loads((folder / "index.json").read_text())
    stage = next(one for one in index["versions"] if one["role"] == "stage")
    for file, says in (("model.pkl", "may not be published"), ("model.safetensors", "is not safetensors")):  # fmt: skip
        forged = tmp_path / f"forged-{file}"
        shutil.copytree(folder, forged)
        version = forged / "versions" / stage["digest"]
        (version / file).write_bytes(b"\x80\x04N.")
        digest = seal(version, {"kind": "model"})
        version.rename(forged / "versions" / digest)
        changed = json.loads(json.dumps(index).replace(stage["digest"], digest))
        listed_anew(forged, changed)
        with pytest.raises((ExchangeError, IntegrityError), match=says):
            import_folder(forged)
    assert registry().names() == []


def emptied(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({}, folder / "model.safetensors")


def of_family(name: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "family": name}))

    return change


def written(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


FORGERIES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no tensors": ("stage", emptied, r"weights are not those of its network: .* is missing"),
    "os.system": ("stage", of_family("os.system"), r"of family 'os\.system', which is none"),
    "a judge's family": ("stage", of_family("attribute-judge"), "which is none of ours"),
    "another family": ("stage", of_family("gpt"), "cannot be built"),
    "no family": ("judge", of_family(None), "of family None"),
    "nested config": ("stage", written("config.json", "[" * 3_000_000), "config.json is nested"),
    "nested pipeline": ("pipeline", written("pipeline.json", "[" * 3_000_000), "json is nested"),
    "nested recipe": ("pipeline", written("recipe.json", "[" * 3_000_000), "json is nested"),
    "foreign recipe": ("pipeline", written("recipe.json", '{"name": 3}'), "recipe.json: "),
    "no pipeline": ("pipeline", lambda folder: (folder / "pipeline.json").unlink(), "has no pipeline.json"),
    "no weights": ("judge", lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
}  # fmt: skip
TOP: dict[str, tuple[str, str, str]] = {
    "nested ledger": ("ledger.json", "[" * 3_000_000, "ledger.json is nested more than 100 deep"),
    "no rows": ("ledger.json", '{"a": 1}', "ledger.json has a row that is none"),
    "half a row": ("ledger.json", '[{"stage": "production"}]', "ledger.json has a row that is none: 0.epoch"),
    "nested data": ("data.json", '{"a":' * 600_000, "data.json is nested more than 100 deep"),
}  # fmt: skip


def test_everything_is_checked_before_anything_is_published_or_trusted(
    sent: tuple[Path, Path, str], tmp_path: Path
) -> None:
    folder, _, _ = sent
    stranger = Signing(tmp_path / "stranger")
    forged = {}
    for name, (role, change, says) in FORGERIES.items():
        forged[name] = shutil.copytree(folder, tmp_path / "forged" / name), says
        sealed_anew(forged[name][0], role, change, stranger)
    for name, (file, text, says) in TOP.items():
        forged[name] = shutil.copytree(folder, tmp_path / "forged" / name), says
        (forged[name][0] / file).write_text(text)
        listed_anew(forged[name][0], json.loads((folder / "index.json").read_text()), stranger)
    for name, (where, says) in forged.items():
        with pytest.raises((ValueError, IntegrityError), match=says) as refused:
            import_folder(where, stranger.fingerprint())
        assert "\n" not in str(refused.value), name
    assert registry().names() == []
    assert not context.signing().trusts(stranger.fingerprint())


def test_a_stage_that_the_pipeline_does_not_pin_is_refused(sent: tuple[Path, Path, str]) -> None:
    folder, _, _ = sent
    index = json.loads((folder / "index.json").read_text())
    index["versions"][1]["name"] = "toys.other"
    signed_anew(folder, index)
    with pytest.raises(ExchangeError, match="do not name the same versions"):
        import_folder(folder)


def test_a_stage_or_a_folder_that_is_there_is_not_exported(
    here: Installation, tmp_path: Path
) -> None:
    version = here.pipeline()
    with pytest.raises(ExchangeError, match=r"toys\.base:1 is a stage: export 'toys'"):
        export(f"{NAME}.base", tmp_path / "out")
    with pytest.raises(ExchangeError, match="is there already"):
        export(version.ref, tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_key_is_made_once_is_private_and_is_not_used_when_others_may_read_it(
    tmp_path: Path,
) -> None:
    first, second = Signing(tmp_path), Signing(tmp_path)
    assert first.fingerprint() == second.fingerprint()
    key = tmp_path / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o644)
    with pytest.raises(Untrusted, match="chmod 600"):
        first.sign(b"")


def test_a_signature_of_other_bytes_or_in_other_letters_is_refused(tmp_path: Path) -> None:
    signing = Signing(tmp_path)
    signature = signing.sign(b"index")
    assert signing.verify(b"index", signature, "index.json") == signing.fingerprint()
    for content, given_ in ((b"other", signature), (b"index", signature.upper()), (b"index", b"")):
        with pytest.raises(Untrusted, match=r"index\.json"):
            signing.verify(content, given_, "index.json")


def signed_anew(folder: Path, index: dict[str, object], key: Signing | None = None) -> None:
    """Sign a forged index, with this installation's own key, which it trusts, if not with another."""
    (folder / "index.json").write_text(json.dumps(index))
    content = (folder / "index.json").read_bytes()
    (folder / "index.json.sig").write_bytes((key or context.signing()).sign(content))


def sealed_anew(folder: Path, role: str, change: Callable[[Path], None], key: Signing) -> None:
    """Change a version of a folder, and give pipeline, index and signature the digests that follow."""
    text = (folder / "index.json").read_text()
    held = {one["role"]: one["digest"] for one in reversed(json.loads(text)["versions"])}
    for each in (role, "pipeline") if role != "pipeline" else (role,):
        version = folder / "versions" / held[each]
        if each == role:
            change(version)
        else:
            for path in version.glob("*.json"):
                path.write_text(path.read_text().replace(held[role], held["new"]))
        facts = json.loads((version / "MANIFEST.json").read_text())
        held["new"] = seal(version, {k: v for k, v in facts.items() if k not in OWN})
        version.rename(folder / "versions" / held["new"])
        text = text.replace(held[each], held["new"])
    listed_anew(folder, json.loads(text), key)


def listed_anew(folder: Path, index: dict[str, object], key: Signing | None = None) -> None:
    """List whatever the folder holds now, and sign it."""
    from infra.storage import sha256_of

    index["files"] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("index.json")
    }  # fmt: skip
    signed_anew(folder, index, key)
