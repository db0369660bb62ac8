"""What the engine does with time: shares, deadlines and estimates, by a clock that only the models move."""

import itertools
import threading
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.family import Family
from models.request import Request
from services.stages.engine import Engine
from services.stages.scheduler import Failed, Finished, Full, TooLong, Wrote
from services.stages.shares import FRESH_S, PIECE_S, TRUSTED, Account

PATIENCE_S = 60


class Clock:
    """Stands in for `time` in the engine."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


class Timed:
    """A model whose steps and calls take as long as one says; the first waits for a word."""

    def __init__(self, model: Family, clock: Clock, seconds: Callable[[int], float]) -> None:
        self._model, self._clock, self._seconds = model, clock, seconds
        self.took: list[tuple[float, int]] = []  # when each step ended, and its rows
        self.go, self.stepping = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _pass(self, size: int) -> None:
        self.stepping.set()
        assert self.go.wait(PATIENCE_S)
        self._clock.now += self._seconds(size)
        self.took.append((self._clock.now, size))

    def step(self, rows: Any) -> Any:
        self._pass(len(rows["index"]))
        model: Any = self._model
        return model.step(rows)

    def sample(self, request: Request) -> Any:
        self._pass(len(request.seeds))
        return self._model.sample(request)

    def drawing(self, request: Request) -> Iterator[Any]:
        yield self.sample(request)


class Inbox(Queue[Any]):
    """What an engine delivered."""

    def last(self) -> Any:
        while isinstance(found := self.get(timeout=PATIENCE_S), Wrote):
            pass
        return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("services.stages.engine.time", clock)
    return clock


@pytest.fixture
def engine(clock: Clock) -> Iterator[Engine]:
    engine = Engine(max_waiting=32)
    yield engine
    engine.close()


@pytest.fixture
def timed(networks: Callable[..., Family], clock: Clock) -> Callable[..., Any]:
    def make(seconds: float, a_row: float = 0.0, kind: str = "base") -> Any:
        return Timed(networks(kind), clock, lambda size: seconds + a_row * size)

    return make


def order(steps: int | None = None, count: int = 1) -> Request:
    return Request(seeds=tuple(range(count)), prompts=("a red circle",) * count, steps=steps)


def known(engine: Engine, model: Any) -> None:
    """Let the engine learn how long the model's steps are."""
    model.go.set()
    inbox = Inbox()
    engine.submit(model, order(TRUSTED), inbox.put)
    assert isinstance(inbox.last(), Finished)
    engine.ask(lambda: "noted", inbox.put)
    assert inbox.last() == "noted"


def test_models_have_equal_shares_of_time_however_long_their_steps_are(
    engine: Engine, timed: Callable[..., Any]
) -> None:
    slow, quick = timed(1 / 8), timed(1 / 64)  # rows of less than LONG_S
    first, second = Inbox(), Inbox()
    engine.submit(slow, order(6), first.put)
    assert slow.stepping.wait(PATIENCE_S)
    quick.go.set()
    engine.submit(quick, order(40), second.put)
    slow.go.set()
    assert isinstance(first.last(), Finished)
    assert isinstance(second.last(), Finished)
    for place, (when, _) in enumerate(slow.took[:4]):
        beside = sum(end <= when for end, _ in quick.took)
        assert beside == 8 * place  # an eighth of a second each


def test_short_work_has_three_quarters_of_the_time_beside_long_work(
    engine: Engine, timed: Callable[..., Any]
) -> None:
    long, short = timed(1 / 64), timed(1 / 64)
    known(engine, long)
    long.go.clear()
    long.stepping.clear()
    first, second = Inbox(), Inbox()
    engine.submit(long, order(200), first.put)  # 3 s
    assert long.stepping.wait(PATIENCE_S)
    short.go.set()
    engine.submit(short, order(45), second.put)
    long.go.set()
    assert isinstance(second.last(), Finished)
    beside = sum(end <= short.took[-1][0] for end, _ in long.took[TRUSTED:])
    assert beside in (15, 16)  # one was under way when the other came
    assert isinstance(first.last(), Finished)


def test_a_model_that_comes_back_has_saved_up_nothing_and_owes_nothing(
    engine: Engine, timed: Callable[..., Any]
) -> None:
    one, other = timed(1.0), timed(1.0)
    known(engine, other)
    one.go.set()
    inbox = Inbox()
    engine.submit(one, order(50), inbox.put)
    assert isinstance(inbox.last(), Finished)
    one.go.clear()
    one.stepping.clear()
    first, second = Inbox(), Inbox()
    engine.submit(one, order(20), first.put)
    assert one.stepping.wait(PATIENCE_S)
    engine.submit(other, order(20), second.put)
    one.go.set()
    assert isinstance(second.last(), Finished)
    assert isinstance(first.last(), Finished)
    turns = sorted(
        [(end, "one") for end, _ in one.took[50:]]
        + [(end, "other") for end, _ in other.took[TRUSTED:]]
    )
    names = [name for _, name in turns]
    assert names[1:39] == ["other", "one"] * 19


