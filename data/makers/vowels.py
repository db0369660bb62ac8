"""Synthetic vowels: a glottal pulse train through three formant resonators, by four speakers, at 8 kHz.

A caption is "VOWEL SPEAKER", such as "ee low-man". The formants are those of Peterson & Barney (1952) for men, raised
for women, whose vocal tract is shorter; pitch glides, length and loudness vary, a little breath is added.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data.makers import AudioEntry, Made, Sample
from infra.media.sounds import wav

FORMANTS_HZ: Final[Mapping[str, tuple[int, int, int]]] = {
    "ee": (270, 2290, 3010),
    "eh": (530, 1840, 2480),
    "ah": (730, 1090, 2440),
    "aw": (570, 840, 2410),
    "oo": (300, 870, 2240),
    "er": (490, 1350, 1690),
}
BANDWIDTHS_HZ: Final = (60, 90, 120)
SPEAKERS: Final[Mapping[str, tuple[float, float]]] = {  # pitch in Hz, formants over a man's
    "low-man": (95, 0.97),
    "high-man": (140, 1.03),
    "low-woman": (185, 1.14),
    "high-woman": (230, 1.20),
}
LEAST_SECONDS: Final = 0.25


class Config(AudioEntry):
    """The entry of params.yaml."""

    maker: Literal["vowels"]
    path: Path = Path("data/makers/vowels.py")
    count: Annotated[int, Field(ge=30, le=1_000_000)] = 1200
    seed: Annotated[int, Field(ge=0)] = 0
    sample_rate: Literal[8000] = 8000
    clip_samples: Annotated[int, Field(ge=2400, le=80_000)] = 4000


def made(config: Config, project: Path) -> Made:  # noqa: ARG001 - sung, not read
    """Return the sounds, every vowel of every speaker equally often."""
    return Made(
        samples=_samples(config),
        modality="audio",
        settings={"sample_rate": config.sample_rate, "clip_samples": config.clip_samples},
        attributes={"vowel": tuple(FORMANTS_HZ), "speaker": tuple(SPEAKERS)},
        vocabulary=sorted([*FORMANTS_HZ, *SPEAKERS]),
    )


def _samples(config: Config) -> Iterator[Sample]:
    for index in range(config.count):
        generator = np.random.default_rng((config.seed, index))
        vowel = list(FORMANTS_HZ)[index % len(FORMANTS_HZ)]
        speaker = list(SPEAKERS)[index // len(FORMANTS_HZ) % len(SPEAKERS)]
        longest = config.clip_samples / config.sample_rate
        seconds = generator.uniform(LEAST_SECONDS, longest)
        wave = sing(vowel, speaker, seconds, config.sample_rate, generator)
        yield Sample(
            f"{index:06d}.wav",
            wav(wave, config.sample_rate),
            f"{vowel} {speaker}",
            attributes=(vowel, speaker),
        )


def sing(
    vowel: str, speaker: str, seconds: float, rate: int, generator: np.random.Generator
) -> npt.NDArray[np.int16]:
    """Return a vowel as 16-bit samples, at most 0.7 of full scale, faded in and out."""
    from scipy.signal import lfilter

    pitch_hz, scale = SPEAKERS[speaker]
    count = int(seconds * rate)
    glide = np.linspace(1, generator.uniform(0.85, 1.1), count)
    phase = np.cumsum(pitch_hz * generator.uniform(0.94, 1.06) * glide / rate)
    x_T = np.diff(np.floor(phase), prepend=0.0)  # one pulse a period
    x_T = lfilter([1.0], [1.0, -0.95], x_T) + 0.01 * generator.standard_normal(count)
    for formant_hz, bandwidth_hz in zip(FORMANTS_HZ[vowel], BANDWIDTHS_HZ, strict=True):
        centre = min(formant_hz * scale * generator.uniform(0.97, 1.03), 0.47 * rate)
        radius = np.exp(-np.pi * bandwidth_hz / rate)
        x_T = lfilter([1.0], [1.0, -2 * radius * np.cos(2 * np.pi * centre / rate), radius**2], x_T)
    fade = np.minimum(1, np.minimum(np.arange(count), np.arange(count)[::-1]) / (0.02 * rate))
    x_T = (x_T - x_T.mean()) * fade
    loudness = generator.uniform(0.4, 0.7) / np.abs(x_T).max()
    wave: npt.NDArray[np.int16] = np.rint(x_T * loudness * 32767).astype(np.int16)
    return wave
