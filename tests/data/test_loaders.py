import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from data.loaders import DatasetError, Loader, everything
from data.shards import Header, samples, write
from infra.storage import IntegrityError

ROWS, SIDE = 37, 4
ATTRIBUTES = {"size": ("small", "large"), "colour": ("red", "green", "blue")}


def dataset(folder: Path, rows: int = ROWS, shard_rows: int = 10, channels: int = 3) -> Path:
    generator = np.random.default_rng(rows)
    pixels = [generator.bytes(SIDE * SIDE * channels) for _ in range(rows)]
    values = [(("small", "large")[i % 2], ("red", "green", "blue")[i % 3]) for i in range(rows)]
    captions = [f"a {size} {colour} dot" for size, colour in values]
    train = samples(pixels, captions, values, ATTRIBUTES)
    few = train.slice(0, 3)
    header = Header(
        name="dots",
        maker="folder",
        settings={"image_size": SIDE, "channels": channels},
        vocabulary=("a", "dot"),
        max_words=5,
        attributes=ATTRIBUTES,
    )
    splits = {"train": train, "validation": few, "test": few.slice(0, 0)}
    write(folder, header, splits, shard_bytes=shard_rows * SIDE * SIDE * channels)
    return folder


@pytest.fixture(scope="module")
def dots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data") / "dots")


def keys(batch: dict[str, torch.Tensor]) -> list[bytes]:
    return [row.numpy().tobytes() for row in batch["pixels"]]


def lengths(captions: list[str]) -> torch.Tensor:
    return torch.tensor([[len(word) for word in caption.split()] for caption in captions])


windows = st.sampled_from([1, 12 * SIDE * SIDE * 3, 25 * SIDE * SIDE * 3, 1 << 30])


@hypothesis(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 7),
    world=st.integers(1, 4),
    step=st.integers(0, 60),
    seed=st.integers(0, 9),
    window=windows,
)
def test_the_union_over_ranks_does_not_depend_on_the_world(
    dots: Path, batch: int, world: int, step: int, seed: int, window: int
) -> None:
    alone = Loader(dots, "train", batch_size=batch * world, seed=seed, window_bytes=window)
    ranks = [
        Loader(dots, "train", batch_size=batch, rank=r, world=world, seed=seed, window_bytes=window)
        for r in range(world)
    ]
    together = [key for rank in ranks for key in keys(rank.batch(step))]
    assert together == keys(alone.batch(step))


@hypothesis(max_examples=30, deadline=None)
@given(batch=st.integers(1, 9), seed=st.integers(0, 99), epoch=st.integers(0, 3), window=windows)
def test_an_epoch_has_every_sample_once(
    dots: Path, batch: int, seed: int, epoch: int, window: int
) -> None:
    loader = Loader(dots, "train", batch_size=batch, seed=seed, window_bytes=window)
    steps = range((epoch + 1) * ROWS // batch + 1)
    stream = [key for step in steps for key in keys(loader.batch(step))]
    seen = stream[epoch * ROWS : (epoch + 1) * ROWS]
    assert len(set(seen)) == len(seen) == ROWS


@hypothesis(max_examples=20, deadline=None)
@given(steps=st.lists(st.integers(0, 200), min_size=1, max_size=6), window=windows)
def test_a_batch_is_a_pure_function_of_the_step(dots: Path, steps: list[int], window: int) -> None:
    used = Loader(dots, "train", batch_size=5, seed=3, encode=lengths, window_bytes=window)
    for step in steps:
        fresh = Loader(dots, "train", batch_size=5, seed=3, encode=lengths, window_bytes=window)
        first, second = used.batch(step), fresh.batch(step)
        assert first.keys() == second.keys() == {"pixels", "tokens", "attributes"}
        assert all(torch.equal(first[name], second[name]) for name in first)


@hypothesis(max_examples=40, deadline=None)
@given(batch=st.integers(1, 50), world=st.integers(1, 4), window=windows)
def test_all_ranks_together_walk_over_every_row_once(
    dots: Path, batch: int, world: int, window: int
) -> None:
    """The last batch is neither lost nor filled up, and a rank may get none of it."""
    loaders = [
        Loader(dots, "train", batch_size=batch, rank=rank, world=world, window_bytes=window)
        for rank in range(world)
    ]
    walks = [list(loader.once()) for loader in loaders]
    found = [key for walk in walks for part in walk for key in keys(part)]
    pixels, _, _ = everything(dots, "train")
    assert sorted(found) == sorted(keys({"pixels": pixels}))
    assert all(0 < len(part["pixels"]) <= batch for walk in walks for part in walk)


def test_epochs_and_seeds_have_orders_of_their_own(dots: Path) -> None:
    loader = Loader(dots, "train", batch_size=ROWS)
    other = Loader(dots, "train", batch_size=ROWS, seed=1)
    assert keys(loader.batch(0)) != keys(loader.batch(1))
    assert keys(loader.batch(0)) != keys(other.batch(0))


def test_pixels_tokens_and_attributes_belong_together(dots: Path) -> None:
    pixels, captions, attributes = everything(dots, "train")
    known = {row.numpy().tobytes(): place for place, row in enumerate(pixels)}
    batch = Loader(dots, "train", batch_size=ROWS, encode=lengths).batch(0)
    places = [known[key] for key in keys(batch)]
    assert torch.equal(batch["tokens"], lengths([captions[place] for place in places]))
    assert torch.equal(batch["attributes"], attributes[places])
    assert batch["pixels"].dtype == torch.float32
    assert batch["attributes"].dtype == batch["tokens"].dtype == torch.int64
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1


def test_only_a_splits_own_captions_are_encoded_each_once_and_when_a_batch_needs_them(
    dots: Path,
) -> None:
    asked = list[str]()

    def encode(captions: list[str]) -> torch.Tensor:
        asked.extend(captions)
        return lengths(captions)

    for split in ("train", "validation"):
        asked.clear()
        loader = Loader(dots, split, batch_size=2, encode=encode)
        assert loader.facts["max_words"] == 5
        assert asked == []
        batches = [loader.batch(step) for step in range(ROWS)]
        pixels, captions, _ = everything(dots, split)
        assert sorted(asked) == sorted(set(captions))
        known = dict(zip(keys({"pixels": pixels}), captions, strict=True))
        for batch in batches:
            assert torch.equal(batch["tokens"], lengths([known[key] for key in keys(batch)]))
    assert len(asked) == 3, "of the dataset's six"


def test_downsampling_is_the_mean_over_areas(dots: Path) -> None:
    full = Loader(dots, "train", batch_size=6).batch(4)["pixels"]
    half = Loader(dots, "train", batch_size=6, image_size=2).batch(4)["pixels"]
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(full, 2), rtol=0, atol=1e-6)
    assert Loader(dots, "train", batch_size=6, image_size=2).facts["image_size"] == 2


