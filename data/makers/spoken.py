"""Sentences spoken by the package's own voice (`formants.py`), or by flite or espeak-ng where the system has them.

"The boy sees two red boats near the river." A caption is the sentence; 56 words, two speakers in turn. The package's
voice gives the same bytes for the same seed; those of a program depend on its version.
"""

import io
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field

from data.makers import Made, MakerError, Sample, Split
from data.makers.formants import SPEAKERS, speak
from data.makers.speech import SpeechEntry, speech_made
from infra.media.sounds import wav

WORDS: Final[Mapping[str, str]] = {
    "the": "DH AH", "a": "AH", "my": "M AY", "our": "AW ER",
    "man": "M AE N", "woman": "W UH M AH N", "boy": "B OY", "girl": "G ER L", "king": "K IH NG",
    "friend": "F R EH N D", "teacher": "T IY CH ER", "sister": "S IH S T ER",
    "sees": "S IY Z", "finds": "F AY N D Z", "takes": "T EY K S", "keeps": "K IY P S",
    "wants": "W AA N T S", "has": "HH AE Z", "draws": "D R AO Z", "shows": "SH OW Z",
    "two": "T UW", "three": "TH R IY", "four": "F AO R", "five": "F AY V",
    "six": "S IH K S", "seven": "S EH V AH N", "eight": "EY T", "nine": "N AY N", "ten": "T EH N",
    "red": "R EH D", "green": "G R IY N", "blue": "B L UW", "yellow": "Y EH L OW",
    "white": "W AY T", "black": "B L AE K", "large": "L AA R JH", "small": "S M AO L",
    "cats": "K AE T S", "dogs": "D AA G Z", "birds": "B ER D Z", "boats": "B OW T S",
    "houses": "HH AW S AH Z", "keys": "K IY Z", "books": "B UH K S", "fish": "F IH SH",
    "near": "N IH R", "in": "IH N", "on": "AA N", "by": "B AY",
    "river": "R IH V ER", "garden": "G AA R D AH N", "hill": "HH IH L", "house": "HH AW S",
    "road": "R OW D", "village": "V IH L AH JH", "beach": "B IY CH",
}  # fmt: skip
"""ARPABET, as CMU's dictionary has it."""
GRAMMAR: Final = (
    ("the", "a", "my", "our"),
    ("man", "woman", "boy", "girl", "king", "friend", "teacher", "sister"),
    ("sees", "finds", "takes", "keeps", "wants", "has", "draws", "shows"),
    ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    ("red", "green", "blue", "yellow", "white", "black", "large", "small"),
    ("cats", "dogs", "birds", "boats", "houses", "keys", "books", "fish"),
    ("near", "in", "on", "by"),
    ("the",),
    ("river", "garden", "hill", "house", "road", "village", "beach"),
)
VOICES: Final[Mapping[str, tuple[str, str]]] = {  # of a program, in the places of our two speakers
    "flite": ("rms", "slt"),
    "espeak-ng": ("en-us", "en-us+f3"),
}
TIMEOUT_S: Final = 60


class Config(SpeechEntry):
    """The entry of params.yaml."""

    maker: Literal["spoken"]
    path: Path = Path("data/makers/spoken.py")
    count: Annotated[int, Field(ge=30, le=100_000)] = 320
    seed: Annotated[int, Field(ge=0)] = 0
    sample_rate: Annotated[int, Field(ge=8000, le=48_000)] = 8000
    engine: Literal["formants", "flite", "espeak-ng"] = "formants"  # whose voices


def made(config: Config, project: Path) -> Made:  # noqa: ARG001 - spoken, not read
    """Return the sentences, each once.

    Raises:
        MakerError: the program that is to speak is not installed.
    """
    if config.engine != "formants" and shutil.which(config.engine) is None:
        raise MakerError(
            f"engine: no program {config.engine} on this machine: install it, or leave engine out for the"
            " package's own voice"
        )
    return speech_made(_samples(config), config, speakers=sorted(SPEAKERS))


def _samples(config: Config) -> Iterator[Sample]:
    generator, said = np.random.default_rng(config.seed), set[str]()
    for index in range(config.count):
        words = [str(generator.choice(part)) for part in GRAMMAR]
        while " ".join(words) in said:
            words = [str(generator.choice(part)) for part in GRAMMAR]
        said.add(text := " ".join(words))
        name = sorted(SPEAKERS)[index % 2]
        if config.engine == "formants":
            phones, own = (
                [WORDS[word].split() for word in words],
                np.random.default_rng((config.seed, index)),
            )
            content = wav(
                speak(phones, SPEAKERS[name], config.sample_rate, own), config.sample_rate
            )
        else:
            content = _by_program(config.engine, VOICES[config.engine][index % 2], text)
        split: Split | None = "train" if index < 2 else None  # neither speaker is unknown
        yield Sample(f"{index:05d}.wav", content, f"{text.capitalize()}.", split, "", (name,))


def _by_program(engine: str, voice: str, text: str) -> bytes:
    """Return what a speech program of this machine says, as a WAV file."""
    import soundfile

    asked = {
        "flite": ["flite", "-voice", voice, "-t", text, "-o", "/dev/stdout"],
        "espeak-ng": ["espeak-ng", "-v", voice, "--stdout", text],
    }[engine]
    ran = subprocess.run(asked, capture_output=True, timeout=TIMEOUT_S, check=False)
    if ran.returncode:
        raise MakerError(f"{engine} failed: {ran.stderr.decode(errors='replace').strip()[:200]}")
    x_T, rate = soundfile.read(io.BytesIO(ran.stdout))
    return wav(x_T, rate)
