"""Pictures and sounds to bytes and back: PNG, WAV, FLAC and bare PCM; and uploads as a model learned such things.

Shape letters: N pictures, C channels (1 or 3), H and W pixels, T sound samples.
"""

import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from infra.foreign import CutShort, flattened, whole_sound
from services.pipelines.payload import Pictures, Sounds

Bitmap: TypeAlias = NDArray[np.uint8]
"""(H, W, C)."""

LARGEST_SIDE: Final = 4096  # pixels of an upload
LONGEST_SOUND: Final = 2**20  # samples of an upload
MOST_CHANNELS: Final = 2  # of an upload: packed silence of many would fill the memory
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
BROKEN: Final = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow's decoders are known to raise on damaged files."""


class MediaError(ValueError):
    """An upload that cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Sound:
    """One channel of 16-bit sound."""

    levels: NDArray[np.int16]
    sample_rate: int  # Hz

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.levels) / self.sample_rate


def bitmap(picture: Pictures) -> Bitmap:
    """Return (C, H, W) in [0, 1] as (H, W, C) bytes, rounded."""
    levels = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def enlarged(pixels: Bitmap, width: int, height: int) -> Bitmap:
    """Return a picture at another size (bicubic); what previews of a small first stage are shown as."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = np.asarray(_image(pixels).resize((width, height), Image.Resampling.BICUBIC))
    return resized.reshape(height, width, pixels.shape[2])


def png(pixels: Bitmap) -> bytes:
    """Return a PNG file."""
    file = BytesIO()
    _image(pixels).save(file, "PNG", compress_level=6)
    return file.getvalue()


def sound(samples_T: Sounds, sample_rate: int) -> Sound:
    """Return (T,) in [-1, 1] as 16-bit levels, rounded."""
    rounded = (samples_T.astype(np.float64) * 32768).round().clip(-32768, 32767)
    return Sound(rounded.astype(np.int16), sample_rate)


def pcm(one: Sound) -> bytes:
    """Return the bare levels, 16 bits, little-endian."""
    return one.levels.astype("<i2").tobytes()


def wav(one: Sound) -> bytes:
    """Return a RIFF file with a format chunk and a data chunk."""
    levels, rate = pcm(one), one.sample_rate
    shape = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)  # PCM, one channel, 16 bits
    body = b"WAVEfmt " + struct.pack("<I", len(shape)) + shape
    body += b"data" + struct.pack("<I", len(levels)) + levels
    return b"RIFF" + struct.pack("<I", len(body)) + body


def flac(one: Sound) -> bytes:
    """Return a FLAC file."""
    import soundfile

    file = BytesIO()
    soundfile.write(file, one.levels, one.sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def learned_pixels(content: bytes, side: int, channels: int) -> Bitmap:
    """Return an uploaded picture as preparing a dataset makes it (data.pictures): (H, W, C) bytes.

    Upright, transparency over white, grey where C is 1, the central square, resized by box where the side divides it
    and by Lanczos otherwise; a picture that has the size already keeps its bytes.

    Raises:
        MediaError: no picture that can be read, or above 4096 pixels a side.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, our bound is lower, and of odd metadata
            image = Image.open(BytesIO(content), formats=FORMATS)
            if max(image.size) > LARGEST_SIDE:
                wide, high = image.size
                raise MediaError(f"{wide}x{high} pixels, at most {LARGEST_SIDE}x{LARGEST_SIDE}")
            image.load()
            upright, mode = ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB"
            flat = flattened(upright, content, mode)
    except MediaError:
        raise
    except BROKEN as error:
        raise MediaError(f"not a picture that can be read ({', '.join(FORMATS)})") from error
    return np.asarray(_square(flat, side)).reshape(side, side, channels).copy()


def learned_sound(content: bytes, sample_rate: int) -> Sounds:
    """Return an uploaded sound as (T,) in [-1, 1], the mean of its channels.

    Raises:
        MediaError: no sound that can be read, too long, of too many channels, or at another sample rate.
    """
    import soundfile

    try:
        with soundfile.SoundFile(BytesIO(whole_sound(content))) as file:
            if file.samplerate != sample_rate:
                message = f"the sound has {file.samplerate} Hz, the model learned {sample_rate} Hz: resample it"
                raise MediaError(message)
            if file.channels > MOST_CHANNELS:
                message = (
                    f"the sound has {file.channels} channels, at most {MOST_CHANNELS} are read"
                )
                raise MediaError(message)
            if not 0 < file.frames <= LONGEST_SOUND:
                raise MediaError(f"the sound has {file.frames} samples, 1 to {LONGEST_SOUND} fit")
            samples_TC = file.read(dtype="float32", always_2d=True)
            if len(samples_TC) != file.frames:
                raise MediaError("the sound is cut short: its header says that it is longer")
    except MediaError:
        raise
    except CutShort:
        raise MediaError("the sound is cut short: its header says that it is longer") from None
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise MediaError("not a sound that can be read (WAV, FLAC, OGG)") from error
    if not np.isfinite(samples_TC).all():
        raise MediaError("a sample of the sound is no number")
    found: Sounds = samples_TC.mean(1, dtype=np.float32)
    return found


def _square(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge))
    if edge == side:
        return square
    exact = edge % side == 0
    return square.resize((side, side), Image.Resampling.BOX if exact else Image.Resampling.LANCZOS)


def _image(pixels: Bitmap) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
