"""What passes between the gateway and the stages: plain values and arrays, no torch.

Shape letters: N pictures of a request, C channels, H and W pixels.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pictures: TypeAlias = NDArray[np.float32]
"""(N, C, H, W) in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A model version, named by its digest."""

    name: str
    number: int
    digest: str

    @property
    def ref(self) -> str:
        """The version as people write it: "shapes.base:3"."""
        return f"{self.name}:{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One request's pictures at one stage: a row a seed."""

    pin: Pin
    seeds: tuple[int, ...]
    prompts: tuple[str, ...] = ()  # one a seed; empty for a stage without text
    steps: int | None = None  # None: the family's default
    guidance: float | None = None
    low: Pictures | None = None  # for a stage that upscales
    previews: int = 0  # estimates to show on the way, evenly spaced over the steps
    once: bool = (
        False  # not again on another replica when one is lost: perhaps this work is what killed it
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """An estimate of one picture while it is being drawn."""

    row: int
    index: int  # 0 .. previews - 1
    picture: Pictures  # (C, H, W)


@dataclass(frozen=True, slots=True)
class Drawn:
    """All pictures of a Work, in the order of its seeds."""

    pictures: Pictures


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a stage did not draw; a value and not an exception, since a full queue is no failure of the replica.

    `full`: try again after `retry_after_s`. `invalid`: the request cannot be drawn by this model, whoever asks.
    `missing`: the version cannot be loaded. `failed`: the model broke while drawing. `not_finite`: it gave numbers that
    are no picture. `stopped`: the replica is going away; another may draw it.
    """

    kind: Literal["full", "invalid", "missing", "failed", "not_finite", "stopped"]
    message: str
    retry_after_s: float = 0.0
    param: str | None = None  # of an invalid request


Event: TypeAlias = Preview | Drawn | Refused
