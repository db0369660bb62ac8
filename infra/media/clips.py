"""Clips to files and back: MP4, animated GIF and WebP out; those, WebM and AVI in, with bounds, or the reason why not.

Shape letters: F frames, H and W pixels, C channels (1 or 3).
"""

import io
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infra.media.pictures import BROKEN, MAX_SIDE, square

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

Frames: TypeAlias = NDArray[np.uint8]
"""(F, H, W, C)."""
Kind: TypeAlias = Literal["mp4", "gif", "webp"]

MOST_BYTES: Final = 2**26  # of a file that is read
MOST_FRAMES: Final = 1024
MOST_PIXELS: Final = 2**30  # of all frames that are decoded
LONGEST_S: Final = 600.0
HIGHEST_RATE: Final = 240.0  # frames a second
EVEN: Final = 0.015  # s by which frames may miss their place: GIF counts in hundredths

REPEATABLE: Final = "threads=1:lookahead-threads=1:sync-lookahead=0:mbtree=0:cpu-independent=1"
"""Equal frames give an equal file, in every process and by whatever vector code the CPU has. x264's macroblock tree
would not: it reads memory that nobody has set, so that levels hang on what was there. One thread, since clips are short
and gateways busy."""
CODECS: Final[Sequence[tuple[str, str, dict[str, str]]]] = (
    ("libx264", "video/mp4", {"crf": "16", "x264-params": REPEATABLE}),
    ("libopenh264", "video/mp4", {"b": "4M"}),
    ("libvpx-vp9", 'video/mp4; codecs="vp09.00.10.08"', {"crf": "16", "b": "0", "threads": "1"}),
    ("mpeg4", 'video/mp4; codecs="mp4v.20.9"', {"q": "2", "threads": "1"}),
)
"""Encoders of an MP4, the best first, with the type of what they make."""
PIXELS: Final = "yuv420p"
DEMUXERS: Final = {"mp4": "mov", "webm": "matroska", "avi": "avi"}
PICTURES: Final = {"gif": "GIF", "webp": "WEBP"}
SHEET_FRAMES: Final = 16
SHEET_SIDE: Final = 320  # pixels of a frame in a sheet, at most


class ClipError(ValueError):
    """A clip that cannot be used; the message is the reason, in a few words."""


