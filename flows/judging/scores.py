"""The numbers of one evaluation: what the judge says of the drawn pictures, against real ones never trained on."""

import io
import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.loaders import everything
from flows.judging.gate import Interval
from flows.judging.pipeline import Pipeline
from flows.recipe import Evaluation as EvaluationSpec
from models.family import Family, Request
from models.judges import metrics as m
from models.judges.gallery import gallery

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.judges.attribute_judge import AttributeJudge

MEASURED = 500  # real pictures of which a family tells by itself, at most
PAIRS = 192  # real pictures on which an upsampler is measured


def score(
    drawn: "NDArray[np.uint8]",
    prompts: Sequence[str],
    *,
    judge: "AttributeJudge | None",
    prepared: Path,
    spec: EvaluationSpec,
    models: Sequence[Family],
    pipeline: Pipeline,
) -> tuple[dict[str, Interval], dict[str, list[float]], bytes]:
    """Return every metric with its interval, per-sample outcomes for paired comparison, and the gallery PNG."""
    facts = json.loads((prepared / "dataset.json").read_text())
    pictures = torch.from_numpy(drawn).float() / 255
    side = pictures.shape[-1]
    train, _, _ = everything(prepared, "train", image_size=side)
    test, captions, _ = everything(prepared, "test", image_size=side)
    held_out = set(facts["held_out"])
    familiar = torch.tensor([caption not in held_out for caption in captions])
    scores = _Scores(spec)
    if judge is not None:
        if prompts and facts["attributes"]:
            _alignment(scores, judge, pictures, prompts, facts)
        seen = torch.tensor(
            [prompt not in held_out for prompt in prompts] or [True] * len(pictures)
        )
        _distribution(scores, judge, pictures[seen], test[familiar])
        if len(facts["attributes"]) == 1:
            _classes(scores, judge, pictures, prompts)
    _memorisation(scores, pictures, train, test[familiar])
    for model, stage in zip(models, pipeline.stages, strict=True):
        if model.capabilities.upscales:
            _upsampling(scores, model, stage.stage, test, captions, stage.steps)
        if model.capabilities.likelihood:
            _likelihood(scores, model, stage.stage, test, captions)
        _own(scores, model, stage.stage, test)
    return scores.metrics, scores.outcomes, sheet(pictures, prompts, spec.gallery)


class _Scores:
    """Collects per-sample values as means with bootstrap intervals."""

    def __init__(self, spec: EvaluationSpec) -> None:
        self.metrics: dict[str, Interval] = {}
        self.outcomes: dict[str, list[float]] = {}
        self.resamples = spec.bootstrap

    def mean(
        self, name: str, values: Tensor, *, over: Sequence[str] = (), keep: bool = False
    ) -> None:
        """Add a mean of values (N,); those of one prompt (`over`, one a value) are resampled together."""
        count = len(values)
        values = by_prompt(values.float(), over) if over else values.float()
        found = m.bootstrap(values, count=self.resamples, seed=0)
        self.add(name, found.value, found.low, found.high, count)
        if keep:
            self.outcomes[name] = [round(float(value), 4) for value in values]

    def add(self, name: str, value: float, low: float, high: float, count: int) -> None:
        self.metrics[name] = Interval(value=value, low=low, high=high, count=count)


