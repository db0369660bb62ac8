"""What the engine is given and what it gives back: rows of requests, and the results of each."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor

from models.family import Family, Rows
from models.parts.rows import lasting
from models.request import Prompt, Request
from services.pipelines.payload import Pictures, Sounds, Text, Told
from services.stages.shares import BEHIND_COSTS, LONG_COSTS, LONG_S, Account
from services.stages.text_stream import Reading, Writing

FailedKind: TypeAlias = Literal[
    "invalid", "failed", "out_of_memory", "not_finite", "stopped", "too_long", "late"
]
EACH: Final = ("seeds", "prompts", "prompt_tokens", "dialogues", "given")
"""The fields of a Request that have one entry a row; rows that share a call have the others alike."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A preview (C, H, W) of row `row`."""

    row: int
    index: int
    picture: Pictures


@dataclass(frozen=True, slots=True)
class Wrote:
    """The next part of the text of row `row`."""

    row: int
    text: str
    logprobs: tuple[Told, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Row `row` is done: a picture (C, H, W), a sound (T,) or a text."""

    row: int
    made: Pictures | Sounds | Text


@dataclass(frozen=True, slots=True)
class Failed:
    """No more rows of this ticket will come."""

    kind: FailedKind
    message: str


Result: TypeAlias = Shown | Wrote | Finished | Failed
Deliver: TypeAlias = Callable[[Result], None]


class Full(Exception):
    """The queue has no room for these rows; there should be some after `retry_after_s`."""

    def __init__(self, why: str, retry_after_s: float) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class TooLong(Exception):
    """These rows alone would take `seconds`, more than they may."""

    def __init__(self, seconds: float, within_s: float) -> None:
        super().__init__(
            f"it takes about {seconds:.3g} s here, and an answer may take {within_s:.3g} s"
        )
        self.seconds = seconds


class NotFinite(ArithmeticError):
    """A model gave numbers that are not finite where an answer was to be one."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One submitted request; `over` once it was cancelled, failed or finished."""

    deliver: Deliver
    within_s: float = math.inf  # that the whole of it may take
    until: float = math.inf  # when that ends, by time.monotonic
    over: bool = False


@dataclass(eq=False, slots=True)
class Row:
    """One sample of a request."""

    ticket: Ticket
    number: int
    model: Family  # the lane's, or an adapter of that
    request: Request  # of this row alone
    steps: int  # that it takes at least
    previews: int
    pieces: bool  # of text, as it is written
    writing: Writing
    watched: bool  # its text is looked at after every step
    taken: int = 0  # steps
    reading: Reading = field(default_factory=Reading)  # of its tokens
    shown: int = 0
    ended: bool = False  # delivered, though the model would go on
    likely: list[Told] = field(default_factory=list)  # its tokens so far, where they are asked for

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.ended or self.ticket.over

    @property
    def left(self) -> int:
        """How many steps it takes yet, at least."""
        return max(1, self.steps - self.taken)

    @property
    def prompt(self) -> Prompt:
        """What a text goes on from, if anything."""
        return next(iter(self.request.texts), "")

    @property
    def alike(self) -> tuple[Any, ...]:
        """What rows must have in common to be drawn in one call."""
        names = (one.name for one in fields(self.request) if one.name not in EACH)
        return (*(getattr(self.request, name) for name in names), self.request.given.keys())


@dataclass(slots=True)
class Lane:
    """One model's rows, and its adapters': those that wait and the batch under way (padded to a bucket).

    All draw one size. Rows of jobs have a lane of their own, `behind`: a step of theirs is soon over, and then it is
    people's turn.
    """

    model: Family
    buckets: Sequence[int]
    account: Account
    behind: bool = False
    turn: int = 0  # the engine's number of its last step
    waiting: deque[Row] = field(default_factory=deque)
    fresh: list[Row] = field(default_factory=list)  # taken from the queue, not begun
    members: list[Row] = field(default_factory=list)
    rows: Rows | None = None
    under_way: Iterator[Tensor | None] | None = None  # of a family without steps, its members'

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self.waiting or self.members)

    @property
    def left_s(self) -> float:
        """How long its rows take yet when it alone has the engine; 0 as long as nobody knows."""
        return self.seconds([row for row in (*self.members, *self.waiting) if not row.over])

    def seconds(self, rows: Sequence["Row"]) -> float:
        """Return how long these rows take at least, together and with nothing beside them; 0 where nobody knows."""
        most = self.buckets[-1] if self.model.capabilities.stepwise else self.piece
        size = min(len(rows), most)
        pace = self.account.pace(bucket(size, self.buckets)) if rows else None
        return 0.0 if pace is None else sum(row.left for row in rows) / size * pace

    def counts(self, rows: Sequence["Row"]) -> float:
        """Return what a second of these rows counts for: more where even the shortest of them is long."""
        if self.behind:
            return BEHIND_COSTS
        live = [max(row.steps, row.taken) for row in rows if not row.over]
        if not live:
            return 1.0
        pace = self.account.pace(bucket(min(len(live), self.buckets[-1]), self.buckets))
        return LONG_COSTS if pace is not None and min(live) * pace > LONG_S else 1.0

    @property
    def piece(self) -> int:
        """How many rows may be drawn in one go: as many as take `shares.PIECE_S`, of the smallest bucket at least."""
        fit = [size for size in self.buckets if self.account.short(size)]
        return max(fit, default=self.buckets[0])


