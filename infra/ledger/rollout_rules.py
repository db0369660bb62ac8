"""The terms of a rollout, what is counted of its two arms, and when the challenger is to be stopped.

The terms stand in the `report` of the canary's or shadow's ledger row, the counts in the observations of that row.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.ledger.intervals import wilson

Place: TypeAlias = Literal["canary", "shadow"]
PLACES: Final[tuple[Place, ...]] = ("canary", "shadow")
Arm: TypeAlias = Literal["champion", "challenger"]

SURE: Final = (
    2.576  # standard deviations: two-sided 99 %, since it is looked at after every request
)
GROWTH: Final = 1.1  # from one latency bucket to the next: a median is known within 5 %


class Limits(BaseModel):
    """What a challenger may do before it is stopped; counts are those above the champion's own rate."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    min_requests: Annotated[int, Field(ge=1)] = 20  # of an arm, before rates and latencies count
    max_error_rate: Annotated[float, Field(ge=0, lt=1)] = 0.05
    max_slowdown: Annotated[float, Field(ge=1)] = 1.5  # median latency, challenger / champion
    max_not_finite: Annotated[int, Field(ge=0)] = 0  # answers with numbers that are not finite
    max_flat: Annotated[int, Field(ge=0)] = 2  # answers of one colour or empty
    max_repeated: Annotated[int, Field(ge=0)] = 2  # answers with the bytes of another request's


class Terms(BaseModel):
    """How much the challenger gets and what stops it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    percent: Annotated[float, Field(gt=0, le=100)]
    limits: Limits = Limits()

    @classmethod
    def of(cls, report: Mapping[str, Any] | None) -> Self | None:
        """Return the terms in a ledger row's report, or None where it has none that can be read."""
        try:
            return cls.model_validate((report or {}).get("terms"))
        except ValidationError:
            return None


class Tally(BaseModel):
    """What was counted of one arm; tallies of several gateways add up."""

    model_config = ConfigDict(extra="ignore")

    requests: int = 0
    failures: int = 0  # no usable answer, whatever the reason: those not finite are among them
    not_finite: int = 0
    flat: int = 0
    repeated: int = 0
    # how many requests by shape (pictures and steps: what makes one request longer than another) and bucket
    latencies: dict[str, dict[int, int]] = {}
    compared: int = 0  # shadowed requests that both arms answered
    difference: float = 0.0  # summed over them: mean absolute difference of the pixels, 0 to 1
    dropped: int = 0  # shadowed requests that were left out, since the challenger was behind

    def add(self, other: "Tally") -> None:
        """Count what another gateway or another moment counted."""
        for name in type(self).model_fields:
            if name != "latencies":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        for shape, counts in other.latencies.items():
            ours = self.latencies.setdefault(shape, {})
            for place, count in counts.items():
                ours[place] = ours.get(place, 0) + count

    def timed(self, shape: str) -> int:
        """Return how many latencies of a shape are known."""
        return sum(self.latencies.get(shape, {}).values())

    def quantile(self, shape: str, share: float) -> float | None:
        """Return the latency in seconds that `share` of a shape's answers stayed under; None without any."""
        reached, total = 0, self.timed(shape)
        for place, count in sorted(self.latencies.get(shape, {}).items()):
            reached += count
            if reached >= share * total:
                return float(GROWTH**place)
        return None

    def median_within(self, shape: str) -> tuple[float, float] | None:
        """Return bounds of a shape's median latency in seconds (99 %, by ranks: no distribution is assumed)."""
        if not (total := self.timed(shape)):
            return None
        apart = SURE / 2 / math.sqrt(total)
        low = self.quantile(shape, max(0.0, 0.5 - apart))
        high = self.quantile(shape, min(1.0, 0.5 + apart))
        assert low is not None
        assert high is not None
        return low, high


def bucket(seconds: float) -> int:
    """Return the latency bucket of a duration: the power of 1.1 that is nearest to it."""
    return round(math.log(max(seconds, 1e-4), GROWTH))


def verdict(limits: Limits, champion: Tally, challenger: Tally) -> str | None:
    """Return why the challenger is to be stopped, in words with numbers; None while it may go on."""
    for what, most in (
        ("not_finite", limits.max_not_finite),
        ("flat", limits.max_flat),
        ("repeated", limits.max_repeated),
    ):
        count, usual = getattr(challenger, what), getattr(champion, what)
        expected = challenger.requests * usual / champion.requests if champion.requests else 0.0
        if count - expected > most:
            return (
                f"{count} of the challenger's {challenger.requests} answers were {WORDS[what]}, at most {most}"
                f" may be; the champion's: {usual} of {champion.requests}"
            )
    if challenger.requests >= limits.min_requests:
        least, _ = wilson(challenger.failures, challenger.requests, SURE)
        if least > limits.max_error_rate:
            return (
                f"{challenger.failures} of the challenger's {challenger.requests} requests failed: surely more than"
                f" {least:.1%}, at most {limits.max_error_rate:.1%} may; the champion's:"
                f" {champion.failures} of {champion.requests}"
            )
    shapes = (_slower(limits, shape, champion, challenger) for shape in challenger.latencies)
    return next((why for why in shapes if why is not None), None)


def _slower(limits: Limits, shape: str, champion: Tally, challenger: Tally) -> str | None:
    if min(champion.timed(shape), challenger.timed(shape)) < limits.min_requests:
        return None
    ours, theirs = challenger.median_within(shape), champion.median_within(shape)
    assert ours is not None
    assert theirs is not None
    if ours[0] <= limits.max_slowdown * theirs[1]:
        return None
    median, usual = challenger.quantile(shape, 0.5), champion.quantile(shape, 0.5)
    assert median is not None
    assert usual is not None
    return (
        f"the challenger's median answer ({shape}) took {1000 * median:.0f} ms, the champion's {1000 * usual:.0f} ms:"
        f" surely more than {ours[0] / theirs[1]:.2f} times as long, at most {limits.max_slowdown:g} times may be"
    )


WORDS: Final = {
    "not_finite": "not finite",
    "flat": "of one colour or empty",
    "repeated": "the same for different requests",
}