def test_shuffled_captions_are_other_pictures_captions(dots: Path) -> None:
    right = Loader(dots, "train", batch_size=ROWS, encode=lengths).batch(0)
    wrong = Loader(dots, "train", batch_size=ROWS, encode=lengths, shuffle_captions=True).batch(0)
    assert keys(right) == keys(wrong)
    assert not torch.equal(right["attributes"], wrong["attributes"])
    assert sorted(right["attributes"].tolist()) == sorted(wrong["attributes"].tolist())


def test_the_facts_are_what_a_network_must_know(dots: Path) -> None:
    loader = Loader(dots, "train", batch_size=1)
    assert loader.rows == ROWS
    assert loader.facts == {
        "image_size": SIDE,
        "channels": 3,
        "vocabulary": ("a", "dot"),
        "max_words": 5,
        "attributes": (("size", ("small", "large")), ("colour", ("red", "green", "blue"))),
    }


@pytest.mark.parametrize(
    ("split", "size", "message"),
    [
        ("training", None, "no split 'training'; choose one of train, validation, test"),
        ("test", None, "the test split of .* is empty"),
        ("train", 3, "image_size 3 does not divide the dataset's 4 pixels"),
        ("train", 8, "image_size 8 does not divide the dataset's 4 pixels"),
    ],
)
def test_what_cannot_be_read_says_why(
    dots: Path, split: str, size: int | None, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        Loader(dots, split, batch_size=1, image_size=size)


def test_a_folder_that_was_never_prepared_says_how(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="run `atelier data prepare cats`"):
        Loader(tmp_path / "cats", "train", batch_size=1)


@hypothesis(max_examples=25, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_shard_is_found_before_it_is_parsed(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    folder = dataset(tmp_path_factory.mktemp("flip") / "dots", rows=8)
    shard = folder / "train-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    shard.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"train-00000.parquet was altered"):
        everything(folder, "train")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "dots")
    (folder / "train-00001.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"train-00001.parquet"):
        everything(folder, "train")


def test_a_shard_that_changes_after_its_rows_were_made_is_found(tmp_path: Path) -> None:
    """A file that was only touched is compared and found to be the same."""
    folder = dataset(tmp_path / "dots")
    batch = Loader(folder, "train", batch_size=5).batch(0)["pixels"]
    shard = folder / "train-00002.parquet"
    os.utime(shard, ns=(0, 0))
    assert torch.equal(Loader(folder, "train", batch_size=5).batch(0)["pixels"], batch)
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)
    with pytest.raises(IntegrityError, match=r"train-00002.parquet was altered"):
        Loader(folder, "train", batch_size=5).batch(0)


def test_a_rank_holds_no_more_than_the_rows_of_its_batch(tmp_path: Path) -> None:
    """Ten times as many rows take as much; only their order, two bytes a row, is held of all."""
    held = []
    for rows in (400, 4000):
        folder = dataset(tmp_path / f"{rows}", rows=rows, shard_rows=200)
        Loader(folder, "train", batch_size=4).batch(0)  # makes the rows
        tracemalloc.start()
        loader = Loader(folder, "train", batch_size=4, world=2)
        for step in range(20):
            loader.batch(step)
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert held[1] - held[0] < 3600 * SIDE * SIDE * 3 / 4


def test_dataset_json_keeps_the_order_of_attributes_and_knows_the_moments(dots: Path) -> None:
    header = json.loads((dots / "dataset.json").read_text())
    pixels, _, _ = everything(dots, "train")
    assert list(header["attributes"]) == ["size", "colour"]
    assert header["splits"]["train"]["rows"] == ROWS
    assert len(header["splits"]["train"]["shards"]) == 4
    assert header["mean"] == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-5)
    assert header["std"] == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-5)
