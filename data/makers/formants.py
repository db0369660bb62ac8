"""A voice that comes with the package: a source through four formants (Klatt 1980, doi:10.1121/1.383940, in short).

A phone has targets for the first three formants, so much voice, breath and friction, and a length; between phones
targets are joined by straight lines. Voice is a train of glottal pulses, friction is noise in a band. It sounds like a
machine, and a recogniser that never heard it understands most of its words (`tests/data/test_spoken.py`).

Shape letters: T samples in time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Track = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Phone:
    """What a phone sounds like: formants in Hz, amounts from 0 to 1, a length in ms."""

    formants: tuple[float, float, float] | None  # None: those of its neighbours
    length: float
    voice: float = 0.0
    breath: float = 0.0
    friction: float = 0.0
    band: str = ""  # of the friction
    to: tuple[float, float, float] | None = None  # where a diphthong ends
    stop: bool = False  # closed for most of its length, then a burst of the friction


@dataclass(frozen=True, slots=True)
class Speaker:
    """A pitch in Hz, how much shorter than a man's the vocal tract is, and a tempo."""

    pitch: float
    scale: float
    tempo: float


SPEAKERS: Final[Mapping[str, Speaker]] = {
    "hugo": Speaker(108, 1.0, 1.0),
    "nora": Speaker(196, 1.15, 0.93),
}
BANDS: Final[Mapping[str, tuple[float, float]]] = {  # Hz
    "s": (3200, 7500),
    "sh": (1900, 4200),
    "f": (900, 7000),
    "p": (400, 1600),
    "t": (2600, 6000),
    "k": (1300, 2600),
}
BANDWIDTHS: Final = (70.0, 100.0, 150.0, 250.0)  # Hz, of the formants
FOURTH: Final = 3400.0  # Hz, times the speaker's scale
IY, IH, EH = (270.0, 2290.0, 3010.0), (390.0, 1990.0, 2550.0), (530.0, 1840.0, 2480.0)
AA, AO, UH = (730.0, 1090.0, 2440.0), (570.0, 840.0, 2410.0), (440.0, 1020.0, 2240.0)
"""Peterson and Barney's (1952) means of men, as the other vowels' are."""
PHONES: Final[Mapping[str, Phone]] = {
    "IY": Phone(IY, 120, 1),
    "IH": Phone(IH, 85, 1),
    "EH": Phone(EH, 100, 1),
    "AE": Phone((660, 1720, 2410), 140, 1),
    "AA": Phone(AA, 130, 1),
    "AO": Phone(AO, 140, 1),
    "UH": Phone(UH, 90, 1),
    "UW": Phone((300, 870, 2240), 120, 1),
    "AH": Phone((600, 1190, 2390), 75, 1),
    "ER": Phone((490, 1350, 1690), 120, 1),
    "EY": Phone((480, 2000, 2600), 150, 1, to=IY),
    "AY": Phone(AA, 180, 1, to=IH),
    "AW": Phone(AA, 190, 1, to=UH),
    "OW": Phone((540, 950, 2400), 160, 1, to=(350, 850, 2250)),
    "OY": Phone(AO, 190, 1, to=IH),
    "L": Phone((360, 1000, 2700), 70, 0.6),
    "R": Phone((330, 1060, 1400), 75, 0.7),
    "W": Phone((300, 610, 2150), 65, 0.6),
    "Y": Phone((260, 2200, 3020), 60, 0.6),
    "M": Phone((250, 1000, 2200), 75, 0.35),
    "N": Phone((250, 1600, 2600), 70, 0.35),
    "NG": Phone((250, 2200, 2700), 80, 0.35),
    "HH": Phone(None, 70, 0, breath=0.35),
    "F": Phone((300, 1000, 2100), 100, friction=0.10, band="f"),
    "V": Phone((300, 1000, 2100), 65, 0.35, friction=0.05, band="f"),
    "TH": Phone((300, 1400, 2500), 95, friction=0.08, band="f"),
    "DH": Phone((300, 1400, 2500), 45, 0.4, friction=0.03, band="f"),
    "S": Phone((320, 1600, 2600), 105, friction=0.35, band="s"),
    "Z": Phone((300, 1600, 2600), 75, 0.3, friction=0.2, band="s"),
    "SH": Phone((300, 1800, 2400), 110, friction=0.4, band="sh"),
    "ZH": Phone((300, 1800, 2400), 75, 0.3, friction=0.25, band="sh"),
    "B": Phone((200, 900, 2100), 70, 0.12, friction=0.15, band="p", stop=True),
    "D": Phone((200, 1700, 2600), 65, 0.12, friction=0.2, band="t", stop=True),
    "G": Phone((200, 2000, 2500), 70, 0.12, friction=0.2, band="k", stop=True),
    "P": Phone((250, 900, 2100), 110, breath=0.25, friction=0.3, band="p", stop=True),
    "T": Phone((250, 1750, 2600), 105, breath=0.25, friction=0.5, band="t", stop=True),
    "K": Phone((250, 2000, 2500), 110, breath=0.25, friction=0.5, band="k", stop=True),
    "CH": Phone((250, 1800, 2400), 130, friction=0.45, band="sh", stop=True),
    "JH": Phone((220, 1800, 2400), 95, 0.12, friction=0.3, band="sh", stop=True),
}
SILENCE: Final = (0.06, 0.10)  # s, before and behind
ANTICIPATED: Final = 0.3  # of a phone's length: when its first target is reached
BURST_S: Final = 0.012
BLOCK_S: Final = 0.004  # in which formants stand still
FALL: Final = 0.75  # of the pitch, from a sentence's first sound to its last


