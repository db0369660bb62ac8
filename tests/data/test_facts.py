import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from data.facts import LITTLE, SHARES, cluster, columns, gather, look, relate, split_of
from data.modalities import modality
from data.modalities.clip import Found, clip_bytes
from data.stages import SCHEMA
from infra.media.pictures import png
from infra.settings import settings

COLUMNS = columns(modality("image"))
MADE = {"modality": "image", "image_size": 8, "channels": 1, "vocabulary": ["zero", "one"]}
digest = st.binary(min_size=32, max_size=32).map(bytes.hex)


def raw(pictures: list[bytes], captions: list[str] | None = None) -> pa.Table:
    rows = [
        {
            "index": index,
            "file": f"{index:03d}.png",
            "content": content,
            "caption": captions[index] if captions else "one",
            "split": None,
            "problem": "",
        }
        for index, content in enumerate(pictures)
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def noise(count: int, seed: int = 0) -> list[bytes]:
    generator = np.random.default_rng(seed)
    return [png(generator.integers(0, 256, (8, 8), np.uint8)) for _ in range(count)]


def looked(pictures: list[str], captions: list[str]) -> pa.Table:
    rows = [
        {
            **dict.fromkeys(COLUMNS.names),
            "index": index,
            "file": f"{index}.png",
            "problem": "",
            "digest": picture,
            "caption": caption,
        }
        for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True))
    ]
    return pa.Table.from_pylist(rows, COLUMNS)


