"""Sound files that are written as their sound is made: bytes for levels, and those of the end."""

import struct
from io import BytesIO
from typing import Any, Final, Protocol

from services.media.encoders import CODECS, Kind, Levels, frame, opened, pcm

UNKNOWN: Final = 0xFFFFFFFF
"""The length of a WAV that nobody knows yet, as players read from a pipe."""


class Writer(Protocol):
    """Writes one file."""

    def push(self, levels_T: Levels) -> bytes:
        """Return what more of the file there is, now that these levels are known."""
        ...

    def close(self) -> bytes:
        """Return the rest of the file."""
        ...


class Bare:
    """16-bit levels, behind a header or without one."""

    def __init__(self, header: bytes = b"") -> None:
        self._header = header

    def push(self, levels_T: Levels) -> bytes:
        """Return the levels' bytes, the header before the first ones."""
        header, self._header = self._header, b""
        return header + pcm(levels_T, 0)

    def close(self) -> bytes:
        """Return nothing: such a file ends where it ends."""
        return b""


class Packed:
    """MP3, Opus, AAC or FLAC, frame by frame."""

    def __init__(self, kind: Kind, sample_rate: int) -> None:
        self._rate, self._samples = sample_rate, 0
        self._file = _Pipe()
        self._output, self._stream, self._resampler = opened(self._file, kind, sample_rate)

    def push(self, levels_T: Levels) -> bytes:
        """Return the frames that are full."""
        for part in self._resampler.resample(frame(levels_T, self._rate, self._samples)):
            self._output.mux(self._stream.encode(part))
        self._samples += len(levels_T)
        return self._file.taken()

    def close(self) -> bytes:
        """Return the last frames, and what closes the container."""
        for part in self._resampler.resample(None):
            self._output.mux(self._stream.encode(part))
        self._output.mux(self._stream.encode(None))
        self._output.close()
        return self._file.taken()


class _Pipe:
    """A file that only grows at its end, as a socket does: ffmpeg then never goes back."""

    def __init__(self) -> None:
        self._bytes = BytesIO()

    def write(self, content: Any) -> int:
        return self._bytes.write(content)

    def taken(self) -> bytes:
        """Return what was written since the last time."""
        found = self._bytes.getvalue()
        self._bytes = BytesIO()
        return found


def writer(kind: str, sample_rate: int) -> Writer:
    """Return who writes a file of a kind that `/v1/audio/speech` knows."""
    if kind == "pcm":
        return Bare()
    if kind == "wav":
        return Bare(_wav_header(sample_rate))
    known: dict[str, Kind] = {name: name for name in CODECS}
    return Packed(known[kind], sample_rate)


def _wav_header(sample_rate: int) -> bytes:
    form = struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    riff = b"RIFF" + struct.pack("<I", UNKNOWN) + b"WAVEfmt " + struct.pack("<I", len(form)) + form
    return riff + b"data" + struct.pack("<I", UNKNOWN)
