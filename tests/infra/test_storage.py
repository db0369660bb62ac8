"""Published files are whole or absent, and no altered byte passes."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.storage import (
    MANIFEST,
    IntegrityError,
    atomic_write,
    faultpoint,
    oldest_first,
    seal,
    sha256_of,
    verify,
    write_json,
)

FACTS = {"kind": "model", "name": "shapes.base", "step": 200, "loss": 0.125}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    directory = tmp_path / "version"
    (directory / "samples").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(random.Random(0).randbytes(4096))
    (directory / "config.json").write_text('{"width": 64}\n')
    (directory / "samples" / "grid.png").write_bytes(b"\x89PNG" + bytes(300))
    seal(directory, FACTS)
    return directory


def test_a_sealed_directory_gives_its_facts_and_its_files(sealed: Path) -> None:
    manifest = verify(sealed, sha256_of(sealed / MANIFEST))
    assert {name: manifest[name] for name in FACTS} == FACTS
    assert set(manifest["files"]) == {"config.json", "model.safetensors", "samples/grid.png"}


def test_equal_directories_have_equal_digests(sealed: Path) -> None:
    first = sha256_of(sealed / MANIFEST)
    assert seal(sealed, dict(reversed(FACTS.items()))) == first


@pytest.mark.parametrize("with_digest", [True, False])
def test_every_one_of_400_single_bit_flips_is_detected(sealed: Path, with_digest: bool) -> None:
    digest = sha256_of(sealed / MANIFEST) if with_digest else None
    draw = random.Random(1)
    files = [path for path in sealed.rglob("*") if path.is_file()]
    for _ in range(400):
        path = draw.choice(files)
        whole = path.read_bytes()
        altered = bytearray(whole)
        altered[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(altered)
        with pytest.raises(IntegrityError):
            verify(sealed, digest)
        path.write_bytes(whole)
    verify(sealed, digest)


def test_every_truncation_is_detected(sealed: Path) -> None:
    for path in [path for path in sealed.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for length in {*range(0, len(whole), 41), len(whole) - 1}:
            path.write_bytes(whole[:length])
            with pytest.raises(IntegrityError):
                verify(sealed)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["extra.json", "samples/extra.png", f"samples/{MANIFEST}"])
def test_an_extra_file_is_named(sealed: Path, name: str) -> None:
    (sealed / name).write_text("{}")
    with pytest.raises(IntegrityError, match=rf"{name} is not in the manifest"):
        verify(sealed)


def test_a_missing_file_is_named(sealed: Path) -> None:
    (sealed / "config.json").unlink()
    with pytest.raises(IntegrityError, match=r"config\.json is missing"):
        verify(sealed)


def test_a_directory_without_a_manifest_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="never finished"):
        verify(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"files": 3}', "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(sealed: Path, content: str) -> None:
    (sealed / MANIFEST).write_text(content)
    with pytest.raises(IntegrityError, match=r"is not a manifest|altered"):
        verify(sealed)


def test_another_directory_than_the_pinned_one_is_refused(sealed: Path) -> None:
    with pytest.raises(IntegrityError, match="expected 000000000000"):
        verify(sealed, "0" * 64)


def test_a_fact_may_not_take_the_place_of_a_manifest_field(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'files' is a field of every manifest"):
        seal(tmp_path, {"files": {}})


WRITE = """
import sys
from pathlib import Path
from infra.storage import write_json
write_json(Path(sys.argv[1]), {"new": True})
"""


@pytest.mark.parametrize("kind", ["kill", "enospc"])
@pytest.mark.parametrize("place", ["storage.write", "storage.rename"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, place: str, kind: str) -> None:
    path = tmp_path / "latest.json"
    write_json(path, {"old": True})
    fault = {**os.environ, "ATELIER_FAULT": f"{place}:{kind}"}
    command = [sys.executable, "-c", WRITE, str(path)]
    died = subprocess.run(command, env=fault, capture_output=True, text=True, timeout=60)
    assert json.loads(path.read_text()) == {"old": True}
    if kind == "kill":
        assert died.returncode == -signal.SIGKILL
    else:
        assert os.strerror(errno.ENOSPC) in died.stderr
        assert [file.name for file in tmp_path.iterdir()] == ["latest.json"]
    write_json(path, {"new": True})
    assert json.loads(path.read_text()) == {"new": True}


def test_sealing_again_removes_what_a_killed_write_left(sealed: Path) -> None:
    (sealed / f".{MANIFEST}.0badcafe.tmp").write_text("half")
    seal(sealed, FACTS)
    assert not list(sealed.rglob("*.tmp"))
    verify(sealed)


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def overwrite() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        overwrite()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_faultpoint_than_the_wanted_one_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ATELIER_FAULT", "elsewhere:enospc")
    faultpoint("here")
    with pytest.raises(OSError, match="No space left"):
        faultpoint("elsewhere")


def test_files_come_oldest_first_without_those_that_others_remove_meanwhile(tmp_path: Path) -> None:
    for age, name in enumerate(("new.png", "old.png", "other.txt")):
        (tmp_path / name).write_bytes(bytes(age))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "gone.png").symlink_to("nowhere")  # listed, and not there when it is looked at
    found = oldest_first(tmp_path, "*.png")
    assert [(path.name, facts.st_size) for path, facts in found] == [("old.png", 1), ("new.png", 0)]
    assert oldest_first(tmp_path / "none", "*.png") == []
