"""The step engine: rows of many requests advance through a model together, one sampler step at a time.

One worker thread owns the models. At every step boundary it drops the rows whose client has gone, takes waiting rows
in the order they came, pads the batch to a bucket, takes one step, shows previews and hands out finished rows. A row
never waits for a batch to fill, and a request that is at its first step shares the batch with one at its last.

Buckets: the arithmetic of a row depends on the batch's size (kernels differ), so batches only have sizes that were
found to give equal bits (`services.versions.agreeing`); with them a seed gives its picture alone or in a batch.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch

from models.family import Family, Request, Rows
from models.parts.rows import join, take
from services.work import Pictures

BUCKETS: Final = (4, 8, 16)
"""Batch sizes that give equal bits on every CPU seen; `services.versions.agreeing` finds a model's own."""
LONGEST_WAIT_S: Final = 120.0  # the OpenAI client does not retry after longer ones


FailedKind: TypeAlias = Literal["invalid", "failed", "not_finite", "stopped"]
BROKEN: Final = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, AssertionError),
)
"""What a model's code and torch raise: memory, kernels, shapes, an index out of range."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A preview (C, H, W) of row `row`."""

    row: int
    index: int
    picture: Pictures


@dataclass(frozen=True, slots=True)
class Finished:
    """Row `row` is done: (C, H, W)."""

    row: int
    picture: Pictures


@dataclass(frozen=True, slots=True)
class Failed:
    """No more rows of this ticket will come."""

    kind: FailedKind
    message: str


Result: TypeAlias = Shown | Finished | Failed
Deliver: TypeAlias = Callable[[Result], None]


class Full(Exception):
    """The queue has no room for these rows; there should be some after `retry_after_s`."""

    def __init__(self, waiting: int, limit: int, retry_after_s: float) -> None:
        super().__init__(f"{waiting} pictures are waiting, at most {limit} may")
        self.retry_after_s = retry_after_s


@dataclass(eq=False, slots=True)
class Ticket:
    """One submitted request; `over` once it was cancelled, failed or finished."""

    deliver: Deliver
    over: bool = False


@dataclass(eq=False, slots=True)
class _Row:
    ticket: Ticket
    number: int
    request: Request  # of this row alone
    previews: int
    taken: int = 0  # steps
    shown: int = 0


@dataclass(slots=True)
class _Lane:
    """One model's rows: those that wait and the batch under way (padded to a bucket)."""

    model: Family
    buckets: Sequence[int]
    waiting: deque[_Row] = field(default_factory=deque)
    fresh: list[_Row] = field(default_factory=list)  # taken from the queue, not begun
    members: list[_Row] = field(default_factory=list)
    rows: Rows | None = None


