"""Joining and parting rows of stepwise samplers: requests at different steps share a batch."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from models.family import Family, Rows
from models.parts.mel import FLOOR
from models.ports import Port
from models.request import Request

TOGETHER: Final = 4  # rows of a call of an entry
SPARSE: Final = frozenset({"known", "kept", "adapter"})
"""Tensors that some rows of a model have and others do not, for whom they would be zeros."""
AFTER: Final[Mapping[str, float]] = {"sound": 0.0, "mel": math.log(FLOOR)}
"""What stands after a row's end in kinds that last as long as they last, along the last dimension."""


def join(parts: Sequence[Rows]) -> Rows:
    """Return all rows of `parts` in order; shorter tables are padded with zeros along dimension 1.

    Raises:
        ValueError: no parts, or parts of different models (their keys differ).

    Example:
        >>> rows = join([{"x": torch.zeros(1, 2)}, {"x": torch.ones(2, 3)}])
        >>> rows["x"].tolist()
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    if not parts:
        raise ValueError("join needs at least one part")
    if any(part.keys() - SPARSE != parts[0].keys() - SPARSE for part in parts):
        raise ValueError("rows of different models cannot be joined")
    rare = {key: part[key] for part in parts for key in part.keys() & SPARSE}
    parts = [{**_blank(rare, part), **part} for part in parts] if rare else parts
    return {key: _cat([part[key] for part in parts]) for key in parts[0]}


def _blank(like: Rows, part: Rows) -> Rows:
    """Return such tensors of zeros, one row for each of the part's."""
    count = len(next(iter(part.values())))
    return {key: value.new_zeros(count, *value.shape[1:]) for key, value in like.items()}


class Stepwise(Protocol):
    """A family that draws a row step by step; rows of other requests may stand beside it in each."""

    def begin(self, request: Request) -> Rows:
        """Return the rows of a request before their first step."""

    def done(self, rows: Rows) -> Tensor:
        """Return which rows are at their end, (B,) bool."""

    def step(self, rows: Rows) -> Rows:
        """Return the rows one step further; those that are done stay as they are."""

    def finish(self, rows: Rows) -> Tensor:
        """Return the samples of rows that are done, as `sample` does."""


def drawn(model: Stepwise, request: Request) -> Tensor:
    """Return the samples of a stepwise family, as its `sample`: every row to its end."""
    with torch.inference_mode():
        rows = model.begin(request)
    return to_end(model, rows)


def to_end(model: Stepwise, rows: Rows) -> Tensor:
    """Return the samples of rows, each after its last step.

    In inference mode, where torch keeps no count of versions and views; what comes out is a tensor like any other.
    """
    with torch.inference_mode():
        while not model.done(rows).all():
            rows = model.step(rows)
        found = model.finish(rows)
    return found.clone()


def entered(
    model: Family, entry: str, given: Mapping[str, Tensor], texts: Sequence[str] = ()
) -> Tensor:
    """Return what an entry makes of rows, on the model's device.

    Calls have always as many rows: what a kernel does depends on the size, so a row has the same bits alone or not.

    Raises:
        ValueError: the model cannot read a text.
    """
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    rows = dict(given)
    if texts:
        tokens = model.encode(texts)
        if tokens is None:
            raise ValueError("prompt: this model reads no text")
        rows["tokens"] = tokens
    count = len(next(iter(rows.values())))
    found = []
    for start in range(0, count, TOGETHER):
        places = [min(start + place, count - 1) for place in range(TOGETHER)]
        part = {name: value[places].to(device) for name, value in rows.items()}
        found.append(model.enter(entry, part)[: count - start])
    return torch.cat(found)


def filled(asked: Sequence[int], sizes: Sequence[int] | None) -> list[int]:
    """Return the rows of a call, filled up by its first to the least of `sizes` that has room; without one as it is.

    Example:
        >>> filled([5, 6, 7], (2, 4))
        [5, 6, 7, 5]
    """
    size = next((one for one in sizes or () if one >= len(asked)), len(asked))
    return [*asked, *[asked[0]] * (size - len(asked))]


def take(rows: Rows, index: Sequence[int] | Tensor) -> Rows:
    """Return the rows at `index`, in that order: positions (repeats allowed) or a bool mask."""
    wanted = torch.as_tensor(index, device="cpu")
    if wanted.dtype != torch.bool:
        wanted = wanted.long()
    return {key: value[wanted.to(value.device)] for key, value in rows.items()}


def lasting(tensors: Sequence[Tensor], kind: str) -> Tensor:
    """Return all rows of tensors of one kind, the shorter ones with silence behind.

    Example:
        >>> lasting([torch.ones(1, 1), torch.ones(1, 2)], "sound").tolist()
        [[1.0, 0.0], [1.0, 1.0]]
    """
    if kind not in AFTER:
        return torch.cat(list(tensors))
    longest = max(tensor.shape[-1] for tensor in tensors)
    return torch.cat(
        [F.pad(one, (0, longest - one.shape[-1]), value=AFTER[kind]) for one in tensors]
    )


def ended(row: Tensor, port: Port) -> Tensor:
    """Return one row without the silence that longer ones beside it left behind it.

    Example:
        >>> ended(torch.tensor([0.0, 1.0, 0.0]), Port("sound", (None,))).tolist()
        [0.0, 1.0]
    """
    if port.kind not in AFTER or port.shape[-1] is not None:
        return row
    heard = (row > AFTER[port.kind] + 1e-3) if port.kind == "mel" else row != 0
    heard_T = heard.any(0) if row.dim() > 1 else heard
    places_T = torch.arange(1, len(heard_T) + 1, device=row.device)
    return row[..., : max(1, int((heard_T * places_T).max()))]


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].dim() < 2:
        return torch.cat(list(tensors))
    longest = max(tensor.shape[1] for tensor in tensors)
    pad = [0, 0] * (tensors[0].dim() - 2)
    return torch.cat([F.pad(tensor, [*pad, 0, longest - tensor.shape[1]]) for tensor in tensors])
