from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.makers import MakerError, cifar10
from infra.media.pictures import decode

HERE = Path()


def batches(folder: Path, rows: int = 4) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Write the binary version with `rows` pictures a file; returns those of the first."""
    generator = np.random.default_rng(0)
    first = generator.integers(0, 256, (rows, cifar10.ROW), np.uint8)
    for name in reversed(cifar10.BATCHES):
        first = generator.integers(0, 256, (rows, cifar10.ROW), np.uint8)
        first[:, 0] = np.arange(rows) % 10
        (folder / name).write_bytes(first.tobytes())
    return first


def made(folder: Path) -> cifar10.Made:
    return cifar10.made(cifar10.Config(maker="cifar10", path=folder), HERE)


def test_the_binary_version_has_labels_and_its_own_split(tmp_path: Path) -> None:
    first = batches(tmp_path)
    found = made(tmp_path)
    samples = list(found.samples)
    assert [sample.split for sample in samples] == ["train"] * 20 + ["test"] * 4
    assert [sample.caption for sample in samples[:3]] == ["airplane", "automobile", "bird"]
    x_HWC = decode(samples[1].content, 32, 3).pixels
    red_HW = first[1, 1 : 1 + 1024].reshape(32, 32)
    assert np.array_equal(x_HWC[..., 0], red_HW)
    assert found.validation_rows == 5000


def test_sheets_are_pictures_a_row_without_captions(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (3, 1024, 3), np.uint8)
    Image.fromarray(rows).save(tmp_path / "cifar10_batch_0.png")
    found = made(tmp_path)
    samples = list(found.samples)
    assert not found.captioned
    assert np.array_equal(decode(samples[2].content, 32, 3).pixels, rows[2].reshape(32, 32, 3))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        MakerError, match=r"data_batch_1.bin is missing in .*: put CIFAR-10's binary"
    ):
        made(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02}")
    with pytest.raises(MakerError, match="is pickled: get the binary one"):
        made(tmp_path)
    batches(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(bytes(100))
    with pytest.raises(MakerError, match=r"data_batch_2.bin has 100 bytes, not a multiple of 3073"):
        list(made(tmp_path).samples)
    (tmp_path / "data_batch_2.bin").write_bytes(bytes([77]) * cifar10.ROW)
    with pytest.raises(MakerError, match="has a label 77; they are 0 to 9"):
        list(made(tmp_path).samples)
    Image.new("RGB", (32, 32)).save(tmp_path / "batch.png")
    with pytest.raises(MakerError, match="is 32x32 RGB, not a sheet of 1024 RGB pixels a row"):
        list(made(tmp_path).samples)
    (tmp_path / "batch.png").write_bytes(b"no picture")
    with pytest.raises(MakerError, match=r"cannot read .*batch.png"):
        list(made(tmp_path).samples)
