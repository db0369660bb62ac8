"""Speech: sounds of any length; a caption is the transcript, the attribute `speaker` says who speaks.

Sounds are decoded, mixed to mono and resampled as those of `audio` are. Where the settings say so, silence before and
behind is cut, and loudness made equal. Rows have the lengths that they have.

Shape letters: N rows, T samples in time.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.modalities import Modality
from data.modalities.audio import FULL_SCALE, Audio, Sound, Wave, decode
from data.rules import Row, Rule, between
from infra.media.sounds import wav

LEAST_SECONDS: Final = 0.1
FRAME_S: Final = 0.01  # of which loudness is taken where silence is looked for
MARGIN_S: Final = 0.05  # of silence that stays before and behind
MOST_PEAK: Final = 0.891  # of full scale, -1 dB: no sound is made louder than that
PACE: Final = (0.02, 1.5)  # seconds a character of the transcript
BALANCE: Final = (0.01, 100.0)  # of a speaker's training seconds over the speakers' mean


class Speech(Modality):
    """Settings: `sample_rate` in Hz, `most_seconds` of a sound, `loudness` and `trim`.

    `loudness` is the root mean square in dB of full scale, `trim` how many dB below the loudest frame count as silence
    before and behind; None leaves sounds as they are.
    """

    name = "speech"
    noun = "utterance"
    column = "sound"
    settings = ("sample_rate", "most_seconds", "loudness", "trim")
    facts: ClassVar[Sequence[pa.Field]] = (
        *Audio.facts,
        pa.field("text", pa.string()),
        pa.field("speaker", pa.string()),
        pa.field("pace", pa.float64()),  # seconds a character
        pa.field("speaker_seconds", pa.float64()),  # of the speaker's training rows
        pa.field("speaker_share", pa.float64()),  # of these, over the speakers' mean
    )

    def look(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is told of sounds, of this one as it will be learned from."""
        return Audio().told(prepared(decode(content, made["sample_rate"]), made))

    def groups(self, column: Callable[[str], list[Any]], made: Mapping[str, Any]) -> list[str]:
        """Return the speakers: a voice that was never learned cannot be asked for."""
        place = [name for name, _ in made["attributes"]].index("speaker")
        return [values[place] for values in column("attributes")]

    def relate(
        self,
        rows: pa.Table,
        column: Callable[[str], list[Any]],
        made: Mapping[str, Any],
    ) -> dict[str, list[Any]]:
        """Return transcripts, speakers, how fast each speaks, and how much of each is learned."""
        speakers = self.groups(column, made)
        listed = rows.select(["samples", "split", "caption"]).to_pylist()
        rate, learned, pace = made["sample_rate"], defaultdict[str, float](float), []
        for speaker, row in zip(speakers, listed, strict=True):
            seconds = (row["samples"] or 0) / rate
            learned[speaker] += seconds if row["split"] == "train" else 0.0
            characters = len(row["caption"].strip())
            pace.append(seconds / characters if characters and seconds else None)
        mean = sum(learned.values()) / len(learned)
        return {
            "text": [row["caption"].strip() for row in listed],
            "speaker": speakers,
            "pace": pace,
            "speaker_seconds": [learned[speaker] for speaker in speakers],
            "speaker_share": [learned[speaker] / mean if mean else 0.0 for speaker in speakers],
        }

    def rules(self, made: Mapping[str, Any]) -> list[Rule]:
        """Return the expectations: utterances that can be heard, with their transcripts, of balanced speakers."""
        rate, most = made["sample_rate"], made["most_seconds"]
        lengths = between("samples", math.ceil(LEAST_SECONDS * rate), math.floor(most * rate))
        known = "known sample rate", "mono or stereo", "not silent", "not clipped"
        return [
            *(rule for rule in Audio().rules({**made, "clip_samples": 0}) if rule.name in known),
            Rule("long and short enough", *lengths, lambda row: _length(row, rate, most)),
            Rule("transcript present", "ExpectColumnValueLengthsToBeBetween", _SAID, _unsaid),
            Rule("as fast as people speak", *between("pace", *PACE), _pace),
            Rule("speakers in balance", *between("speaker_share", *BALANCE), _share),
        ]

    def pack(self, content: bytes, made: Mapping[str, Any]) -> bytes:
        """Return the samples, 16 bits each in little-endian order."""
        found: bytes = (
            prepared(decode(content, made["sample_rate"]), made).wave.astype("<i2").tobytes()
        )
        return found

    def summary(self, rows: pa.Table, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return the seconds of sound and its root mean square, of full scale."""
        return Audio().summary(rows, made)

    def example(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return {"sound": WAV file}."""
        rate = made["sample_rate"]
        return {"sound": wav(prepared(decode(content, rate), made).wave, rate)}

    def network_facts(self, header: Mapping[str, Any], size: int | None) -> dict[str, Any]:
        """Return sample_rate, most_seconds, speakers and, of what else the source tells of a row, attributes."""
        if size is not None:
            raise ValueError(f"image_size {size} is for pictures, and {header['name']} is speech")
        attributes = header["attributes"].items()
        return {
            "sample_rate": header["sample_rate"],
            "most_seconds": header["most_seconds"],
            "speakers": tuple(header["attributes"]["speaker"]),
            "attributes": tuple((name, tuple(values)) for name, values in attributes),
        }

    def row_bytes(self, header: Mapping[str, Any], size: int | None) -> int:  # noqa: ARG002 - one size
        """Return the bytes of a row of mean length."""
        rows = max(1, header["splits"]["train"]["rows"])
        return int(2 * header["sample_rate"] * header["seconds"] / rows)

    def read(
        self,
        header: Mapping[str, Any],  # noqa: ARG002 - as they are
        rows: pa.Table,
        size: int | None,  # noqa: ARG002 - one size
    ) -> dict[str, npt.NDArray[Any]]:
        """Return `samples` (all,) int16, one row behind the other, and `places` (N, 2): where each begins, how long."""
        waves = [np.frombuffer(content.as_py(), "<i2") for content in rows[self.column]]
        lengths = np.array([len(wave) for wave in waves], np.int64)
        return {
            "samples": np.concatenate(waves),
            "places": np.stack([np.cumsum(lengths) - lengths, lengths], 1),
        }


def prepared(found: Sound, made: Mapping[str, Any]) -> Sound:
    """Return a sound without the silence before and behind, as loud as others, where the settings say so."""
    wave, rate = found.wave, made["sample_rate"]
    if made["trim"] is not None:
        wave = trimmed(wave, rate, made["trim"])
    if made["loudness"] is not None:
        wave = levelled(wave, made["loudness"])
    return Sound(wave, found.rate, found.channels, found.frames, found.clipped)


def trimmed(wave: Wave, rate: int, below_db: float) -> Wave:
    """Return what is between the first and the last frame less than so many dB below the loudest, and 50 ms around."""
    size = max(1, round(FRAME_S * rate))
    power = np.add.reduceat(np.square(wave.astype(np.float64)), np.arange(0, len(wave), size))
    if not len(wave) or not power.max():
        return wave
    loud = np.flatnonzero(power >= power.max() * 10 ** (-below_db / 10))
    margin = round(MARGIN_S * rate)
    return wave[max(0, loud[0] * size - margin) : (loud[-1] + 1) * size + margin]


def levelled(wave: Wave, loudness_db: float) -> Wave:
    """Return a sound at a root mean square of so many dB of full scale; less loud where its peak would pass -1 dB."""
    x_T = wave.astype(np.float64) / FULL_SCALE
    rms = math.sqrt(float(np.square(x_T).mean())) if len(x_T) else 0.0
    if not rms:
        return wave
    gain = min(10 ** (loudness_db / 20) / rms, MOST_PEAK / float(np.abs(x_T).max()))
    found: Wave = np.rint(x_T * gain * FULL_SCALE).astype(np.int16)
    return found


_SAID: Final = {"column": "text", "min_value": 1}


def _unsaid(_: Row) -> str:
    return "no transcript: say what is spoken, or take it out of the list"


def _length(row: Row, rate: int, most: float) -> str:
    seconds = row["samples"] / rate
    return (
        f"{seconds:.2f} s, between {LEAST_SECONDS} and {most:g} s are needed: cut it or change"
        " most_seconds"
    )


def _pace(row: Row) -> str:
    fast, slow = PACE
    return (
        f"{row['pace']:.3g} s a character, between {fast} and {slow} are needed: is the transcript that"
        " of this sound?"
    )


def _share(row: Row) -> str:
    return (
        f"speaker {row['speaker']!r} has {row['speaker_seconds']:.1f} s to learn from,"
        f" {row['speaker_share']:.2g} times the mean speaker: leave the speaker out, or bring more"
    )