class Engine:
    """Draws the rows of submitted requests in one thread of its own."""

    def __init__(self, *, max_waiting: int = 256, threads: int = 1) -> None:
        self._max_waiting = max_waiting
        self._threads = threads
        self._lanes: dict[int, _Lane] = {}
        self._waiting = 0
        self._closing = False
        self._changed = threading.Condition()
        self._seconds_a_row = 0.1
        self._busy_s = 0.0  # since a row last finished
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._worker.start()

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._worker.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """How many rows wait for their first step."""
        return self._waiting

    def submit(
        self,
        model: Family,
        request: Request,
        deliver: Deliver,
        *,
        previews: int = 0,
        buckets: Sequence[int] = BUCKETS,
    ) -> Ticket:
        """Queue a request's rows; `deliver` is called in the worker's thread, once a row that finishes and on failure.

        A request larger than the whole queue is taken when the queue is empty.

        Raises:
            Full: too many rows wait already.
            RuntimeError: the engine was closed or its worker died.
        """
        count = len(request.seeds)
        ticket = Ticket(deliver)
        rows = [_Row(ticket, number, _one(request, number), previews) for number in range(count)]
        with self._changed:
            if not self.alive:
                raise RuntimeError("the engine has stopped")
            if self._waiting and self._waiting + count > self._max_waiting:
                wait = min(LONGEST_WAIT_S, max(1.0, self._waiting * self._seconds_a_row))
                raise Full(self._waiting, self._max_waiting, wait)
            lane = self._lanes.setdefault(id(model), _Lane(model, tuple(sorted(buckets))))
            lane.waiting.extend(rows)
            self._waiting += count
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forget a ticket: waiting rows at once, drawn ones at the next step boundary."""
        with self._changed:
            ticket.over = True
            for lane in self._lanes.values():
                kept = deque(row for row in lane.waiting if not row.ticket.over)
                self._waiting -= len(lane.waiting) - len(kept)
                lane.waiting = kept

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop the worker after its step; unfinished tickets fail as `stopped`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join(timeout_s)

    def _work(self) -> None:
        torch.set_num_threads(self._threads)  # counts for this thread alone
        try:
            with torch.no_grad():
                while lanes := self._next_lanes():
                    for lane in lanes:
                        self._advance(lane)
        finally:
            self._stop()

    def _next_lanes(self) -> list[_Lane]:
        """Wait for work; return the lanes that have some, or none when closing."""
        with self._changed:
            for key in [key for key, lane in self._lanes.items() if not _busy(lane)]:
                del self._lanes[key]
            while not self._lanes and not self._closing:
                self._changed.wait()
            return [] if self._closing else list(self._lanes.values())

    def _stop(self) -> None:
        with self._changed:
            self._closing = True
            tickets = {
                row.ticket: None
                for lane in self._lanes.values()
                for row in (*lane.members, *lane.fresh, *lane.waiting)
            }
            self._lanes.clear()
            self._waiting = 0
        for ticket in tickets:
            _fail(ticket, "stopped", "the replica stopped while drawing")

    def _admit(self, lane: _Lane) -> None:
        """Take waiting rows, oldest first, as far as the largest bucket has room."""
        with self._changed:
            room = lane.buckets[-1] - sum(not row.ticket.over for row in lane.members)
            count = min(room, len(lane.waiting))
            self._waiting -= count
            lane.fresh = [lane.waiting.popleft() for _ in range(count)]

    def _advance(self, lane: _Lane) -> None:
        """Take one step of a lane's batch; a model that breaks fails its rows and nobody else's."""
        self._admit(lane)
        began = time.perf_counter()
        try:
            finished = _step(lane) if lane.model.capabilities.stepwise else _sample(lane)
        except BROKEN as error:
            for row in (*lane.members, *lane.fresh):
                _fail(row.ticket, "failed", f"the model broke: {_line(error)}")
            lane.members, lane.fresh, lane.rows = [], [], None
            return
        self._busy_s += time.perf_counter() - began
        if finished:
            self._seconds_a_row += 0.2 * (self._busy_s / finished - self._seconds_a_row)
            self._busy_s = 0.0


def _step(lane: _Lane) -> int:
    """Take one sampler step, fresh rows included; return how many rows finished."""
    _gather(lane)
    if lane.rows is None:
        return 0
    model: Any = lane.model  # stepwise families share these methods, see models.family
    lane.rows = model.step(lane.rows)
    assert lane.rows is not None
    done = model.done(lane.rows).tolist()
    for place, row in enumerate(lane.members):
        row.taken += 1
        if row.ticket.over:
            continue
        if done[place]:
            _finish(row, model.finish(take(lane.rows, [place]))[0])
        elif row.shown < row.previews:
            _show(row, lane.rows, place, model)
    left = [place for place in range(len(lane.members)) if not done[place]]
    finished = len(lane.members) - len(left)
    if finished:
        lane.members = [lane.members[place] for place in left]
        lane.rows = take(lane.rows, left) if left else None
    return finished


def _gather(lane: _Lane) -> None:
    """Make the lane's batch: what is left of it, then the fresh rows, padded to a bucket by copies of its first."""
    kept = [place for place, row in enumerate(lane.members) if not row.ticket.over]
    if lane.rows is not None and not lane.fresh and len(kept) == len(lane.members):
        size = len(next(iter(lane.rows.values())))
        if size == _bucket(len(kept), lane.buckets):
            return
    members = [lane.members[place] for place in kept]
    parts = [take(lane.rows, kept)] if kept and lane.rows is not None else []
    model: Any = lane.model
    for row in lane.fresh:
        if row.ticket.over:
            continue
        try:
            parts.append(model.begin(row.request))
        except ValueError as error:
            _fail(row.ticket, "invalid", _line(error))
            continue
        members.append(row)
    lane.members, lane.fresh = members, []
    if not members:
        lane.rows = None
        return
    joined = join(parts)
    padding = [0] * (_bucket(len(members), lane.buckets) - len(members))
    lane.rows = take(joined, [*range(len(members)), *padding]) if padding else joined