def by_prompt(values: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean of each prompt's values, in the order in which prompts first come.

    Pictures of one prompt are no independent samples of what users ask for: an interval over them would be too narrow.
    """
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    index = torch.tensor([places[prompt] for prompt in prompts])
    total = torch.zeros(len(places)).index_add_(0, index, values)
    return total / index.bincount(minlength=len(places))


def wanted_attributes(prompts: Sequence[str], attributes: dict[str, list[str]]) -> Tensor:
    """Return (N, A) the index of the value that each prompt asks for, attribute by attribute."""
    rows = []
    for prompt in prompts:
        words = prompt.split()
        rows.append(
            [
                next(i for i, value in enumerate(values) if value == prompt or value in words)
                for values in attributes.values()
            ]
        )
    return torch.tensor(rows)


def _alignment(
    scores: _Scores,
    judge: "AttributeJudge",
    pictures: Tensor,
    prompts: Sequence[str],
    facts: dict[str, Any],
) -> None:
    with torch.no_grad():
        predicted = judge.predict(pictures)
    wanted = wanted_attributes(prompts, facts["attributes"])
    joint, single = m.alignment(predicted, wanted)
    scores.mean("alignment", joint, over=prompts, keep=True)
    held_out = torch.tensor([prompt in set(facts["held_out"]) for prompt in prompts])
    if held_out.any():
        for part, chosen in (("trained", ~held_out), ("held_out", held_out)):
            asked = [p for p, inside in zip(prompts, chosen.tolist(), strict=True) if inside]
            scores.mean(f"alignment_{part}", joint[chosen], over=asked)
    for column, name in enumerate(facts["attributes"]):
        scores.mean(f"alignment_{name}", single[:, column], over=prompts)


def _classes(
    scores: _Scores, judge: "AttributeJudge", pictures: Tensor, prompts: Sequence[str]
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


def _distribution(scores: _Scores, judge: "AttributeJudge", pictures: Tensor, real: Tensor) -> None:
    count = min(len(pictures), len(real))  # both measures depend on it
    if count < m.LEAST_HELD_OUT:
        return
    with torch.no_grad():
        fake_features = judge.features(evenly(pictures, count))
        real_features = judge.features(evenly(real, count))
    fd = m.jackknife(real_features, fake_features, m.frechet_distance, blocks=min(20, count // 2))
    scores.add("fd_judge", fd.value, max(0.0, fd.low), fd.high, count)
    precision, recall = m.precision_recall(real_features, fake_features)
    scores.mean("precision", precision)
    scores.mean("recall", recall)


def evenly(rows: Tensor, count: int) -> Tensor:
    """Return `count` of the rows (N, ...), evenly taken: prompts stand in order, so the first are not a sample."""
    return rows[torch.arange(count) * len(rows) // count]


def _memorisation(scores: _Scores, pictures: Tensor, train: Tensor, test: Tensor) -> None:
    if len(test) < m.LEAST_HELD_OUT:
        return  # a small folder can be learned from all the same; a gate that asks for this says so
    scores.mean("memorised", m.memorisation(pictures, train, test))


def _upsampling(
    scores: _Scores,
    model: Family,
    stage: str,
    test: Tensor,
    captions: Sequence[str],
    steps: int | None,
) -> None:
    """PSNR of upscaled real pictures over bicubic interpolation's, in dB, picture by picture."""
    step = max(1, len(test) // PAIRS)
    high, chosen = test[::step][:PAIRS], list(captions)[::step][:PAIRS]
    low = F.adaptive_avg_pool2d(high, model.config.low_size)
    request = Request(
        seeds=tuple(range(len(high))),
        prompts=tuple(chosen) if model.capabilities.condition == "text" else (),
        steps=steps,
        guidance=1.0,
        low_BCHW=low,
    )
    with torch.no_grad():
        ours = model.sample(request).cpu()
    cubic = F.interpolate(low, size=high.shape[-2:], mode="bicubic", align_corners=False).clamp(
        0, 1
    )
    scores.mean(f"{stage}_gain_db", m.psnr(ours, high) - m.psnr(cubic, high), keep=True)


def _likelihood(
    scores: _Scores, model: Family, stage: str, test: Tensor, captions: Sequence[str]
) -> None:
    """Negative log-likelihood, or its upper bound, in nats a picture, over the whole test split.

    Of a picture given its caption where the model reads text.
    """
    torch.manual_seed(0)  # one latent sample a picture: the same ones for every version
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    batch = {"pixels": test}
    if model.capabilities.condition == "text" and (tokens := model.encode(captions)) is not None:
        batch["tokens"] = tokens
    nats = []
    with torch.no_grad():
        for start in range(0, len(test), 500):
            part = {key: rows[start : start + 500].to(device) for key, rows in batch.items()}
            nats.append(-model.log_prob(part).cpu())
    scores.mean(f"{stage}_nats", torch.cat(nats), keep=True)


def _own(scores: _Scores, model: Family, stage: str, test: Tensor) -> None:
    """What the family itself can tell of the test split, such as the distance of its codes from the prior."""
    if len(test) < m.LEAST_HELD_OUT:
        return
    pixels = evenly(test, min(len(test), MEASURED))
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    with torch.no_grad():
        found = model.measure({"pixels": pixels.to(device)})
    for name, values in found.items():
        scores.mean(f"{stage}_{name}", values.cpu())


def sheet(pictures: Tensor, prompts: Sequence[str], count: int) -> bytes:
    """Return a gallery of `count` pictures, evenly taken, as PNG."""
    step = max(1, len(pictures) // count)
    image = gallery(pictures[::step][:count], columns=8, labels=list(prompts)[::step][:count])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
