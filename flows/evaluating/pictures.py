"""Judging pictures: what the judge says of the drawn ones, against real ones never trained on; a gallery."""

from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.loaders import by_size, read_header
from flows.evaluating.embeddings import agreement, retrieval
from flows.evaluating.measured import asked_of
from flows.evaluating.pipeline import as_asked, draw
from flows.evaluating.scores import (
    Judged,
    Scores,
    caption_gain,
    device_of,
    evenly,
    gap,
    likelihood,
    nats_of,
    own,
    rated,
)
from flows.evaluating.sheets import of_pictures
from flows.recipe import Evaluation as EvaluationSpec
from flows.recipe import split
from infra.pipelines import PinnedStage, Pipeline
from models.family import Family, mixed
from models.judges import LEAST_HELD_OUT
from models.judges import metrics as m
from models.parts import words
from models.parts.rows import entered
from models.parts.sizes import sides, squared
from models.request import Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.judges.attribute_judge import AttributeJudge
    from models.judges.clip_judge import ClipJudge

Judge: TypeAlias = "AttributeJudge | ClipJudge"
MEASURED: Final = 500  # real pictures of which a family tells by itself, at most
HELD_OUT: Final = "fd_judge of test and validation"  # until then it was of the test split alone
OWN: Final = 3  # drawn pictures a held-out one whose nats are told; further ones narrow the gap's interval by a tenth
PAIRS: Final = 192  # real pictures on which an upsampler is measured


def drawn(
    models: Sequence[Family],
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    prepared: Path,
) -> Tensor:
    """Return the pictures (N, C, H, W); of several sizes each stands in a corner of one as large as any."""
    if not pipeline.sizes:
        return as_asked(models, pipeline, prompts, seeds, prepared)
    wanted = sizes_drawn(pipeline, prepared, seeds)
    height, width = (max(sides(size)[axis] for size in pipeline.sizes) for axis in (0, 1))
    found: Tensor | None = None
    for size in dict.fromkeys(wanted):
        rows = [row for row, one in enumerate(wanted) if one == size]
        texts = [prompts[row] for row in rows] if prompts else []
        made = draw(models, pipeline, texts, [seeds[row] for row in rows], options={"size": size})
        if found is None:
            found = made.new_zeros(len(wanted), made.shape[1], height, width)
        found[rows, :, : made.shape[2], : made.shape[3]] = made
    assert found is not None
    return found


def sizes_drawn(pipeline: Pipeline, prepared: Path, seeds: Sequence[int]) -> list[str]:
    """Return the size of each seed's picture: each as often as the data have it, whatever is drawn beside it."""
    header = read_header(prepared)
    counts = Counter[str]()
    for part in header["splits"].values():
        for shard in part["shards"]:
            counts[shard.get("size", "")] += shard["rows"]
    learned = [counts[size] for size in header.get("sizes", ())]
    shares = learned if len(learned) == len(pipeline.sizes) else [1] * len(pipeline.sizes)
    ends = list(accumulate(shares))
    return [pipeline.sizes[bisect(ends, mixed(seed) % ends[-1])] for seed in seeds]


def as_squares(prepared: Path, split: str, side: int) -> tuple[Tensor, list[str], Tensor]:
    """Return a split's pictures (N, C, H, W), stretched where they are no squares, N captions, attributes (N, A)."""
    parts = by_size(prepared, split, side)
    pixels = torch.cat([squared(pixels, side) for pixels, _, _ in parts])
    captions = [caption for _, captions, _ in parts for caption in captions]
    return pixels, captions, torch.cat([attributes for _, _, attributes in parts])


def requests(
    pipeline: Pipeline, prepared: Path, spec: EvaluationSpec
) -> tuple[list[str], list[int]]:
    """Return one prompt and one seed a picture."""
    return fixed_requests(pipeline, read_header(prepared)["captions"], spec)


