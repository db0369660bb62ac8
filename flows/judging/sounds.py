"""Judging sound: the likelihood of held-out sound and what the family measures on it; a gallery one can hear."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import torch
from torch import Tensor

from data import loaders
from flows.judging.pipeline import Pipeline, joined
from flows.judging.scores import Judged, Scores, likelihood, own, rated, taken
from flows.judging.sheets import of_sounds
from flows.recipe import Evaluation as EvaluationSpec
from models.family import Family

ROWS: Final = 512  # held-out sounds that are rated, at most
AT_ONCE: Final = 16  # sounds of a forward pass


def requests(
    pipeline: Pipeline, prepared: Path, spec: EvaluationSpec
) -> tuple[list[str], list[int]]:
    """Return a seed a sound of the gallery, and a caption each, in turn, where the pipeline reads text."""
    seeds = list(range(spec.gallery))
    if pipeline.stages[0].accepts.prompt == "none":
        return [], seeds
    captions = list(pipeline.try_prompts) or loaders.read_header(prepared)["captions"]
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
    judge: Any,
    prepared: Path,
    spec: EvaluationSpec,
    models: Sequence[Family],
    pipeline: Pipeline,
) -> Judged:
    """Return the metrics of every stage on the test split, and the sounds that were made.

    Raises:
        ValueError: a judge of pictures was asked for.
    """
    if judge is not None:
        raise ValueError(
            f"{pipeline.endpoint} makes sound, and the judge looks at pictures: leave it out"
        )
    scores = Scores(spec)
    made = joined([torch.from_numpy(part) for part in drawn], 0)[: spec.gallery]
    sound, length, captions, attributes = loaders.sounds(prepared, "test")
    rows = {"sound": sound, "length": length}
    if attributes.shape[1]:
        rows["attributes"] = attributes
    for model, stage in zip(models, pipeline.stages, strict=True):
        told = taken(rated(model, rows, captions), ROWS)
        if model.capabilities.likelihood:
            likelihood(scores, model, stage.stage, told, AT_ONCE)
        own(scores, model, stage.stage, told, AT_ONCE)
    rate = pipeline.sample_rate
    assert rate is not None
    files = {"gallery.png": of_sounds(made, rate, list(prompts)[: len(made)])}
    files |= {f"samples/{number:02d}.wav": wav(x_T, rate) for number, x_T in enumerate(made)}
    return Judged(metrics=scores.metrics, outcomes=scores.outcomes, files=files)


def wav(x_T: Tensor, sample_rate: int) -> bytes:
    """Return a sound (T,) in [-1, 1] as a WAV file of 16 bits."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, x_T.numpy(), sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
