"""Judging text: the likelihood of held-out text and what the family measures on it; a gallery of written samples."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data import loaders
from flows.evaluating.pipeline import as_asked, joined
from flows.evaluating.scores import Judged, Scores, likelihood, own, taken
from flows.evaluating.sheets import of_texts
from flows.evaluating.written import (
    SEARCHED,
    SEEDS,
    begun,
    copied,
    judge_texts,
    passages,
    shorter,
    tell,
)
from flows.recipe import Evaluation as EvaluationSpec
from infra.pipelines import Pipeline
from models.family import Family
from models.judges import LEAST_HELD_OUT
from models.request import Record

ROWS: Final = 2048  # of held-out text that are rated, at most
AT_ONCE: Final = 32  # rows of a forward pass
COPIED: Final = 100  # characters of a text that are looked for in the training split
USUAL: Final = 0.95  # of held-out texts copy no more than this quantile


drawn = as_asked


def requests(
    pipeline: Pipeline, prepared: Path, spec: EvaluationSpec
) -> tuple[list[str], list[int]]:
    """Return a prompt a seed: those of the gallery, and of a model with a likelihood held-out passages to go on from.

    In the gallery it is the recipe's prompts to try in turn, or how held-out records begin. A family that reads no such
    beginnings, because it fills in blanks, needs `try_prompts` with some.
    """
    seeds = list(range(spec.gallery))
    if not pipeline.reads_text:
        return [], seeds
    judged = "scores" in pipeline.abilities
    held_out = [] if pipeline.try_prompts and not judged else loaders.records(prepared, "test")
    found = list(pipeline.try_prompts) or openings(held_out, spec.gallery)
    shown = [found[number % len(found)] for number in seeds]
    if not judged:
        return shown, seeds
    asked = [one.asked for one in passages(held_out, spec.gallery)]
    return [*shown, *asked * len(SEEDS)], [*seeds, *(seed for seed in SEEDS for _ in asked)]


def openings(records: Sequence[Record], count: int) -> list[str]:
    """Return how `count` of the records begin: a first question, a source, or a document's first words."""
    found = [one for record in records if record and (one := _opening(record))] or [""]
    return shorter(found, count, len)


def _opening(record: Record) -> str:
    role, text = next((turn for turn in record if turn[0] != "system"), record[0])
    return begun(text) if role == "text" else text


def packed(drawn: Tensor) -> npt.NDArray[Any]:
    """Return tokens (N, T) as int32."""
    found: npt.NDArray[Any] = drawn.to(torch.int32).numpy()
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
    """Return the metrics of every stage on the test split, and what was written."""
    scores = Scores(spec)
    held_out = loaders.records(prepared, "test")
    cut, left_out = hashlib.sha256(), list[str]()
    for model, stage in zip(models, pipeline.stages, strict=True):
        rows = taken(model.examples(held_out), ROWS)
        if model.left_out:
            left_out.append(f"{stage.stage}, held-out data: {model.left_out}")
        for name, tensor in sorted(rows.items()):
            cut.update(f"{name} {tuple(tensor.shape)} ".encode() + tensor.numpy().tobytes())
        if model.capabilities.likelihood:
            likelihood(scores, model, stage.stage, rows, AT_ONCE)
        own(scores, model, stage.stage, rows, rows=AT_ONCE)
    tokens = joined([torch.from_numpy(part).long() for part in drawn], -1)
    learned = loaders.records(prepared, "train")
    if len(models) == 1 and len(tokens) > spec.gallery:
        judged = passages(held_out, spec.gallery) * len(SEEDS)
        [stage] = pipeline.stages
        judge_texts(scores, models[0], stage.stage, tokens[spec.gallery :], judged, learned)
        if models[0].capabilities.stepwise:
            tell(scores, models[0], stage, judged)
    tokens = tokens[: spec.gallery]
    asked = list(prompts[: spec.gallery]) or [""] * len(tokens)
    written = [
        models[-1].text_of(row[row >= 0], prompt) for row, prompt in zip(tokens, asked, strict=True)
    ]
    if (copies := memorised(written, held_out, learned)) is not None:
        scores.mean("memorised", copies)
    pairs = list(zip(asked, written, strict=True))
    samples = [
        {"prompt": prompt, "text": text, "seed": seed} for seed, (prompt, text) in enumerate(pairs)
    ]
    files = {
        "gallery.png": of_texts(pairs),
        "samples.json": json.dumps(samples, ensure_ascii=False, indent=1).encode(),
    }
    return Judged(
        metrics=scores.metrics,
        outcomes=scores.outcomes,
        files=files,
        left_out=(*left_out, *scores.left_out),
        cut=cut.hexdigest()[:16],
    )


def memorised(
    written: Sequence[str], held_out: Sequence[Record], learned: Sequence[Record]
) -> Tensor | None:
    """Return whether each written text copies more of the training split than 95 % of held-out texts do.

    What is compared is the longest stretch of 100 characters that stands in the training split word for word; people
    use others' words too, so held-out text says how long a stretch is usual. None: there are too few texts so long, or
    so many held-out ones stand there whole that nothing could copy more.
    """
    texts = [one[:COPIED] for one in written if len(one) >= COPIED]
    own_text = "\n".join(text for record in held_out for _, text in record)
    real = [
        own_text[start : start + COPIED] for start in range(0, len(own_text) - COPIED + 1, COPIED)
    ]
    if len(texts) < LEAST_HELD_OUT or len(real) < LEAST_HELD_OUT:
        return None
    source = "\n".join(text for record in learned for _, text in record)[:SEARCHED]
    real = [real[number * len(real) // 64] for number in range(64)] if len(real) > 64 else real
    usual = float(np.quantile([copied(text, source) for text in real], USUAL))
    if usual >= COPIED:
        return None
    return torch.tensor([copied(text, source) > usual for text in texts]).float()
