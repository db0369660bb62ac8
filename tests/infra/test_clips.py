"""Clips become files that others play and come back as they were; what is no clip is refused in a line."""

import contextlib
import io
import os
import subprocess
import sys
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.media import clips
from infra.media.clips import ClipError, Frames, decode, encoded, spritesheet, thumbnail

KINDS: tuple[Any, ...] = ("mp4", "gif", "webp")


def moving(count: int = 6, height: int = 24, width: int = 32, channels: int = 3) -> Frames:
    """A bright square that moves to the right by two pixels a frame."""
    found = np.zeros((count, height, width, channels), np.uint8)
    for place in range(count):
        found[place, height // 4 : height // 2, 2 * place : 2 * place + width // 3] = 220
        found[place, -1, -1] = 5 * place  # no two are equal, which GIF and WebP keep as one
    return found


FILES = {kind: encoded(moving(), 8, kind).content for kind in KINDS}


@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 9),
    sides=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    channels=st.sampled_from([1, 3]),
    rate=st.sampled_from([1, 7.5, 8, 12, 24, 30]),
)
@settings(max_examples=40)
def test_any_clip_comes_back_with_its_frames_and_its_rate(
    kind: Any, count: int, sides: tuple[int, int], channels: int, rate: float
) -> None:
    frames = moving(count, *sides, channels=channels)
    again = decode(encoded(frames, rate, kind).content, channels=channels, frame_rate=rate)
    height, width = sides
    even = (height + height % 2, width + width % 2) if kind == "mp4" else sides
    assert again.frames.shape == (count, *even, channels)
    shown = again.frames[:, :height, :width].astype(int)
    assert np.abs(shown - frames).mean() < (6 if kind == "mp4" else 1)
    assert kind != "webp" or (shown == frames).all()


def test_the_type_of_each_is_told_and_equal_frames_give_equal_files() -> None:
    for kind, media_type in (("mp4", "video/mp4"), ("gif", "image/gif"), ("webp", "image/webp")):
        made = encoded(moving(), 8, kind)  # type: ignore[arg-type]
        assert made.content == FILES[kind]
        assert made.media_type == media_type


ENCODED_ANEW = """
import hashlib
import numpy as np
from infra.media.clips import encoded

random = np.random.default_rng(1)
base = np.kron(random.integers(0, 255, (8, 8, 3)), np.ones((8, 8, 1)))
frames = [np.roll(base, 2 * place, 1) // 2 + random.integers(0, 9, base.shape) for place in range(9)]
print(hashlib.sha256(encoded(np.stack(frames).astype(np.uint8), 8, "mp4").content).hexdigest())
"""


