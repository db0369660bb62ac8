"""Sound to log-mel spectrograms and back: the settings that an acoustic model and a vocoder must share.

A frame is the magnitude of a short Fourier transform under a Hann window, through triangular filters on Slaney's mel
scale, each of area one (librosa's default), and the natural logarithm of that, at least log(FLOOR). Frame f is centred
on samples f hop to (f + 1) hop, and there is silence before the first sample and after the last: so a sound of T
samples has ceil(T / hop) frames, and padding it with zeros changes none of them. Frames after a sound's end are at the
floor, as silence is.

Back: magnitudes by non-negative least squares, phases by the fast Griffin-Lim algorithm (Perraudin et al. 2013,
doi:10.1109/WASPAA.2013.6701851, algorithm 2).

Shape letters: B sounds, T samples, M mels, F frames, K frequencies, N samples of a window.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from models.parts import bounds, kinds
from models.ports import Port

FLOOR: Final = 1e-5  # of a mel's magnitude
MOMENTUM: Final = 0.99  # of Griffin-Lim
FITS: Final = 30  # multiplicative updates from mels to magnitudes
LINEAR_HZ: Final = 200 / 3  # a mel, below KNEE_HZ
KNEE_HZ: Final = 1000.0
OCTAVES: Final = math.log(6.4) / 27  # of a mel above it, in nats

Count = TypeVar("Count", int, Tensor)


@dataclass(frozen=True, slots=True)
class Mel:
    """How a sound is seen: frequencies in Hz, sizes in samples."""

    sample_rate: int = 8000
    n_fft: int = 256
    hop: int = 80
    window: int = 256  # at most n_fft
    mels: int = 40
    low_hz: float = 0.0
    high_hz: float = 4000.0

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, dict.fromkeys(("sample_rate", "n_fft", "hop", "mels"), bounds.SIZE))
        bounds.within("window", self.window, (self.hop, self.n_fft))
        bounds.within("high_hz", self.high_hz, (0, self.sample_rate / 2))
        bounds.within("low_hz", self.low_hz, (0, math.nextafter(self.high_hz, 0)))
        if (self.n_fft - self.hop) % 2:
            both = f"{self.n_fft} and {self.hop}"
            raise ValueError(f"n_fft and hop must be both even or both odd, got {both}")
        if not bool(self.filters().any(1).all()):
            raise ValueError(
                f"mels: {self.mels} are too many for n_fft {self.n_fft}: some are empty"
            )

    @classmethod
    def of(cls, value: "Mel | Mapping[str, Any] | str") -> "Mel":
        """Return settings from the name of a preset or from their fields, as a recipe or a stored config has them.

        Raises:
            ValueError: no such preset or field, or a value out of range.

        Example:
            >>> Mel.of("8khz") == Mel.of({"hop": 80}) == Mel()
            True
        """
        if isinstance(value, Mel):
            return value
        if isinstance(value, str):
            if value not in PRESETS:
                raise ValueError(f"mel has no preset {value!r}; choose one of {', '.join(PRESETS)}")
            return PRESETS[value]
        known = [field.name for field in dataclasses.fields(cls)]
        if odd := sorted(set(value) - set(known)):
            raise ValueError(f"mel has no setting {odd[0]!r}; it has {', '.join(known)}")
        kinds.check(cls, value)
        return cls(**value)

    def must_hear(self, sample_rate: int) -> None:
        """Refuse sound of another rate (Hz).

        Raises:
            ValueError: says both.
        """
        if sample_rate != self.sample_rate:
            heard = self.sample_rate
            raise ValueError(f"mel is of sound of {heard} Hz, and sample_rate is {sample_rate} Hz")

    @property
    def port(self) -> Port:
        """What passes between an acoustic model and a vocoder of these settings."""
        return Port("mel", (self.mels, None), self.space)

    @property
    def space(self) -> str:
        """Whose numbers these mels are: 12 hex digits, equal where all settings are."""
        told = repr((*dataclasses.astuple(self), FLOOR))
        return hashlib.blake2b(told.encode(), digest_size=6).hexdigest()

    @property
    def floor(self) -> float:
        """The least number of a log-mel spectrogram: what silence is."""
        return math.log(FLOOR)

    def frames_of(self, samples: Count) -> Count:
        """Return how many frames so many samples have."""
        return -(-samples // self.hop)

    def lengths(self, mel_BMF: Tensor) -> Tensor:
        """Return how many frames (B,) each row has before nothing but silence follows."""
        heard_BF = (mel_BMF > self.floor + 1e-3).any(1)
        place_F = torch.arange(1, mel_BMF.shape[2] + 1, device=mel_BMF.device)
        return (heard_BF * place_F).amax(1)

    def padded(self, mel_BMF: Tensor, frames: int) -> Tensor:
        """Return the rows with so many frames of silence after them."""
        return F.pad(mel_BMF, (0, frames), value=self.floor)

    def silenced(self, sound_BT: Tensor, mel_BMF: Tensor) -> Tensor:
        """Return the sound of such mels, without what comes after each row's last frame."""
        end_B1 = self.lengths(mel_BMF)[:, None] * self.hop
        return sound_BT * (torch.arange(sound_BT.shape[1], device=sound_BT.device) < end_B1)

    def filters(self) -> Tensor:
        """Return the triangular filters (M, K), float32."""
        return _filters(self, torch.device("cpu"))

    def log_mel(self, sound_BT: Tensor, length_B: Tensor | None = None) -> Tensor:
        """Return log-mel spectrograms (B, M, F) of sound in [-1, 1]; frames after a row's `length_B` are silent."""
        spectrum_BKF = self.stft(sound_BT)
        # the square root has no gradient at 0, and the log would lose what is far below the floor
        magnitude_BKF = (spectrum_BKF.real.square() + spectrum_BKF.imag.square() + 1e-9).sqrt()
        with torch.autocast(sound_BT.device.type, enabled=False):
            mel_BMF = torch.matmul(_filters(self, sound_BT.device), magnitude_BKF)
        mel_BMF = mel_BMF.clamp(min=FLOOR).log()
        if length_B is None:
            return mel_BMF
        inside_BF = torch.arange(mel_BMF.shape[2], device=mel_BMF.device)
        inside_BF = inside_BF < self.frames_of(length_B)[:, None]
        return torch.where(inside_BF[:, None], mel_BMF, self.floor)

    def stft(self, sound_BT: Tensor) -> Tensor:
        """Return complex spectra (B, K, F) of the frames."""
        side, rest = (self.n_fft - self.hop) // 2, -sound_BT.shape[1] % self.hop
        padded_BT = F.pad(sound_BT.float(), (side, side + rest))
        return torch.stft(
            padded_BT,
            self.n_fft,
            self.hop,
            window=_window(self, sound_BT.device),
            center=False,
            return_complex=True,
        )

    def inverse_stft(self, spectrum_BKF: Tensor) -> Tensor:
        """Return the sound (B, F hop) whose frames are nearest to such spectra, by overlap and add."""
        window_N = _window(self, spectrum_BKF.device)
        frames_BFN = torch.fft.irfft(spectrum_BKF, self.n_fft, dim=1).mT * window_N
        weight_T = _overlapped(self, window_N.square().expand(1, frames_BFN.shape[1], -1))
        return _overlapped(self, frames_BFN) / weight_T.clamp(min=1e-8)

    def envelope(self, mel_BMF: Tensor) -> Tensor:
        """Return a first guess at magnitudes (B, K, F): flat within each mel."""
        filters_MK = _filters(self, mel_BMF.device)
        level_BMF = mel_BMF.float().exp() / filters_MK.sum(1, keepdim=True)
        share_MK = filters_MK / filters_MK.sum(0).clamp(min=1e-9)
        with torch.autocast(mel_BMF.device.type, enabled=False):
            return torch.matmul(share_MK.T, level_BMF)

    def magnitudes(self, mel_BMF: Tensor, usual_K: Tensor | None = None) -> Tensor:
        """Return magnitudes (B, K, F), at least 0, with these mels: least squares, by multiplicative updates.

        Lee and Seung 2001, the Euclidean distance, from magnitudes as they usually are: flat, where nobody says more.
        Silence is 0.
        """
        filters_MK = _filters(self, mel_BMF.device)
        usual_K = filters_MK.new_ones(filters_MK.shape[1]) if usual_K is None else usual_K.float()
        heard_B1F = (mel_BMF > self.floor + 1e-3).any(1, keepdim=True)
        power_BMF = mel_BMF.float().exp() * heard_B1F
        wanted_BKF = filters_MK.T @ power_BMF
        louder_BMF = power_BMF / (filters_MK @ usual_K)[:, None].clamp(min=1e-9)
        magnitude_BKF = usual_K[:, None] * (filters_MK.T @ louder_BMF)
        for _ in range(FITS):
            found_BKF = filters_MK.T @ (filters_MK @ magnitude_BKF)
            magnitude_BKF = magnitude_BKF * (wanted_BKF / found_BKF.clamp(min=1e-9))
        return magnitude_BKF

    @torch.no_grad()
    def griffin_lim(self, mel_BMF: Tensor, steps: int, usual_K: Tensor | None = None) -> Tensor:
        """Return sound (B, F hop) in [-1, 1] with such mels; the same rows give the same sound, in any batch.

        Args:
            mel_BMF: natural log of mel magnitudes; frames of silence at the end are silent.
            steps: times that the phases are made to agree, 32 for most.
            usual_K: see `magnitudes`.
        """
        magnitude_BKF = self.magnitudes(self.padded(mel_BMF, -(-self.n_fft // self.hop)), usual_K)
        # first phases of a fixed seed, frame after frame: longer neighbours change no row's
        frames, bins = magnitude_BKF.shape[2], magnitude_BKF.shape[1]
        turns_FK = torch.rand(frames, bins, generator=torch.Generator().manual_seed(0))
        turns_KF = turns_FK.T.to(mel_BMF.device)
        phase_BKF = torch.polar(torch.ones_like(turns_KF), 2 * math.pi * turns_KF)[None]
        before_BKF = torch.zeros_like(phase_BKF)
        for _ in range(steps):
            now_BKF = self.stft(self.inverse_stft(magnitude_BKF * phase_BKF))
            moved_BKF = now_BKF + MOMENTUM * (now_BKF - before_BKF)
            phase_BKF, before_BKF = moved_BKF.sgn(), now_BKF
        sound_BT = self.inverse_stft(magnitude_BKF * phase_BKF)
        return sound_BT[:, : mel_BMF.shape[2] * self.hop].clamp(-1, 1)


def _overlapped(mel: Mel, frames_BFN: Tensor) -> Tensor:
    """Return the sum (B, F hop) of frames, each a hop after the one before."""
    rows, count, size = frames_BFN.shape
    pieces, side = -(-size // mel.hop), (size - mel.hop) // 2
    padded_BFN = F.pad(frames_BFN, (0, pieces * mel.hop - size))
    sum_BFH = padded_BFN.new_zeros(rows, count + pieces - 1, mel.hop)
    for place, piece_BFH in enumerate(torch.split(padded_BFN, mel.hop, 2)):
        sum_BFH[:, place : place + count] += piece_BFH
    return sum_BFH.flatten(1)[:, side : side + count * mel.hop]


def _window(mel: Mel, device: torch.device) -> Tensor:
    """Return the periodic Hann window (N,), with zeros around it where the transform is longer."""
    missing = mel.n_fft - mel.window
    window_N = torch.hann_window(mel.window, device=device)
    return F.pad(window_N, (missing // 2, missing - missing // 2))


def _filters(mel: Mel, device: torch.device) -> Tensor:
    """Return the filters (M, K), made on the device: nothing waits for it."""
    exact: Any = {"dtype": torch.float64, "device": device}
    edges = torch.linspace(_mels_of(mel.low_hz), _mels_of(mel.high_hz), mel.mels + 2, **exact)
    linear, knee = edges * LINEAR_HZ, KNEE_HZ / LINEAR_HZ
    edge_hz = torch.where(edges < knee, linear, KNEE_HZ * ((edges - knee) * OCTAVES).exp())
    bin_hz = torch.arange(mel.n_fft // 2 + 1, **exact) * (mel.sample_rate / mel.n_fft)
    width, slope = edge_hz.diff(), edge_hz[:, None] - bin_hz
    rising, falling = -slope[:-2] / width[:-1, None], slope[2:] / width[1:, None]
    area = 2 / (edge_hz[2:] - edge_hz[:-2])
    return (torch.minimum(rising, falling).clamp(min=0) * area[:, None]).float()


def _mels_of(hz: float) -> float:
    if hz < KNEE_HZ:
        return hz / LINEAR_HZ
    return KNEE_HZ / LINEAR_HZ + math.log(hz / KNEE_HZ) / OCTAVES


PRESETS: Final[Mapping[str, Mel]] = {
    "tiny": Mel(n_fft=64, hop=16, window=64, mels=8),
    "8khz": Mel(),
    "16khz": Mel(16000, 1024, 256, 1024, 80, 0.0, 8000.0),
    "22khz": Mel(22050, 1024, 256, 1024, 80, 0.0, 8000.0),
}
"""Settings by name; tiny is for tests, 22khz is HiFi-GAN's and Tacotron 2's."""