@hypothesis(max_examples=60, deadline=None)
@given(
    pictures=st.lists(
        st.sampled_from([f"{i * 977 % 4096:03x}" * 21 + "0" for i in range(60)]), min_size=3
    ),
    data=st.data(),
)
def test_equal_pictures_are_never_in_two_splits(pictures: list[str], data: st.DataObject) -> None:
    captions = data.draw(
        st.lists(st.sampled_from("abc"), min_size=len(pictures), max_size=len(pictures))
    )
    rows = relate(looked(pictures, captions), [], None, classed=False).to_pylist()
    places: dict[str, set[str]] = {}
    for row in rows:
        places.setdefault(row["digest"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in places.values())
    assert all(row["splits"] == 1 for row in rows)
    if len(places) >= 3:
        assert {row["split"] for row in rows} == set(SHARES)


@hypothesis(max_examples=40, deadline=None)
@given(pictures=st.lists(digest, min_size=30, max_size=60, unique=True), extra=digest)
def test_a_picture_keeps_its_split_when_others_come(pictures: list[str], extra: str) -> None:
    before = {picture: split_of(picture) for picture in pictures}
    rows = relate(looked([*pictures, extra], ["a"] * (len(pictures) + 1)), [], None, classed=False)
    moved = [
        row for row in rows.to_pylist() if before.get(row["digest"], row["split"]) != row["split"]
    ]
    assert len(moved) <= 2  # those that filled an empty split


def test_splits_have_their_shares() -> None:
    generator = np.random.default_rng(0)
    found = [split_of(generator.bytes(32).hex()) for _ in range(20_000)]
    for split, share in SHARES.items():
        assert abs(found.count(split) / len(found) - share) < 0.01  # 4 standard deviations


def test_held_out_captions_are_tested_only() -> None:
    pictures = [f"{i:064x}" for i in range(50)]
    captions = ["kept" if i % 5 == 0 else "learned" for i in range(50)]
    rows = relate(looked(pictures, captions), ["kept"], None, classed=True).to_pylist()
    assert {row["split"] for row in rows if row["caption"] == "kept"} == {"test"}
    assert all(row["held_out"] == (row["caption"] == "kept") for row in rows)


def named(count: int, *splits: str | None) -> pa.Table:
    """Return looked-at rows with digests of their own, whose source gives them these splits in turn."""
    generator = np.random.default_rng(5)
    table = looked([generator.bytes(32).hex() for _ in range(count)], ["a"] * count)
    own = pa.array([splits[index % len(splits)] for index in range(count)], pa.string())
    return table.set_column(table.schema.get_field_index("split"), "split", own)


def splits_by_digest(table: pa.Table, validation_rows: int | None = None) -> dict[str, str]:
    rows = relate(table, [], validation_rows, classed=False).to_pylist()
    return {row["digest"]: row["split"] for row in rows}


def test_a_source_may_ask_for_so_many_rows_of_validation() -> None:
    table = named(100, "train", "train", "train", "train", "test")
    training = sorted(row["digest"] for row in table.to_pylist() if row["split"] == "train")
    found = splits_by_digest(table, 10)
    assert {one for one in found if found[one] == "validation"} == set(training[:10])
    assert list(found.values())[4::5] == ["test"] * 20


def test_a_source_that_calls_all_rows_train_names_no_splits() -> None:
    found = splits_by_digest(named(400, "train"))
    assert found == splits_by_digest(named(400, None))
    assert set(found.values()) == set(SHARES)


def test_rows_named_train_stay_there_where_others_have_no_split() -> None:
    found = list(splits_by_digest(named(400, "train", None)).values())
    assert found[::2] == ["train"] * 200
    assert set(found[1::2]) == set(SHARES)


@pytest.mark.parametrize(("given", "missing"), [("test", "validation"), ("validation", "test")])
def test_a_split_that_a_source_does_not_name_is_a_share_of_its_training_rows(
    given: str, missing: str
) -> None:
    table = named(2000, "train", given)
    found = splits_by_digest(table)
    assert list(found.values())[1::2] == [given] * 1000
    assert abs(list(found.values()).count(missing) / 1000 - SHARES[missing]) < 0.03  # 3 deviations
    fewer = splits_by_digest(table.slice(0, 300))
    assert fewer == {one: found[one] for one in fewer}, "none moves when others come"


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("splits", [[None], ["train"], ["train", "train", "test"]])
def test_few_rows_are_enough_for_three_splits(splits: list[str | None], count: int) -> None:
    table = named(600, *splits)
    for first in range(0, 600, 12):
        found = splits_by_digest(table.slice(first, count))
        assert set(found.values()) == set(SHARES)


def speakers(names: str, digests: list[str]) -> dict[str, str]:
    """Return the splits of rows by their digests, whose speakers are these letters."""
    table = looked(digests, ["a"] * len(digests))
    rows = relate(table, [], None, classed=False, groups=list(names)).to_pylist()
    return {row["digest"]: row["split"] for row in rows}


def test_of_every_speaker_something_is_learned_and_the_lists_order_has_no_say() -> None:
    generator = np.random.default_rng(2)
    few = [generator.bytes(32).hex() for _ in range(60)]
    tested = [one for one in few if split_of(one) == "test"]
    learned = [one for one in few if split_of(one) == "train"]
    digests, names = [*learned, *tested], "a" * len(learned) + "b" * len(tested)
    found = speakers(names, digests)
    assert found == speakers(names[::-1], digests[::-1])
    moved = {one for one in digests if found[one] != split_of(one)}
    assert found[min(tested)] == "train"
    assert moved <= {min(tested), max(learned)}, "the other for validation, which was empty"
    assert set(found.values()) == set(SHARES)


def test_a_row_listed_before_a_speakers_others_moves_none_of_them() -> None:
    digests = [row["digest"] for row in named(120, None).to_pylist()]
    found = speakers("ab" * 60, digests)
    assert found == {one: split_of(one) for one in digests}
    for extra in [f"{place:x}" * 64 for place in range(16)]:
        more = speakers("a" + "ab" * 60, [extra, *digests])
        assert more == found | {extra: split_of(extra)}


def test_a_speakers_only_row_is_not_taken_for_an_empty_split() -> None:
    first, second, third = (f"{place}" * 64 for place in (1, 2, 3))  # all to be learned by hash
    assert speakers("aab", [first, second, third]) == {
        first: "train", second: "test", third: "train",
    }  # fmt: skip


def test_a_duplicate_names_the_first_file_and_a_second_caption_is_none() -> None:
    table = looked(["aa", "bb", "aa", "bb"], ["a", "b", "c", "d"])
    files = pa.array(["0.png", "1.png", "2.png", "1.png"])
    rows = relate(table.set_column(1, "file", files), [], None, classed=False).to_pylist()
    assert [row["duplicate_of"] for row in rows] == ["", "", "0.png", ""]
    again = looked(["aa", "aa"], ["a", "a"]).set_column(1, "file", pa.array(["0.png", "0.png"]))
    assert relate(again, [], None, classed=False)["duplicate_of"].to_pylist() == ["", "0.png"]


def test_looking_decodes_to_the_last_byte() -> None:
    good, cut, alien = noise(1)[0], noise(1, 1)[0][:-30], b"<html>"
    rows = look(raw([good, cut, alien]), MADE).to_pylist()
    assert [row["decodes"] for row in rows] == [True, False, False]
    assert rows[0]["width"] == rows[0]["height"] == 8
    assert rows[0]["low"] < rows[0]["mean"] < rows[0]["high"]
    assert rows[1]["problem"] == "truncated PNG (cannot be decoded fully)"
    assert "not a picture" in rows[2]["problem"]


def test_words_outside_the_vocabulary_are_named() -> None:
    table = look(raw(noise(3), ["one", "", "one two zero two"]), MADE)
    assert table["words"].to_pylist() == [1, 0, 4]
    assert table["unknown_words"].to_pylist() == ["", "", "two"]


def test_parts_are_gathered_in_their_order(tmp_path: Path) -> None:
    from data.shards import write_table

    table = raw(noise(30))
    paths = [tmp_path / f"part-{i}.parquet" for i in range(3)]
    for index, path in enumerate(paths):
        write_table(path, table.slice(index * 10, 10))
    found = gather(list(reversed(paths)), None, MADE)
    assert found.equals(look(table, MADE).sort_by("index"))


@pytest.mark.usefixtures("private_home")
def test_little_is_looked_at_here_whatever_cluster_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_RAY_ADDRESS", "10.0.0.5:6379")
    settings.cache_clear()
    paths = [tmp_path / f"part-{i}.parquet" for i in range(2)]
    for path in paths:
        path.touch()
        os.truncate(path, LITTLE // 2)
    assert cluster(paths) is None
    os.truncate(paths[1], LITTLE // 2 + 1)
    assert cluster(paths) == "10.0.0.5:6379"


@pytest.mark.cluster
@pytest.mark.filterwarnings(
    r"ignore:`use_\w+` is deprecated:DeprecationWarning"
)  # Ray Data of its own settings
def test_ray_data_finds_the_same_facts(stack: Mapping[str, float], tmp_path: Path) -> None:
    import ray

    from data.shards import write_table

    table = raw([*noise(30), b"<html>"])
    paths = [tmp_path / f"part-{i}.parquet" for i in range(4)]
    for index, path in enumerate(paths):
        write_table(path, table.slice(index * 10, 10))
    try:
        found = gather(paths, settings().ray_url, MADE)
    finally:
        ray.shutdown()  # Ray ends a process that is still joined when the stack goes down
    assert found.equals(gather(paths, None, MADE))


def test_a_picture_or_a_clip_of_one_colour_is_flat_whatever_the_colour() -> None:
    x = np.full((4, 16, 16, 3), (255, 128, 0), np.uint8)
    made = {"image_size": 16, "channels": 3}
    assert modality("image").look(png(x[0]), made)["std"] == 0
    assert modality("clip").look(clip_bytes(Found(x, 16, 16, 8)), made)["std"] == 0
    x[:, 4:8, :, 2] = 200
    assert modality("image").look(png(x[0]), made)["std"] > 80