def fixed_requests(
    pipeline: Pipeline, captions: Sequence[str], spec: EvaluationSpec
) -> tuple[list[str], list[int]]:
    """Return one prompt and one seed a sample: every caption with every seed, or numbered seeds without prompts."""
    if not pipeline.reads_text:
        return [], list(range(spec.samples))
    asked = asked_of(captions, spec)
    pairs = [
        (caption, 100_003 * seed + row) for seed in spec.seeds for row, caption in enumerate(asked)
    ]
    return [caption for caption, _ in pairs], [seed for _, seed in pairs]


def packed(drawn: Tensor) -> "NDArray[Any]":
    """Return pictures (N, C, H, W) in [0, 1] as bytes 0..255."""
    levels: NDArray[np.uint8] = (drawn.clamp(0, 1) * 255).round().byte().numpy()
    return levels


def score(
    drawn: "Sequence[NDArray[Any]]",
    prompts: Sequence[str],
    *,
    judge: "AttributeJudge | None",
    prepared: Path,
    spec: EvaluationSpec,
    models: Sequence[Family],
    pipeline: Pipeline,
) -> Judged:
    """Return every metric with its interval, per-sample outcomes for paired comparison, and the gallery."""
    facts = of_pictures_alone(read_header(prepared))
    shown = list(torch.from_numpy(np.concatenate(drawn)).float() / 255)
    by_stage = dict(zip((stage.stage for stage in pipeline.stages), models, strict=True))
    side = shown[0].shape[-1]
    if pipeline.sizes:
        wanted = sizes_drawn(pipeline, prepared, requests(pipeline, prepared, spec)[1])
        areas = [sides(size) for size in wanted]
        shown = [one[:, :high, :wide] for one, (high, wide) in zip(shown, areas, strict=True)]
        side = by_stage[pipeline.lead.stage].config.image_size
    pictures = torch.stack([squared(one[None], side)[0] for one in shown])
    train, learned, _ = as_squares(prepared, "train", side)
    test, captions, _ = as_squares(prepared, "test", side)
    held_out = set(facts["held_out"])
    familiar = torch.tensor([caption not in held_out for caption in captions])
    scores = Scores(spec)
    if judge is not None:
        _by_judge(scores, judge, (pictures, prompts), (train, learned), facts)
        validation, others, _ = as_squares(prepared, "validation", side)
        asked = torch.tensor([prompt not in held_out for prompt in prompts] or [True])
        known = torch.tensor([caption not in held_out for caption in others])
        seen = pictures[asked.expand(len(pictures))]
        distribution(scores, judge, seen, test[familiar], validation[known])
    copies(scores, pictures, train, test[familiar])
    pixel_values(scores, pictures, test)
    for stage in pipeline.stages:
        model = by_stage[stage.stage]
        if model.capabilities.upscales:
            _upsampling(scores, model, stage.stage, test, captions, stage.options)
        if model.capabilities.tokenizes and judge is not None and facts["attributes"]:
            _reconstruction(scores, judge, model, stage.stage, test, captions, facts)
        if model.ranks:
            retrieval(scores, model, stage.stage, sized(model, test), captions, facts["captions"])
            if prompts:
                agreement(scores, model, stage.stage, sized(model, pictures), prompts)
        if model.capabilities.likelihood:
            real = rated(model, _beside(stage, by_stage, test, captions), captions)
            nats = likelihood(scores, model, stage.stage, real)
            if model.capabilities.condition == "text":
                caption_gain(scores, model, stage.stage, real, captions, nats)
            if len(models) == 1 and len(test) >= LEAST_HELD_OUT:
                few = evenly(torch.arange(len(pictures)), min(len(pictures), OWN * len(test)))
                asked_few = [prompts[place] for place in few.tolist()] if prompts else []
                drawn_nats = nats_of(model, rated(model, {"pixels": pictures[few]}, asked_few))
                gap(scores, f"{stage.stage}_sample_gap", drawn_nats, nats)
        if len(test) >= LEAST_HELD_OUT:  # one picture has no distribution
            parts = [(test, captions)]
            if getattr(model.config, "sizes", ()):  # as it learned them
                parts = [part[:2] for part in by_size(prepared, "test", side)]
            batches = [_measured(stage, by_stage, *part, len(test)) for part in parts]
            own(scores, model, stage.stage, *batches)
    files = {"gallery.png": of_pictures(shown, prompts, spec.gallery)}
    return Judged(
        metrics=scores.metrics,
        outcomes=scores.outcomes,
        files=files,
        left_out=tuple(scores.left_out),
        cut=HELD_OUT,
    )


