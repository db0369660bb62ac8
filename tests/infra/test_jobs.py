"""A job is submitted once, worked on by one runner at a time and ended once, in whatever order things happen."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infra.jobs.jobs import MOST_TRIES, Conflict, Full, JobError, Jobs, NotFound
from infra.jobs.leases import Lease, LeaseLost
from infra.jobs.table import BATCH, CANCELLED, FILE, Job, Result
from tests.databases_kit import Database, Databases

LEASE_S = 10.0
RESULT = Result("d" * 64, "file:///clip.mp4", "video/mp4", 1000)


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(database: Database, clock: Clock) -> Iterator[Jobs]:
    with Jobs(
        database.url, lease_s=LEASE_S, most_open=4, most_queued=6, kept_s=60, clock=clock
    ) as jobs:
        yield jobs


def submit(jobs: Jobs, owner: str = "anna", **other: Any) -> Job:
    request = other.pop("request", {"prompt": "a red circle"})
    given = {"pipeline": "clips:1", "digests": {"clips": "d" * 64}, "seed": 2**62}
    return jobs.submit("video", request, owner=owner, **{**given, **other})


def claim(jobs: Jobs, runner: str = "one") -> Lease:
    lease = jobs.claim(runner)
    assert lease is not None
    return lease


def test_a_job_goes_from_its_request_to_its_result(jobs: Jobs, clock: Clock) -> None:
    made = submit(jobs)
    assert made.id.startswith("video_")
    assert (made.state, made.progress, made.attempt) == ("queued", 0, 0)
    clock.now += 1
    lease = claim(jobs)
    assert (lease.job.state, lease.job.started, lease.job.attempt) == ("in_progress", clock.now, 1)
    assert lease.job.request == {"prompt": "a red circle"}
    assert lease.beat(40.0) is False
    lease.stage_done("base", "e" * 64, "file:///base", seconds=2.5)
    assert jobs.get(made.id).progress == 40
    lease.finish(RESULT)
    ended = jobs.get(made.id)
    assert (ended.state, ended.progress, ended.result) == ("completed", 100, RESULT)
    assert ended.expires == clock.now + 60
    assert list(jobs.stages(made.id)) == ["base"]


def test_progress_never_falls_and_is_whole_only_at_the_end(jobs: Jobs) -> None:
    made, lease = submit(jobs), claim(jobs)
    for said, kept in ((30.0, 30.0), (10.0, 30.0), (100.0, 99.0)):
        lease.beat(said)
        assert jobs.get(made.id).progress == kept
    lease.fail("failed", "broken", again=True)
    assert jobs.get(made.id).progress == 99.0


def test_the_same_key_is_the_same_job_and_another_request_a_conflict(jobs: Jobs) -> None:
    first = submit(jobs, idempotency_key="k", seed=1)
    again = submit(jobs, idempotency_key="k", seed=2, pipeline="clips:2")  # promoted meanwhile
    assert again == first
    with pytest.raises(Conflict, match=first.id):
        submit(jobs, idempotency_key="k", request={"prompt": "a blue circle"})
    assert submit(jobs, owner="berta", idempotency_key="k").id != first.id


def test_an_owner_s_quota_and_the_queue_are_bounded_with_an_estimate(
    jobs: Jobs, clock: Clock
) -> None:
    for _ in range(4):
        submit(jobs)
    with pytest.raises(Full, match="at most 4") as refused:
        submit(jobs)
    assert 1 <= refused.value.retry_after_s <= 120
    for _ in range(2):
        submit(jobs, owner="berta")
    with pytest.raises(Full, match="6 jobs wait, at most 6"):
        submit(jobs, owner="carla")
    for _ in range(2):  # each takes 3 s, by one runner
        lease = claim(jobs)
        clock.now += 3
        lease.finish(RESULT)
        submit(jobs, owner="dora")
    with pytest.raises(Full) as refused:
        submit(jobs, owner="carla")
    assert refused.value.retry_after_s == pytest.approx(6 * 3)


def test_many_who_submit_at_once_do_not_pass_the_bound(jobs: Jobs) -> None:
    counts: list[bool] = []

    def submits() -> None:
        try:
            submit(jobs)
            counts.append(True)
        except Full:
            counts.append(False)

    together(submits, 8)
    assert sorted(counts) == [False] * 4 + [True] * 4


def test_many_who_keep_files_at_once_do_not_pass_the_bound(jobs: Jobs) -> None:
    numbers = itertools.count()

    def keeps() -> None:
        id = f"file_{next(numbers)}"
        with contextlib.suppress(JobError):
            jobs.record({}, id=id, owner="anna", result=RESULT, kept_s=10, most=3)

    together(keeps, 8)
    assert len(jobs.page("anna", FILE).jobs) == 3


def test_of_runners_that_claim_at_once_each_gets_another_job(jobs: Jobs) -> None:
    wanted = {submit(jobs, owner=owner).id for owner in "aabbcc"}
    got: list[str] = []

    def claims() -> None:
        while (lease := jobs.claim("x")) is not None:
            got.append(lease.job.id)

    together(claims, 4)
    assert sorted(got) == sorted(wanted)


def together(act: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=act) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_lease_that_ran_out_is_another_s_and_its_holder_is_told(jobs: Jobs, clock: Clock) -> None:
    made, slow = submit(jobs), claim(jobs)
    clock.now += LEASE_S * 0.9
    slow.beat(1.0)  # renews
    clock.now += LEASE_S * 0.9
    assert jobs.claim("two") is None
    clock.now += LEASE_S
    fast = claim(jobs, "two")
    assert (fast.job.id, fast.job.attempt, fast.job.causes) == (made.id, 2, {"lost": 1})
    for late in (
        lambda: slow.beat(50.0),
        lambda: slow.stage_done("base", "e" * 64, "x"),
        lambda: slow.finish(RESULT),
        lambda: slow.fail("failed", "x", again=True),
        slow.release,
        slow.cancelled,
    ):
        with pytest.raises(LeaseLost):
            late()
    assert not fast.stages()
    fast.finish(RESULT)


def test_three_losses_at_one_stage_end_a_job_but_a_finished_stage_counts_anew(
    jobs: Jobs, clock: Clock
) -> None:
    made = submit(jobs)
    for _ in range(MOST_TRIES - 1):
        claim(jobs)
        clock.now += LEASE_S + 1
    claim(jobs).stage_done("base", "e" * 64, "file:///base")
    for _ in range(MOST_TRIES - 1):
        clock.now += LEASE_S + 1
        assert claim(jobs).stages()["base"].uri == "file:///base"
    clock.now += LEASE_S + 1
    assert jobs.claim("one") is None
    ended = jobs.get(made.id)
    assert (ended.state, ended.attempt, ended.causes) == ("failed", 5, {"lost": 5})
    assert ended.error is not None
    assert ended.error.code == "lost"


def test_attempts_that_fail_are_counted_by_cause_and_the_last_one_s_error_stands(
    jobs: Jobs, clock: Clock
) -> None:
    made = submit(jobs)
    for code in ("out_of_memory", "failed", "out_of_memory"):
        clock.now += 10
        claim(jobs).fail(code, f"{code}!", again=True)
    ended = jobs.get(made.id)
    assert (ended.state, ended.causes) == ("failed", {"out_of_memory": 2, "failed": 1})
    assert ended.error is not None
    assert ended.error.message == "out_of_memory!"
    assert jobs.retry(made.id).state == "queued"
    lease = claim(jobs)
    lease.fail("invalid", "no such word", again=False)
    assert jobs.get(made.id).state == "failed"


def test_a_job_that_is_given_back_has_lost_no_attempt(jobs: Jobs, clock: Clock) -> None:
    made = submit(jobs)
    for _ in range(5):
        claim(jobs).release(after_s=2)
        assert jobs.claim("one") is None
        clock.now += 2
    assert (jobs.get(made.id).state, jobs.get(made.id).causes) == ("queued", {})


def test_cancel_ends_what_waits_and_tells_the_runner_of_what_does_not(
    jobs: Jobs, clock: Clock
) -> None:
    running = submit(jobs)
    clock.now += 1
    waiting = submit(jobs)
    lease = claim(jobs)
    assert jobs.cancel(waiting.id).state == "cancelled"
    assert jobs.cancel(running.id).state == "in_progress"
    assert lease.beat(0.0) is True
    lease.cancelled()
    assert jobs.get(running.id).state == "cancelled"
    assert jobs.cancel(running.id).state == "cancelled"
    assert jobs.retry(running.id).state == "queued"


def test_a_cancel_whose_runner_is_lost_is_obeyed_by_the_next(jobs: Jobs, clock: Clock) -> None:
    made, _ = submit(jobs), claim(jobs)
    jobs.cancel(made.id)
    clock.now += LEASE_S + 1
    assert jobs.claim("two") is None
    assert jobs.get(made.id).state == "cancelled"


def test_a_deleted_job_is_gone_at_once_and_its_files_at_the_sweep(jobs: Jobs) -> None:
    made = submit(jobs, idempotency_key="k")
    lease = claim(jobs)
    jobs.delete(made.id)
    with pytest.raises(NotFound):
        jobs.get(made.id)
    assert not jobs.page("anna").jobs
    assert submit(jobs, idempotency_key="k").id != made.id
    assert jobs.leftovers() == []  # somebody works on it yet
    assert lease.beat(0.0) is True
    lease.cancelled()
    assert jobs.leftovers() == [made.id]
    jobs.cleared(made.id)
    assert jobs.leftovers() == []


def test_a_deadline_ends_what_waits_and_what_is_lost(jobs: Jobs, clock: Clock) -> None:
    waiting = submit(jobs, deadline=clock.now + 30)
    clock.now += 31
    jobs.sweep()
    lost = submit(jobs, deadline=clock.now + 5)
    claim(jobs)
    clock.now += LEASE_S + 1
    assert jobs.claim("two") is None
    for one in (waiting, lost):
        error = jobs.get(one.id).error
        assert error is not None
        assert error.code == "deadline_exceeded"


def test_what_ended_expires_and_is_forgotten_later(jobs: Jobs, clock: Clock) -> None:
    made = submit(jobs)
    claim(jobs).finish(RESULT)
    clock.now += 59
    jobs.sweep()
    assert jobs.get(made.id).state == "completed"
    clock.now += 2
    jobs.sweep()
    assert (jobs.get(made.id).state, jobs.get(made.id).result) == ("expired", None)
    with pytest.raises(JobError, match="is expired"):
        jobs.retry(made.id)
    assert jobs.leftovers() == [made.id]
    jobs.cleared(made.id)
    clock.now += 31 * 24 * 3600
    jobs.sweep()
    with pytest.raises(NotFound):
        jobs.get(made.id)


def test_what_was_called_off_is_never_told_as_completed(jobs: Jobs, clock: Clock) -> None:
    made = submit(jobs)
    jobs.cancel(made.id)
    clock.now += 61
    jobs.sweep()
    found = jobs.get(made.id)
    assert (found.state, found.error) == ("expired", CANCELLED)


def test_files_are_listed_for_as_long_as_they_are_there(jobs: Jobs, clock: Clock) -> None:
    for number, kept_s in enumerate((10.0, 100.0)):
        jobs.record({}, id=f"file_{number}", owner="anna", result=RESULT, kept_s=kept_s)
        clock.now += 1
    clock.now += 10
    jobs.sweep()
    assert [one.id for one in jobs.page("anna", FILE, limit=1, order="asc").jobs] == ["file_1"]


def test_what_a_batch_had_finished_is_gathered_and_counted_also_where_it_is_called_off(
    jobs: Jobs, clock: Clock
) -> None:
    given: dict[str, Any] = {"pipeline": "", "digests": {}, "seed": 0}
    for end in ("cancelled", "late", "given back"):
        until = clock.now + 5 if end == "late" else None
        made = jobs.submit(BATCH, {}, owner="anna", deadline=until, **given)
        lease = claim(jobs)
        lease.stage_done("from 0", "e" * 64, "file:///0")
        if end == "given back":
            lease.release()
        if end != "late":
            assert jobs.cancel(made.id).cancel
        clock.now += LEASE_S + 1
        jobs.sweep()
        gathering = claim(jobs, "two")  # though nothing more is to be made of it
        assert (gathering.job.id, list(gathering.stages())) == (made.id, ["from 0"])
        gathering.cancelled()
        clock.now += 61
        jobs.sweep()
        jobs.cleared(made.id)
        assert list(jobs.stages(made.id)) == ["from 0"]
        clock.now += 31 * 24 * 3600
        jobs.sweep()
        assert not jobs.stages(made.id)
    never = jobs.submit(BATCH, {}, owner="anna", **given)
    assert jobs.cancel(never.id).state == "cancelled"


def test_pages_hold_every_job_once_in_order(jobs: Jobs, clock: Clock) -> None:
    made = []
    for number in range(4):
        made.append(submit(jobs).id)
        clock.now += number % 2  # two of one moment
    submit(jobs, owner="berta")
    for order in ("asc", "desc"):
        found: list[str] = []
        more = True
        while more:
            page = jobs.page("anna", "video", found[-1] if found else None, 3, order)
            found += [one.id for one in page.jobs]
            more = page.has_more
        assert sorted(found) == sorted(made)
        created = [jobs.get(id).created for id in found]
        assert created == sorted(created, reverse=order == "desc")
    assert len(jobs.page().jobs) == 5
    assert not jobs.page("anna", "image").jobs
    with pytest.raises(NotFound, match="video_x"):
        jobs.page("anna", after="video_x")


class JobsMachine(RuleBasedStateMachine):
    """Two runners, an owner and a clock: what the table says is what a list of jobs would."""

    databases: Databases
    kind: str

    @initialize()
    def opens(self) -> None:
        self.clock = Clock()
        self.database = self.databases.migrated(self.kind)
        self.jobs = Jobs(
            self.database.url, lease_s=LEASE_S, most_open=3, kept_s=60, clock=self.clock
        )
        self.state: dict[str, str] = {}
        self.done: dict[str, list[str]] = {}
        self.ended: dict[str, int] = {}
        self.leases: list[Lease] = []
        self.live: dict[str, Lease] = {}  # the newest claim of each
        self.progress: dict[str, float] = {}

    @rule()
    def submits(self) -> None:
        held = sum(state in {"queued", "in_progress"} for state in self.state.values())
        try:
            made = submit(self.jobs)
        except Full:
            assert held >= 3
            return
        assert held < 3
        self.state[made.id], self.done[made.id] = "queued", []
        self.clock.now += 0.01  # whose turn it is does not hang on chance

    @rule()
    def claims(self) -> None:
        lease = self.jobs.claim("runner")
        if lease is None:
            return
        id = lease.job.id
        assert self.state[id] in {"queued", "in_progress"}
        if id in self.live and self.state[id] == "in_progress":
            assert self.live[id].fence < lease.fence
        self.state[id], self.live[id] = "in_progress", lease
        self.leases.append(lease)
        assert list(lease.stages()) == self.done[id]

    def valid(self, lease: Lease) -> bool:
        return self.live.get(lease.job.id) is lease and self.state[lease.job.id] == "in_progress"

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), act=st.sampled_from(["beat", "stage", "finish", "fail", "release"]))
    def writes(self, data: st.DataObject, act: str) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        id, valid = lease.job.id, self.valid(lease)
        wanted = valid and self.jobs.get(id).cancel
        after = {"finish": "completed", "release": "queued"}
        try:
            if act == "beat":
                assert lease.beat(data.draw(st.floats(0, 120))) is wanted
            elif act == "stage":
                node = f"s{len(self.done[id])}"
                lease.stage_done(node, "e" * 64, f"file:///{node}")
                self.done[id].append(node)
                self.clock.now += 0.001  # stages are told apart by when they ended
            elif act == "finish":
                lease.finish(RESULT)
            elif act == "release":
                lease.release()
            else:
                lease.fail("failed", "broken", again=False)
                after["fail"] = "cancelled" if wanted else "failed"
        except LeaseLost:
            assert not valid
        else:
            assert valid
            self.state[id] = after.get(act, self.state[id])

    @precondition(lambda self: self.state)
    @rule(data=st.data())
    def cancels(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(list(self.state)))
        found = self.jobs.cancel(id)
        if self.state[id] == "queued":
            self.state[id] = "cancelled"
        assert found.cancel is (self.state[id] == "in_progress")

    @rule(seconds=st.sampled_from([1.0, LEASE_S + 1]))
    def waits(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def sweeps(self) -> None:
        self.jobs.sweep()

    @invariant()
    def agrees_with_the_model(self) -> None:
        found = {one.id: one for one in self.jobs.page(limit=100).jobs}
        assert found.keys() == self.state.keys()
        for id, one in found.items():
            if self.state[id] == "in_progress" and one.state in {"failed", "cancelled"}:
                assert one.state == "cancelled" or one.causes["lost"] >= MOST_TRIES
                self.state[id] = one.state  # buried by a claim: its runner was lost
            if one.state == "expired":
                assert self.state[id] in {"completed", "failed", "cancelled", "expired"}
                self.state[id] = "expired"
            assert one.state == self.state[id]
            assert (one.ended is None) == (not one.over)
            assert (one.result is None) == (one.state != "completed")
            assert one.progress >= self.progress.get(id, 0.0)
            self.progress[id] = one.progress

    def teardown(self) -> None:
        self.jobs.close()
        self.databases.drop(self.database)


@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 15), ("postgresql", 4)])
def test_any_order_of_calls_is_what_the_model_says(
    databases: Databases, kind: str, examples: int
) -> None:
    machine: Any = type("Machine", (JobsMachine,), {"databases": databases, "kind": kind})
    quick = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase.settings = quick
    machine.TestCase().runTest()