@dataclass(frozen=True, slots=True)
class ClipFile:
    """A finished file."""

    content: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip as it was read, and what was found."""

    frames: Frames
    frame_rate: float  # frames a second
    width: int  # of the file, upright
    height: int
    uneven: bool = False  # its frames stand at uneven times
    turned: int = 0  # degrees by which the file says that it is to be turned; done here


@dataclass(frozen=True, slots=True)
class _Shown:
    """A frame of a file, upright, RGB."""

    image: Image.Image
    at: float  # s
    lasts: float  # s; 0: unknown
    turned: int = 0


def encoded(frames_FHWC: Frames, frame_rate: float, kind: Kind) -> ClipFile:
    """Return frames as a file: an MP4 (odd sides get one more row or column, the last one again), GIF or WebP.

    The WebP keeps every level; the MP4 is nearly without loss; a GIF has 256 colours a frame.

    Raises:
        ClipError: no frames, or a rate that no file can have.
    """
    count, height, width, channels = frames_FHWC.shape
    if not (count and height and width and channels in {1, 3}):
        raise ClipError(f"no clip has the shape {frames_FHWC.shape}: (F, H, W, 1 or 3)")
    if not 1 / LONGEST_S <= frame_rate <= HIGHEST_RATE:
        least = f"one in {LONGEST_S:g} s at least"
        raise ClipError(f"{frame_rate:g} frames a second, {least} and at most {HIGHEST_RATE:g}")
    colour = np.broadcast_to(frames_FHWC, (count, height, width, 3))
    if kind == "mp4":
        return _mp4(colour, frame_rate)
    images = [Image.fromarray(one) for one in np.ascontiguousarray(colour)]
    unit = 10 if kind == "gif" else 1  # ms
    ends = [round(1000 * place / frame_rate / unit) * unit for place in range(count + 1)]
    lasting = [max(unit, late - soon) for soon, late in pairwise(ends)]
    common: dict[str, Any] = {"save_all": True, "append_images": images[1:], "loop": 0}
    own: dict[str, Any] = (
        {"lossless": True, "exact": True} if kind == "webp" else {"optimize": False}
    )
    file = io.BytesIO()
    images[0].save(file, PICTURES[kind], duration=lasting, **common, **own)
    return ClipFile(file.getvalue(), f"image/{kind}")


def thumbnail(clip: Clip) -> ClipFile:
    """Return the frame in the middle as a WebP."""
    file = io.BytesIO()
    image = Image.fromarray(_colour(clip.frames[len(clip.frames) // 2]))
    image.save(file, "WEBP", quality=90)
    return ClipFile(file.getvalue(), "image/webp")


def spritesheet(clip: Clip) -> ClipFile:
    """Return up to 16 frames, evenly spaced and in rows of four, as a JPEG."""
    count = min(SHEET_FRAMES, len(clip.frames))
    places = np.linspace(0, len(clip.frames) - 1, count).round().astype(int)
    scale = min(1.0, SHEET_SIDE / max(clip.frames.shape[1:3]))
    height, width = (max(1, round(side * scale)) for side in clip.frames.shape[1:3])
    columns = min(4, count)
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height))
    for number, place in enumerate(places):
        image = Image.fromarray(_colour(clip.frames[place]))
        row, column = divmod(number, columns)
        sheet.paste(image.resize((width, height)), (column * width, row * height))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=90)
    return ClipFile(file.getvalue(), "image/jpeg")


def decode(
    content: bytes,
    *,
    image_size: int | None = None,
    channels: int = 3,
    frame_rate: float | None = None,
) -> Clip:
    """Return a clip decoded to its end: upright, over white, and evenly spaced in time.

    Args:
        content: An MP4, MOV, WebM, MKV, AVI, GIF or WebP; a picture is a clip of one frame.
        image_size: The side of the central square that frames are cut to and resized; None: as they are.
        channels: 3, or 1 for grey.
        frame_rate: Frames a second that are taken, each the one that is shown then; None: as the file has them, or
            where they are uneven as often as its shortest frame.

    Raises:
        ClipError: unknown kind, damaged, cut short, empty, too large or too long.
    """
    shown, spent, turned = list[_Shown](), 0, 0
    size: tuple[int, int] | None = None
    for one in frames_of(content):
        if size is not None and one.image.size != size:
            raise ClipError("its frames are not equally large")
        size, turned = one.image.size, one.turned
        spent += size[0] * size[1]
        if spent > MOST_PIXELS:
            raise ClipError(f"more than {MOST_PIXELS} pixels in all frames together; cut it")
        image = one.image if channels == 3 else one.image.convert("L")
        image = image if image_size is None else square(image, image_size)
        shown.append(_Shown(image, one.at, one.lasts))
    if size is None:
        raise ClipError("no frame in it")
    rate, uneven = _rate(shown)
    places = list(range(len(shown)))
    if uneven or frame_rate is not None:
        rate = rate if frame_rate is None else frame_rate
        places = _places(shown, rate)
    arrays = [np.asarray(one.image).reshape(*one.image.size[::-1], channels) for one in shown]
    return Clip(np.stack([arrays[place] for place in places]), rate, *size, uneven, turned)


def check_readable(count: int, frame_rate: float) -> None:
    """Refuse so many frames at so many a second as `decode` would not read, before they are made.

    Raises:
        ClipError: there are more than 1024, or they take longer than 600 s.
    """
    if count > MOST_FRAMES:
        says = f"{count} frames at {frame_rate:g} a second"
        raise ClipError(f"{says}, at most {MOST_FRAMES} are read; cut it")
    last_s = (count - 1) / frame_rate
    if last_s > LONGEST_S:
        raise ClipError(f"{last_s:g} s to its last frame, at most {LONGEST_S:g} s are read; cut it")


def frames_of(content: bytes) -> Iterator[_Shown]:
    """Yield a file's frames in order, each with its time, as long as somebody asks for more.

    Raises:
        ClipError: as `decode`; `MOST_FRAMES` alone do not end it.
    """
    if len(content) > MOST_BYTES:
        raise ClipError(f"{len(content)} bytes, at most {MOST_BYTES} are read")
    kind = kind_of(content)
    source = _of_pictures(content, kind) if kind in PICTURES else _of_video(content, kind)
    for number, one in enumerate(source):
        if max(one.image.size) > MAX_SIDE:
            raise ClipError(
                f"{'x'.join(map(str, one.image.size))} pixels, at most {MAX_SIDE} a side"
            )
        if number >= MOST_FRAMES:
            raise ClipError(f"more than {MOST_FRAMES} frames; cut it into shorter ones")
        if one.at > LONGEST_S:
            raise ClipError(f"longer than {LONGEST_S:g} s; cut it into shorter ones")
        yield one


def kind_of(content: bytes) -> str:
    """Return what a file is by its first bytes: "mp4", "webm", "avi", "gif" or "webp".

    Raises:
        ClipError: nothing of these.
    """
    if content[4:8] in {b"ftyp", b"moov", b"wide", b"mdat", b"free"}:
        return "mp4"
    if content[:4] == b"\x1aE\xdf\xa3":
        return "webm"
    if content[:4] == b"RIFF" and content[8:12] in {b"AVI ", b"WEBP"}:
        return "avi" if content[8:12] == b"AVI " else "webp"
    if content[:4] == b"GIF8":
        return "gif"
    if not content:
        raise ClipError("the file is empty")
    raise ClipError("not a clip that can be read (MP4, MOV, WebM, MKV, AVI, GIF, WebP)")


def _of_pictures(content: bytes, kind: str) -> Iterator[_Shown]:
    if kind == "gif" and not content.rstrip(b"\0").endswith(b";"):
        raise ClipError("truncated GIF (cannot be decoded fully)")
    at = 0.0
    try:
        with Image.open(io.BytesIO(content), formats=[PICTURES[kind]]) as file:
            if max(file.size) > MAX_SIDE:
                says = "x".join(map(str, file.size))
                raise ClipError(f"{says} pixels, at most {MAX_SIDE} a side")
            for number in range(getattr(file, "n_frames", 1)):
                file.seek(number)
                image = file.convert("RGBA")
                lasts = float(file.info.get("duration", 0)) / 1000
                white = Image.new("RGBA", image.size, "white")
                yield _Shown(Image.alpha_composite(white, image).convert("RGB"), at, lasts)
                at += lasts or 0.1  # as browsers show what names no time
    except ClipError:
        raise
    except BROKEN:
        raise ClipError(f"damaged {PICTURES[kind]} (cannot be decoded fully)") from None


def _of_video(content: bytes, kind: str) -> Iterator[_Shown]:
    import av

    name = kind.upper()
    if kind == "webm" and _ends_early(content):
        raise ClipError(f"truncated {name} (cannot be decoded fully)")
    try:
        with av.open(io.BytesIO(content), "r", format=DEMUXERS[kind]) as file:
            yield from _decoded(file, name)
    except (av.FFmpegError, UnicodeDecodeError, OverflowError) as error:
        says = str(error).split("]")[-1].partition(":")[0].strip().lower()
        raise ClipError(f"damaged {name} (cannot be decoded fully: {says})") from None


def _ends_early(content: bytes) -> bool:
    """Return whether a Matroska file is shorter than it says (RFC 8794, sections 4 and 6), which FFmpeg passes over.

    One that was sent while it was made does not say.
    """
    place = 0
    for _ in range(2):  # the head, and the segment with all the rest
        _, place = _vint(content, place)
        size, place = _vint(content, place)
        if size is None:
            return False
        place += size
    return place > len(content)


def _vint(content: bytes, place: int) -> tuple[int | None, int]:
    """Return a number of EBML, None where it stands for unknown, and where it ends."""
    length = 9 - content[place : place + 1].ljust(1, b"\0")[0].bit_length()
    whole = (1 << 7 * length) - 1
    value = int.from_bytes(content[place : place + length]) & whole
    return None if value == whole else value, place + length


def _decoded(file: "InputContainer", name: str) -> Iterator[_Shown]:
    if not file.streams.video:
        raise ClipError(f"no picture in this {name}, sound alone")
    stream = file.streams.video[0]
    codec = stream.codec_context
    if codec is None:
        raise ClipError(f"damaged {name}, or of a codec that is not known here")
    if max(codec.width, codec.height) > MAX_SIDE:
        raise ClipError(f"{codec.width}x{codec.height} pixels, at most {MAX_SIDE} a side")
    codec.thread_count = 1
    promised, count, start = stream.frames, 0, None
    for frame in file.decode(stream):
        if frame.is_corrupt:
            raise ClipError(f"damaged {name}: frame {count} is broken")
        count += 1
        if frame.time is None:
            raise ClipError(f"damaged {name}: frame {count - 1} has no time")
        start = frame.time if start is None else start
        yield _upright(frame, frame.time - start)
    if count < promised:
        raise ClipError(f"truncated {name}: {count} of {promised} frames")


def _upright(frame: "VideoFrame", at: float) -> _Shown:
    turned = frame.rotation % 360
    array = frame.to_ndarray(format="rgb24")
    lasts = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
    image = Image.fromarray(np.ascontiguousarray(np.rot90(array, round(turned / 90))))
    return _Shown(image, at, lasts, turned)


def _rate(shown: Sequence[_Shown]) -> tuple[float, bool]:
    """Return the frames a second, of the shortest frame where they are uneven, and whether they are."""
    if len(shown) == 1:
        return (1 / shown[0].lasts if shown[0].lasts > 0 else 1.0), False
    times = [one.at for one in shown]
    gaps = [late - soon for soon, late in pairwise(times)]
    if min(gaps) <= 0:
        raise ClipError("damaged: its frames do not follow each other in time")
    step = (times[-1] - times[0]) / len(gaps)
    even = all(abs(at - place * step) <= EVEN for place, at in enumerate(times))
    last = shown[-1].lasts  # GIF and WebP keep equal frames as one that lasts longer
    uneven = not even or (last > 0 and abs(last - step) > 2 * EVEN)
    if uneven:
        return min(1 / min(*gaps, last or math.inf), HIGHEST_RATE), True
    return min(len(shown) / (times[-1] - times[0] + (last or step)), HIGHEST_RATE), False


def _places(shown: Sequence[_Shown], rate: float) -> list[int]:
    """Return which frame is shown at every tick of `rate` until the end."""
    times = np.array([one.at for one in shown])
    gap = float(times[-1] / (len(times) - 1)) if len(times) > 1 else 1 / rate
    count = max(1, round((times[-1] + (shown[-1].lasts or gap)) * rate))
    check_readable(count, rate)
    ticks = np.arange(count) / rate + EVEN / 2  # so that rounded times are not missed by one
    found: list[int] = (np.searchsorted(times, ticks, side="right") - 1).clip(0).tolist()
    return found


def _mp4(frames_FHWC: Frames, frame_rate: float) -> ClipFile:
    import av
    from av.video.reformatter import Interpolation

    name, media_type, options = next(one for one in CODECS if one[0] in av.codecs_available)
    height, width = frames_FHWC.shape[1:3]
    even = np.pad(frames_FHWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    rate = Fraction(frame_rate).limit_denominator(1001)
    flags = {"movflags": "+faststart", "fflags": "+bitexact"}  # no date, no version
    exactly = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:  # whose head is moved to its start
        with av.open(file.name, "w", format="mp4", options=flags) as output:
            stream: Any = output.add_stream(name, rate=rate, options=dict(options))
            stream.height, stream.width = even.shape[1:3]
            stream.pix_fmt = PIXELS
            for frame_HWC in even:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
                frame = frame.reformat(format=PIXELS, interpolation=exactly, threads=1)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return ClipFile(file.read(), media_type)


def _colour(frame_HWC: Frames) -> Frames:
    return np.ascontiguousarray(np.broadcast_to(frame_HWC, (*frame_HWC.shape[:2], 3)))
