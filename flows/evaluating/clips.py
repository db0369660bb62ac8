"""Judging clips: what the judge says of drawn ones, how they move, and what each stage adds to real ones; a gallery.

Real clips are taken at the drawn ones' number of frames and rate, each n-th from the first on.

Shape letters: N clips, F frames, C channels, H and W pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.loaders import clips, read_header
from flows.evaluating import pictures
from flows.evaluating.measured import GIVEN, goes_on_from
from flows.evaluating.scores import Judged, Scores, own, rated
from flows.evaluating.sheets import of_clips
from flows.recipe import Evaluation as EvaluationSpec
from flows.recipe import split
from infra.pipelines import PinnedStage, Pipeline
from models.family import Family
from models.judges import LEAST_HELD_OUT
from models.judges import clip_metrics as c
from models.judges import metrics as m
from models.parts.rows import entered
from models.request import Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.judges.clip_judge import ClipJudge

PAIRS: Final = 96  # real clips on which a stage is measured
COARSE: Final = 16  # pixels a side at which copies of training clips are looked for

requests = pictures.requests
packed = pictures.packed
drawn = pictures.drawn


def score(
    drawn: "Sequence[NDArray[Any]]",
    prompts: Sequence[str],
    *,
    judge: "ClipJudge | None",
    prepared: Path,
    spec: EvaluationSpec,
    models: Sequence[Family],
    pipeline: Pipeline,
) -> Judged:
    """Return every metric with its interval, per-sample outcomes for paired comparison, and the gallery."""
    facts = read_header(prepared)
    made = torch.from_numpy(np.concatenate(drawn)).float() / 255
    step = each_of(facts["frame_rate"], pipeline)
    real = {name: _real(prepared, name, made, step) for name in ("test", "validation")}
    scores = Scores(spec)
    scores.mean("jerk", c.jerk(made), over=prompts, keep=True)
    _travel(scores, made, prompts, real["test"][0])
    if judge is not None:
        by_judge(scores, judge, made, prompts, facts)
        held_out = set(facts["held_out"])
        asked = [place for place, one in enumerate(prompts) if one not in held_out]
        seen = made[asked] if prompts else made
        known = [frames[_familiar(captions, held_out)] for frames, captions in real.values()]
        pictures.distribution(scores, judge, seen, *known)
        if len(set(prompts)) < len(prompts):
            pictures.variety(scores, judge, (made, prompts), real["test"])
    _memorisation(scores, made, prepared, step)
    pictures.pixel_values(scores, made.transpose(1, 2), real["test"][0].transpose(1, 2))
    by_stage = dict(zip((stage.stage for stage in pipeline.stages), models, strict=True))
    whole = clips(prepared, "test")[:2]
    for stage in pipeline.stages:
        _of_stage(scores, stage, by_stage, *whole)
    files = {"gallery.png": of_clips(made, prompts, max(1, spec.gallery // 4))}
    return Judged(
        metrics=scores.metrics,
        outcomes=scores.outcomes,
        files=files,
        left_out=tuple(scores.left_out),
    )


def by_judge(
    scores: Scores,
    judge: "ClipJudge",
    made: Tensor,
    prompts: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Add alignment, as of pictures, with that of what moves, frame_alignment and constancy.

    frame_alignment: frames of which every attribute that a frame shows is as asked. constancy: clips all of whose
    frames show the same. Neither where no frame shows any: all clips would be right.
    """
    of_frames, shown = judge.predict_frames(made), list(judge.config.shown)
    if shown:
        scores.mean("constancy", c.constancy(of_frames), over=prompts)
    if not prompts or not facts["attributes"]:
        return
    pictures.alignment(scores, judge, made, prompts, facts)
    if shown:
        wanted = pictures.wanted_attributes(prompts, facts["attributes"]).to(of_frames.device)
        right = (of_frames == wanted[:, None, shown]).all(2).float().mean(1)
        scores.mean("frame_alignment", right, over=prompts, keep=True)


