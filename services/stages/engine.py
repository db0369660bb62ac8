"""The step engine: rows of many requests advance through a model together, one sampler step at a time.

The states of a row; but for `submit` and `cancel` only the worker's thread changes them:

    submit ─> WAITING ─> FRESH ─> MEMBER of a batch ─> done: Finished, with its picture, sound or text
       │         │         │       │  ^  │
       │         │         │       └──┘  └─> at a stop string: Finished, and dropped at the next boundary
       │         │         │       a step: Shown, Wrote
       │         │         └─> invalid, not begun: Failed
       │         └─ cancelled: gone at once; a member is dropped at the next boundary
       └─> Full, TooLong: raised, nothing waits

    from each of them: late, too_long, not_finite, failed, stopped ─> Failed, once a request

One worker thread owns the models. At every step boundary it drops the rows whose client has gone or whose time is up
(`_expire`, `_foresee`), takes waiting rows in the order they came (`_admit`), pads the batch to a bucket (`_gather`),
takes one step, shows previews, hands out the text that was written and the rows that finished (`_step`; `_sample` where
a family draws in one go). A row never waits for a batch to fill, and a request that is at its first step shares the
batch with one at its last: for text that is continuous batching. So do rows of a model and of adapters that were loaded
beside it (`models.parts.adapter_rows`), each with its own.

Pictures of different sizes do not go into one batch: each size of a model has a lane, and they share the model's time.

Models get equal shares of time (`services.stages.shares`): the one that has had least takes the next step, and long
work counts for more. A family that draws in one go does so for as few rows at a time as that is short. A GPU is waited
for at the end of each step: else the next model's would be charged with it.

Buckets: the arithmetic of a row depends on the batch's size (kernels differ), so batches only have sizes that were
found to give equal bits (`batch_invariance.agreeing`); with them a seed gives its sample alone or in a batch.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from models.family import Family
from models.parts.adapter_rows import begin, host_of, step
from models.parts.rows import ended, join, take
from models.request import Request
from services.pipelines.payload import Pictures, Reason, Text
from services.stages.scheduler import (
    Deliver,
    Failed,
    FailedKind,
    Finished,
    Full,
    Lane,
    NotFinite,
    Question,
    Questions,
    Row,
    Shown,
    Ticket,
    TooLong,
    Wrote,
    bucket,
    rows_of,
    settle,
    together,
)
from services.stages.shares import BEHIND_COSTS, FRESH_S, TRUSTED, Account
from services.stages.token_logprobs import told, told_end

BUCKETS: Final = (4, 8, 16)
"""Batch sizes that give equal bits on every CPU seen; `batch_invariance.agreeing` finds a model's own."""
LONGEST_WAIT_S: Final = 120.0  # the OpenAI client does not retry after longer ones
NOT_FINITE: Final = "the model gave numbers that are not finite"
NO_MEMORY: Final = "DefaultCPUAllocator: can't allocate memory"
LATE: Final = "its time was up"
BROKEN: Final = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, AssertionError, NotImplementedError, OSError, EOFError, MemoryError),
    StopIteration,  # a drawing that ends without samples
)
"""What a model's code and torch raise: memory, kernels, shapes, an index out of range."""


