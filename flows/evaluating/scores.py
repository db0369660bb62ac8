"""The numbers of an evaluation of any modality: means with bootstrap intervals, and what a family tells itself."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flows.evaluating.gate import NO_NUMBER, Interval
from flows.recipe import Evaluation as EvaluationSpec
from infra.ledger.intervals import wilson
from models.family import Family
from models.judges import metrics as m


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What judging one pipeline's samples found."""

    metrics: dict[str, Interval]
    outcomes: dict[str, list[float]]  # per-sample values, for paired comparison
    files: dict[str, bytes]  # the gallery, by path in the version's directory
    left_out: tuple[str, ...] = ()  # what of held-out data no stage could rate, counted
    cut: str = (
        ""  # how held-out data were taken, by a name or a hash, where others take them otherwise
    )


class Scores:
    """Collects per-sample values as means with bootstrap intervals."""

    def __init__(self, spec: EvaluationSpec) -> None:
        self.metrics: dict[str, Interval] = {}
        self.outcomes: dict[str, list[float]] = {}
        self.left_out: list[str] = []  # what is in no metric, and why
        self.resamples = spec.bootstrap

    def mean(
        self, name: str, values: Tensor, *, over: Sequence[str] = (), keep: bool = False
    ) -> None:
        """Add a mean of values (N,); those of one prompt (`over`, one a value) are resampled together.

        A share (of booleans) that is 0 or 1 has no spread to resample, however few were counted: its interval is
        Wilson's, of N alike. How alike samples of one prompt are cannot be seen there, so it may still be too narrow.
        """
        count, whole = len(values), values.float()
        rows = by_prompt(whole, over) if over else whole
        found = m.bootstrap(rows, count=self.resamples, seed=0)
        low, high = found.low, found.high
        if values.dtype == torch.bool and int(values.sum()) in (0, count):
            low, high = wilson(int(values.sum()), count)
        self.add(name, found.value, low, high, count)
        if keep and name in self.metrics:
            self.outcomes[name] = [round(float(value), 4) for value in rows]

    def add(self, name: str, value: float, low: float, high: float, count: int) -> None:
        """Add a metric with its interval; what is no finite number is left out, which no bound of it passes."""
        if not all(map(math.isfinite, (value, low, high))):
            self.left_out.append(name + NO_NUMBER)
            return
        self.metrics[name] = Interval(value=value, low=low, high=high, count=count)


def by_prompt(values: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean of each prompt's values, in the order in which prompts first come.

    Pictures of one prompt are no independent samples of what users ask for: an interval over them would be too narrow.
    """
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    index = torch.tensor([places[prompt] for prompt in prompts])
    total = torch.zeros(len(places)).index_add_(0, index, values)
    return total / index.bincount(minlength=len(places))


def evenly(rows: Tensor, count: int) -> Tensor:
    """Return `count` of the rows (N, ...), evenly taken: prompts stand in order, so the first are not a sample."""
    return rows[torch.arange(count) * len(rows) // count]


def likelihood(
    scores: Scores, model: Family, stage: str, batch: Mapping[str, Tensor], rows_at_once: int = 500
) -> Tensor:
    """Add STAGE_nats, the mean of what `nats_of` gives of held-out data, which it returns."""
    nats_N = nats_of(model, batch, rows_at_once)
    scores.mean(f"{stage}_nats", nats_N, keep=True)
    return nats_N


def nats_of(model: Family, batch: Mapping[str, Tensor], rows_at_once: int = 500) -> Tensor:
    """Return the negative log-likelihood, or its upper bound, in nats a row (N,)."""
    torch.manual_seed(0)  # one latent sample a row: the same ones for every version
    with torch.no_grad():
        parts = parts_of(batch, rows_at_once, device_of(model))
        return torch.cat([-model.log_prob(part).cpu() for part in parts])


def caption_gain(
    scores: Scores,
    model: Family,
    stage: str,
    rows: Mapping[str, Tensor],
    captions: Sequence[str],
    nats_N: Tensor,
    rows_at_once: int = 500,
) -> None:
    """Add STAGE_caption_gain: the nats a row that its own caption saves over another row's.

    About 0, or less, for a network that does not heed captions, however likely it finds the data.
    """
    others = [captions[place - len(captions) // 2] for place in range(len(captions))]
    wrong = nats_of(model, rated(model, rows, others), rows_at_once)
    differs = [place for place, other in enumerate(others) if other != captions[place]]
    if differs:
        scores.mean(f"{stage}_caption_gain", (wrong - nats_N)[differs])


def gap(scores: Scores, name: str, own_N: Tensor, held_out_M: Tensor) -> None:
    """Add how much less likely drawn rows are than held-out ones, as STAGE_sample_gap to the model itself.

    The difference of the mean nats, in standard deviations of the held-out rows'. About 0 where the sampler draws what
    the likelihood says, and that fits the data; a sampler that draws something else is far above, one that repeats what
    is likeliest below. The likelihood alone says nothing of a sampler (Theis et al. 2016, arXiv:1511.01844).
    """
    if len(own_N) < 2:
        return
    usual, rounding = float(held_out_M.mean()), torch.finfo(torch.float32)
    scale = max(float(held_out_M.std()), 1e2 * rounding.eps * abs(usual), rounding.tiny)
    value = (float(own_N.mean()) - usual) / scale
    error = float((own_N.var() / len(own_N) + held_out_M.var() / len(held_out_M)).sqrt()) / scale
    scores.add(name, value, value - 1.96 * error, value + 1.96 * error, len(own_N))


def own(
    scores: Scores, model: Family, stage: str, *batches: Mapping[str, Tensor], rows: int = 500
) -> None:
    """Add what the family itself tells of held-out rows, such as the distance of its codes from the prior.

    At most so many `rows` are looked at together, and those of one batch.
    """
    values: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for part in (p for batch in batches for p in parts_of(batch, rows, device_of(model))):
            for name, found in model.measure(part).items():
                values.setdefault(name, []).append(found.cpu())
    for name, parts in values.items():
        scores.mean(f"{stage}_{name}", torch.cat(parts))


def taken(rows: Mapping[str, Tensor], most: int) -> dict[str, Tensor]:
    """Return at most so many of the rows, evenly taken."""
    count = len(next(iter(rows.values())))
    return {name: evenly(tensor, min(count, most)) for name, tensor in rows.items()}


def rated(model: Family, batch: Mapping[str, Tensor], captions: Sequence[str]) -> dict[str, Tensor]:
    """Return held-out rows as a model rates them: given their captions where it reads text."""
    reads = model.capabilities.condition == "text"
    tokens = model.encode(captions) if reads else None
    return {**batch, **({} if tokens is None else {"tokens": tokens})}


def parts_of(
    batch: Mapping[str, Tensor], rows: int, device: torch.device
) -> list[dict[str, Tensor]]:
    """Return a batch cut into parts of at most `rows`, on a device."""
    count = len(next(iter(batch.values())))
    return [
        {name: tensor[start : start + rows].to(device) for name, tensor in batch.items()}
        for start in range(0, count, rows)
    ]


def device_of(model: Family) -> torch.device:
    """Return where a network is; a counting one has buffers alone."""
    return next(itertools.chain(model.parameters(), model.buffers())).device