def _show(row: _Row, rows: Rows, place: int, model: Any) -> None:
    """Deliver a preview where one of `previews` evenly spaced ones is due."""
    total = int(rows["count"][place]) if "count" in rows else 0
    if row.taken * (row.previews + 1) >= total * (row.shown + 1) and total:
        picture = _finite(row, model.preview(take(rows, [place]))[0])
        if picture is not None:
            row.ticket.deliver(Shown(row.number, row.shown, picture))
            row.shown += 1


def _sample(lane: _Lane) -> int:
    """Draw the fresh rows of a family that has no steps, all at once; return how many."""
    groups: dict[tuple[int | None, float | None], list[_Row]] = {}
    for row in lane.fresh:
        if not row.ticket.over:
            groups.setdefault((row.request.steps, row.request.guidance), []).append(row)
    for members in groups.values():
        try:
            pictures = lane.model.sample(_all([row.request for row in members], lane.buckets))
        except ValueError as error:
            for row in members:
                _fail(row.ticket, "invalid", _line(error))
            continue
        for row, picture in zip(members, pictures, strict=False):
            _finish(row, picture)
    finished = len(lane.fresh)
    lane.fresh = []
    return finished


def _one(request: Request, number: int) -> Request:
    """Return the request of one row."""
    part = slice(number, number + 1)
    low = request.low_BCHW
    return Request(
        seeds=request.seeds[part],
        prompts=request.prompts[part],
        steps=request.steps,
        guidance=request.guidance,
        low_BCHW=None if low is None else low[part],
    )


def _all(requests: Sequence[Request], buckets: Sequence[int]) -> Request:
    """Return one request of all these rows, padded to a bucket by copies of the first."""
    padded = [*requests, *[requests[0]] * (_bucket(len(requests), buckets) - len(requests))]
    lows = [request.low_BCHW for request in padded if request.low_BCHW is not None]
    return Request(
        seeds=tuple(seed for request in padded for seed in request.seeds),
        prompts=tuple(prompt for request in padded for prompt in request.prompts),
        steps=requests[0].steps,
        guidance=requests[0].guidance,
        low_BCHW=torch.cat(lows) if lows else None,
    )


def _bucket(count: int, buckets: Sequence[int]) -> int:
    return next(size for size in buckets if size >= count)


def _busy(lane: _Lane) -> bool:
    return bool(lane.waiting or lane.members)


def _finish(row: _Row, picture: torch.Tensor) -> None:
    found = _finite(row, picture)
    if found is not None:
        row.ticket.deliver(Finished(row.number, found))


def _finite(row: _Row, picture: torch.Tensor) -> Pictures | None:
    """Return the picture as an array; one with other than finite numbers fails its request and is None."""
    found: Pictures = picture.float().cpu().numpy()
    if np.isfinite(found).all():
        return found
    _fail(row.ticket, "not_finite", "the model gave numbers that are not finite")
    return None


def _fail(ticket: Ticket, kind: FailedKind, message: str) -> None:
    if not ticket.over:
        ticket.over = True
        ticket.deliver(Failed(kind, message))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