class Engine:
    """Draws the rows of submitted requests in one thread of its own."""

    def __init__(self, *, max_waiting: int = 256, threads: int = 1) -> None:
        self._max_waiting = max_waiting
        self._threads = threads
        self._lanes: dict[tuple[int, bool, str | None], Lane] = {}
        self._turns = 0  # steps that all lanes together had
        # people's and jobs'
        self._accounts: tuple[WeakKeyDictionary[Family, Account], ...]
        self._accounts = (WeakKeyDictionary(), WeakKeyDictionary())
        self._questions = (Questions(), Questions(behind=True))  # each like one model
        self._clock_s = 0.0  # what the model that takes the next step has had
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
        """How many rows wait for their first step, but for those of jobs, which keep nobody out."""
        with self._changed:
            return self._in_line

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
        within_s: float = math.inf,
        ahead: bool = False,
        behind: bool = False,
    ) -> Ticket:
        """Queue a request's rows; `deliver` is called in the worker's thread, once a row that finishes and on failure.

        With `pieces` it gets a text as it is written, too. A text ends before the first of `stops`. A request larger
        than the whole queue is taken when the queue is empty. Rows that are not done `within_s` are dropped. With
        `ahead` the rows go before all that wait, however many do; `behind` they wait for those that are not.

        Raises:
            TooLong: the rows cannot be done `within_s`, whoever else there is.
            Full: too many rows wait already, or so many that these could not be done `within_s`.
            RuntimeError: the engine was closed or its worker died.
        """
        ticket = Ticket(deliver, within_s, time.monotonic() + within_s)
        steps = model.steps_of(request)
        rows = rows_of(ticket, model, request, steps, previews=previews, pieces=pieces, stops=stops)
        with self._changed:
            self._make_sure_of_room(len(rows), 0 if ahead or behind else self._in_line)
            lane = self._lane(host_of(model), buckets, behind, request.options.get("size"))
            self._make_sure_of_time(lane, rows, within_s)
            if ahead:
                lane.waiting.extendleft(reversed(rows))
            else:
                lane.waiting.extend(rows)
            self._changed.notify()
        return ticket

    def ask(
        self,
        call: Callable[[], Any],
        deliver: Callable[[Any], None],
        *,
        ahead: bool = False,
        behind: bool = False,
    ) -> Question:
        """Queue a call that uses a model; `deliver` gets what it returned, or Failed, in the worker's thread.

        Calls are made one at a time between steps, and all together have a model's share of the time. One that returns
        None is made again, until there is an answer. With `ahead` it goes before those that wait; those `behind` have a
        share of their own, as small as that of such rows.

        Raises:
            Full: too many calls wait already.
            RuntimeError: the engine was closed or its worker died.
        """
        question = Question(call, deliver)
        with self._changed:
            questions = self._questions[behind]
            self._make_sure_of_room(1, 0 if ahead or behind else len(questions.waiting))
            if not questions.waiting:
                questions.account.used_s = max(questions.account.used_s, self._clock_s)
            if ahead:
                questions.waiting.appendleft(question)
            else:
                questions.waiting.append(question)
            self._changed.notify()
        return question

    def cancel(self, one: Ticket | Question) -> None:
        """Forget a ticket or question: what waits at once, drawn rows at the next step boundary."""
        with self._changed:
            one.over = True
            for questions in self._questions:
                questions.waiting = deque(asked for asked in questions.waiting if not asked.over)
            for lane in self._lanes.values():
                lane.waiting = deque(row for row in lane.waiting if not row.over)

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop the worker after its step; unfinished tickets fail as `stopped`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join(timeout_s)

    @property
    def _in_line(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes.values() if not lane.behind)

    def _make_sure_of_room(self, coming: int, waiting: int) -> None:
        if not self.alive:
            raise RuntimeError("the engine has stopped")
        if waiting and waiting + coming > self._max_waiting:
            wait = min(LONGEST_WAIT_S, max(1.0, waiting * self._seconds_a_row))
            raise Full(f"{waiting} samples are waiting, at most {self._max_waiting} may", wait)

    def _make_sure_of_time(self, lane: Lane, rows: Sequence[Row], within_s: float) -> None:
        """Refuse rows that cannot be done in time: by themselves, or after those of their model and beside others'.

        Another model gets its share of the time beside these rows, and no more than it has work for.
        """
        if time.monotonic() - lane.account.noted >= FRESH_S:
            return  # its first steps will tell
        alone = lane.seconds(rows)
        if alone > within_s:
            raise TooLong(alone, within_s)
        there = sum(not row.over for row in (*lane.members, *lane.waiting))
        queued = lane.left_s if there + len(rows) > lane.buckets[-1] else 0.0
        mine = alone + queued
        counted = mine * lane.counts(rows)
        others = [other for other in self._lanes.values() if other is not lane]
        whole = mine + sum(
            min(counted / other.counts([*other.members, *other.waiting]), other.left_s)
            for other in others
        )
        if alone and whole > within_s:
            wait = min(LONGEST_WAIT_S, max(1.0, whole - within_s))
            raise Full(
                f"it would take about {whole:.3g} s, at most {within_s:.3g} s may pass", wait
            )

    def _lane(self, model: Family, buckets: Sequence[int], behind: bool, size: str | None) -> Lane:
        """Return the model's lane for pictures of a size; one that had nothing to do starts at the clock."""
        key = (id(model), behind, size)
        lane = self._lanes.get(key)
        if lane is None:
            account = self._accounts[behind].setdefault(model, Account())
            lane = self._lanes[key] = Lane(model, tuple(sorted(buckets)), account, behind)
        if not lane.busy:
            lane.account.used_s = max(lane.account.used_s, self._clock_s)
        return lane

    def _work(self) -> None:
        torch.set_num_threads(self._threads)  # counts for this thread alone
        try:
            while (turn := self._next()) is not None:
                if isinstance(turn, Lane):
                    with torch.inference_mode():  # less to do at each operation than without grad
                        self._advance(turn)
                else:
                    with torch.no_grad():  # a likelihood may need gradients
                        self._answer(turn)
        finally:
            self._stop()

    def _next(self) -> Lane | Questions | None:
        """Wait for work; return what has had least: a model's lane, people's or jobs' questions; None when closing."""
        with self._changed:
            for key in [key for key, lane in self._lanes.items() if not lane.busy]:
                del self._lanes[key]
            while not (turns := self._turns_to_take()) and not self._closing:
                self._changed.wait()
            if self._closing:
                return None
            turn = min(turns, key=_had)
            self._clock_s, _ = _had(turn)
            if isinstance(turn, Lane):
                self._turns += 1
                turn.turn = self._turns
            return turn

    def _turns_to_take(self) -> list[Lane | Questions]:
        return [*self._lanes.values(), *(one for one in self._questions if one.waiting)]

    def _stop(self) -> None:
        with self._changed:
            self._closing = True
            tickets = {
                row.ticket: None
                for lane in self._lanes.values()
                for row in (*lane.members, *lane.fresh, *lane.waiting)
            }
            waiting = [asked for one in self._questions for asked in one.waiting]
            self._lanes.clear()
            self._questions = (Questions(), Questions(behind=True))
        for ticket in tickets:
            _fail(ticket, "stopped", "the replica stopped while drawing")
        for question in waiting:
            question.deliver(Failed("stopped", "the replica stopped before it answered"))

    def _answer(self, questions: Questions) -> None:
        """Make the oldest call, or its next part; one that breaks fails alone."""
        with self._changed:
            if not questions.waiting:
                return
            question = questions.waiting.popleft()
        began = time.perf_counter()
        try:
            found = question.call()
            settle()
        except NotFinite:
            found = Failed("not_finite", NOT_FINITE)
        except BROKEN as error:
            wrong = isinstance(error, ValueError)  # the input, not the model
            found = Failed("invalid" if wrong else _fault(error), _line(error))
        passed, counts = time.perf_counter() - began, BEHIND_COSTS if questions.behind else 1.0
        questions.account.note(1, passed, time.monotonic(), counts=counts)
        if found is None:
            with self._changed:
                questions.waiting.extendleft([] if question.over else [question])
            return
        if not question.over:
            question.deliver(found)
        if isinstance(found, Failed):
            settle()  # see _advance

    def _admit(self, lane: Lane) -> None:
        """Take waiting rows, oldest first, as far as there is room: of a family without steps, those for one call."""
        with self._changed:
            if lane.model.capabilities.stepwise:
                room = lane.buckets[-1] - sum(not row.over for row in lane.members)
                alike = len(lane.waiting)
            else:
                room = 0 if lane.under_way else lane.piece
                same = (row.alike == lane.waiting[0].alike for row in lane.waiting)
                alike = sum(takewhile(bool, same))
            count = min(room, alike)
            lane.fresh = [lane.waiting.popleft() for _ in range(count)]

    def _advance(self, lane: Lane) -> None:
        """Take one step of a lane's batch; a model that breaks fails its rows and nobody else's."""
        self._admit(lane)
        counts = lane.counts([*lane.members, *lane.fresh])
        began = time.perf_counter()
        try:
            size, finished = _step(lane) if lane.model.capabilities.stepwise else _sample(lane)
            settle()
        except BROKEN as error:
            for row in (*lane.members, *lane.fresh):
                if "inf, nan" in str(error) or "nan" in str(error).split():  # torch.multinomial's
                    _fail(row.ticket, "not_finite", NOT_FINITE)
                _fail(row.ticket, _fault(error), f"the model broke: {_line(error)}")
            lane.members, lane.fresh, lane.rows, lane.under_way = [], [], None, None
            settle()  # a GPU that is lost to this process ends the worker, and Serve starts another
            return
        passed = time.perf_counter() - began
        if size:
            lane.account.note(size, passed, time.monotonic(), counts=counts)
        self._busy_s += passed
        if finished:
            self._seconds_a_row += 0.2 * (self._busy_s / finished - self._seconds_a_row)
            self._busy_s = 0.0