def _travel(scores: Scores, made: Tensor, prompts: Sequence[str], real: Tensor) -> None:
    """Add travel: how far the thing in a clip goes from its first frame to its last, over how far it does in real ones.

    Asks what VBench's dynamic degree does (arXiv:2311.17982), by optical flow: here the one thing's centre says
    it, in shares of real clips' way. A judge of directions is content with a clip half of which stands still, and jerk
    with one that hardly moves.
    """
    usual = float(c.moved(real).mean())
    if usual > 0:
        scores.mean("travel", c.moved(made) / usual, over=prompts)


def _real(prepared: Path, name: str, made: Tensor, step: int) -> tuple[Tensor, list[str]]:
    """Return real clips as many frames long and as large as the drawn ones, with their captions."""
    frames, captions, _ = clips(prepared, name, image_size=made.shape[-1])
    return as_long(frames, made.shape[1], step), captions


def each_of(rate: float, pipeline: Pipeline) -> int:
    """Return n, where what is drawn has each n-th frame of data that have `rate` frames a second."""
    return max(1, round(rate / (pipeline.frame_rate or rate)))


def as_long(frames: Tensor, count: int, step: int) -> Tensor:
    """Return clips (N, F, C, H, W) of `count` frames: each n-th from the first on."""
    return frames[:, ::step][:, :count]


def _familiar(captions: Sequence[str], held_out: set[str]) -> list[int]:
    return [place for place, caption in enumerate(captions) if caption not in held_out]


def _memorisation(scores: Scores, made: Tensor, prepared: Path, step: int) -> None:
    side = made.shape[-1]
    size = COARSE if side > COARSE and side % COARSE == 0 else side
    train, test = (
        as_long(clips(prepared, name, image_size=size)[0], made.shape[1], step).flatten(1, 2)
        for name in ("train", "test")
    )
    if len(test) < LEAST_HELD_OUT:
        return  # a small folder can be learned from all the same
    small = F.adaptive_avg_pool2d(made.flatten(1, 2), size)
    pictures.memorised(scores, small, train, test)


def _of_stage(
    scores: Scores,
    stage: PinnedStage,
    models: Mapping[str, Family],
    whole: Tensor,
    captions: Sequence[str],
) -> None:
    """Add what a stage makes of real clips that nobody learned from, and what it tells of them itself."""
    model = models[stage.stage]
    places = torch.arange(min(len(whole), PAIRS)) * len(whole) // min(len(whole), PAIRS)
    said = [captions[place] for place in places.tolist()]
    real = sized(model, whole[places])
    if len(whole) >= LEAST_HELD_OUT:
        told = rated(model, beside(stage, models, real, said), said)
        own(scores, model, stage.stage, told, rows=PAIRS)
    if model.capabilities.modality != "clip":
        return
    inputs = {name for name, port in model.inputs.items() if port.kind == "clip"}
    if "low" in inputs:
        _upscaling(scores, model, stage, real, said)
    if "half" in inputs:
        _interpolation(scores, model, stage, real, said)
    if 0 < goes_on_from(model) <= GIVEN <= whole.shape[1] // 2:
        _prediction(scores, model, stage, real, said)


def sized(model: Family, frames: Tensor) -> Tensor:
    """Return clips at a model's size, by the mean over areas; as they are where it has none."""
    return _together(pictures.sized(model, frames.flatten(0, 1)), frames)


def _together(rows: Tensor, frames: Tensor) -> Tensor:
    """Return what was made of every frame of clips (N * F, ...) as (N, F, ...)."""
    return rows.reshape(*frames.shape[:2], *rows.shape[1:])


def beside(
    stage: PinnedStage, models: Mapping[str, Family], real: Tensor, said: Sequence[str]
) -> dict[str, Tensor]:
    """Return clips, or to a family of pictures a frame of each, with what other stages make of them.

    Another from clip to clip, as it learned them: in the middle they vary less. To a family of clips what is made of
    pictures is made of every frame.
    """
    learns_clips = hasattr(models[stage.stage].config, "frames")
    row_N = torch.arange(len(real))
    shown = real if learns_clips else real[row_N, row_N % real.shape[1]]
    found = {"frames" if learns_clips else "pixels": shown}
    for name, wanted in stage.needs.items():
        source, entry = split(wanted)
        model = models[source]
        ports = model.entries[entry].inputs
        with torch.no_grad():
            if "pixels" not in ports:
                given = {"frames": sized(model, real)} if "frames" in ports else {}
                found[name] = entered(model, entry, given, () if given else said).cpu()
                continue
            pixels = pictures.sized(model, shown.flatten(0, 1) if learns_clips else shown)
            made = entered(model, entry, {"pixels": pixels}, ()).cpu()
        found[name] = _together(made, real) if learns_clips else made
    return found


