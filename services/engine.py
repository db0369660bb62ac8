"""The step engine: rows of many requests advance through a model together, one sampler step at a time.

One worker thread owns the models. At every step boundary it drops the rows whose client has gone, takes waiting rows
in the order they came, pads the batch to a bucket, takes one step, shows previews, hands out the text that was
written and the rows that finished. A row never waits for a batch to fill, and a request that is at its first step
shares the batch with one at its last: for text that is continuous batching.

Buckets: the arithmetic of a row depends on the batch's size (kernels differ), so batches only have sizes that were
found to give equal bits (`services.versions.agreeing`); with them a seed gives its sample alone or in a batch.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from models.family import Family, Request
from models.parts.rows import join, take
from services.telling import told
from services.tickets import (
    Deliver,
    Failed,
    FailedKind,
    Finished,
    Full,
    Lane,
    NotFinite,
    Question,
    Row,
    Shown,
    Ticket,
    Wrote,
    bucket,
    rows_of,
    together,
)
from services.work import Pictures, Reason, Text

BUCKETS: Final = (4, 8, 16)
"""Batch sizes that give equal bits on every CPU seen; `services.versions.agreeing` finds a model's own."""
LONGEST_WAIT_S: Final = 120.0  # the OpenAI client does not retry after longer ones
NOT_FINITE: Final = "the model gave numbers that are not finite"
BROKEN: Final = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, AssertionError, NotImplementedError, OSError, EOFError, MemoryError),
)
"""What a model's code and torch raise: memory, kernels, shapes, an index out of range."""


