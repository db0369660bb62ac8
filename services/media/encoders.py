"""Sound to MP3, Opus, AAC and FLAC files, and to another speed, by ffmpeg's libraries (PyAV); and bare levels."""

from io import BytesIO
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Kind: TypeAlias = Literal["mp3", "opus", "aac", "flac"]
Levels: TypeAlias = NDArray[np.int16]

CODECS: Final[dict[Kind, tuple[str, str, str]]] = {
    "mp3": ("libmp3lame", "mp3", "s16p"),
    "opus": ("libopus", "ogg", "s16"),
    "aac": ("aac", "adts", "fltp"),
    "flac": ("flac", "flac", "s16"),
}
"""Encoder, container, and the samples' format that the encoder takes."""
OPTIONS: Final[dict[Kind, dict[str, str]]] = {
    "mp3": {"id3v2_version": "0"},  # no tag of ffmpeg's own: a receipt's comes before all else
    "opus": {"page_duration": "200000"},  # microseconds: who hears a stream waits for whole pages
}
BIT_RATE: Final = 64_000  # bits a second: plenty for one channel
SLOWEST_FILTER: Final = 0.5  # of one `atempo`; slower takes two


def encoded(levels_T: Levels, sample_rate: int, kind: Kind) -> bytes:
    """Return 16-bit samples as a file, at the next rate (Hz) that the encoder knows."""
    file = BytesIO()
    output, stream, resampler = opened(file, kind, sample_rate)
    with output:
        for part in [
            *resampler.resample(frame(levels_T, sample_rate)),
            *resampler.resample(None),
        ]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


def opened(file: Any, kind: Kind, sample_rate: int) -> tuple[Any, Any, Any]:
    """Return a container of that kind that is written to a file, its stream, and what resamples for that.

    A file without `seek` is only ever written on.
    """
    import av

    codec, container, form = CODECS[kind]
    rates = sorted(av.Codec(codec, "w").audio_rates or [])
    rate = next((one for one in rates if one >= sample_rate), rates[-1]) if rates else sample_rate
    resampler = av.AudioResampler(format=form, layout="mono", rate=rate)
    output = av.open(file, "w", format=container, options=OPTIONS.get(kind, {}))
    stream: Any = output.add_stream(codec, rate=rate)
    stream.layout = "mono"
    if kind != "flac":
        stream.bit_rate = BIT_RATE
    return output, stream, resampler


def pcm(levels_T: Levels, sample_rate: int) -> bytes:  # noqa: ARG001 - as the others
    """Return the bare levels, 16 bits, little-endian."""
    return levels_T.astype("<i2").tobytes()


def stretched(levels_T: Levels, sample_rate: int, speed: float) -> Levels:
    """Return the samples at a multiple of their speed, pitch kept, of round(T / speed) samples (WSOLA, `atempo`)."""
    import av

    if speed == 1:
        return levels_T
    count = round(len(levels_T) / speed)
    graph = av.filter.Graph()
    source = graph.add_abuffer(format="s16", sample_rate=sample_rate, layout="mono")
    tempos = [SLOWEST_FILTER, speed / SLOWEST_FILTER] if speed < SLOWEST_FILTER else [speed]
    nodes = [source, *(graph.add("atempo", f"{tempo:.6f}") for tempo in tempos)]
    nodes += [graph.add("aformat", "sample_fmts=s16"), graph.add("abuffersink")]
    graph.link_nodes(*nodes).configure()
    silence = np.zeros(sample_rate // 4, np.int16)  # or the filter keeps its last window
    graph.push(frame(np.concatenate([levels_T, silence]), sample_rate))
    graph.push(None)
    found = []
    while True:
        try:
            found.append(graph.pull().to_ndarray()[0])
        except (av.EOFError, av.BlockingIOError):
            break
    whole = np.concatenate([*found, np.zeros(count, np.int16)])[:count]
    return whole.astype(np.int16)


def frame(levels_T: Levels, sample_rate: int, at: int = 0) -> Any:
    """Return levels as ffmpeg takes them, `at` samples after the start."""
    import av

    found = av.AudioFrame.from_ndarray(levels_T[None], format="s16", layout="mono")
    found.sample_rate, found.pts = sample_rate, at
    return found
