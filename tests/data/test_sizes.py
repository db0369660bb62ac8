"""Pictures of several sizes: each has the one of which least is cropped, and a batch has pictures of one alone."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from PIL import Image

from data.loaders import Loader, by_size, facts_of, turn_of
from data.params import CatalogError, checked
from data.stages import report_path
from infra.documents import read_json
from infra.media.pictures import decode, kept, nearest
from tests.data.prepare_kit import prepare as prepare_files
from tests.data.prepare_kit import refused
from tests.sizes_kit import COUNTS, SIZES, prepare

sides = st.integers(8, 400)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "shades")


@hypothesis(max_examples=200, deadline=None)
@given(found=st.tuples(sides, sides), sizes=st.lists(st.tuples(sides, sides), min_size=1))
def test_of_a_picture_least_is_cropped(
    found: tuple[int, int], sizes: list[tuple[int, int]]
) -> None:
    def left(size: tuple[int, int]) -> float:
        (width, height), (wide, high) = found, size
        scale = min(width / wide, height / high)
        return scale**2 * wide * high / (width * height)

    chosen = nearest(found, sizes)
    assert left(chosen) == pytest.approx(max(map(left, sizes)), rel=1e-12)
    width, height = kept(found, chosen)
    assert width in {found[0], max(1, round(found[1] * chosen[0] / chosen[1]))}
    assert height in {found[1], max(1, round(found[0] * chosen[1] / chosen[0]))}
    assert width == found[0] or height == found[1]


def test_a_picture_loses_both_ends_of_one_side_alone() -> None:
    levels = np.zeros((30, 80, 3), np.uint8)
    levels[:, 15:65] = 200  # five thirds as wide as high
    levels[:, 40:] += 20
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    made = decode(file.getvalue(), 32, 3, ((32, 32), (40, 24), (24, 40)))
    assert (made.pixels.shape, made.kept) == ((24, 40, 3), (50, 30))
    assert np.unique(made.pixels[:, [0, 5, 35, 39]]).tolist() == [200, 220]


@hypothesis(max_examples=60, deadline=None)
@given(rows=st.lists(st.integers(1, 300), min_size=1, max_size=6), first=st.integers(0, 5000))
def test_every_size_has_its_share_of_the_steps_evenly_and_misses_none_of_its_batches(
    rows: list[int], first: int
) -> None:
    turns = [turn_of(step, rows) for step in range(first, first + 50)]
    whole = sum(rows)
    for number, own in enumerate(rows):
        mine = [turn for which, turn in turns if which == number]
        assert mine == list(range(mine[0], mine[0] + len(mine))) if mine else own < whole
        assert abs(len(mine) - 50 * own / whole) <= len(rows)
        assert all(abs(turn - first * own / whole) <= len(rows) + 1 for turn in mine[:1])


def test_a_batch_has_pictures_of_one_size_and_is_the_same_for_any_number_of_ranks(
    prepared: Path,
) -> None:
    alone = Loader(prepared, "train", batch_size=8, seed=3)
    pairs = [Loader(prepared, "train", batch_size=4, rank=rank, world=2, seed=3) for rank in (0, 1)]
    shapes = []
    for step in range(12):
        whole = alone.batch(step)["pixels"]
        shapes.append(tuple(whole.shape[2:]))
        assert torch.equal(whole, torch.cat([one.batch(step)["pixels"] for one in pairs]))
    assert {shape: shapes.count(shape) for shape in shapes} == {(8, 8): 8, (8, 16): 3, (16, 8): 1}
    again = Loader(prepared, "train", batch_size=8, seed=3)  # as after a restart
    assert torch.equal(again.batch(11)["pixels"], whole)


@pytest.mark.parametrize("world", [1, 3])
def test_all_ranks_together_see_every_picture_once(prepared: Path, world: int) -> None:
    loaders = [
        Loader(prepared, "test", batch_size=5, rank=rank, world=world) for rank in range(world)
    ]
    rows = [row for one in loaders for batch in one.once() for row in batch["pixels"]]
    assert len(rows) == sum(COUNTS["test"]) == loaders[0].rows
    assert len({(tuple(row.shape), row.numpy().tobytes()) for row in rows}) == len(rows)


def test_a_network_is_told_the_sizes_at_the_size_that_it_learns(prepared: Path) -> None:
    assert facts_of(prepared)["sizes"] == SIZES
    assert facts_of(prepared, 4)["sizes"] == ("4x4", "8x4", "4x8")
    half, whole = by_size(prepared, "train", 4), by_size(prepared, "train")
    for (small, captions, _), (large, as_many, _) in zip(half, whole, strict=True):
        assert captions == as_many
        torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(large, 2))


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """Write pictures that all differ, with their captions."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = ["file_name,text"]
    for number, (width, height) in enumerate(sizes):
        levels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,number {number % 3}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def test_a_folder_is_shared_out_by_sizes_and_its_report_says_how_much_was_cropped(
    tmp_path: Path,
) -> None:
    found = [(20, 20), (30, 16), (15, 30)]
    folder = pictures(tmp_path / "files", [*found * 8])
    entry = {
        "maker": "folder",
        "path": str(folder),
        "image_size": 16,
        "sizes": ["16x16", "20x12", "12x20"],
    }
    prepared = prepare_files(tmp_path, entry)
    splits = read_json(prepared / "dataset.json")["splits"]
    shards = [shard for split in splits.values() for shard in split["shards"]]
    counts = {size: sum(s["rows"] for s in shards if s["size"] == size) for size in entry["sizes"]}
    assert counts == dict.fromkeys(entry["sizes"], 8)
    shapes = {tuple(pixels.shape[2:]) for pixels, _, _ in by_size(prepared, "train")}
    assert shapes == {(16, 16), (12, 20), (20, 12)}
    page = report_path("mine", tmp_path).read_text()
    assert "16x16: 8 (0% cropped)" in page
    assert "20x12: 8 (10% cropped)" in page
    verdict = (tmp_path / "data" / "made" / "mine" / "verdict.json").read_text()
    assert "every size is learned" in verdict
    assert "little is cropped" in verdict


def test_what_no_size_suits_is_refused_by_name(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "files", [*[(20, 20), (30, 16)] * 8, (90, 16), (14, 14)])
    sizes = ["16x16", "20x12", "12x20"]
    lines = refused(
        tmp_path, {"maker": "folder", "path": str(folder), "image_size": 16, "sizes": sizes}
    )
    assert "16.png: 90x16 pixels: 70% would be cropped to 20x12, at most 50%; add a size" in lines
    assert "17.png: 14x14 pixels: to be 16x16 it would be enlarged 1.14 times" in lines
    assert any("a size has no picture in the training split" in line for line in lines)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        (["32x32", "32x32"], "each is listed once"),
        (["64x64"], "64x64 has 4096 pixels, and image_size 32 has 1024"),
        (["4x256"], "between 8 and 512 pixels, got 4x256"),
        (["wide"], "String should match pattern"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: list[str], says: str) -> None:
    entry = yaml.safe_load(f"{{maker: folder, path: x, image_size: 32, sizes: {sizes}}}")
    with pytest.raises(CatalogError, match=says):
        checked("mine", entry)
