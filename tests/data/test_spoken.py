"""The voice that comes with the package: the same bytes for a seed, and words that a recogniser understands."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from data.makers import MakerError, spoken
from data.makers.formants import PHONES, SPEAKERS, speak
from models.text_to_speech.front_end import SYMBOLS, phonemes

HERE = Path()


def sentences(count: int, **settings: Any) -> list[Any]:
    config = spoken.Config(maker="spoken", **settings)
    return [
        sample for sample, _ in zip(spoken.made(config, HERE).samples, range(count), strict=False)
    ]


def test_a_seed_s_sentences_are_the_same_bytes_and_no_two_alike() -> None:
    first, again, other = sentences(4), sentences(4), sentences(4, seed=1)
    assert first == again
    assert len({sample.content for sample in (*first, *other)}) == 8
    assert [sample.attributes for sample in first] == [("hugo",), ("nora",)] * 2
    assert all(sample.caption[0].isupper() and sample.caption[-1] == "." for sample in first)


def test_its_words_are_said_as_the_front_end_reads_them() -> None:
    assert set(PHONES) <= set(SYMBOLS)
    known = dict(spoken.WORDS)
    told = {word: " ".join(phonemes(word)[1:-1]) for word in known}
    assert {word: known[word] for word in known if known[word] != told[word]} == {}
    assert {word for part in spoken.GRAMMAR for word in part} <= set(known)


def heard(waves: list[Any], rate: int) -> list[list[str]]:
    """Return what pocketsphinx, which knows the grammar, hears."""
    from pocketsphinx import Decoder

    parts = " ".join(f"({' | '.join(words)})" for words in spoken.GRAMMAR)
    decoder = Decoder(lm=None, loglevel="FATAL")
    decoder.add_jsgf_string("sentence", f"#JSGF V1.0; grammar s; public <s> = {parts};")
    decoder.activate_search("sentence")
    found = []
    for wave in waves:
        x_T = resample_poly(wave.astype(np.float64), 16_000, rate)
        decoder.start_utt()
        decoder.process_raw(np.clip(x_T, -32768, 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        found.append(decoder.hyp().hypstr.split() if decoder.hyp() else [])
    return found


def right(asked: list[list[str]], found: list[list[str]]) -> float:
    """Return the share of words that are where they should be."""
    hits = [
        a == b
        for one, two in zip(asked, found, strict=True)
        for a, b in zip(one, two, strict=False)
    ]
    return sum(hits) / sum(map(len, asked))


def test_a_recogniser_that_never_heard_it_understands_most_words() -> None:
    made = sentences(8)
    asked = [sample.caption.lower().strip(".").split() for sample in made]
    waves = [soundfile.read(io.BytesIO(sample.content), dtype="int16")[0] for sample in made]
    generator = np.random.default_rng(0)
    babble = [
        speak(
            [
                [str(generator.choice(list(PHONES))) for _ in spoken.WORDS[word].split()]
                for word in one
            ],
            SPEAKERS["hugo"],
            8000,
            generator,
        )
        for one in asked
    ]
    assert right(asked, heard(waves, 8000)) > 0.6
    assert right(asked, heard(babble, 8000)) < 0.4


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        MakerError, match="engine: no program flite on this machine: install it, or"
    ):
        sentences(1, engine="flite")


@pytest.mark.parametrize("engine", spoken.VOICES)
def test_a_program_speaks_where_the_system_has_it(engine: str) -> None:
    if shutil.which(engine) is None:
        pytest.skip(f"this machine has no {engine}")
    for sample in sentences(2, engine=engine):
        assert soundfile.info(io.BytesIO(sample.content)).duration > 1