@dataclass(slots=True)
class Questions:
    """Calls that wait, and the time that they had together; those of jobs are asked `behind`, by themselves."""

    behind: bool = False
    waiting: deque["Question"] = field(default_factory=deque)
    account: Account = field(default_factory=Account)


@dataclass(eq=False, slots=True)
class Question:
    """A call that needs a model and gives one answer; it is made between two steps."""

    call: Callable[[], Any]  # None: it is to be called again
    deliver: Callable[[Any], None]  # gets what the call returned at last, or Failed
    over: bool = False


def rows_of(
    ticket: Ticket,
    model: Family,
    request: Request,
    steps: int,
    *,
    previews: int,
    pieces: bool,
    stops: Sequence[str],
) -> list[Row]:
    """Return a request's rows."""
    watched = pieces or bool(stops) or "logprobs" in request.options
    return [
        Row(
            ticket,
            place,
            model,
            one(request, place),
            steps,
            previews,
            pieces,
            Writing(stops),
            watched,
        )
        for place in range(len(request.seeds))
    ]


def one(request: Request, number: int) -> Request:
    """Return the request of one row."""
    part = slice(number, number + 1)
    return replace(
        request,
        seeds=request.seeds[part],
        prompts=request.prompts[part],
        prompt_tokens=request.prompt_tokens[part],
        dialogues=request.dialogues[part],
        given={name: rows[part] for name, rows in request.given.items()},
    )


def together(model: Family, requests: Sequence[Request], buckets: Sequence[int]) -> Request:
    """Return one request of all these rows, padded to a bucket by copies of the first."""
    ports = model.inputs
    padded = [*requests, *[requests[0]] * (bucket(len(requests), buckets) - len(requests))]
    return replace(
        requests[0],
        seeds=tuple(seed for request in padded for seed in request.seeds),
        prompts=tuple(prompt for request in padded for prompt in request.prompts),
        prompt_tokens=tuple(tokens for request in padded for tokens in request.prompt_tokens),
        dialogues=tuple(record for request in padded for record in request.dialogues),
        given={
            name: lasting([one.given[name] for one in padded], ports[name].kind)
            for name in requests[0].given
        },
    )


def bucket(count: int, buckets: Sequence[int]) -> int:
    """Return the smallest batch size that has room for so many rows."""
    return next(size for size in buckets if size >= count)


def settle() -> None:
    """Wait until a GPU has done what it was told, where one is used: only then is known how long it took.

    Raises:
        RuntimeError: something of it failed.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.current_stream().synchronize()


async def all_there(results: asyncio.Queue[Result]) -> list[Result]:
    """Wait for a result and return all that are there, the pieces of a text that nobody fetched yet as one."""
    found = [await results.get()]
    while not results.empty():
        found.append(results.get_nowait())
    kept: list[Result] = []
    pieces: dict[int, int] = {}  # where the row's piece stands
    for result in found:
        if isinstance(result, Wrote) and result.row in pieces:
            before = kept[pieces[result.row]]
            assert isinstance(before, Wrote)
            logprobs = before.logprobs + result.logprobs
            kept[pieces[result.row]] = Wrote(result.row, before.text + result.text, logprobs)
            continue
        if isinstance(result, Wrote):
            pieces[result.row] = len(kept)
        kept.append(result)
    return kept
