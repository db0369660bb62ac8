import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import stages
from data.loaders import Loader, clips, everything, facts_of, modality_of
from data.makers import MakerError, moving, moving_mnist
from data.modalities import SampleError
from data.modalities.clip import Found, clip_bytes, clip_of
from data.reading.outputs import Outputs, shard_of
from infra.storage import seal, sha256_of
from tests.data.prepare_kit import prepare, refused

ENTRY: dict[str, Any] = {"maker": "moving", "count": 192, "image_size": 16, "frames": 5}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("moving"), ENTRY, "moved")


def centres(frames_FCHW: torch.Tensor) -> torch.Tensor:
    """Return where the shape is in each frame, (F, 2) as x and y in pixels."""
    weight = (frames_FCHW - frames_FCHW[:, :, :1, :1]).abs().sum(1)
    side = torch.arange(weight.shape[-1]).float()
    total = weight.sum((1, 2))
    x = (weight.sum(1) * side).sum(1) / total
    return torch.stack([x, (weight.sum(2) * side).sum(1) / total], 1)


def test_a_clip_moves_where_its_caption_says(prepared: Path) -> None:
    frames, captions, attributes = clips(prepared, "train")
    assert frames.shape[1:] == (5, 3, 16, 16)
    for clip, caption, row in zip(frames, captions, attributes.tolist(), strict=True):
        steps = centres(clip).diff(dim=0)
        way = torch.tensor(moving.DIRECTIONS[caption.split()[-1]]).float()
        assert (steps @ way > 0.3).all()
        said = zip(moving.ATTRIBUTES.values(), row, strict=True)
        assert [values[place] for values, place in said] == list(moving.values_of(caption))


def test_a_batch_of_clips_is_a_pure_function_of_its_step(prepared: Path) -> None:
    loader, again = (Loader(prepared, "train", batch_size=6, seed=3) for _ in range(2))
    batch = loader.batch(4)
    assert batch["frames"].shape == (6, 5, 3, 16, 16)
    assert torch.equal(batch["frames"], again.batch(4)["frames"])
    assert batch["frames"].dtype == torch.float32
    assert 0 <= float(batch["frames"].min()) < float(batch["frames"].max()) <= 1
    assert batch["attributes"].shape == (6, 4)


def test_half_the_size_is_the_mean_over_areas_of_every_frame(prepared: Path) -> None:
    whole, *_ = clips(prepared, "test")
    half, *_ = clips(prepared, "test", image_size=8)
    mean = torch.nn.functional.avg_pool2d(whole.flatten(0, 1), 2).view(half.shape)
    torch.testing.assert_close(half, mean)


def test_a_family_of_pictures_sees_every_frame_of_every_clip_once_an_epoch(prepared: Path) -> None:
    whole, captions, _ = clips(prepared, "validation")
    loader = Loader(prepared, "validation", batch_size=7, stills=True)
    assert loader.rows == 5 * len(whole)
    seen = torch.cat([batch["pixels"] for batch in loader.once()])
    known = {frame.numpy().tobytes() for frame in whole.flatten(0, 1)}
    assert {frame.numpy().tobytes() for frame in seen} == known
    pixels, said, attributes = everything(prepared, "validation")
    assert torch.equal(pixels, whole.flatten(0, 1))
    assert said == [caption for caption in captions for _ in range(5)]
    assert attributes.shape == (len(pixels), 3)


def test_the_facts_of_single_frames_leave_out_what_none_of_them_shows(prepared: Path) -> None:
    assert modality_of(prepared) == "clip"
    found, stills = facts_of(prepared), facts_of(prepared, stills=True)
    assert (found["frames"], found["frame_rate"], found["image_size"]) == (5, 8, 16)
    assert [name for name, _ in found["attributes"]] == ["size", "colour", "shape", "direction"]
    assert [name for name, _ in stills["attributes"]] == ["size", "colour", "shape"]
    assert "frames" not in stills


@pytest.mark.parametrize("made", [1, 5], ids=["of clips", "of frames"])
def test_what_a_stage_made_comes_beside_clips_and_frames(
    prepared: Path, tmp_path: Path, made: int
) -> None:
    from safetensors.numpy import save_file

    count = len(clips(prepared, "train")[0])
    path = shard_of(tmp_path, "train", 0)
    save_file({"outputs": np.arange(count * made, dtype=np.int64)[:, None]}, path)
    facts = {"kind": "outputs", "dataset": sha256_of(prepared / "dataset.json")}
    seal(tmp_path, {**facts, "of_captions": False})
    of_clips = Outputs(tmp_path, "train", (count,)).take(np.array([2, 0]))
    assert of_clips.squeeze(-1).tolist() == (
        [2, 0] if made == 1 else [[10, 11, 12, 13, 14], [0, 1, 2, 3, 4]]
    )
    of_frames = Outputs(tmp_path, "train", (count,), 5).take(np.array([12, 3]))
    assert of_frames.squeeze(-1).tolist() == ([2, 0] if made == 1 else [12, 3])