def _drawn(
    model: Family, stage: PinnedStage, said: Sequence[str], given: Mapping[str, Tensor]
) -> Tensor:
    """Return what a stage makes of real clips' parts, told their captions if it reads any; not guided."""
    count = len(next(iter(given.values())))
    guided = {"guidance": 1.0} if "guidance" in model.takes else {}
    request = Request(
        seeds=tuple(range(count)),
        prompts=tuple(said) if model.capabilities.condition == "text" else (),
        options={**stage.options, **guided},
        given=given,
    )
    with torch.no_grad():
        return model.sample(request).cpu()


def _gains(scores: Scores, stage: str, made: Tensor, plain: Tensor, real: Tensor) -> None:
    """Add STAGE_gain_db and STAGE_gain_ssim: by how much PSNR and SSIM of clips are better than the plain guess's."""
    scores.mean(f"{stage}_gain_db", m.psnr(made, real) - m.psnr(plain, real), keep=True)
    better = c.clip_ssim(made, real) - c.clip_ssim(plain, real)
    scores.mean(f"{stage}_gain_ssim", better, keep=True)


def _upscaling(
    scores: Scores, model: Family, stage: PinnedStage, real: Tensor, said: Sequence[str]
) -> None:
    """Measure an upsampler on real clips against bicubic interpolation."""
    real = as_long(real, model.config.frames, model.config.skips[-1])
    flat = real.flatten(0, 1)
    low = F.adaptive_avg_pool2d(flat, model.config.low_size)
    cubic = F.interpolate(low, size=flat.shape[-2:], mode="bicubic", align_corners=False)
    made = _drawn(model, stage, said, {"low": _together(low, real)})
    _gains(scores, stage.stage, made, cubic.clamp(0, 1).view_as(real), real)


def _interpolation(
    scores: Scores, model: Family, stage: PinnedStage, real: Tensor, said: Sequence[str]
) -> None:
    """Measure frames between each second one of real clips against those on a straight line between both."""
    real = as_long(real, model.config.frames, model.config.skips[-1])
    given = real[:, ::2]
    made = _drawn(model, stage, said, {"half": given})[:, 1::2]
    line = (given[:, :-1] + given[:, 1:]) / 2
    _gains(scores, stage.stage, made, line, real[:, 1::2])


def _prediction(
    scores: Scores, model: Family, stage: PinnedStage, real: Tensor, said: Sequence[str]
) -> None:
    """Add STAGE_prediction_mse and STAGE_prediction_ssim: ten frames after ten given ones, as on Moving MNIST."""
    after = real[:, GIVEN : 2 * GIVEN]
    frames = real[:, :GIVEN]
    while frames.shape[1] < 2 * GIVEN:
        frames = torch.cat([frames, following(model, stage, frames, said)], 1)
    made = frames[:, GIVEN : 2 * GIVEN]
    scores.mean(f"{stage.stage}_prediction_mse", c.frame_errors(made, after), keep=True)
    scores.mean(f"{stage.stage}_prediction_ssim", c.clip_ssim(made, after, c.RANGE), keep=True)


def following(model: Family, stage: PinnedStage, frames: Tensor, said: Sequence[str]) -> Tensor:
    """Return the frames that a stage puts behind clips, whose last ones it takes as its first half."""
    length = model.config.frames
    known = goes_on_from(model)
    first = frames[:, -length:]
    lacking = length - first.shape[1]
    start = torch.cat([first[:, :1].expand(-1, lacking, -1, -1, -1), first], 1)
    return _drawn(model, stage, said, {"start": start})[:, known:]
