"""Which sizes of batches and calls give a row the same bits, found by trying a model out when it is loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch.nn import functional as F

from models.family import Family, Rows
from models.parts.adapter_rows import begin, host_of, step
from models.parts.rows import join, take
from models.request import Request

STEPS: Final = 2  # of a stepwise model
SECONDS: Final = 0.004  # of sound, drawn to its end: two steps at 8 kHz
OPEN: Final = 4  # frames of what lasts as long as it lasts
TOKENS: Final = 8  # of text by a model without steps


def agreeing(model: Family, buckets: Sequence[int]) -> tuple[int, ...]:
    """Return the batch sizes whose rows equal, bit for bit, those of the largest one, on this device.

    One batch of each size, two steps far, or all of a sound; a size that differs is left out, for what a kernel does
    depends on the size and not on the numbers. All that the model keeps between steps is compared, since equal
    tokens and levels may come of unequal numbers. A model that draws nothing (it only embeds) keeps all sizes.

    One that fills up its own calls is told the sizes of them that agree, and takes a batch of any size; so does one
    that takes each row by itself.
    """
    if model.lone:
        return tuple(range(1, buckets[-1] + 1))
    if model.call_sizes is not None:
        for size in getattr(model.config, "sizes", ()) or (None,):
            _fit_calls(host_of(model), model, buckets[-1], size)
        return tuple(range(1, buckets[-1] + 1))
    asked = _acceptable(model)
    if asked is None:
        return tuple(buckets)
    largest = _trial(model, asked, buckets[-1])
    smaller = [size for size in buckets[:-1] if _equal(_trial(model, asked, size), largest)]
    return (*smaller, buckets[-1])


def _fit_calls(host: Family, model: Family, most: int, picture: str | None) -> None:
    """Tell a model which sizes of calls agree, for up to `most` rows, each of them called once or, where guided, twice.

    An adapter's rows share the calls of its base, which keeps those of its sizes that agree for both, and for pictures
    of every size.
    """
    asked = _acceptable(model)
    assert asked is not None
    if picture is not None:
        asked = replace(asked, options={**asked.options, "size": picture})
    rows = _begun(model, asked, 2 * most)
    tried = host.call_sizes or sizes_up_to(2 * most)
    largest = _kept(_advanced(model, rows))
    host.call_sizes = tuple(
        size for size in tried if _equal(_kept(_advanced(model, take(rows, range(size)))), largest)
    )


def sizes_up_to(most: int) -> tuple[int, ...]:
    """Return sizes up to `most`, four from each to its double: what fills a call up to the next is a fifth at most.

    Example:
        >>> sizes_up_to(20)
        (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20)
    """
    sizes = {step * 2**octave for step in range(1, 8) for octave in range(most.bit_length())}
    return tuple(sorted({most, *(size for size in sizes if size < most)}))


def _acceptable(model: Family) -> Request | None:
    """Return a request of one row that the model takes, and is not guided in; None where it takes none."""
    able = model.capabilities
    if able.modality == "text":
        return next((one for one in _written() if _takes(model, one)), None)
    words = [model.readable] if able.condition == "text" else []
    if "seconds" in model.takes:
        return Request(seeds=(0,), prompts=tuple(words), seconds=SECONDS)
    unguided = {"guidance": 1.0} if "guidance" in model.takes else {}
    tried = [
        Request(seeds=(0,), prompts=tuple(words), given=given, options=unguided)
        for given in _given(model)
    ]
    return tried[0] if len(tried) == 1 else next(one for one in tried if _takes(model, one))


def _given(model: Family) -> Iterator[dict[str, torch.Tensor]]:
    """Yield what a model may be given beside a text: what it needs, and that with one more input each."""
    grey = torch.Generator().manual_seed(0)
    made = {
        name: torch.rand(1, *(size or OPEN for size in port.shape), generator=grey)
        for name, port in model.inputs.items()
        if port.kind != "text"
    }
    needed = {name: one for name, one in made.items() if not model.inputs[name].optional}
    yield needed
    yield from ({**needed, name: one} for name, one in made.items() if name not in needed)


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
    rows = _begun(model, asked, size)
    sound = model.capabilities.modality == "audio"  # its steps are short
    rows = _advanced(model, rows, model.steps_of(asked) if sound else STEPS)
    return [stepwise.preview(rows), *_kept(rows)]


def _begun(model: Family, asked: Request, count: int) -> Rows:
    return join([begin(model, replace(asked, seeds=(seed,))) for seed in range(count)])


def _kept(rows: Rows) -> list[torch.Tensor]:
    return [rows[name] for name in sorted(rows)]


@torch.no_grad()
def _advanced(model: Family, rows: Rows, steps: int = STEPS) -> Rows:
    for _ in range(steps):
        rows = step(model, rows)
    return rows


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
    """Return whether the rows of ours are the first of theirs; a sound ends in silence as long as the others last."""
    pairs = ((one, other[: len(one)]) for one, other in zip(ours, theirs, strict=True))
    return all(torch.equal(*_as_long(*pair)) for pair in pairs)


def _as_long(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if one.dim() != 2:
        return one, other
    longest = max(one.shape[1], other.shape[1])
    ours, theirs = (F.pad(rows, (0, longest - rows.shape[1])) for rows in (one, other))
    return ours, theirs
