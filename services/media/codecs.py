"""Pictures and sounds out of a network's numbers, and uploads as a model learned such things.

Shape letters: N pictures, C channels (1 or 3), H and W pixels, T sound samples.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infra.media.clips import Clip
from infra.media.pictures import PictureError, decode
from infra.media.sounds import CutShort, whole_sound
from services.pipelines.payload import Pictures, Sounds

Bitmap: TypeAlias = NDArray[np.uint8]
"""(H, W, C)."""

LONGEST_SOUND: Final = 2**20  # samples of an upload
MOST_CHANNELS: Final = 2  # of an upload: packed silence of many would fill the memory


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


@dataclass(frozen=True, slots=True)
class Volume:
    """What a mesh is cut from: a colour and an opacity a voxel, as infra.media.meshes has them."""

    levels: NDArray[np.float32]  # (4, R, R, R) in [0, 1]


def bitmap(picture: Pictures) -> Bitmap:
    """Return (C, H, W) in [0, 1] as (H, W, C) bytes, rounded."""
    levels = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def clip(frames_FCHW: Pictures, frame_rate: float) -> Clip:
    """Return (F, C, H, W) in [0, 1] as a clip of bytes, rounded."""
    frames = np.stack([bitmap(one) for one in frames_FCHW])
    return Clip(frames, frame_rate, frames.shape[2], frames.shape[1])


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


def learned_pixels(content: bytes, side: int, channels: int) -> Bitmap:
    """Return an uploaded picture as preparing a dataset makes it (infra.media.pictures): (H, W, C) bytes.

    Upright, transparency over white, grey where C is 1, the central square, resized by box where the side divides it
    and by Lanczos otherwise; a picture that has the size already keeps its bytes.

    Raises:
        MediaError: no picture that can be read, or above 4096 pixels a side.
    """
    try:
        found: Bitmap = decode(content, side, channels).pixels.copy()
    except PictureError as error:
        raise MediaError(str(error)) from error
    return found


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


def _image(pixels: Bitmap) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
