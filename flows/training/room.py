"""Room for workers: asked of an autoscaler where a cluster has too little, and waited for within a bound."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from flows.training import halting
from flows.training.journal import Reporter
from infra.stack.cluster import TooSmall, capacity, require, too_small

NOTE_EVERY_S: Final = 30.0
POLL_S: Final = 0.5
TURN_S: Final = 5.0
"""How long a training waits at most for those before it to ask: one may fail, or find no room, before it does."""
SCALING: Final = "waiting for nodes of the autoscaler"

_line: list[str] = []  # trainings that begin together and have not asked yet
_moved = threading.Condition()


@contextmanager
def lined_up(names: Sequence[str]) -> Iterator[None]:
    """Have trainings that begin together ask for room in this order, inside the block.

    Where there is no room for all, the first of a recipe, which as a rule is the longest, does not come last.
    """
    with _moved:
        _line.extend(names)
    try:
        yield
    finally:
        for name in names:
            asked(name)


def wait_for_turn(name: str) -> None:
    """Wait until whoever stands before a training has asked, TURN_S at most; return at once for one in no line."""
    with _moved:
        _moved.wait_for(lambda: name not in _line or _line[0] == name, timeout=TURN_S)


def asked(name: str) -> None:
    """Say that a training has asked for its workers."""
    with _moved:
        if name in _line:
            _line.remove(name)
            _moved.notify_all()


@dataclass(frozen=True, slots=True)
class Request:
    """What every worker of a training is given."""

    workers: int
    cpus: float
    gpus: float

    @property
    def short(self) -> TooSmall | None:
        """What is to be said where the cluster could not hold them if it were idle."""
        return too_small(self.workers, self.cpus, self.gpus)

    @property
    def fits(self) -> bool:
        """Whether they fit beside what runs now."""
        return require(self.workers, self.cpus, self.gpus)

    @property
    def free(self) -> str:
        """What is asked for and what is free, in words."""
        has = capacity()
        gpus = f" and {has.free_gpus:g} of {has.gpus:g} GPUs" if has.gpus else ""
        return f"asked for {self}, free are {has.free_cpus:g} of {has.cpus:g} CPUs{gpus}"

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.workers} x {self.cpus:g} CPUs{gpus}"


@dataclass
class Patience:
    """How long a cluster that is too small is waited for: says so now and then, and what to do when it is over."""

    request: Request
    reporter: Reporter
    seconds: float
    why: str = SCALING
    way_out: str = "or wait longer by ATELIER_RAY_SCALE_S"

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._told = float("-inf")

    def spend(self, short: TooSmall) -> None:
        """Say how much is left.

        Raises:
            TooSmall: nothing.
        """
        now = time.monotonic()
        left = self._began + self.seconds - now
        if left < 0:
            raise TooSmall(f"{self.why}: {short}; {self.way_out}")
        if now - self._told > NOTE_EVERY_S:
            self._told = now
            self.reporter.note(f"{self.why}, {left:.0f} s more at most: {self.request.free}")


def bring(patience: Patience) -> None:
    """Have the autoscaler bring what the cluster lacks for a request, and wait until it is there.

    The workers ask once more when it is: so their nodes can be looked at before they train.

    Raises:
        infra.stack.cluster.TooSmall: it would not fit the cluster were it idle, and the patience is over, or none.
        flows.training.halting.Halted: the caller was ended.
    """
    from ray.util import placement_group, remove_placement_group

    request = patience.request
    if (short := request.short) is None:
        return
    if not patience.seconds:
        raise short
    bundle = {"CPU": request.cpus, **({"GPU": request.gpus} if request.gpus else {})}
    demand = placement_group([bundle] * request.workers)
    try:
        while (short := request.short) is not None:
            patience.spend(short)
            halting.check()
            time.sleep(POLL_S)
    finally:
        remove_placement_group(demand)


def wait(request: Request, reporter: Reporter) -> None:
    """Wait until a request fits beside what runs now, saying so; returns also where it no longer fits an idle cluster.

    Raises:
        flows.training.halting.Halted: the caller was ended.
    """
    told = time.monotonic() - NOTE_EVERY_S + 1  # what `bring` held is free within the second
    while request.short is None and not request.fits:
        if time.monotonic() - told > NOTE_EVERY_S:
            told = time.monotonic()
            reporter.note(f"waiting for room: {request.free}")
        halting.check()
        time.sleep(POLL_S)
