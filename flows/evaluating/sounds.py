"""Judging sound: the likelihood of held-out sound and what the family measures on it; a gallery one can hear."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor

from data import loaders
from flows.evaluating.pictures import copies, wanted_attributes
from flows.evaluating.pipeline import as_asked, joined
from flows.evaluating.scores import (
    Judged,
    Scores,
    caption_gain,
    evenly,
    gap,
    likelihood,
    nats_of,
    own,
    rated,
    taken,
)
from flows.evaluating.sheets import of_sounds
from flows.recipe import Evaluation as EvaluationSpec
from infra.media.sounds import wav
from infra.pipelines import Pipeline
from models.family import Family
from models.judges import LEAST_HELD_OUT
from models.judges import metrics as m
from models.judges.recogniser import Recogniser, spectra

ROWS: Final = 512  # held-out sounds that are rated, at most
AT_ONCE: Final = 16  # sounds of a forward pass
SILENT: Final = 0.001  # of full scale
LEARNED: Final = 2000  # real sounds that the recogniser is fitted to, about

Split: TypeAlias = tuple[Tensor, Tensor, list[str], Tensor]  # as `loaders.sounds` returns it


drawn = as_asked


def requests(
    pipeline: Pipeline, prepared: Path, spec: EvaluationSpec
) -> tuple[list[str], list[int]]:
    """Return a seed a sound of the gallery, and a caption each, in turn, where the pipeline reads text.

    The dataset's captions where they are classes, so that a recogniser can tell whether they were heeded.
    """
    seeds = list(range(spec.gallery))
    if not pipeline.reads_text:
        return [], seeds
    facts = loaders.read_header(prepared)
    captions = facts["captions"]
    if pipeline.try_prompts and not facts["attributes"]:
        captions = list(pipeline.try_prompts)
    if len(captions) <= spec.gallery:
        return [captions[number % len(captions)] for number in seeds], seeds
    return [captions[number * len(captions) // spec.gallery] for number in seeds], seeds


def packed(drawn: Tensor) -> npt.NDArray[Any]:
    """Return sound (N, T) in [-1, 1] as float32."""
    found: npt.NDArray[Any] = drawn.float().clamp(-1, 1).numpy()
    return found


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
    """Return the metrics of every stage on the test split, and the sounds that were made."""
    scores = Scores(spec)
    made = joined([torch.from_numpy(part) for part in drawn], 0)[: spec.gallery]
    sound, length, captions, attributes = real = loaders.sounds(prepared, "test")
    rows = {"sound": sound, "length": length}
    if attributes.shape[1]:
        rows["attributes"] = attributes
    heard = taken(rows, ROWS)
    chosen = evenly(torch.arange(len(captions)), min(len(captions), ROWS))
    captions = [captions[place] for place in chosen.tolist()]
    _heard(scores, prepared, made, prompts, real)
    for model, stage in zip(models, pipeline.stages, strict=True):
        rated_rows = rated(model, heard, captions)
        if model.capabilities.likelihood:
            nats = likelihood(scores, model, stage.stage, rated_rows, AT_ONCE)
            if model.capabilities.condition == "text":
                caption_gain(scores, model, stage.stage, heard, captions, nats, AT_ONCE)
            if len(models) == 1 and len(sound) >= LEAST_HELD_OUT:
                _sample_gap(scores, model, stage.stage, made, prompts, nats / heard["length"])
        if len(sound) >= LEAST_HELD_OUT:  # one sound has no distribution
            own(scores, model, stage.stage, rated_rows, rows=AT_ONCE)
    rate = pipeline.sample_rate
    assert rate is not None
    files = {"gallery.png": of_sounds(made, rate, list(prompts)[: len(made)])}
    files |= {
        f"samples/{number:02d}.wav": wav(x_T.numpy(), rate) for number, x_T in enumerate(made)
    }
    return Judged(
        metrics=scores.metrics,
        outcomes=scores.outcomes,
        files=files,
        left_out=tuple(scores.left_out),
    )


def _sample_gap(
    scores: Scores,
    model: Family,
    stage: str,
    made: Tensor,
    prompts: Sequence[str],
    real_nats_N: Tensor,
) -> None:
    """Add STAGE_sample_gap of nats a sample, since made sounds and real ones are not equally long."""
    length = torch.full((len(made),), made.shape[1])
    rows = rated(model, {"sound": made, "length": length}, list(prompts)[: len(made)])
    own_nats = nats_of(model, rows, AT_ONCE) / made.shape[1]
    gap(scores, f"{stage}_sample_gap", own_nats, real_nats_N)


def _heard(
    scores: Scores, prepared: Path, made: Tensor, prompts: Sequence[str], real: Split
) -> None:
    """Add alignment, where captions are classes, and by spectra of as much as made and real sounds have its copies."""
    facts, learned = loaders.read_header(prepared), loaders.sounds(prepared, "train")
    rate = facts["sample_rate"]
    if prompts and facts["attributes"]:
        _alignment(scores, facts, learned, made, prompts, real)
    samples = min(made.shape[1], learned[0].shape[1])
    others = (beginnings(part, samples) for part in (learned[0], real[0]))
    copies(scores, *(spectra(part, rate) for part in (made[:, :samples], *others)))


def beginnings(sound_NT: Tensor, samples: int) -> Tensor:
    """Return the first `samples` of each sound but of those that begin in silence: one is as all others are."""
    begun_NT = sound_NT[:, :samples]
    return begun_NT[begun_NT.abs().amax(1) > SILENT]


def _alignment(
    scores: Scores,
    facts: Mapping[str, Any],
    learned: Split,
    made: Tensor,
    prompts: Sequence[str],
    real: Split,
) -> None:
    """Whether a recogniser of real sounds hears what was asked for; and how often it is right on held-out ones."""
    every = max(1, len(learned[0]) // LEARNED)
    sound, length, _, attributes = learned
    recogniser = Recogniser(
        sound[::every], length[::every], attributes[::every], facts["sample_rate"]
    )
    sound, length, _, wanted = real
    right, _ = m.alignment(recogniser.predict(sound, length), wanted)
    scores.mean("recognised", right)
    asked = list(prompts)[: len(made)]
    heard = recogniser.predict(made, torch.full((len(made),), made.shape[1]))
    joint, single = m.alignment(heard, wanted_attributes(asked, facts["attributes"]))
    scores.mean("alignment", joint, over=asked)
    for column, name in enumerate(facts["attributes"]):
        scores.mean(f"alignment_{name}", single[:, column], over=asked)