class Engine:
    """Draws the rows of submitted requests in one thread of its own."""

    def __init__(self, *, max_waiting: int = 256, threads: int = 1) -> None:
        self._max_waiting = max_waiting
        self._threads = threads
        self._lanes: dict[int, Lane] = {}
        self._questions: deque[Question] = deque()
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

    @property
    def drawing(self) -> int:
        """How many rows are under way."""
        with self._changed:
            return sum(not row.over for lane in self._lanes.values() for row in lane.members)

    def submit(
        self,
        model: Family,
        request: Request,
        deliver: Deliver,
        *,
        previews: int = 0,
        pieces: bool = False,
        stops: Sequence[str] = (),
        buckets: Sequence[int] = BUCKETS,
    ) -> Ticket:
        """Queue a request's rows; `deliver` is called in the worker's thread, once a row that finishes and on failure.

        With `pieces` it gets a text as it is written, too. A text ends before the first of `stops`. A request larger
        than the whole queue is taken when the queue is empty.

        Raises:
            Full: too many rows wait already.
            RuntimeError: the engine was closed or its worker died.
        """
        ticket = Ticket(deliver)
        rows = rows_of(ticket, request, previews, pieces, stops)
        with self._changed:
            self._make_sure_of_room(len(rows), self._waiting)
            lane = self._lanes.setdefault(id(model), Lane(model, tuple(sorted(buckets))))
            lane.waiting.extend(rows)
            self._waiting += len(rows)
            self._changed.notify()
        return ticket

    def ask(self, call: Callable[[], Any], deliver: Callable[[Any], None]) -> Question:
        """Queue a call that uses a model; `deliver` gets what it returned, or Failed, in the worker's thread.

        One is made between two steps, so that a long list of them holds up nobody's samples for long.

        Raises:
            Full: too many calls wait already.
            RuntimeError: the engine was closed or its worker died.
        """
        question = Question(call, deliver)
        with self._changed:
            self._make_sure_of_room(1, len(self._questions))
            self._questions.append(question)
            self._changed.notify()
        return question

    def cancel(self, one: Ticket | Question) -> None:
        """Forget a ticket or question: what waits at once, drawn rows at the next step boundary."""
        with self._changed:
            one.over = True
            self._questions = deque(asked for asked in self._questions if not asked.over)
            for lane in self._lanes.values():
                kept = deque(row for row in lane.waiting if not row.over)
                self._waiting -= len(lane.waiting) - len(kept)
                lane.waiting = kept

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop the worker after its step; unfinished tickets fail as `stopped`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join(timeout_s)

    def _make_sure_of_room(self, coming: int, waiting: int) -> None:
        if not self.alive:
            raise RuntimeError("the engine has stopped")
        if waiting and waiting + coming > self._max_waiting:
            wait = min(LONGEST_WAIT_S, max(1.0, waiting * self._seconds_a_row))
            raise Full(waiting, self._max_waiting, wait)

    def _work(self) -> None:
        torch.set_num_threads(self._threads)  # counts for this thread alone
        try:
            with torch.no_grad():
                while (lanes := self._next_lanes()) is not None:
                    for lane in lanes:
                        self._advance(lane)
                    self._answer()
        finally:
            self._stop()

    def _next_lanes(self) -> list[Lane] | None:
        """Wait for work; return the lanes that have some, or None when closing."""
        with self._changed:
            for key in [key for key, lane in self._lanes.items() if not lane.busy]:
                del self._lanes[key]
            while not self._lanes and not self._questions and not self._closing:
                self._changed.wait()
            return None if self._closing else list(self._lanes.values())

    def _stop(self) -> None:
        with self._changed:
            self._closing = True
            tickets = {
                row.ticket: None
                for lane in self._lanes.values()
                for row in (*lane.members, *lane.fresh, *lane.waiting)
            }
            questions = list(self._questions)
            self._lanes.clear()
            self._questions.clear()
            self._waiting = 0
        for ticket in tickets:
            _fail(ticket, "stopped", "the replica stopped while drawing")
        for question in questions:
            question.deliver(Failed("stopped", "the replica stopped before it answered"))

    def _answer(self) -> None:
        """Make the oldest call; one that breaks fails alone."""
        with self._changed:
            if not self._questions:
                return
            question = self._questions.popleft()
        try:
            found = question.call()
        except NotFinite:
            found = Failed("not_finite", NOT_FINITE)
        except BROKEN as error:
            wrong = isinstance(error, ValueError)  # the input, not the model
            found = Failed("invalid" if wrong else "failed", _line(error))
        if not question.over:
            question.deliver(found)

    def _admit(self, lane: Lane) -> None:
        """Take waiting rows, oldest first, as far as the largest bucket has room."""
        with self._changed:
            room = lane.buckets[-1] - sum(not row.over for row in lane.members)
            count = min(room, len(lane.waiting))
            self._waiting -= count
            lane.fresh = [lane.waiting.popleft() for _ in range(count)]

    def _advance(self, lane: Lane) -> None:
        """Take one step of a lane's batch; a model that breaks fails its rows and nobody else's."""
        self._admit(lane)
        began = time.perf_counter()
        try:
            finished = _step(lane) if lane.model.capabilities.stepwise else _sample(lane)
        except BROKEN as error:
            for row in (*lane.members, *lane.fresh):
                if "inf, nan" in str(error) or "nan" in str(error).split():  # torch.multinomial's
                    _fail(row.ticket, "not_finite", NOT_FINITE)
                _fail(row.ticket, "failed", f"the model broke: {_line(error)}")
            lane.members, lane.fresh, lane.rows = [], [], None
            return
        self._busy_s += time.perf_counter() - began
        if finished:
            self._seconds_a_row += 0.2 * (self._busy_s / finished - self._seconds_a_row)
            self._busy_s = 0.0


def _step(lane: Lane) -> int:
    """Take one sampler step, fresh rows included; return how many rows finished."""
    _gather(lane)
    if lane.rows is None:
        return 0
    model: Any = lane.model  # stepwise families share these methods, see models.family
    lane.rows = model.step(lane.rows)
    assert lane.rows is not None
    done = model.done(lane.rows).tolist()
    writes = lane.model.capabilities.modality == "text"
    written = None
    if writes and any(row.watched and not row.over for row in lane.members):
        written = model.preview(lane.rows)
    for place, row in enumerate(lane.members):
        row.taken += 1
        if row.over:
            continue
        if done[place]:
            _finish(row, lane, place, model.finish(take(lane.rows, [place]))[0])
        elif written is not None and row.watched:
            _write(row, lane, place, written[place])
        elif row.shown < row.previews:
            _show(row, lane, place)
    left = [place for place in range(len(lane.members)) if not done[place]]
    finished = len(lane.members) - len(left)
    if finished:
        lane.members = [lane.members[place] for place in left]
        lane.rows = take(lane.rows, left) if left else None
    return finished


