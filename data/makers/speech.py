"""A user's own recordings of speech with transcripts, in a folder that is laid out as people lay them out.

The layout is found by itself (`speech_layouts.py`): LJSpeech, VCTK, Common Voice, an audio folder of Hugging Face, a
`labels.csv`, texts beside the sounds, or labels in the names. The text stays as it is written.
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from data.makers import DIGITS, Entry, Made, MakerError, Sample
from data.makers.captions import MAX_CLASSES, PICTURES_PER_CLASS
from data.makers.files import check_there, read_file
from data.makers.speech_layouts import Said, laid_out
from data.makers.words import normal

RATES: Final = (4000, 48_000)  # Hz, of what is learned from
USUAL: Final = 22_050  # Hz, where no file tells any


class SpeechEntry(Entry):
    """A dataset of speech."""

    modality: ClassVar[str] = "speech"

    sample_rate: Annotated[int, Field(ge=RATES[0], le=RATES[1])] | None = (
        None  # Hz; None: the first sound's
    )
    most_seconds: Annotated[float, Field(ge=0.1, le=60)] = 30.0
    loudness: Annotated[float, Field(ge=-60, le=-6)] | None = (
        None  # dB of full scale, by the root mean square; None: as they are
    )
    trim: Annotated[float, Field(ge=10, le=80)] | None = (
        None  # dB below the loudest that count as silence before and behind; None: nothing is cut
    )

    @property
    def size(self) -> str:
        """Rate and greatest length."""
        rate = "own rate" if self.sample_rate is None else f"{self.sample_rate} Hz"
        return f"{rate}, {self.most_seconds:g} s"


class Config(SpeechEntry):
    """The entry of params.yaml."""

    maker: Literal["speech"]
    pattern: str | None = None  # of the files' names; None: the layout is found
    test: Mapping[
        str, tuple[str, ...]
    ] = {}  # field of the pattern: its values that are only tested


def made(config: Config, project: Path) -> Made:
    """Return the sounds that the folder's layout names.

    Raises:
        MakerError: no folder, no layout that is known, a line that cannot be used, or a sound that is not there.
    """
    folder = project / config.path
    if not folder.is_dir():
        raise MakerError(f"no folder {folder}: give the folder of your recordings with --path")
    said = laid_out(folder, config.pattern, config.test)
    check_there(folder, (one.file for one in said))
    texts = _texts(said)
    return speech_made(
        _samples(folder, said, texts),
        config.model_copy(update={"sample_rate": config.sample_rate or _rate(folder, said)}),
        speakers=sorted({one.speaker for one in said}),
        texts=texts,
    )


def speech_made(
    samples: Iterator[Sample],
    config: SpeechEntry,
    *,
    speakers: Sequence[str],
    texts: Sequence[str] = (),
) -> Made:
    """Return a dataset of speech; a sample's attributes are its text, where texts are classes, and its speaker."""
    return Made(
        samples=samples,
        modality="speech",
        settings={
            "sample_rate": config.sample_rate,
            "most_seconds": config.most_seconds,
            "loudness": config.loudness,
            "trim": config.trim,
        },
        attributes={**({"text": texts} if texts else {}), "speaker": speakers},
        captioned=False,
    )


def _texts(said: Sequence[Said]) -> list[str]:
    """Return the texts in words, where they are few enough to count as classes; digits in their order."""
    counts = Counter(normal(one.text) for one in said)
    few = 1 < len(counts) <= MAX_CLASSES and median(counts.values()) >= PICTURES_PER_CLASS
    if not few or "" in counts:
        return []
    return sorted(
        counts, key=lambda one: (DIGITS.index(one) if one in DIGITS else len(DIGITS), one)
    )


def _rate(folder: Path, said: Sequence[Said]) -> int:
    """Return the rate of the first sound that can be read, within what is learned from."""
    import soundfile

    root, (least, most) = folder.resolve(), RATES
    for one in said[:100]:
        content, problem = read_file(root, one.file)
        try:
            found = 0 if problem else soundfile.info(io.BytesIO(content)).samplerate
        except soundfile.LibsndfileError:
            continue
        if found:
            return min(max(int(found), least), most)
    return USUAL


def _samples(folder: Path, said: Sequence[Said], texts: Sequence[str]) -> Iterator[Sample]:
    root = folder.resolve()
    for one in said:
        content, problem = read_file(root, one.file)
        values = (*((normal(one.text),) if texts else ()), one.speaker)
        yield Sample(one.file, content, one.text, one.split, problem, values)