def _measured(
    stage: PinnedStage,
    models: Mapping[str, Family],
    pixels: Tensor,
    captions: Sequence[str],
    whole: int,
) -> dict[str, Tensor]:
    """Return the share of real pictures that a family tells of, as it rates them: of the `whole` MEASURED at most."""
    count = max(1, len(pixels) * min(whole, MEASURED) // whole)
    places = evenly(torch.arange(len(pixels)), count)
    shown = [captions[place] for place in places.tolist()]
    return rated(models[stage.stage], _beside(stage, models, pixels[places], shown), shown)


def of_pictures_alone(header: dict[str, Any]) -> dict[str, Any]:
    """Return dataset.json without the attributes of clips that no single frame shows."""
    moving = header.get("moving", ())
    seen = {name: values for name, values in header["attributes"].items() if name not in moving}
    return {**header, "attributes": seen}


def _beside(
    stage: PinnedStage, models: Mapping[str, Family], pixels: Tensor, captions: Sequence[str]
) -> dict[str, Tensor]:
    """Return real pictures at a stage's size with what the stages that it needs make of them."""
    found = {"pixels": sized(models[stage.stage], pixels)}
    for name, wanted in stage.needs.items():
        source, entry = split(wanted)
        model = models[source]
        reads = "text" in _kinds(model, entry)
        given = {} if reads else {"pixels": sized(model, pixels)}
        with torch.no_grad():
            found[name] = entered(model, entry, given, captions if reads else ()).cpu()
    return found


def _kinds(model: Family, entry: str) -> frozenset[str]:
    """Return the kinds of what an entry takes."""
    return frozenset(port.kind for port in model.entries[entry].inputs.values())


def sized(model: Family, pixels: Tensor) -> Tensor:
    """Return pictures at a model's size, by the mean over areas; as they are where it has none, or several."""
    size = getattr(model.config, "image_size", None)
    several = bool(getattr(model.config, "sizes", ()))
    same = size is None or several or pixels.shape[-1] == size
    return pixels if same else F.adaptive_avg_pool2d(pixels, size)


def _by_judge(
    scores: Scores,
    judge: "AttributeJudge",
    drawn: tuple[Tensor, Sequence[str]],
    learned: tuple[Tensor, Sequence[str]],
    facts: dict[str, Any],
) -> None:
    """What the judge makes of drawn pictures one by one, and of those of one prompt."""
    pictures, prompts = drawn
    if prompts and facts["attributes"]:
        alignment(scores, judge, pictures, prompts, facts)
    if len(set(prompts)) < len(prompts):
        variety(scores, judge, drawn, learned)
    if len(facts["attributes"]) == 1:
        _classes(scores, judge, pictures, prompts)


def wanted_attributes(prompts: Sequence[str], attributes: Mapping[str, Sequence[str]]) -> Tensor:
    """Return (N, A) the index of the value that each prompt asks for, attribute by attribute.

    Raises:
        ValueError: a prompt names no value of an attribute.
    """
    rows = []
    for prompt in prompts:
        row = [named(prompt, values) for values in attributes.values()]
        if None in row:
            raise ValueError(f"{prompt!r} names no {list(attributes)[row.index(None)]}")
        rows.append(row)
    return torch.tensor(rows)


def named(prompt: str, values: Sequence[str]) -> int | None:
    """Return the index of the value that a prompt is, else of the longest that stands in it as whole words."""
    said = " ".join(words.split(prompt))
    if said in values:
        return list(values).index(said)
    within = [value for value in values if f" {value} " in f" {said} "]
    return list(values).index(max(within, key=len)) if within else None


def alignment(
    scores: Scores,
    judge: Judge,
    pictures: Tensor,
    prompts: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Add alignment, with its parts by attribute and by whether captions were learned."""
    with torch.no_grad():
        predicted = judge.predict(pictures)
    wanted = wanted_attributes(prompts, facts["attributes"])
    joint, single = m.alignment(predicted, wanted)
    scores.mean("alignment", joint, over=prompts, keep=True)
    unseen = set(facts["held_out"])
    held_out = torch.tensor([prompt in unseen for prompt in prompts])
    for part, rows in (("trained", ~held_out), ("held_out", held_out)):
        if unseen and rows.any():
            asked = [p for p, inside in zip(prompts, rows.tolist(), strict=True) if inside]
            scores.mean(f"alignment_{part}", joint[rows], over=asked)
    for column, name in enumerate(facts["attributes"]):
        scores.mean(f"alignment_{name}", single[:, column], over=prompts)


def _classes(
    scores: Scores, judge: "AttributeJudge", pictures: Tensor, prompts: Sequence[str]
) -> None:
    """Whether every value of the one attribute is drawn, and how sure the judge is of what it sees."""
    shares_NV = judge.probabilities(pictures)[0].cpu()
    sure_N, predicted_N = shares_NV.max(1)
    scores.mean("judge_confidence", sure_N, over=prompts)
    if prompts:
        return  # the prompts settle how often a value is drawn; `alignment` says if they are heeded
    least = partial(m.least_share, classes=shares_NV.shape[1])
    found = m.bootstrap(predicted_N, least, count=scores.resamples, seed=0)
    scores.add("least_class", found.value, found.low, found.high, len(pictures))


def distribution(
    scores: Scores, judge: Judge, pictures: Tensor, test: Tensor, validation: Tensor
) -> None:
    """How far the drawn pictures lie from real ones that nobody learned from, and how many of each cover the other.

    The Frechet distance is of all of them, since a few leave it wide open, and so is precision, which is of drawn ones
    one by one; recall and coverage depend on how many there are, which are as many on both sides.
    """
    count = min(len(pictures), len(test))
    if count < LEAST_HELD_OUT:
        return
    drawn, held_out = judge.features(pictures), judge.features(torch.cat([test, validation]))
    blocks = min(20, count // 2)
    fd = m.jackknife(held_out, drawn, m.frechet_distance, blocks=blocks)
    scores.add("fd_judge", fd.value, max(0.0, fd.low), fd.high, len(drawn))
    real, as_many = evenly(held_out[: len(test)], count), evenly(drawn, count)
    scores.mean("precision", m.precision_recall(real, drawn)[0])
    scores.mean("recall", m.precision_recall(real, as_many)[1])
    scores.mean("coverage", m.coverage(real, as_many))


def variety(
    scores: Scores,
    judge: Judge,
    drawn: tuple[Tensor, Sequence[str]],
    real: tuple[Tensor, Sequence[str]],
) -> None:
    """How far pictures of one prompt lie apart by their seeds, over what real ones of that caption do: 1 is as far."""
    parts = []
    for pictures, captions in (drawn, real):
        with torch.no_grad():
            parts.append(m.spread(judge.features(pictures).cpu(), captions))
    ours, theirs = parts
    if both := [caption for caption in ours if caption in theirs]:
        usual = sum(theirs[caption] for caption in both) / len(both)
        if usual > 0:
            scores.mean("spread", torch.tensor([ours[caption] for caption in both]) / usual)


def pixel_values(scores: Scores, drawn: Tensor, real: Tensor) -> None:
    """Add pixel_distance: how far the values of drawn pixels (N, C, ...) lie from those of real ones."""
    if len(real) < LEAST_HELD_OUT:
        return
    reached, usual = m.levels_reached(drawn), m.levels_reached(real).mean(0, keepdim=True)
    apart = partial(m.pixel_distance, real=usual)
    found = m.bootstrap(reached, apart, count=scores.resamples, seed=0)
    scores.add("pixel_distance", found.value, found.low, found.high, len(drawn))


def copies(scores: Scores, pictures: Tensor, train: Tensor, test: Tensor) -> None:
    """Add memorised and distinct: which drawn pictures are copies of learned ones, and which of one another."""
    if len(test) < LEAST_HELD_OUT:
        return  # a small folder can be learned from all the same; a gate that asks for this says so
    memorised(scores, pictures, train, test)
    count = min(len(pictures), len(test))
    if count > 1:
        scores.mean("distinct", m.distinct(evenly(pictures, count), evenly(test, count)))


def memorised(scores: Scores, pictures: Tensor, train: Tensor, test: Tensor) -> None:
    """Add memorised; held-out pictures that were learned, too, are set aside where they are many, and told."""
    try:
        found = m.memorisation(pictures, train, test)
    except m.Copied as error:
        scores.left_out.append(f"memorised: {error.found}")
        if len(error.unseen) < LEAST_HELD_OUT:
            return
        found = m.memorisation(pictures, train, error.unseen)
    scores.mean("memorised", found)


def _reconstruction(
    scores: Scores,
    judge: "AttributeJudge",
    model: Family,
    stage: str,
    test: Tensor,
    captions: Sequence[str],
    facts: dict[str, Any],
) -> None:
    """Whether real pictures still show what their captions say once they have been codes, and nothing but codes.

    What a stage that learns to write codes can reach at best. All attributes right, as the judge sees them. Of drawn
    pictures also how much of that they reach; the interval is that of both at their far ends.
    """
    pixels = sized(model, evenly(test, min(len(test), MEASURED)))
    shown = [captions[len(test) * place // len(pixels)] for place in range(len(pixels))]
    with torch.no_grad():
        back = model.painted(model.codes(pixels.to(device_of(model)))).cpu()
        predicted = judge.predict(F.interpolate(back, size=test.shape[-2:], mode="area"))
    joint, _ = m.alignment(predicted, wanted_attributes(shown, facts["attributes"]))
    scores.mean(f"{stage}_reconstruction_alignment", joint, over=shown, keep=True)
    best, drawn = (
        scores.metrics[f"{stage}_reconstruction_alignment"],
        scores.metrics.get("alignment"),
    )
    if drawn is not None and best.low > 0:
        ratios = (
            drawn.value / best.value,
            drawn.low / best.high,
            drawn.high / best.low,
        )
        scores.add(f"{stage}_relative_alignment", *ratios, drawn.count)


def _upsampling(
    scores: Scores,
    model: Family,
    stage: str,
    test: Tensor,
    captions: Sequence[str],
    options: Mapping[str, Any],
) -> None:
    """PSNR of upscaled real pictures over bicubic interpolation's, in dB, picture by picture."""
    step = max(1, len(test) // PAIRS)
    high, chosen = test[::step][:PAIRS], list(captions)[::step][:PAIRS]
    low = F.adaptive_avg_pool2d(high, model.config.low_size)
    request = Request(
        seeds=tuple(range(len(high))),
        prompts=tuple(chosen) if model.capabilities.condition == "text" else (),
        options={**options, "guidance": 1.0},
        given={"low": low},
    )
    with torch.no_grad():
        ours = model.sample(request).cpu()
    cubic = F.interpolate(low, size=high.shape[-2:], mode="bicubic", align_corners=False).clamp(
        0, 1
    )
    scores.mean(f"{stage}_gain_db", m.psnr(ours, high) - m.psnr(cubic, high), keep=True)