def test_moving_mnist_follows_the_published_rule() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        places = moving_mnist.way(generator, 20, 36)
        assert places.min() >= 0
        assert places.max() <= 36
        steps = np.abs(np.diff(places, axis=0))
        assert (np.hypot(*steps.T) <= 36 * moving_mnist.STEP + 1.5).all()
    digit = np.full((1, 28, 28), 7, np.uint8)
    frames = moving_mnist.draw(digit, np.random.default_rng(2))
    assert frames.shape == (20, 64, 64, 1)
    assert ((frames > 0).sum((1, 2, 3)) >= 28 * 28).all()
    assert frames.max() == 7  # where digits overlap the lighter counts, not the sum


def idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(head + array.tobytes())


def test_clips_of_a_test_split_have_digits_of_mnists_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_mnist, "KEPT", 2)
    generator = np.random.default_rng(0)
    for split, levels in (("train", (10, 100)), ("t10k", (150, 250))):
        pictures = generator.integers(*levels, (6, 28, 28)).astype(np.uint8)
        idx(tmp_path / f"{split}-images-idx3-ubyte", pictures)
        idx(tmp_path / f"{split}-labels-idx1-ubyte", np.zeros(6, np.uint8))
    entry = {"maker": "moving-mnist", "path": str(tmp_path), "frames": 4}
    folder = prepare(tmp_path, entry | {"count": 8, "validation": 3, "test": 3})
    for split, count, most in (("train", 8, 100), ("validation", 3, 100), ("test", 3, 250)):
        frames, captions, _ = clips(folder, split)
        assert frames.shape == (count, 4, 1, 64, 64)
        assert most - 60 < float(frames.max()) * 255 < most
        assert set(captions) == {""}
    with pytest.raises(MakerError, match="no folder"):
        moving_mnist.made(moving_mnist.Config(maker="moving-mnist", path=Path("no")), tmp_path)
    for few in ((2, 28, 28), (6, 14, 14)):
        idx(tmp_path / "train-images-idx3-ubyte", np.zeros(few, np.uint8))
        with pytest.raises(MakerError, match=r"at least \(3, 28, 28\) are needed"):
            prepare(tmp_path, entry)


def clip(frames: Any, rate: float = 8, size: int = 16) -> bytes:
    return clip_bytes(Found(np.asarray(frames, np.uint8), size, size, rate))


NOISE = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3))
BROKEN: dict[str, tuple[bytes, str]] = {
    "short": (clip(NOISE[:3]), "3 frames at 8 a second, 5 are needed"),
    "slow": (clip(NOISE[::-1], rate=4), "4 frames a second, between 8 and 240 are needed"),
    "small": (clip(NOISE + 1, size=12), "12x12 pixels, between 16 and 4096 a side are needed"),
    "still": (clip(NOISE[[0] * 5]), "nothing moves: a frame differs from the next by 0.000"),
    "twice": (clip(NOISE), "duplicate of whole"),
    "broken": (b"no clip at all", "not a clip"),
}


def test_every_clip_that_cannot_be_learned_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def samples(config: Any) -> Any:
        yield moving.Sample("whole", clip(NOISE), moving.CAPTIONS[0], attributes=FIRST)
        for name, (content, _) in BROKEN.items():
            yield moving.Sample(name, content, moving.CAPTIONS[0], attributes=FIRST)

    monkeypatch.setattr(moving, "_samples", samples)
    lines = refused(tmp_path, ENTRY)
    for name, (_, reason) in BROKEN.items():
        assert any(line.startswith(f"{name}: {reason}") for line in lines), (name, lines)
    assert not any(line.startswith("whole:") for line in lines)


FIRST = moving.values_of(moving.CAPTIONS[0])


def test_frames_of_another_size_are_no_clip_of_the_dataset() -> None:
    with pytest.raises(SampleError, match=r"frames of \(16, 16, 3\), the dataset's are 8x8"):
        clip_of(clip(NOISE), {"image_size": 8, "channels": 3})


def test_the_report_shows_clips_as_strips(prepared: Path) -> None:
    project = prepared.parents[2]
    page = stages.report_path("moved", project).read_text()
    assert page.count('<figure class="strip">') == 24
    assert "mean motion" in page
