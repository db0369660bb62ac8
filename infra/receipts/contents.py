"""The sha256 of what a file shows or sounds like: of decoded pixels or samples, whatever metadata stands beside them.

A file that shows more than its pixels (an animation, a colour profile, a rotation) is refused: another viewer would
show something else than what was hashed.
"""

import hashlib
import io
import struct
import warnings
from typing import BinaryIO, Final

from infra.receipts import clip_receipts, mesh_receipts, sound_receipts, stream_receipts

LARGEST_SIDE: Final = 4096  # pixels of a picture that is decoded
MOST_SAMPLES: Final = 2**24  # of a sound that is decoded
MOST_BYTES: Final = 2**26  # of a file that is read
BLOCK: Final = 2**16
MOST_CHUNKS: Final = 100_000
PNG: Final = b"\x89PNG\r\n\x1a\n"
ONCE: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IEND"})
NEUTRAL: Final = frozenset({b"IDAT", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"sRGB"})
"""Chunks that may stand in a PNG beside those: texts, a time, a resolution and the colours that everybody assumes."""
TURNING: Final = (b"XML:com.adobe.xmp", b"Raw profile type")
"""Keywords of texts in which some viewers look for an orientation or a colour profile."""
LONGEST_KEYWORD: Final = 79  # bytes (PNG, section 11.3.3.2)


class ContentError(ValueError):
    """What a file shows cannot be read, or not in one way alone; one line."""


def pixels_sha256(file: BinaryIO, size: str) -> str:
    """Return the hash over a PNG's pixels as RGBA bytes, rows from the top.

    The size is compared before anything is unpacked, so that a header cannot ask for more memory.

    Raises:
        ContentError: another size than `size` ("32x32"), too large, damaged, or a chunk that changes how it is shown.
    """
    width, height = _png_size(file)
    if f"{width}x{height}" != size:
        raise ContentError(f"the picture has {width}x{height} pixels, its receipt names {size}")
    if max(width, height) > LARGEST_SIDE:
        raise ContentError(f"{width}x{height} pixels, at most {LARGEST_SIDE}x{LARGEST_SIDE}")
    from PIL import Image

    from infra.media.pictures import BROKEN

    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, our bound is lower
            with Image.open(file, formats=["PNG"]) as image:
                pixels = image.convert("RGBA").tobytes()
    except BROKEN as error:
        raise ContentError(f"the picture is damaged: {error}") from None
    return hashlib.sha256(pixels).hexdigest()


def _png_size(file: BinaryIO) -> tuple[int, int]:
    """Return width and height in a PNG's header after a look at every chunk's name."""
    file.seek(len(PNG))
    size: tuple[int, int] | None = None
    seen: set[bytes] = set()
    for _ in range(MOST_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            break
        length, kind = struct.unpack(">I4s", header)
        if kind in seen or kind not in ONCE | NEUTRAL:
            raise ContentError(f"its chunk {kind!r} may change how it is shown: take it out")
        if kind in ONCE:
            seen.add(kind)
        if kind == b"IEND":
            if size is None:
                break
            return size
        start = file.read(min(length, LONGEST_KEYWORD))
        if start.startswith(TURNING) and kind in {b"tEXt", b"zTXt", b"iTXt"}:
            raise ContentError("its metadata may turn or colour the picture: take out XMP and Exif")
        if kind == b"IHDR":
            if len(start) < 9:
                break
            width, height, depth = struct.unpack(">IIB", start[:9])
            if depth > 8:
                raise ContentError(f"it has {depth} bits a channel, pictures made here have 8")
            size = width, height
        file.seek(length - len(start) + 4, io.SEEK_CUR)
    raise ContentError("the picture is damaged: it has no header or no end")


def samples_sha256(file: BinaryIO, sample_rate: int) -> str:
    """Return the hash over a sound's `samples`, which has their errors."""
    return hashlib.sha256(samples(file, sample_rate)).hexdigest()


def samples(file: BinaryIO, sample_rate: int) -> bytes:
    """Return a WAV's or FLAC's samples as 16-bit little-endian numbers, without a WAV's receipt behind them.

    Raises:
        ContentError: not one channel of 16 bits at this rate (Hz), too long, damaged, a WAV with a chunk that may
            change how it sounds, or a FLAC that goes on where its head says that it ends.
    """
    import soundfile

    file.seek(0)
    try:
        wav = file.read(4) == b"RIFF"
        if wav:
            sound_receipts.check_plain(file)
        file.seek(0)
        made = bytearray()
        with soundfile.SoundFile(file) as sound:
            found = (sound.channels, sound.subtype, sound.samplerate)
            if found != (1, "PCM_16", sample_rate):
                channels, kind, rate = found
                says = f"{channels} channels of {kind} at {rate} Hz"
                raise ContentError(
                    f"it has {says}, its receipt names one of 16 bits at {sample_rate} Hz"
                )
            while len(levels := sound.read(BLOCK, dtype="int16")):
                made += levels.astype("<i2").tobytes()
                if len(made) > 2 * MOST_SAMPLES:
                    raise ContentError(f"it has more than {MOST_SAMPLES} samples")
    except ContentError:
        raise
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise ContentError(f"the sound is damaged: {error}") from None
    content = bytes(made)
    if wav:
        return content[: stream_receipts.sound_end(content)]
    if (played := _played(file)) != len(content) // 2:
        raise ContentError(
            f"some players play {played} samples, its head names {len(content) // 2}"
        )
    return content


def _played(file: BinaryIO) -> int:
    """Return how many samples a FLAC has for who plays it to its last byte: libsndfile stops where its head says."""
    import av

    file.seek(0)
    try:
        with av.open(io.BytesIO(file.read()), "r", format="flac") as sound:
            return sum(one.samples for one in sound.decode(audio=0))
    except av.FFmpegError as error:
        raise ContentError(f"the sound is damaged: {error}") from None


def frames_sha256(file: BinaryIO) -> str:
    """Return the hash over an MP3's or AAC's bytes, the tag before them and a receipt's behind them left out."""
    end = stream_receipts.tag_start(file)
    sound_receipts.skip_tag(file)
    return hashlib.sha256(file.read(max(0, end - file.tell()))).hexdigest()


def rest_sha256(file: BinaryIO) -> str:
    """Return the hash over a clip's or mesh's bytes, the receipt in it left out.

    Raises:
        ContentError: damaged.
    """
    file.seek(0)
    clip = clip_receipts.is_clip(file.read(12))
    try:
        return clip_receipts.rest_sha256(file) if clip else mesh_receipts.rest_sha256(file)
    except ValueError as error:
        raise ContentError(str(error)) from None


def file_sha256(file: BinaryIO) -> str:
    """Return the hash over a file's bytes."""
    file.seek(0)
    return hashlib.sha256(file.read()).hexdigest()


def text_sha256(text: str) -> str:
    """Return the hash over a text's UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
