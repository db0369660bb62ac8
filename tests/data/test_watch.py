import os
from pathlib import Path

import pytest

from data.params import CatalogError
from data.watch import content, glance


@pytest.fixture
def project(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures" / "more"
    pictures.mkdir(parents=True)
    (pictures / "one.png").write_bytes(b"one")
    (tmp_path / "pictures" / "captions.tsv").write_text("more/one.png\ta picture\n")
    write_params(tmp_path, 8)
    return tmp_path


def write_params(project: Path, size: int) -> None:
    entry = f"{{maker: folder, path: pictures, image_size: {size}}}"
    other = "{maker: digits, path: digits.py, image_size: 8}"
    (project / "params.yaml").write_text(f"datasets:\n  mine: {entry}\n  other: {other}\n")


def test_a_touch_moves_the_glance_and_not_the_content(project: Path) -> None:
    before = glance("mine", project), content("mine", project)
    os.utime(project / "pictures" / "more" / "one.png", ns=(1, 1))
    assert glance("mine", project) != before[0]
    assert content("mine", project) == before[1]


def test_other_bytes_of_the_same_size_and_time_are_seen(project: Path) -> None:
    picture = project / "pictures" / "more" / "one.png"
    before, facts = content("mine", project), picture.stat()
    seen = glance("mine", project)
    picture.write_bytes(b"two")
    os.utime(picture, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert glance("mine", project) != seen
    assert content("mine", project) != before


@pytest.mark.parametrize("change", ["add", "remove", "rename", "size"])
def test_every_change_of_what_a_dataset_is_made_from_is_seen(project: Path, change: str) -> None:
    before = glance("mine", project), content("mine", project)
    picture = project / "pictures" / "more" / "one.png"
    if change == "add":
        (project / "pictures" / "two.png").write_bytes(b"two")
    elif change == "remove":
        picture.unlink()
    elif change == "rename":
        picture.rename(picture.with_name("two.png"))
    else:
        write_params(project, 16)
    assert glance("mine", project) != before[0]
    assert content("mine", project) != before[1]


def test_a_name_that_is_no_utf_8_is_seen_like_any_other(project: Path) -> None:
    before = glance("mine", project), content("mine", project)
    (project / "pictures" / "caf\udce9.png").write_bytes(b"x")
    assert glance("mine", project).files == before[0].files + 1
    assert content("mine", project) != before[1]


def test_another_dataset_s_change_is_none(project: Path) -> None:
    before = glance("mine", project), content("mine", project)
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("digits.py", "drawn.py"))
    assert (glance("mine", project), content("mine", project)) == before


def test_files_that_are_missing_are_a_state_like_any_other(project: Path) -> None:
    assert content("other", project) == content("other", project)
    with pytest.raises(CatalogError, match="unknown dataset 'nope'"):
        glance("nope", project)