def test_equal_frames_give_an_equal_mp4_whatever_was_in_a_process_s_memory() -> None:
    # glibc fills what it hands out with this byte: an encoder that reads what nobody has set gives another file
    found = {
        subprocess.run(
            [sys.executable, "-c", ENCODED_ANEW], capture_output=True, text=True, check=True,
            env={**os.environ, "MALLOC_PERTURB_": filler, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout
        for filler in ("0", "1", "255")
    }  # fmt: skip
    assert len(found) == 1


def test_an_mp4_begins_with_its_head_and_is_h264_that_browsers_play() -> None:
    assert FILES["mp4"].index(b"moov") < FILES["mp4"].index(b"mdat")
    with av.open(io.BytesIO(FILES["mp4"])) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (8, 6)


@pytest.mark.parametrize(("codec", "named"), [("libvpx-vp9", "vp09"), ("mpeg4", "mp4v")])
def test_without_h264_the_next_codec_is_taken_and_the_type_says_which(
    codec: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = [one for one in clips.CODECS if one[0] == codec]
    monkeypatch.setattr(clips, "CODECS", [("no-such-encoder", "video/mp4", {}), *rest])
    made = encoded(moving(), 8, "mp4")
    assert named in made.media_type
    assert decode(made.content).frames.shape == (6, 24, 32, 3)


def test_a_frame_that_lasts_longer_is_shown_as_often_as_it_lasts() -> None:
    held = np.repeat(moving(3), [1, 3, 2], axis=0)
    for kind in ("gif", "webp"):
        found = decode(encoded(held, 10, kind).content)  # type: ignore[arg-type]
        assert found.uneven
        assert found.frame_rate == pytest.approx(10)
        np.testing.assert_array_equal(found.frames, held)


def test_another_rate_takes_the_frames_that_are_shown_then() -> None:
    frames = decode(FILES["webp"]).frames
    np.testing.assert_array_equal(decode(FILES["webp"], frame_rate=4).frames, frames[::2])
    np.testing.assert_array_equal(decode(FILES["webp"], frame_rate=16).frames, frames.repeat(2, 0))


def test_frames_are_cut_to_squares_of_the_size_that_is_asked_for() -> None:
    found = decode(FILES["webp"], image_size=12, channels=1)
    assert found.frames.shape == (6, 12, 12, 1)
    assert (found.width, found.height) == (32, 24)


def test_a_turned_clip_is_shown_upright_and_told() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as output:
        stream: Any = output.add_stream("libx264", rate=8, width=32, height=24)
        stream.pix_fmt = "yuv420p"
        for one in moving():
            output.mux(stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24")))
        output.mux(stream.encode(None))
    content = file.getvalue()
    at = content.index(b"tkhd") + 4 + 40  # its matrix (ISO/IEC 14496-12, section 8.3.2)
    assert content[at : at + 4] == b"\x00\x01\x00\x00"
    one, minus = b"\x00\x01\x00\x00", b"\xff\xff\x00\x00"
    quarter = bytes(4) + one + bytes(4) + minus + bytes(16) + b"\x40\x00\x00\x00"
    found = decode(content[:at] + quarter + content[at + 36 :])
    assert found.turned in {90, 270}
    assert (found.width, found.height) == (24, 32)
    assert found.frames.shape == (6, 32, 24, 3)


def test_a_thumbnail_and_a_sheet_are_made_of_any_clip() -> None:
    for count in (1, 3, 40):
        clip = decode(encoded(moving(count, 24, 64, channels=1), 8, "webp").content, channels=1)
        with Image.open(io.BytesIO(thumbnail(clip).content)) as image:
            assert (image.format, image.size) == ("WEBP", (64, 24))
        with Image.open(io.BytesIO(spritesheet(clip).content)) as image:
            rows = -(-min(count, 16) // 4)
            assert (image.format, image.size) == ("JPEG", (64 * min(count, 4), 24 * rows))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello, world", "not a clip that can be read"),
        (FILES["mp4"][:-40], "MP4"),
        (FILES["gif"][:-40], "truncated GIF"),
        (FILES["webp"][:-40], "damaged WEBP"),
        (b"\x1aE\xdf\xa3" + bytes(60), "damaged WEBM"),
    ],
)
def test_what_is_no_whole_clip_is_refused_in_a_line(content: bytes, message: str) -> None:
    with pytest.raises(ClipError, match=message) as caught:
        decode(content)
    assert "\n" not in str(caught.value)


def test_too_much_is_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, says in (
        ("MOST_BYTES", 100, "at most 100 are read"),
        ("MOST_FRAMES", 5, "more than 5 frames"),
        ("MAX_SIDE", 30, "at most 30 a side"),
        ("MOST_PIXELS", 1000, "more than 1000 pixels"),
        ("LONGEST_S", 0.5, "longer than 0.5 s"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(clips, name, value)
            for content in FILES.values():
                with pytest.raises(ClipError, match=says):
                    decode(content)


@pytest.mark.parametrize(("count", "rate"), [(1024, 8.0), (301, 0.5), (1, 0.1)])
def test_what_would_not_be_read_is_known_before_it_is_made(count: int, rate: float) -> None:
    clips.check_readable(count, rate)
    if count > 1:
        with pytest.raises(ClipError, match=r"at most (1024|600 s)"):
            clips.check_readable(count + 1, rate)


@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_a_damaged_clip_is_read_or_refused(data: st.DataObject, kind: Any) -> None:
    content = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ClipError):
        found = decode(bytes(content[: data.draw(st.integers(1, len(content)))]))
        assert 1 <= len(found.frames) <= clips.MOST_FRAMES


def matroska(kind: str, codec: str, **options: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options=options) as output:
        stream: Any = output.add_stream(codec, rate=8, width=32, height=24)
        stream.pix_fmt = "yuv420p"
        for one in moving(9):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(("kind", "codec"), [("webm", "libvpx-vp9"), ("matroska", "mpeg4")])
def test_a_webm_that_is_cut_short_is_never_taken_for_a_shorter_one(kind: str, codec: str) -> None:
    whole = matroska(kind, codec)
    assert len(decode(whole).frames) == 9
    for size in range(30, len(whole), 97):
        with pytest.raises(ClipError, match="truncated WEBM"):
            decode(whole[:size])
    assert len(decode(matroska(kind, codec, live="1")).frames) == 9, (
        "one that does not say how long"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_that_no_file_can_have_is_refused(kind: Any) -> None:
    for rate in (0.0, 1e-5, 1e-3, 241.0):
        with pytest.raises(ClipError, match="one in 600 s at least and at most 240"):
            encoded(moving(2), rate, kind)
    assert len(decode(encoded(moving(2), 1 / 600, kind).content).frames) == 2
