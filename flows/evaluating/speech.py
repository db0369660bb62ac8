"""Judging pipelines that speak: whether real listeners' stand-in hears the text and the voice asked for, and how soon.

A pipeline is asked for texts of the dataset in the voices of its speakers, in turn: a seed's place says which. One that
learned elsewhere and has no such voices says them in its own, and of these nothing is told. The
judge is fitted to real recordings of the same texts and speakers, never to anything that a model made.

Shape letters: N sounds, T samples.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data import loaders
from flows.evaluating import sounds
from flows.evaluating.pipeline import draw, joined
from flows.evaluating.scores import Judged, Scores, own
from flows.evaluating.sheets import of_sounds
from flows.recipe import Evaluation as EvaluationSpec
from infra.media.sounds import wav
from infra.pipelines import Pipeline
from models.family import Family
from models.judges.speech_judge import SpeechJudge, trimmed

ROWS: Final = 512  # held-out utterances that stages and the judge are tried on, at most
AT_ONCE: Final = 16
LEARNED: Final = 2000  # real utterances that the judge is fitted to, about
TIMED: Final = 9  # utterances whose real-time factor is measured

packed = sounds.packed


def requests(
    pipeline: Pipeline, prepared: Path, spec: EvaluationSpec
) -> tuple[list[str], list[int]]:
    """Return `spec.samples` texts and seeds: every voice says one text after the other."""
    facts = loaders.read_header(prepared)
    voices, texts = _asked(pipeline, facts), _texts(facts)
    seeds = list(range(spec.samples))
    return [texts[seed // len(voices) % len(texts)] for seed in seeds], seeds


def _voices(facts: Mapping[str, Any]) -> list[str]:
    found: list[str] = facts["attributes"]["speaker"]
    return found


def _asked(pipeline: Pipeline, facts: Mapping[str, Any]) -> Sequence[str | None]:
    """Return in whose voices a pipeline speaks: the data's where it has them, else its own."""
    own, learned = pipeline.lead.speakers, _voices(facts)
    return learned if {*learned} <= {*own} else own or [None]


def _texts(facts: Mapping[str, Any]) -> list[str]:
    found: list[str] = facts["attributes"].get("text") or facts["captions"]
    return found


def drawn(
    models: Sequence[Family],
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    prepared: Path,
) -> Tensor:
    """Return sounds (N, T), each in its seed's voice."""
    voices = _asked(pipeline, loaders.read_header(prepared))
    rows: dict[int, Tensor] = {}
    for number, voice in enumerate(voices):
        places = [place for place, seed in enumerate(seeds) if seed % len(voices) == number]
        if places:
            asked = [prompts[place] for place in places], [seeds[place] for place in places]
            made = draw(models, pipeline, *asked, options={"voice": voice})
            rows |= dict(zip(places, made, strict=True))
    return pad_sequence([rows[place] for place in range(len(seeds))], batch_first=True)


def score(
    drawn: Sequence[npt.NDArray[Any]],
    prompts: Sequence[str],
    *,
    judge: Any,  # noqa: ARG001 - it sees pictures
    prepared: Path,
    spec: EvaluationSpec,
    models: Sequence[Family],
    pipeline: Pipeline,
) -> Judged:
    """Return what is heard of made and of held-out speech, what every stage tells of it, and the sounds."""
    scores, facts, rate = Scores(spec), loaders.read_header(prepared), pipeline.sample_rate
    assert rate is not None
    made = joined([torch.from_numpy(part) for part in drawn], 0)
    asked = _asked(pipeline, facts)
    voices = [asked[number % len(asked)] for number in range(len(made))]
    real = _some(prepared, "test", ROWS)
    _judged(scores, prepared, facts, real, (list(made), list(prompts), voices))
    for model, stage in zip(models, pipeline.stages, strict=True):
        if model.measured:
            own(scores, model, stage.stage, _batch(model, real), rows=AT_ONCE)
    _timed(scores, models, pipeline, prompts)
    shown = [trimmed(one) for one in made[: spec.gallery]]
    labels = [f"{who or 'default'}: {text}" for who, text in zip(voices, prompts, strict=True)][
        : spec.gallery
    ]
    files = {"gallery.png": of_sounds(pad_sequence(shown, batch_first=True), rate, labels)}
    files |= {
        f"samples/{number:02d}.wav": wav(x_T.numpy(), rate) for number, x_T in enumerate(shown)
    }
    return Judged(
        metrics=scores.metrics,
        outcomes=scores.outcomes,
        files=files,
        left_out=tuple(scores.left_out),
    )