def _fault(error: BaseException) -> FailedKind:
    """Return whether a model broke for want of memory or of itself.

    torch says so of a GPU's by a class of its own, of the host's by a RuntimeError of its allocator.
    """
    wanted = isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY in str(error)
    return "out_of_memory" if wanted else "failed"


def _had(turn: Lane | Questions) -> tuple[float, float]:
    """Return what has been had of the time and, of lanes that share that, when the last step was taken."""
    return turn.account.used_s, turn.turn if isinstance(turn, Lane) else math.inf


def _expire(rows: Sequence[Row]) -> None:
    now = time.monotonic()
    for row in rows:
        if now > row.ticket.until:
            _fail(row.ticket, "late", LATE)


def _foresee(lane: Lane) -> None:
    """Drop rows that turn out to take too long: the door may have known nothing of their model yet."""
    tried = {row.ticket: None for row in lane.members if row.taken >= TRUSTED and not row.over}
    for ticket in tried:
        left_s = lane.seconds([row for row in lane.members if row.ticket is ticket])
        over_s = time.monotonic() + left_s - ticket.until
        if over_s > 0:
            whole = TooLong(ticket.within_s + over_s, ticket.within_s)
            _fail(ticket, "too_long", str(whole))


def _step(lane: Lane) -> tuple[int, int]:
    """Take one sampler step, fresh rows included; return the batch's size and how many rows finished."""
    _expire(lane.members)
    _foresee(lane)
    _gather(lane)
    if lane.rows is None:
        return 0, 0
    size = len(next(iter(lane.rows.values())))
    model: Any = lane.model  # stepwise families share these methods, see models.family
    lane.rows = step(lane.model, lane.rows)
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
    return size, finished


