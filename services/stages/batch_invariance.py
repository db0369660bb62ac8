"""Which batch sizes give a row the same bits, found by trying a model out when it is loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from models.family import Family
from models.parts.adapter_rows import begin, step
from models.parts.rows import join, take
from models.request import Request

STEPS: Final = 2  # of a stepwise model
SECONDS: Final = 0.004  # of sound, drawn to its end: two steps at 8 kHz
TOKENS: Final = 8  # of text by a model without steps


def agreeing(model: Family, buckets: Sequence[int]) -> tuple[int, ...]:
    """Return the batch sizes whose rows equal, bit for bit, those of the largest one, on this device.

    One batch of each size, two steps far, or all of a sound; a size that differs is left out, for what a kernel does
    depends on the size and not on the numbers. All that the model keeps between steps is compared, since equal
    tokens and levels may come of unequal numbers. A model that draws nothing (it only embeds) keeps all sizes.
    """
    agreed = list(buckets)
    for asked in _acceptable(model):
        largest = _trial(model, asked, buckets[-1])
        smaller = [size for size in agreed[:-1] if _equal(_trial(model, asked, size), largest)]
        agreed = [*smaller, buckets[-1]]
    return tuple(agreed)


def _acceptable(model: Family) -> list[Request]:
    """Return requests of one row that the model takes, one a size of its network's calls; none where it takes none."""
    able = model.capabilities
    if able.modality == "text":
        return [one for one in _written() if _takes(model, one)][:1]
    known = getattr(model.config, "vocabulary", ("a",))  # without one it reads free text
    words = known[:1] if able.condition == "text" else ()
    if able.modality == "audio":
        return [Request(seeds=(0,), prompts=tuple(words), seconds=SECONDS)]
    grey = torch.Generator().manual_seed(0)
    given = {
        name: torch.rand(1, *port.shape, generator=grey)  # type: ignore[arg-type] # no size is open
        for name, port in model.inputs.items()
        if port.kind != "text" and not port.optional
    }
    asked = Request(seeds=(0,), prompts=tuple(words), given=given)
    if not (able.stepwise and words):
        return [asked]
    return [
        replace(asked, options={"guidance": scale}) for scale in (1.0, 2.0)
    ]  # one prediction, and two


def _written() -> Iterator[Request]:
    yield Request(seeds=(0,), prompts=("a",), max_tokens=TOKENS)
    yield Request(seeds=(0,), prompts=("a [MASK]",), max_tokens=TOKENS)  # a text with a blank
    yield Request(seeds=(0,), dialogues=((("user", "a"),),), max_tokens=TOKENS)
    yield Request(seeds=(0,), max_tokens=TOKENS)


@torch.no_grad()
def _takes(model: Family, request: Request) -> bool:
    stepwise: Any = model
    try:
        if model.capabilities.stepwise:
            stepwise.begin(request)
        else:
            model.sample(request)
    except (ValueError, NotImplementedError):
        return False
    return True


@torch.no_grad()
def _trial(model: Family, asked: Request, size: int) -> list[torch.Tensor]:
    """Return the rows of a batch of `size`, drawn two steps far: every tensor that is to be equal."""
    if not model.capabilities.stepwise:
        return [model.sample(_all(asked, range(size)))]
    stepwise: Any = model
    rows = join([begin(model, replace(asked, seeds=(seed,))) for seed in range(size)])
    sound = model.capabilities.modality == "audio"  # its steps are short
    for _ in range(model.steps_of(asked) if sound else STEPS):
        rows = step(model, rows)
    rows = take(rows, list(range(size)))
    return [stepwise.preview(rows), *(rows[name] for name in sorted(rows))]


def _all(asked: Request, seeds: Sequence[int]) -> Request:
    """Return the same request for each of these seeds."""
    count = len(seeds)
    return replace(
        asked,
        seeds=tuple(seeds),
        prompts=asked.prompts * count,
        dialogues=asked.dialogues * count,
        given={k: v.expand(count, *v.shape[1:]) for k, v in asked.given.items()},
    )


def _equal(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    """Return whether the rows of ours are the first of theirs."""
    return all(torch.equal(one, other[: len(one)]) for one, other in zip(ours, theirs, strict=True))
