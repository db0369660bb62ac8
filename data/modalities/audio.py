"""Sound: WAV, FLAC, Ogg or MP3 files, mixed to mono, resampled, as 16-bit samples; captions are words beside them.

Shape letters: N rows, B rows of a batch, T samples in time.
"""

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.modalities import Modality, SampleError
from data.rules import Row, Rule, among, between
from infra.media.sounds import CutShort, wav, whole_sound

FORMATS: Final = ("WAV", "FLAC", "OGG", "MP3")
LEAST_RATE_HZ: Final = 4_000
MOST_RATE_HZ: Final = 192_000
MOST_SECONDS: Final = 600.0  # decoded at all
MOST_CHANNELS: Final = 8  # decoded at all
SILENCE: Final = 1e-3  # of full scale, -60 dB
MAX_CLIPPED: Final = 0.01  # share of samples at full scale
FULL_SCALE: Final = 1 << 15

Wave = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound as found, and as it will be learned from."""

    wave: Any  # (T,) int16
    rate: int
    channels: int
    frames: int
    clipped: float


class Audio(Modality):
    """Settings: `sample_rate` in Hz, and `clip_samples`, the length that every row has, with silence behind it."""

    name = "audio"
    noun = "sound"
    column = "sound"
    settings = ("sample_rate", "clip_samples")
    facts: ClassVar[Sequence[pa.Field]] = (
        pa.field("rate", pa.int32()),  # Hz, as found
        pa.field("channels", pa.int32()),
        pa.field("seconds", pa.float64()),
        pa.field("samples", pa.int64()),  # as prepared
        pa.field("peak", pa.float64()),  # of full scale
        pa.field("rms", pa.float64()),
        pa.field("clipped", pa.float64()),  # share of the samples as found at full scale
        pa.field("silent", pa.bool_()),
    )

    def look(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return rate and length as found, loudness as prepared, and the sha256 of the samples."""
        return self.told(decode(content, made["sample_rate"]))

    def told(self, found: Sound) -> dict[str, Any]:
        """Return the facts of a decoded sound."""
        x_T = found.wave / FULL_SCALE
        peak = float(np.abs(x_T).max(initial=0))
        return {
            "rate": found.rate,
            "channels": found.channels,
            "seconds": found.frames / found.rate,
            "samples": len(x_T),
            "peak": peak,
            "rms": float(np.sqrt(np.square(x_T).mean())) if len(x_T) else 0.0,
            "clipped": found.clipped,
            "silent": peak < SILENCE,
            "digest": hashlib.sha256(found.wave.tobytes()).hexdigest(),
        }

    def rules(self, made: Mapping[str, Any]) -> list[Rule]:
        """Return the expectations: a sound that can be heard, and fits."""
        rate, most = made["sample_rate"], made["clip_samples"]
        return [
            Rule("known sample rate", *between("rate", LEAST_RATE_HZ, MOST_RATE_HZ), _rate),
            Rule("mono or stereo", *between("channels", 1, 2), _channels),
            Rule("long enough", *between("samples", max(1, rate // 100), None), _short),
            Rule(
                "fits the clip",
                *between("samples", None, most),
                lambda row: _long(row, rate, most),
            ),
            Rule("not silent", *among("silent", False), _silent),
            Rule("not clipped", *between("clipped", None, MAX_CLIPPED), _clipped),
        ]

    def pack(self, content: bytes, made: Mapping[str, Any]) -> bytes:
        """Return the samples, 16 bits each in little-endian order, without the silence behind."""
        wave: bytes = decode(content, made["sample_rate"]).wave.astype("<i2").tobytes()
        return wave

    def summary(self, rows: pa.Table, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return the seconds of sound and its root mean square, of full scale."""
        count, total = 0, 0.0
        for content in rows[self.column]:
            x_T = np.frombuffer(content.as_py(), "<i2").astype(np.float64) / FULL_SCALE
            count, total = count + len(x_T), total + float(np.square(x_T).sum())
        return {
            "seconds": round(count / made["sample_rate"], 3),
            "rms": round(math.sqrt(total / max(1, count)), 6),
        }

    def example(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return {"sound": WAV file}."""
        rate = made["sample_rate"]
        return {"sound": wav(decode(content, rate).wave, rate)}

    def network_facts(self, header: Mapping[str, Any], size: int | None) -> dict[str, Any]:
        """Return sample_rate, clip_samples, and what captions are made of."""
        if size is not None:
            raise ValueError(f"image_size {size} is for pictures, and {header['name']} is sound")
        attributes = header["attributes"].items()
        return {
            "sample_rate": header["sample_rate"],
            "clip_samples": header["clip_samples"],
            "vocabulary": tuple(header["vocabulary"]),
            "max_words": header["max_words"],
            "attributes": tuple((name, tuple(values)) for name, values in attributes),
        }

    def row_bytes(self, header: Mapping[str, Any], size: int | None) -> int:  # noqa: ARG002 - one size
        """Return the bytes of a clip."""
        return 2 * int(header["clip_samples"])

    def read(
        self,
        header: Mapping[str, Any],
        rows: pa.Table,
        size: int | None,  # noqa: ARG002 - one size
    ) -> dict[str, npt.NDArray[Any]]:
        """Return `sound` (N, T) int16 and `length` (N,)."""
        sound = np.zeros((len(rows), header["clip_samples"]), np.int16)
        length = np.zeros(len(rows), np.int64)
        for place, content in enumerate(rows[self.column]):
            wave = np.frombuffer(content.as_py(), "<i2")
            sound[place, : len(wave)], length[place] = wave, len(wave)
        return {"sound": sound, "length": length}

    def batch(
        self,
        header: Mapping[str, Any],  # noqa: ARG002 - as they are
        rows: Mapping[str, Any],
        size: int | None,  # noqa: ARG002 - one size
    ) -> dict[str, Any]:
        """Return `sound` (B, T) float32 in [-1, 1] and `length` (B,) int64."""
        return {"sound": rows["sound"].float().div_(FULL_SCALE), "length": rows["length"]}


def decode(content: bytes, rate: int) -> Sound:
    """Return a sound file decoded to its last sample, mixed to mono, at `rate` Hz.

    Raises:
        SampleError: another format, damaged, cut short, longer than ten minutes, or of more than eight channels.
    """
    import soundfile

    kind = _kind(content)
    try:
        content = whole_sound(content)
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            found, channels, frames = file.samplerate, file.channels, len(file)
            if frames > MOST_SECONDS * found:
                raise SampleError(
                    f"{frames / found:.0f} s, at most {MOST_SECONDS:.0f} s are decoded"
                )
            if channels > MOST_CHANNELS:
                raise SampleError(f"{channels} channels, at most {MOST_CHANNELS} are decoded")
            x_TC = file.read(dtype="float64", always_2d=True)
    except CutShort as error:
        raise SampleError(str(error)) from None
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError(f"damaged {kind} (cannot be decoded fully)") from None
    if len(x_TC) != frames:
        raise SampleError(f"truncated {kind} (cannot be decoded fully)")
    if not np.isfinite(x_TC).all():
        raise SampleError(f"damaged {kind} (a sample is no number)")
    clipped = float((np.abs(x_TC) >= 1 - 1 / FULL_SCALE).mean()) if x_TC.size else 0.0
    return Sound(_prepared(x_TC, found, rate), found, channels, frames, clipped)


def _prepared(x_TC: npt.NDArray[np.float64], found: int, rate: int) -> Wave:
    """Return mono 16-bit samples at `rate`; those of a 16-bit mono file at that rate are as they were."""
    from scipy.signal import resample_poly

    x_T = x_TC.mean(1)
    if found != rate and len(x_T):
        shared = math.gcd(found, rate)
        x_T = resample_poly(x_T, rate // shared, found // shared)
    levels = np.clip(np.rint(x_T * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
    found_T: Wave = levels.astype(np.int16)
    return found_T


def _kind(content: bytes) -> str:
    if content[:4] in {b"RIFF", b"RF64"} and content[8:12] == b"WAVE":
        return "WAV"
    if content[:4] == b"fLaC":
        return "FLAC"
    if content[:4] == b"OggS":
        return "OGG"
    if content[:3] == b"ID3" or (len(content) > 1 and content[0] == 0xFF and content[1] >= 0xE0):
        return "MP3"
    raise SampleError(f"not a sound that can be read ({', '.join(FORMATS)})")


def _rate(row: Row) -> str:
    return f"{int(row['rate'])} Hz, between {LEAST_RATE_HZ} and {MOST_RATE_HZ} are needed"


def _channels(row: Row) -> str:
    return f"{int(row['channels'])} channels, at most 2"


def _short(row: Row) -> str:
    return f"{int(row['samples'])} samples: shorter than 10 ms"


def _long(row: Row, rate: int, most: int) -> str:
    samples = int(row["samples"])
    return (
        f"{samples} samples, {samples / rate:.2f} s, at most {most}: cut it or raise clip_samples"
    )


def _silent(row: Row) -> str:
    return f"silent: its peak is {row['peak']:.5f} of full scale"


def _clipped(row: Row) -> str:
    return f"clipped: {row['clipped']:.1%} of its samples are at full scale"
