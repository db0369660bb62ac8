"""Judging embeddings of captions and pictures: does every held-out picture find its caption, and a caption its picture.

Shape letters: N pictures, K captions, E numbers of an embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from data.loaders import everything, read_header
from flows.evaluating.pipeline import as_asked
from flows.evaluating.scores import Judged, Scores, device_of, evenly, own, parts_of, rated
from flows.evaluating.sheets import of_pictures
from flows.recipe import Evaluation as EvaluationSpec
from infra.pipelines import Pipeline
from models.family import Family

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST: Final = 2000  # held-out pictures that captions look among
TOGETHER: Final = 64  # rows of a call


drawn = as_asked


def requests(
    pipeline: Pipeline,  # noqa: ARG001 - it reads captions
    prepared: Path,
    spec: EvaluationSpec,
) -> tuple[list[str], list[int]]:
    """Return the gallery's captions, evenly taken, and a seed each, which changes nothing."""
    captions = read_header(prepared)["captions"]
    count = min(spec.gallery, len(captions))
    return [captions[place * len(captions) // count] for place in range(count)], list(range(count))


def packed(drawn: Tensor) -> "NDArray[Any]":
    """Return embeddings (N, E)."""
    numbers: NDArray[np.float32] = drawn.float().numpy()
    return numbers


def score(
    drawn: "Sequence[NDArray[Any]]",
    prompts: Sequence[str],
    *,
    judge: Any,  # noqa: ARG001 - held-out pairs judge
    prepared: Path,
    spec: EvaluationSpec,
    models: Sequence[Family],
    pipeline: Pipeline,
) -> Judged:
    """Return how well captions and pictures find one another; the gallery shows which picture a caption finds."""
    [model], [stage], scores = models, pipeline.stages, Scores(spec)
    pixels, captions, _ = everything(prepared, "test", image_size=model.config.image_size)
    known = read_header(prepared)["captions"]
    retrieval(scores, model, stage.stage, pixels, captions, known)
    own(scores, model, stage.stage, rated(model, {"pixels": pixels}, captions))
    asked_KE = torch.from_numpy(np.concatenate(drawn))
    found_K = (asked_KE @ of_pixels(model, pixels).T).argmax(1)
    files = {"gallery.png": of_pictures(pixels[found_K], prompts, spec.gallery)}
    return Judged(
        metrics=scores.metrics,
        outcomes=scores.outcomes,
        files=files,
        left_out=tuple(scores.left_out),
    )


def retrieval(
    scores: Scores,
    model: Family,
    stage: str,
    pixels: Tensor,
    captions: Sequence[str],
    known: Sequence[str],
) -> None:
    """Add STAGE_caption_r1, of held-out pictures whose nearest caption is their own, and STAGE_picture_r1, of captions.

    A picture looks among all captions that are `known`; a caption among the pictures, if one of them is its own.
    """
    places = evenly(torch.arange(len(pixels)), min(len(pixels), MOST))
    pixels, captions = pixels[places], [captions[place] for place in places.tolist()]
    cosine_NK = of_pixels(model, pixels) @ of_text(model, known).T
    place_of = {caption: place for place, caption in enumerate(known)}
    own_N = torch.tensor([place_of[caption] for caption in captions])
    scores.mean(f"{stage}_caption_r1", cosine_NK.argmax(1) == own_N, over=captions, keep=True)
    there_K = torch.tensor(sorted(set(own_N.tolist())))
    found_K = own_N[cosine_NK.argmax(0)[there_K]]
    scores.mean(f"{stage}_picture_r1", found_K == there_K, keep=True)


def agreement(
    scores: Scores, model: Family, stage: str, pictures: Tensor, prompts: Sequence[str]
) -> None:
    """Add STAGE_score: the cosine of a drawn picture and its prompt, as the stage sees both (arXiv:2104.08718)."""
    asked = list(dict.fromkeys(prompts))
    text_KE = of_text(model, asked)
    index_N = torch.tensor([asked.index(prompt) for prompt in prompts])
    cosine_N = (of_pixels(model, pictures) * text_KE[index_N]).sum(1)
    scores.mean(f"{stage}_score", cosine_N, over=prompts, keep=True)


@torch.no_grad()
def of_pixels(model: Family, pixels: Tensor) -> Tensor:
    """Return the embeddings (N, E) of pictures at the model's size, on the CPU."""
    parts = parts_of({"pixels": pixels}, TOGETHER, device_of(model))
    return torch.cat([model.enter("pixels", part) for part in parts]).cpu()


@torch.no_grad()
def of_text(model: Family, captions: Sequence[str]) -> Tensor:
    """Return the embeddings (K, E) of captions, on the CPU."""
    tokens = model.encode(captions)
    assert tokens is not None
    parts = parts_of({"tokens": tokens}, TOGETHER, device_of(model))
    return torch.cat([model.enter("text", part) for part in parts]).cpu()
