"""A user's own clips: files of any kind come in as equal clips, and what cannot be used is named in a line."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data.loaders import clips
from data.makers import MakerError, clip_folder
from data.shards import SPLITS
from infra.media.clips import encoded
from tests.data.prepare_kit import prepare, refused

ENTRY: dict[str, Any] = {"maker": "clips", "image_size": 16, "frames": 4, "frame_rate": 5}


def ball(frames: int, seed: int, side: int = 24) -> Any:
    """Return frames (F, H, W, 3) of a light square on its way through the dark."""
    found = np.full((frames, side, side, 3), 30 + seed, np.uint8)
    for frame in range(frames):
        left = (2 * frame + seed) % (side - 6)
        found[frame, 8:14, left : left + 6] = 200
    return found


def listed(folder: Path, **files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    lines = []
    for name, content in files.items():
        file = name.replace("_", ".")
        (folder / file).write_bytes(content)
        lines.append(f"{file}\ta square on its way\n")
    (folder / "captions.tsv").write_text("".join(lines))
    return folder


def webm(frames: Any, rate: int) -> bytes:
    import io

    file = io.BytesIO()
    with av.open(file, "w", format="webm") as output:
        stream = output.add_stream("libvpx-vp9", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for one in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def test_files_of_every_kind_become_equal_clips_of_one_split_a_file(tmp_path: Path) -> None:
    files = {
        "a_mp4": encoded(ball(24, 0), 10, "mp4").content,  # 12 frames at 5 a second: 3 clips
        "b_gif": encoded(ball(8, 3), 5, "gif").content,  # 2 clips
        "c_webp": encoded(ball(11, 5), 10, "webp").content,  # 5 frames: 1 clip
        "d_webm": webm(ball(16, 7), 10),  # 8 frames: 2 clips
    }
    folder = listed(tmp_path / "mine", **files)
    prepared = prepare(tmp_path, ENTRY | {"path": str(folder)}, "own-clips")
    found = {split: clips(prepared, split) for split in SPLITS}
    assert sum(len(frames) for frames, *_ in found.values()) == 8
    for frames, captions, _ in found.values():
        assert frames.shape[1:] == (4, 3, 16, 16)
        assert set(captions) == {"a square on its way"}
    splits = clip_folder.splits_of(folder, [name.replace("_", ".") for name in files])
    assert set(splits.values()) == set(SPLITS)
    backgrounds = {
        split: set((255 * frames[:, 0, 0, 0, 0]).round().tolist())
        for split, (frames, *_) in found.items()
    }
    assert sum(len(one) for one in backgrounds.values()) == 4, "a file is in one split"


def test_a_file_that_comes_moves_no_other_to_another_split(tmp_path: Path) -> None:
    names = [f"{number}.mp4" for number in range(80)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    before = clip_folder.splits_of(tmp_path, names[:60])
    assert set(before.values()) == set(SPLITS)
    for last in range(60, 81):
        found = clip_folder.splits_of(tmp_path, names[:last])
        assert {name: found[name] for name in before} == before
    for first in range(78):
        assert set(clip_folder.splits_of(tmp_path, names[first : first + 3]).values()) == set(
            SPLITS
        )
    assert clip_folder.splits_of(tmp_path, names[:2]) == {}


def test_frames_are_those_shown_at_the_asked_rate(tmp_path: Path) -> None:
    frames = ball(20, 0, side=16)
    config = clip_folder.Config(path=tmp_path, **ENTRY)
    content = encoded(frames, 10, "webp").content
    parts = list(clip_folder._cut("x.webp", (content, ""), config))
    assert [name for name, *_ in parts] == ["x.webp#0", "x.webp#1"]
    made = {"image_size": 16, "channels": 3}
    cut = np.concatenate([clip_folder_frames(content, made) for _, content, _ in parts])
    np.testing.assert_array_equal(cut, frames[::2][:8])


def clip_folder_frames(content: bytes, made: dict[str, Any]) -> Any:
    from data.modalities.clip import clip_of

    return clip_of(content, made).frames


def uneven(frames: Any) -> bytes:
    """Return a GIF whose frames last longer and longer."""
    import io

    from PIL import Image

    images = [Image.fromarray(one) for one in frames]
    lasting = [100 * (1 + place) for place in range(len(images))]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=lasting)
    return file.getvalue()


def turned(frames: Any) -> bytes:
    """Return an MP4 whose header says that it is to be turned by 90 degrees."""
    content = bytearray(encoded(frames, 5, "mp4").content)
    place = content.index(b"tkhd") + 4 + 40  # the matrix of the track's header
    one, minus = (1 << 16).to_bytes(4), (2**32 - (1 << 16)).to_bytes(4)
    zero = bytes(4)
    content[place : place + 20] = zero + one + zero + minus + zero
    return bytes(content)


def test_what_is_wrong_with_a_file_is_said_in_a_line_each(tmp_path: Path) -> None:
    whole = encoded(ball(8, 0), 5, "mp4").content
    folder = listed(
        tmp_path / "mine",
        good_mp4=encoded(ball(16, 2), 5, "mp4").content,
        cut_mp4=whole[: len(whole) // 2],
        empty_mp4=b"",
        text_mp4=b"this is no clip",
        uneven_gif=uneven(ball(6, 4)),
        turned_mp4=turned(ball(8, 6)),
        short_gif=encoded(ball(3, 8), 5, "gif").content,
        slow_gif=encoded(ball(9, 9), 2, "gif").content,
        still_mp4=encoded(ball(8, 1)[[0] * 8], 5, "mp4").content,
        small_gif=encoded(ball(8, 0, side=14), 5, "gif").content,
    )
    lines = refused(tmp_path, ENTRY | {"path": str(folder)})
    for file, reason in {
        "cut.mp4": "truncated MP4: 0 of 8 frames",
        "empty.mp4": "empty file",
        "text.mp4": "not a clip that can be read (MP4,",
        "uneven.gif": "its frames stand at uneven times: write it anew at a constant rate",
        "turned.mp4": "degrees, says its header: write it anew, upright",
        "short.gif": "3 frames at 5 a second, 4 are needed",
        "slow.gif": "2 frames a second, between 5 and 240 are needed: lower frame_rate",
        "small.gif": "14x14 pixels, between 16 and 4096 a side are needed",
        "still.mp4": "nothing moves",
    }.items():
        assert any(one.startswith(file) and reason in one for one in lines), (file, lines)
    assert not [one for one in lines if one.startswith("good.mp4")]


def test_a_list_that_names_what_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    folder = listed(tmp_path / "mine", a_gif=b"x")
    (folder / "a.gif").rename(folder / "b.gif")
    with pytest.raises(MakerError, match=r"no such file 'a\.gif'"):
        clip_folder.made(clip_folder.Config(path=folder, **ENTRY), tmp_path)