def speak(
    words: Sequence[Sequence[str]], speaker: Speaker, rate: int, generator: np.random.Generator
) -> npt.NDArray[np.int16]:
    """Return words of phones, said as a sentence, as 16-bit samples, at most .8 of full scale.

    Tempo, pitch and loudness vary as the generator says.
    """
    phones = [PHONES[name] for word in words for name in word]
    tempo = generator.uniform(0.9, 1.1) / speaker.tempo
    seconds = np.array([phone.length / 1000 for phone in phones])
    seconds *= tempo * generator.uniform(0.92, 1.08, len(phones))
    seconds[-2:] *= 1.3
    starts = SILENCE[0] + np.cumsum(seconds) - seconds
    count = int((starts[-1] + seconds[-1] + SILENCE[1]) * rate)
    time = np.arange(count) / rate
    x_T = _through(
        _source(phones, starts, seconds, time, speaker, rate, generator),
        _formants(phones, starts, seconds, time) * speaker.scale,
        speaker,
        rate,
    )
    x_T = x_T / np.abs(x_T).max() + _friction(phones, starts, seconds, time, rate, generator)
    loudness = generator.uniform(0.5, 0.8) / np.abs(x_T).max()
    wave: npt.NDArray[np.int16] = np.rint(x_T * loudness * 32767).astype(np.int16)
    return wave


def _formants(phones: Sequence[Phone], starts: Track, seconds: Track, time: Track) -> Track:
    """Return the first three formants at every sample, (3, T), of a man."""
    places, targets = [], []
    for phone, start, length in zip(phones, starts, seconds, strict=True):
        if phone.formants is None:
            continue
        places += [start + ANTICIPATED * length, start + (1 - ANTICIPATED) * length]
        targets += [phone.formants, phone.to or phone.formants]
    if not targets:
        places, targets = [0.0], [(500.0, 1500.0, 2500.0)]
    return np.stack([np.interp(time, places, values) for values in np.array(targets).T])


def _source(
    phones: Sequence[Phone],
    starts: Track,
    seconds: Track,
    time: Track,
    speaker: Speaker,
    rate: int,
    generator: np.random.Generator,
) -> Track:
    """Return what goes through the formants: glottal pulses and breath, (T,)."""
    from scipy.signal import lfilter

    voice, breath = np.zeros(len(time)), np.zeros(len(time))
    for phone, start, length in zip(phones, starts, seconds, strict=True):
        open_at = start + length * 0.6 if phone.stop and phone.breath else start
        chosen = (time >= open_at) & (time < start + length)
        voice[chosen], breath[chosen] = phone.voice, phone.breath
    voice, breath = _smooth(voice, rate), _smooth(breath, rate)
    first, last = starts[0], starts[-1] + seconds[-1]
    fall = np.interp(time, [first, last], [1.0, FALL])
    swing = 1 + 0.06 * np.sin(
        2 * np.pi * (generator.uniform(1.2, 2.0) * time + generator.uniform())
    )
    pitch = speaker.pitch * generator.uniform(0.95, 1.05) * fall * swing
    pulses = np.diff(np.floor(np.cumsum(pitch / rate)), prepend=0.0)
    glottal = lfilter([1.0], [1.0, -1.9 * 0.97, 0.9 * 0.97], pulses)  # two poles: 12 dB an octave
    glottal = np.diff(glottal, prepend=0.0) * rate / 8000  # the mouth's radiation
    found: Track = glottal * voice + generator.standard_normal(len(time)) * breath * 0.3
    return found


def _through(source: Track, formants: Track, speaker: Speaker, rate: int) -> Track:
    """Return the source behind four resonators whose centres move, (T,)."""
    from scipy.signal import lfilter

    size = int(BLOCK_S * rate)
    fourth = np.full((1, formants.shape[1]), FOURTH * speaker.scale)
    centres = np.concatenate([formants, fourth]).clip(150, 0.46 * rate)
    x_T = source
    for track, bandwidth in zip(centres, BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * bandwidth / rate)
        state, parts = np.zeros(2), []
        for start in range(0, len(x_T), size):
            turn = -2 * radius * np.cos(2 * np.pi * track[start] / rate)
            gain = 1 + turn + radius**2
            part, state = lfilter(
                [gain], [1.0, turn, radius**2], x_T[start : start + size], zi=state
            )
            parts.append(part)
        x_T = np.concatenate(parts)
    return x_T


def _friction(
    phones: Sequence[Phone],
    starts: Track,
    seconds: Track,
    time: Track,
    rate: int,
    generator: np.random.Generator,
) -> Track:
    """Return the noise of fricatives and of bursts, (T,)."""
    from scipy.signal import butter, sosfilt

    found = np.zeros(len(time))
    for name, (low, high) in BANDS.items():
        amount = np.zeros(len(time))
        for phone, start, length in zip(phones, starts, seconds, strict=True):
            if phone.band != name:
                continue
            begin, end = start, start + length
            if phone.stop:
                begin = start + length * 0.55
                end = end if name == "sh" else begin + BURST_S
            amount[(time >= begin) & (time < end)] = phone.friction
        noise = generator.standard_normal(len(time))
        if amount.any():
            edges = (low, min(high, 0.48 * rate))
            band = sosfilt(butter(2, edges, "bandpass", fs=rate, output="sos"), noise)
            found += band / band.std() * _smooth(amount, rate)
    return found


def _smooth(x_T: Track, rate: int) -> Track:
    """Return amounts that change within 10 ms."""
    window = np.hanning(int(0.01 * rate) + 2)
    found: Track = np.convolve(x_T, window / window.sum(), "same")
    return found
