"""Captioned pictures in WebDataset's archives and in Parquet, as others write them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.makers import Made, MakerError, clip_folder, folder, parquet, webdataset
from infra.media.pictures import png
from tests.data.prepare_kit import prepare, refused


def picture(number: int) -> bytes:
    return png(np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8))


def archive(path: Path, members: dict[str, bytes], link: str = "") -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)


def made_of(path: Path, kind: Any = webdataset, **settings: Any) -> Made:
    name = kind.__name__.rpartition(".")[2]
    found: Made = kind.made(kind.Config(maker=name, path=path, image_size=8, **settings), path)
    return found


def test_pictures_of_archives_have_the_captions_beside_them(tmp_path: Path) -> None:
    archive(
        tmp_path / "b.tar",
        {
            "in/2.left.jpg": picture(2), "in/2.txt": b"Two cats",
            "3.json": json.dumps({"caption": "three dogs", "width": 9}).encode(), "3.png": picture(3),
            "3.cls": b"7", "4.png": b"",
        },
        link="5.png",
    )  # fmt: skip
    archive(tmp_path / "a.tar", {"1.png": picture(1), "1.txt": b"one bird"})
    found = list(made_of(tmp_path).samples)
    assert [(one.file, one.caption, one.problem) for one in found] == [
        ("a.tar/1.png", "one bird", ""),
        ("b.tar/in/2.left.jpg", "two cats", ""),
        ("b.tar/3.png", "three dogs", ""),
        ("b.tar/4.png", "", "empty file"),
    ], "a link leads nowhere"
    assert [one.content for one in found[:3]] == [picture(1), picture(2), picture(3)]
    assert list(made_of(tmp_path).vocabulary) == ["bird", "cats", "dogs", "one", "three", "two"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.png": b"x"}, "has no captions: put KEY.txt or KEY.json beside KEY.jpg"),
        ({"1.txt": b"a", "1.json": b'{"text": "b"}'}, "1.json: 1 has two captions"),
        ({"1.txt": b"\xff"}, "1.txt is not UTF-8"),
        ({"1.json": b'{"text": 7}'}, "1.json: `text` must be text, got 7"),
        ({"1.json": b"{"}, "1.json"),
        ({"1.txt": b"x" * 70_000}, "has 70000 bytes, a caption has at most 65536"),
    ],
)
def test_an_archive_that_cannot_be_used_is_named(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    archive(tmp_path / "x.tar", members)
    with pytest.raises(MakerError) as refusal:
        made_of(tmp_path)
    assert message in str(refusal.value)
    assert "x.tar" in str(refusal.value)


def test_a_folder_without_archives_or_a_broken_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(MakerError, match=r"has no \.tar files"):
        made_of(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"not an archive" * 99)
    with pytest.raises(MakerError, match=r"cannot read .*x\.tar"):
        made_of(tmp_path)


def test_archives_are_prepared_like_any_dataset(tmp_path: Path) -> None:
    members = {f"{n}.png": picture(n) for n in range(20)}
    members |= {f"{n}.txt": f"picture {n % 3}".encode() for n in range(20)}
    archive(tmp_path / "x.tar", members)
    entry = {"maker": "webdataset", "path": str(tmp_path), "image_size": 8}
    header = json.loads((prepare(tmp_path, entry) / "dataset.json").read_text())
    assert sum(split["rows"] for split in header["splits"].values()) == 20
    members["7.txt"] = b""
    archive(tmp_path / "x.tar", members)
    assert any("x.tar/7.png" in line for line in refused(tmp_path, entry))


def test_archives_called_train_and_test_are_those_splits(tmp_path: Path) -> None:
    for place, name in enumerate(("train-000.tar", "test-000.tar", "more.tar")):
        archive(tmp_path / name, {"a.png": picture(place), "a.txt": b"a cat"})
    assert {one.file: one.split for one in made_of(tmp_path).samples} == {
        "train-000.tar/a.png": "train",
        "test-000.tar/a.png": "test",
        "more.tar/a.png": None,
    }


@pytest.mark.parametrize("lists", ["one", "each"])
def test_folders_called_train_and_test_are_those_splits(tmp_path: Path, lists: str) -> None:
    folders = ("train", "val", "Test")
    for place, name in enumerate(folders):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(picture(place))
        if lists == "each":
            (tmp_path / name / "metadata.csv").write_text("file_name,text\na.png,a cat\n")
    if lists == "one":
        rows = "".join(f"{name}/a.png,a cat\n" for name in folders)
        (tmp_path / "metadata.csv").write_text(f"file_name,text\n{rows}")
    found = {one.file: one.split for one in made_of(tmp_path, folder).samples}
    assert found == {"train/a.png": "train", "val/a.png": "validation", "Test/a.png": "test"}
    assert clip_folder.splits_of(tmp_path, list(found)) == found
    two = ["train/a.png", "Test/a.png"]
    assert clip_folder.splits_of(tmp_path, two) == {one: found[one] for one in two}


def test_where_the_folder_has_a_list_of_its_own_others_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").write_bytes(picture(0))
    (tmp_path / "train" / "metadata.csv").write_text("id,label\n1,2\n")
    (tmp_path / "metadata.csv").write_text("file_name,text\ntrain/a.png,a cat\n")
    assert [one.file for one in made_of(tmp_path, folder).samples] == ["train/a.png"]


def test_a_folder_called_train_beside_others_is_what_its_pictures_show(tmp_path: Path) -> None:
    for place, name in enumerate(("train", "boat")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(picture(place))
    listed = "file_name,text\ntrain/a.png,a train\nboat/a.png,a boat\n"
    (tmp_path / "metadata.csv").write_text(listed)
    assert [one.split for one in made_of(tmp_path, folder).samples] == [None, None]


def test_parquet_is_read_as_the_datasets_library_writes_it(tmp_path: Path) -> None:
    import datasets

    rows = {"image": [picture(n) for n in range(4)], "caption": [f"No. {n}!" for n in range(4)]}
    pictures = datasets.Dataset.from_dict(
        {**rows, "image": [{"bytes": one, "path": None} for one in rows["image"]]}
    ).cast_column("image", datasets.Image())
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        pictures.to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001.parquet"))
    found = sorted(made_of(tmp_path, parquet).samples, key=lambda one: one.file, reverse=True)
    assert [(one.split, one.caption) for one in found] == [
        (split, f"no {n}") for split in ("train", "test") for n in (3, 2, 1, 0)
    ]
    assert [one.content for one in found[:4]] == rows["image"][::-1]
    assert found[0].file == "data/train-00000-of-00001.parquet:3"


def test_a_parquet_file_called_train_alone_has_all_splits(tmp_path: Path) -> None:
    table = pa.table({"image": [picture(n) for n in range(40)], "text": ["a cat"] * 40})
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    entry = {"maker": "parquet", "path": str(tmp_path), "image_size": 8}
    header = json.loads((prepare(tmp_path, entry) / "dataset.json").read_text())
    rows = {split: found["rows"] for split, found in header["splits"].items()}
    assert rows["train"] > 25
    assert all(rows.values())
    (tmp_path / "train-00000-of-00001.parquet").rename(tmp_path / "test-00000-of-00001.parquet")
    said = "at least 3 different pictures are needed, and train among the splits"
    assert any(said in line for line in refused(tmp_path, entry))


def test_columns_that_are_not_there_and_pictures_elsewhere_are_named(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image": pa.array([{"bytes": None, "path": "/etc/passwd"}] * 2),
            "text": ["a", "b"],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    problems = {one.problem for one in made_of(tmp_path, parquet).samples}
    assert problems == {"no bytes: a path outside of the file is not followed"}
    with pytest.raises(MakerError, match="has no column photo; it has image, text"):
        made_of(tmp_path, parquet, image="photo")
    with pytest.raises(MakerError, match="has no column title; it has image, text"):
        made_of(tmp_path, parquet, caption="title")
    (tmp_path / "y.parquet").write_bytes(b"PAR1")
    with pytest.raises(MakerError, match=r"cannot read .*y\.parquet"):
        made_of(tmp_path, parquet)


@pytest.mark.parametrize(
    ("captions", "kind"),
    [(pa.array([7, 8]), "int64"), (pa.array([["a", "b"], ["c"]]), "list<.*: string>")],
)
def test_captions_that_are_no_text_are_told_with_their_type(
    tmp_path: Path, captions: pa.Array, kind: str
) -> None:
    """Class labels are numbers on Hugging Face's hub, and COCO has five captions a picture."""
    pq.write_table(
        pa.table({"image": [picture(n) for n in range(2)], "text": captions}),
        tmp_path / "x.parquet",
    )
    with pytest.raises(MakerError, match=rf"x.parquet: .* text are of type {kind}, not text"):
        made_of(tmp_path, parquet)
    named = pa.table({"image": [picture(0)], "text": pa.array(["a cat"]).dictionary_encode()})
    pq.write_table(named, tmp_path / "x.parquet")
    assert [one.caption for one in made_of(tmp_path, parquet).samples] == ["a cat"]