def test_rows_whose_time_is_up_leave_at_the_next_step(
    engine: Engine, timed: Callable[..., Any]
) -> None:
    model, inbox = timed(1.0), Inbox()
    engine.submit(model, order(8), inbox.put, within_s=8.5)  # foreseen to be in time
    assert model.stepping.wait(PATIENCE_S)
    model._seconds = lambda _size: 1.0 if len(model.took) < 6 else 3.0
    model.go.set()
    failed = inbox.last()
    assert isinstance(failed, Failed)
    assert failed.kind == "late"
    assert model.took[-1][0] == 9.0
    engine.ask(lambda: engine.drawing, inbox.put)
    assert inbox.last() == 0


def test_what_cannot_be_done_in_time_is_refused_at_the_door_with_the_estimate(
    engine: Engine, timed: Callable[..., Any]
) -> None:
    model = timed(2.0)
    known(engine, model)
    engine.submit(model, order(10), Inbox().put, within_s=20.5)
    with pytest.raises(TooLong, match="about 200 s here, and an answer may take 120 s"):
        engine.submit(model, order(100), Inbox().put, within_s=120)


class Stream:
    """Stands in for a GPU's: it is told what to do at once, and does it as the clock goes on."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self.left_s = clock, 0.0
        self.lost = ""

    def synchronize(self) -> None:
        if self.lost:
            raise torch.AcceleratorError(self.lost)
        self._clock.now, self.left_s = self._clock.now + self.left_s, 0.0


class Queued(Timed):
    """A model whose steps return before a GPU has done them."""

    def __init__(self, model: Family, clock: Clock, stream: Stream) -> None:
        super().__init__(model, clock, lambda _: 2.0)
        self.told: Callable[[float], object] = lambda s: setattr(
            stream, "left_s", stream.left_s + s
        )

    def _pass(self, size: int) -> None:
        self.told(self._seconds(size))


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Stream:
    stream = Stream(clock)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    return stream


@pytest.fixture
def queued(networks: Callable[..., Family], clock: Clock, stream: Stream) -> Any:
    return Queued(networks("base"), clock, stream)


def test_a_step_is_charged_with_what_a_gpu_does_after_its_call_has_returned(
    engine: Engine, queued: Any, stream: Stream
) -> None:
    """And so is a call: whoever comes next, and waits for a number, would be charged with it else."""
    known(engine, queued)
    with pytest.raises(TooLong, match="about 200 s here"):
        engine.submit(queued, order(100), Inbox().put, within_s=120)
    inbox = Inbox()
    engine.ask(lambda: [queued.told(5.0)], inbox.put)
    inbox.last()
    engine.ask(lambda: stream.left_s, inbox.put)
    assert inbox.last() == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("by", ["step", "call"])
def test_a_gpu_that_is_lost_to_its_process_ends_the_engine_so_that_a_new_one_has_it(
    engine: Engine, queued: Any, stream: Stream, by: str
) -> None:
    """As after an index out of range. What broke it has failed, and is not drawn elsewhere; what waited is."""

    def lose(_: float = 0) -> list[None]:
        queued.stepping.set()
        assert queued.go.wait(PATIENCE_S)
        stream.lost = "CUDA error: device-side assert triggered"
        return []

    queued.told, broke, waited = lose, Inbox(), Inbox()
    if by == "step":
        engine.submit(queued, order(2), broke.put)
    else:
        engine.ask(lose, broke.put)
    assert queued.stepping.wait(PATIENCE_S)
    engine.ask(lambda: "answered", waited.put)
    queued.go.set()
    first, second = broke.last(), waited.last()
    assert (first.kind, "device-side" in first.message, second.kind) == ("failed", True, "stopped")
    assert not engine.alive
    with pytest.raises(RuntimeError, match="stopped"):
        engine.submit(queued, order(1), waited.put)


def test_what_turns_out_to_take_too_long_is_ended_as_soon_as_that_is_known(
    engine: Engine, timed: Callable[..., Any]
) -> None:
    model, inbox = timed(2.0), Inbox()
    model.go.set()
    engine.submit(model, order(100), inbox.put, within_s=120)
    failed = inbox.last()
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.message) == (
        "too_long",
        "it takes about 200 s here, and an answer may take 120 s",
    )
    assert len(model.took) == TRUSTED


def test_what_was_slow_a_while_ago_is_tried_again(
    engine: Engine, timed: Callable[..., Any], clock: Clock
) -> None:
    model, inbox = timed(2.0), Inbox()
    known(engine, model)
    with pytest.raises(TooLong):
        engine.submit(model, order(100), Inbox().put, within_s=120)
    clock.now += FRESH_S
    model._seconds = lambda _size: 1.0
    engine.submit(model, order(100), inbox.put, within_s=120)
    assert isinstance(inbox.last(), Finished)


def test_a_queue_that_leaves_no_time_refuses_and_says_when_to_come_back(
    engine: Engine, timed: Callable[..., Any]
) -> None:
    model, beside = timed(1.0), timed(1.0)
    known(engine, model)
    known(engine, beside)
    model.go.clear()
    model.stepping.clear()
    engine.submit(model, order(40), Inbox().put)
    assert model.stepping.wait(PATIENCE_S)
    engine.submit(beside, order(30), Inbox().put, within_s=61)  # beside as much of the other
    with pytest.raises(Full, match="it would take about 60 s, at most 50 s may pass") as refused:
        engine.submit(beside, order(30), Inbox().put, within_s=50)
    assert refused.value.retry_after_s == pytest.approx(10)
    model.go.set()


def test_a_family_that_draws_in_one_go_does_so_in_short_calls(
    engine: Engine, timed: Callable[..., Any]
) -> None:
    model, inbox = timed(0.0, a_row=PIECE_S / 4, kind="vae"), Inbox()
    model.go.set()
    engine.submit(model, Request(seeds=tuple(range(15))), inbox.put, buckets=(1, 2, 4, 8, 16))
    for _ in range(15):
        assert isinstance(inbox.last(), Finished)
    assert [size for _, size in model.took] == [1, 1, 1, 4, 4, 4]


def test_a_drawing_in_parts_lets_others_between_and_ends_when_nobody_waits(
    engine: Engine, timed: Callable[..., Any], clock: Clock
) -> None:
    quick, slow, inbox, other = timed(1.0), timed(0.0, kind="vae"), Inbox(), Inbox()
    pieces: list[float] = []

    def drawing(request: Request) -> Iterator[Any]:
        for _ in range(5):
            clock.now += 1.0
            pieces.append(clock.now)
            yield None
        yield slow.sample(request)

    slow.drawing, slow.steps_of = drawing, lambda _request: 6
    slow.go.set()
    engine.submit(quick, order(8), inbox.put)
    assert quick.stepping.wait(PATIENCE_S)
    engine.submit(slow, Request(seeds=(1,)), other.put)
    quick.go.set()
    assert isinstance(inbox.last(), Finished)
    assert isinstance(other.last(), Finished)
    assert [later - sooner for sooner, later in itertools.pairwise(pieces)] == [2.0] * 4
    fresh = timed(0.0, kind="vae")
    fresh.drawing, fresh.steps_of = drawing, lambda _request: 6
    engine.submit(fresh, Request(seeds=(1,)), other.put, within_s=4.5)
    late = other.last()
    assert isinstance(late, Failed)
    assert late.kind == "too_long"  # seen after three parts, two more to come
    assert len(pieces) == 8


def test_a_question_in_parts_lets_others_between(
    engine: Engine, timed: Callable[..., Any], clock: Clock
) -> None:
    model, inbox, told = timed(1.0), Inbox(), Inbox()
    parts: list[float] = []

    def part() -> str | None:
        clock.now += 1.0
        parts.append(clock.now)
        return "all" if len(parts) == 4 else None

    engine.submit(model, order(8), inbox.put)
    assert model.stepping.wait(PATIENCE_S)
    engine.ask(part, told.put)
    model.go.set()
    assert told.last() == "all"
    assert [later - sooner for sooner, later in itertools.pairwise(parts)] == [2.0] * 3
    assert isinstance(inbox.last(), Finished)


def test_questions_of_jobs_let_people_s_go_first_and_keep_nobody_out(
    engine: Engine, clock: Clock
) -> None:
    began, go, told = threading.Event(), threading.Event(), Inbox()

    def busy() -> bool:
        began.set()
        return go.wait(PATIENCE_S)

    def asked(name: str) -> Callable[[], str]:
        def call() -> str:
            clock.now += 1.0
            return name

        return call

    engine.ask(busy, Inbox().put)
    assert began.wait(PATIENCE_S)
    for _ in range(33):  # as many as may wait, and one
        engine.ask(asked("job"), told.put, behind=True)
    for _ in range(32):
        engine.ask(asked("person"), told.put)
    with pytest.raises(Full, match="32 samples are waiting"):
        engine.ask(asked("person"), told.put)
    go.set()
    found = [told.last() for _ in range(65)]
    assert found[:23] == ["person", "job", *["person"] * 20, "job"]


def test_who_goes_ahead_waits_for_nobodys_samples_and_no_full_queue(
    engine: Engine, timed: Callable[..., Any], clock: Clock
) -> None:
    model, ahead = timed(1.0), Inbox()
    engine.submit(model, order(2, count=16), Inbox().put)
    assert model.stepping.wait(PATIENCE_S)
    engine.submit(model, order(50, count=32), Inbox().put)
    with pytest.raises(Full, match="32 samples are waiting, at most 32 may"):
        engine.submit(model, order(3), Inbox().put)
    engine.submit(model, order(3), lambda _found: ahead.put(clock.now), ahead=True)
    model.go.set()
    assert ahead.last() == 2 + 3


@given(
    st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.floats(1e-3, 10), min_size=1),
    st.sampled_from([1, 2, 4, 8, 16]),
)
def test_a_pace_is_what_was_measured_or_no_more_than_a_neighbour_lets_expect(
    took: dict[int, float], size: int
) -> None:
    account = Account()
    assert account.pace(size) is None
    for one, seconds in took.items():
        for _ in range(TRUSTED):
            account.note(one, seconds, 0.0)
    pace = account.pace(size)
    assert pace is not None
    assert pace == took.get(size, pace)
    assert pace <= max(took.values())