Said = tuple[list[Tensor], list[str], list[str]]
"""Sounds (T,), what is said in each, and by whom."""
Made = tuple[list[Tensor], list[str], list[str | None]]
"""The same of a pipeline, whose voices need not be the data's."""


def _some(prepared: Path, split: str, most: int) -> Said:
    """Return at most so many utterances of a split, evenly taken."""
    rows = list(loaders.utterances(prepared, split))
    count = min(len(rows), most)
    chosen = [rows[place * len(rows) // count] for place in range(count)]
    return [one[0] for one in chosen], [one[1] for one in chosen], [one[2] for one in chosen]


def _judged(
    scores: Scores, prepared: Path, facts: Mapping[str, Any], real: Said, made: Made
) -> None:
    """Add word_accuracy and speaker_accuracy of made sounds, and of held-out ones as `recognised` by the judge."""
    own_voices = not {*made[2]} <= {*_voices(facts)}
    judge = SpeechJudge(*_some(prepared, "train", LEARNED), facts["sample_rate"])
    for sounds_N, texts, speakers, names in (
        (*real, ("recognised_words", "recognised_speakers")),
        (*made, ("word_accuracy", "speaker_accuracy")),
    ):
        alike = (judge.heard(sounds_N), texts), (judge.known(sounds_N), speakers)
        for name, (found, wanted) in zip(names, alike, strict=True):
            right = [one == other for one, other in zip(found, wanted, strict=True)]
            if name.endswith(("words", "word_accuracy")) and "text" not in facts["attributes"]:
                continue  # texts that are no classes: nothing that a judge of classes could hear
            if name == "speaker_accuracy" and own_voices:
                continue  # the judge knows none of them
            scores.mean(name, torch.tensor(right), keep=name.endswith("accuracy"))
    if not own_voices:
        _duration(scores, real, made)


def _duration(scores: Scores, real: Said, made: Made) -> None:
    """Add relative_duration: how long speech lasts, over what recordings of the same text and voice do.

    Of a text that is in no such recording, over what its characters take the voice. It is a ratio of sums, told as what
    each utterance contributes to it. A judge that hears spectra in parts of a sound is content with words said twice as
    fast.
    """
    lasted: dict[tuple[str, str], list[float]] = {}
    samples, characters = dict.fromkeys(real[2], 0), dict.fromkeys(real[2], 0)
    for sound_T, text, who in zip(*real, strict=True):
        lasted.setdefault((text, who), []).append(len(trimmed(sound_T)))
        samples[who] += len(trimmed(sound_T))
        characters[who] += len(text)
    known = []
    for sound_T, text, voice in zip(*made, strict=True):
        if voice in samples:
            alike = lasted.get((text, voice)) or [samples[voice] / characters[voice] * len(text)]
            known.append((len(trimmed(sound_T)), sum(alike) / len(alike)))
    if known:
        found_N, usual_N = torch.tensor(known, dtype=torch.float).T
        ratio = found_N.sum() / usual_N.sum()
        scores.mean("relative_duration", ratio + (found_N - ratio * usual_N) / usual_N.mean())


def _batch(model: Family, real: Said) -> dict[str, Tensor]:
    """Return utterances as a batch, the shortest first, with the tokens and the voice that a model reads."""
    order = sorted(range(len(real[0])), key=lambda place: len(real[0][place]))
    sounds_N, texts = [real[0][place] for place in order], [real[1][place] for place in order]
    found = {
        "sound": pad_sequence(sounds_N, batch_first=True),
        "length": torch.tensor([len(one) for one in sounds_N]),
    }
    if hasattr(model.config, "encode_voices"):
        found["speaker"] = model.config.encode_voices([real[2][place] for place in order])
        tokens = model.encode(texts)
        assert tokens is not None
        found |= {"tokens": tokens, "token_length": (tokens > 0).sum(1)}
    return found


def _timed(
    scores: Scores, models: Sequence[Family], pipeline: Pipeline, prompts: Sequence[str]
) -> None:
    """Add real_time_factor: CPU-seconds that a second of sound takes, one utterance at a time."""
    assert pipeline.sample_rate is not None
    factors = []
    for number in range(TIMED + 1):  # the first warms up
        began = time.process_time()
        made = draw(models, pipeline, [prompts[number % len(prompts)]], [number])
        spent = time.process_time() - began
        factors.append(spent * pipeline.sample_rate / max(1, made.shape[1]))
    scores.mean("real_time_factor", torch.tensor(factors[1:]))