def test_an_archive_that_is_cut_short_in_a_caption_is_told(tmp_path: Path) -> None:
    archive(tmp_path / "x.tar", {"1.png": picture(1), "1.txt": b"a" * 4000})
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[: content.index(b"a" * 4000) + 100])
    with pytest.raises(MakerError, match=r"cannot read .*x\.tar: unexpected end of data"):
        made_of(tmp_path)


def test_a_name_of_other_letters_than_utf_8_is_told_by_its_bytes(tmp_path: Path) -> None:
    with tarfile.open(
        tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as tar:
        for number in range(20):
            for ending, content in (("png", picture(number)), ("txt", b"a cat")):
                info = tarfile.TarInfo(f"caf\xe9-{number}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    entry = {"maker": "webdataset", "path": str(tmp_path), "image_size": 8}
    prepare(tmp_path, entry)
    facts = pq.read_table(tmp_path / "data" / "made" / "mine" / "facts.parquet")
    assert facts["file"][0].as_py() == "x.tar/caf\\udce9-0.png"


def test_a_source_without_a_sample_is_told(tmp_path: Path) -> None:
    archive(tmp_path / "x.tar", {"1.txt": b"a cat", "1.heic": b"of another kind"})
    entry = {"maker": "webdataset", "path": str(tmp_path), "image_size": 8}
    with pytest.raises(MakerError, match="mine: no picture in"):
        prepare(tmp_path, entry)
