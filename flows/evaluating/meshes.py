"""Judging meshes: pictures of them from all sides, judged as pictures are, and whether they hang together; a gallery.

What is judged is what is handed out: a volume's voxels above half of the opacity, the others gone. A volume is asked
for by a caption that names no view, and must show what it says from every side.

Shape letters: N volumes, V views of each, R voxels a side, C channels, H and W pixels.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor

from data.loaders import read_header
from flows.evaluating import pictures
from flows.evaluating.pipeline import as_asked
from flows.evaluating.scores import Judged, Scores
from flows.evaluating.sheets import of_clips
from flows.recipe import Evaluation as EvaluationSpec
from infra.pipelines import Pipeline
from models.family import Family
from models.judges import metrics as m
from models.text_to_3d import volumes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.judges.attribute_judge import AttributeJudge

SEEN: Final = " seen from "
"""What a caption says behind the thing: from where a picture shows it."""
AROUND: Final = 12  # views from which each volume is judged, evenly about it
ELEVATIONS: Final = (
    math.radians(-10),
    math.radians(90),
)  # of views that are compared with real ones
SHOWN: Final = 6  # views of a volume in the gallery
FEW: Final = 4  # views of a volume that are compared with real ones
GREY: Final = 0.5  # behind what is judged

packed = pictures.packed
drawn = as_asked


def requests(
    pipeline: Pipeline, prepared: Path, spec: EvaluationSpec
) -> tuple[list[str], list[int]]:
    """Return every caption without its view, and with every seed."""
    things = dict.fromkeys(thing(one) for one in read_header(prepared)["captions"])
    return pictures.fixed_requests(pipeline, list(things), spec)


def thing(caption: str) -> str:
    """Return a caption without what says from where the thing is seen.

    Example:
        >>> thing("a red cone seen from above")
        'a red cone'
    """
    return caption.partition(SEEN)[0]


def score(
    drawn: "Sequence[NDArray[Any]]",
    prompts: Sequence[str],
    *,
    judge: "AttributeJudge | None",
    prepared: Path,
    spec: EvaluationSpec,
    models: Sequence[Family],  # noqa: ARG001 - none tells of itself
    pipeline: Pipeline,  # noqa: ARG001
) -> Judged:
    """Return every metric with its interval, per-sample outcomes for paired comparison, and the gallery."""
    facts = read_header(prepared)
    made = [volume for part in drawn for volume in part]
    scores = Scores(spec)
    connected = torch.tensor([_connected(one[3] > volumes.SURFACE * 255) for one in made])
    scores.mean("connected", connected, over=prompts)
    if judge is not None:
        side = judge.config.image_size
        _by_judge(scores, judge, made, prompts, facts, side)
        seen = _as_real(made, side)
        held_out = {thing(one) for one in facts["held_out"]}
        asked = [place for place, one in enumerate(prompts) if one not in held_out]
        shown = seen[asked].flatten(0, 1) if prompts else seen.flatten(0, 1)
        pictures.distribution(scores, judge, shown, *_familiar(prepared, facts, side))
    files = {"gallery.png": _gallery(made, prompts, spec.gallery)}
    return Judged(
        metrics=scores.metrics,
        outcomes=scores.outcomes,
        files=files,
        left_out=tuple(scores.left_out),
    )


def _solid(packed: "NDArray[np.uint8]") -> Tensor:
    """Return what a mesh is cut from, (1, 4, R, R, R); unpacked one at a time, a number four bytes in place of one."""
    return volumes.solid(_unpacked(packed))


def _unpacked(packed: "NDArray[np.uint8]") -> Tensor:
    return torch.from_numpy(packed)[None].float() / 255


def _connected(there: "NDArray[np.bool_]") -> float:
    """Return the share of what is there that hangs together: what floats about a thing is no part of it."""
    labels, count = label(there)
    return float(np.bincount(labels[there]).max() / there.sum()) if count else 0.0


def _by_judge(
    scores: Scores,
    judge: "AttributeJudge",
    made: "Sequence[NDArray[np.uint8]]",
    prompts: Sequence[str],
    facts: Mapping[str, Any],
    side: int,
) -> None:
    """Add alignment: of the views all about a thing those in which all that its caption says is seen."""
    if not prompts or not facts["attributes"]:
        return
    sides = volumes.around(AROUND)
    shown = torch.cat([volumes.seen(_solid(one), sides, side, GREY) for one in made])
    with torch.no_grad():
        predicted = judge.predict(shown.flatten(0, 1)).cpu()
    wanted = pictures.wanted_attributes(prompts, facts["attributes"])
    joint, single = m.alignment(predicted, wanted.repeat_interleave(AROUND, 0))
    scores.mean("alignment", _of_things(joint), over=prompts, keep=True)
    held_out = {thing(one) for one in facts["held_out"]}
    for part, inside in (("trained", False), ("held_out", True)):
        chosen = [place for place, one in enumerate(prompts) if (one in held_out) == inside]
        if chosen and held_out:
            over = [prompts[place] for place in chosen]
            scores.mean(f"alignment_{part}", _of_things(joint)[chosen], over=over)
    for column, name in enumerate(facts["attributes"]):
        scores.mean(f"alignment_{name}", _of_things(single[:, column]), over=prompts)


def _of_things(views: Tensor) -> Tensor:
    """Return the mean over the views of each thing (N,)."""
    return views.float().reshape(-1, AROUND).mean(1)


def _as_real(made: "Sequence[NDArray[np.uint8]]", side: int) -> Tensor:
    """Return a few pictures of each volume (N, V, C, H, W), from where and before what the real ones are seen."""
    least, most = ELEVATIONS
    found, generator = [], torch.Generator().manual_seed(0)
    for one in made:
        [volume] = _solid(one)
        draws = torch.rand(3, FEW, generator=generator)
        axes_V33 = volumes.axes(2 * math.pi * draws[0], least + (most - least) * draws[1])
        shown, opaque = volumes.render(volume[:3], volumes.thickness(volume[3]), axes_V33, side)
        found.append((shown + (1 - opaque) * draws[2, :, None, None, None]).clamp(0, 1))
    return torch.stack(found)


def _familiar(prepared: Path, facts: Mapping[str, Any], side: int) -> list[Tensor]:
    """Return the real pictures of test and validation whose captions were learned."""
    parts = [pictures.as_squares(prepared, split, side)[:2] for split in ("test", "validation")]
    held_out = set(facts["held_out"])
    return [
        pixels[[place for place, one in enumerate(captions) if one not in held_out]]
        for pixels, captions in parts
    ]


def _gallery(made: "Sequence[NDArray[np.uint8]]", prompts: Sequence[str], count: int) -> bytes:
    """Return strips of views all about the first volumes."""
    few, sides = max(1, count // 2), volumes.around(SHOWN)
    large = 2 * made[0].shape[-1]
    shown = torch.cat([volumes.seen(_unpacked(one), sides, large) for one in made[:few]])
    return of_clips(shown, prompts[:few], len(shown))
