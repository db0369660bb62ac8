"""Rows on disk: written once by one process, whole or not at all, and compared with their digests as they are read."""

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from data.reading.mapped import BLOCK, Array, DatasetError, mapped
from infra.settings import settings
from infra.storage import IntegrityError
from tests.command_kit import commands

NUMBERS = np.arange(3 * BLOCK // 8 + 5)  # three blocks and a little
kinds = st.sampled_from(["u1", "<u2", "<i4", "<i8", "?"])


def once(array: Array = NUMBERS) -> Iterator[dict[str, Array]]:
    yield {"numbers": array}


def folder_of(key: str) -> Path:
    return settings().state / "rows" / key


@pytest.fixture(autouse=True)
def own(private_home: Path) -> Path:
    """A state folder of each test's own."""
    return private_home


@hypothesis(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 40_000),
    cuts=st.lists(st.integers(0, 40_000), max_size=3),
    kind=kinds,
    width=st.sampled_from([(), (3,), (2, 5), (0,)]),
    index=st.lists(st.integers(0, 39_999), max_size=9),
)
def test_what_is_read_is_what_was_written_in_whatever_parts(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    cuts: list[int],
    kind: str,
    width: tuple[int, ...],
    index: list[int],
) -> None:
    shape = (rows, *width)
    array = np.random.default_rng(rows).integers(0, 2, shape).astype(kind)
    places = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    parts = [array[a:b] for a, b in pairwise(places)]
    key = f"{tmp_path_factory.mktemp('rows').name}"
    column = mapped(key, {}, lambda: ({"one": part} for part in parts)).columns["one"]
    assert len(column) == rows
    chosen = np.array([place for place in index if place < rows], np.int64)
    taken, whole = column.take(chosen), column[:]
    for found, expected in ((taken, array[chosen]), (whole, array), (column[3:7], array[3:7])):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)


@hypothesis(max_examples=40, deadline=None)
@given(name=st.sampled_from(["numbers", "numbers.sha256", "index.json"]), place=st.floats(0, 1))
def test_an_altered_byte_is_found_where_it_is_read(name: str, place: float) -> None:
    key = "altered"
    mapped(key, {}, once)  # which is there no more after the example before
    path = folder_of(key) / name
    content = bytearray(path.read_bytes())
    content[min(int(place * len(content)), len(content) - 1)] ^= 4
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"{key}/(numbers|index.json) was altered.*: delete "):
        mapped(key, {}, once).columns["numbers"][:]
    shutil.rmtree(folder_of(key))


@pytest.mark.parametrize("name", ["numbers", "numbers.sha256"])
def test_a_file_that_is_missing_is_named(name: str) -> None:
    mapped("gone", {}, once)
    (folder_of("gone") / name).unlink()
    with pytest.raises(IntegrityError, match=f"gone/{name} has 0 bytes, expected "):
        mapped("gone", {}, once)


@pytest.mark.parametrize("size", [0, 8, BLOCK])
def test_a_truncated_file_is_named_with_both_sizes(size: int) -> None:
    mapped("cut", {}, once)
    path = folder_of("cut") / "numbers"
    with path.open("r+b") as file:
        file.truncate(size)
    said = f"cut/numbers has {size} bytes, expected {NUMBERS.nbytes}: delete .*, it is made again"
    with pytest.raises(IntegrityError, match=said):
        mapped("cut", {}, once)


def test_only_what_is_touched_is_read() -> None:
    """A block that nobody asks for may be anything: to begin with nothing reads the whole."""
    mapped("lazy", {}, once)
    path = folder_of("lazy") / "numbers"
    content = bytearray(path.read_bytes())
    content[BLOCK + 7] ^= 1  # in the second block
    path.write_bytes(content)
    column = mapped("lazy", {}, once).columns["numbers"]
    fine = np.array([0, 5, len(NUMBERS) - 1])
    assert column.take(fine).tolist() == NUMBERS[fine].tolist()
    assert column[: BLOCK // 8].tolist() == NUMBERS[: BLOCK // 8].tolist()
    with pytest.raises(IntegrityError, match=f"numbers was altered at byte {BLOCK}"):
        column.take(np.array([BLOCK // 8]))


def test_processes_that_want_the_same_rows_at_once_make_them_once(tmp_path: Path) -> None:
    script, log = Path(__file__).with_name("make_rows.py"), tmp_path / "log"
    assert commands.together(script, *[("shared", str(log))] * 4) == [0] * 4
    assert log.read_text() == "made\n"
    assert sorted(path.name for path in folder_of("shared").parent.iterdir()) == [
        *("shared", "shared.lock"),
    ]


@pytest.mark.parametrize("where", ["rows.write", "rows.written"])
def test_what_a_killed_maker_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    script, log = Path(__file__).with_name("make_rows.py"), tmp_path / "log"
    monkeypatch.setenv("ATELIER_FAULT", f"{where}:kill")
    assert commands.together(script, ("killed", str(log))) == [-signal.SIGKILL]
    assert not folder_of("killed").exists()
    monkeypatch.delenv("ATELIER_FAULT")
    assert commands.together(script, ("killed", str(log))) == [0]
    assert sorted(path.name for path in folder_of("killed").parent.iterdir()) == [
        *("killed", "killed.lock"),
    ]


def test_a_full_disk_is_one_line_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_FAULT", "rows.write:enospc")
    with pytest.raises(DatasetError) as refused:
        mapped("full", {}, once)
    assert os.strerror(errno.ENOSPC) in str(refused.value)
    assert str(folder_of("full").parent) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in folder_of("full").parent.iterdir()] == ["full.lock"]
    monkeypatch.delenv("ATELIER_FAULT")
    assert len(mapped("full", {}, once).columns["numbers"]) == len(NUMBERS)


def test_a_maker_that_refuses_leaves_nothing() -> None:
    def refuse() -> Iterator[dict[str, Any]]:
        yield from once()
        raise ValueError("record 7 has other roles")

    with pytest.raises(ValueError, match="record 7"):
        mapped("refused", {}, refuse)
    assert not folder_of("refused").exists()