def _gather(lane: Lane) -> None:
    """Make the lane's batch: what is left of it, then the fresh rows, padded to a bucket by copies of its first."""
    kept = [place for place, row in enumerate(lane.members) if not row.over]
    if lane.rows is not None and not lane.fresh and len(kept) == len(lane.members):
        size = len(next(iter(lane.rows.values())))
        if size == bucket(len(kept), lane.buckets):
            return
    members = [lane.members[place] for place in kept]
    parts = [take(lane.rows, kept)] if kept and lane.rows is not None else []
    for row in lane.fresh:
        if row.over:
            continue
        try:
            parts.append(begin(row.model, row.request))
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
    text = _text(row, lane, tokens_T, count)
    if "logprobs" in row.request.options and count > writing.tokens and lane.rows is not None:
        writing.tell(text, told(lane.model, lane.rows, place, tokens_T, row))
    piece = writing.grow(text, last=last)
    last = last or writing.stopped
    likely = writing.told(last=last)
    ended = last and (writing.stopped or _ended(row, lane, place, count))
    if ended and not writing.stopped and _tells_end(row) and lane.rows is not None:
        likely = (*likely, told_end(lane.model, lane.rows, place, tokens_T, row))
    row.likely += likely
    if row.pieces and (piece or likely):
        row.ticket.deliver(Wrote(row.number, piece, likely))
    if last:
        reason: Reason = "stop" if ended else "length"
        row.ended = True  # dropped at the next step boundary
        row.ticket.deliver(
            Finished(row.number, Text(writing.text, count, reason, tuple(row.likely)))
        )


def _text(row: Row, lane: Lane, tokens_T: Tensor, count: int) -> str:
    """Return a row's text so far: of families that write token by token the newest ones are decoded alone."""
    if not lane.model.capabilities.stepwise:
        return lane.model.text_of(tokens_T, row.prompt)

    def decode(first: int, end: int) -> str:
        return lane.model.text_of(tokens_T[first:end], row.prompt)

    return row.reading.text(count, decode)


def _tells_end(row: Row) -> bool:
    """Return whether how likely its end was is told, too: as OpenAI has it of completions, and not of chats."""
    return "logprobs" in row.request.options and not row.request.dialogues


def _sample(lane: Lane) -> tuple[int, int]:
    """Draw the next part of a call; return the call's size and how many rows finished."""
    _expire(lane.members)
    _foresee(lane)
    if lane.under_way is None:
        lane.members, lane.fresh = [row for row in lane.fresh if not row.over], []
        if lane.members:
            asked = together(lane.model, [row.request for row in lane.members], lane.buckets)
            lane.under_way = lane.model.drawing(asked)
    members = lane.members
    if lane.under_way is None or all(row.over for row in members):
        lane.members, lane.under_way = [], None
        return 0, 0
    try:
        found = next(lane.under_way)
    except ValueError as error:
        for row in members:
            _fail(row.ticket, "invalid", _line(error))
        lane.members, lane.under_way = [], None
        return 0, 0
    for row in members:
        row.taken += 1
    size = bucket(len(members), lane.buckets)
    if found is None:
        return size, 0
    (port,) = lane.model.outputs.values()
    timed = "seconds" in lane.model.takes  # it lasts as long as it was asked to
    for place, row in enumerate(members):
        if not row.over:
            _finish(row, lane, place, found[place] if timed else ended(found[place], port))
    lane.members, lane.under_way = [], None
    return size, len(members)


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
    return bool(count != row.request.options.get("max_tokens"))


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