def _gather(lane: Lane) -> None:
    """Make the lane's batch: what is left of it, then the fresh rows, padded to a bucket by copies of its first."""
    kept = [place for place, row in enumerate(lane.members) if not row.over]
    if lane.rows is not None and not lane.fresh and len(kept) == len(lane.members):
        size = len(next(iter(lane.rows.values())))
        if size == bucket(len(kept), lane.buckets):
            return
    members = [lane.members[place] for place in kept]
    parts = [take(lane.rows, kept)] if kept and lane.rows is not None else []
    model: Any = lane.model
    for row in lane.fresh:
        if row.over:
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
    padding = [0] * (bucket(len(members), lane.buckets) - len(members))
    lane.rows = take(joined, [*range(len(members)), *padding]) if padding else joined


def _show(row: Row, lane: Lane, place: int) -> None:
    """Deliver a preview where one of `previews` evenly spaced ones is due."""
    model: Any = lane.model
    assert lane.rows is not None
    total = int(lane.rows["count"][place]) if "count" in lane.rows else 0
    if row.taken * (row.previews + 1) >= total * (row.shown + 1) and total:
        picture = _finite(row, model.preview(take(lane.rows, [place]))[0])
        if picture is not None:
            row.ticket.deliver(Shown(row.number, row.shown, picture))
            row.shown += 1


def _write(row: Row, lane: Lane, place: int, tokens_T: Tensor, *, last: bool = False) -> None:
    """Deliver what a row wrote in this step, as far as it is settled; end it at a stop string."""
    count, writing = _count(tokens_T), row.writing
    text = lane.model.text_of(tokens_T)
    if row.request.logprobs is not None and count > writing.tokens and lane.rows is not None:
        writing.tell(text, told(lane.model, lane.rows, place, tokens_T, row.request.logprobs))
    piece = writing.grow(text, last=last)
    last = last or writing.stopped
    likely = writing.told(last=last)
    row.likely += likely
    if row.pieces and (piece or likely):
        row.ticket.deliver(Wrote(row.number, piece, likely))
    if last:
        reason: Reason = "stop" if writing.stopped or _ended(row, lane, place, count) else "length"
        row.ended = True  # dropped at the next step boundary
        row.ticket.deliver(
            Finished(row.number, Text(writing.text, count, reason, tuple(row.likely)))
        )


def _sample(lane: Lane) -> int:
    """Draw the fresh rows of a family that has no steps, all at once; return how many."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in lane.fresh:
        if not row.over:
            groups.setdefault(row.alike, []).append(row)
    for members in groups.values():
        try:
            found = lane.model.sample(together([row.request for row in members], lane.buckets))
        except ValueError as error:
            for row in members:
                _fail(row.ticket, "invalid", _line(error))
            continue
        for place, (row, made) in enumerate(zip(members, found, strict=False)):
            _finish(row, lane, place, made)
    finished = len(lane.fresh)
    lane.fresh = []
    return finished


def _finish(row: Row, lane: Lane, place: int, made: Tensor) -> None:
    """Deliver a row: its text, with what of it was held back, or its numbers."""
    if lane.model.capabilities.modality == "text":
        if not _sane(lane, place):
            _fail(row.ticket, "not_finite", NOT_FINITE)
            return
        _write(row, lane, place, made, last=True)
        return
    found = _finite(row, made)
    if found is not None:
        row.ticket.deliver(Finished(row.number, found))


def _ended(row: Row, lane: Lane, place: int, count: int) -> bool:
    """Return whether a text ended by itself: stepwise families say so in their rows, of others the length tells."""
    if lane.rows is not None and "ended" in lane.rows:
        return bool(lane.rows["ended"][place])
    return count != row.request.max_tokens


def _sane(lane: Lane, place: int) -> bool:
    """Return whether no number that a row was written from is a NaN; the tokens themselves cannot tell."""
    rows = (lane.rows or {}).values()  # a family without steps keeps none
    tensors = (value[place] for value in rows if value.is_floating_point())
    return not any(bool(one.isnan().any()) for one in tensors)


def _count(tokens_T: Tensor) -> int:
    return int((tokens_T >= 0).sum())


def _finite(row: Row, made: Tensor) -> Pictures | None:
    """Return the picture or sound as an array; one with other than finite numbers fails its request and is None."""
    found: Pictures = made.float().cpu().numpy()
    if np.isfinite(found).all():
        return found
    _fail(row.ticket, "not_finite", NOT_FINITE)
    return None


def _fail(ticket: Ticket, kind: FailedKind, message: str) -> None:
    if not ticket.over:
        ticket.over = True
        ticket.deliver(Failed(kind, message))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
