"""A job is submitted once, worked on by one runner at a time and ended once, in whatever order things happen."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from infra.jobs import jobs as jobs_module
from infra.jobs.idempotency import Conflict
from infra.jobs.ids import new_id
from infra.jobs.jobs import (
    LONGEST_WAIT_S,
    MOST_TRIES,
    BatchOver,
    Full,
    JobError,
    Jobs,
    NotFound,
)
from infra.jobs.leases import Lease, LeaseLost
from infra.jobs.table import BATCH, CANCELLED, FILE, JOBS, Job
from tests.databases_kit import KINDS, Database, Databases
from tests.infra.jobs_kit import LEASE_S, RESULT, Clock, submit


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(database: Database, clock: Clock) -> Iterator[Jobs]:
    with Jobs(
        database.url, lease_s=LEASE_S, most_open=4, most_queued=6, kept_s=60, clock=clock
    ) as jobs:
        yield jobs


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


@pytest.mark.parametrize("end", ["cancelled", "deleted while it waits again", "lost", "failed"])
def test_what_a_batch_asked_for_ends_with_it_and_is_asked_for_anew_where_it_is_retried(
    jobs: Jobs, clock: Clock, end: str
) -> None:
    batch = jobs.submit(BATCH, {}, owner="anna", pipeline="", digests={}, seed=0)
    lease = claim(jobs)
    runs = submit(jobs, idempotency_key=f"{batch.id}/0", batch=batch.id)
    clock.now += 1
    asked = {"idempotency_key": f"{batch.id}/1", "batch": batch.id}
    waits, of_nobody = submit(jobs, **asked), submit(jobs)
    assert claim(jobs).job.id == runs.id
    if end == "cancelled":
        assert jobs.cancel(batch.id).cancel
        with pytest.raises(BatchOver):  # by who had not heard of it
            submit(jobs, idempotency_key="late", batch=batch.id)
        lease.cancelled()
    elif end == "deleted while it waits again":
        lease.release()
        jobs.delete(batch.id)
    elif end == "lost":
        for _ in range(MOST_TRIES + 1):  # the last one for its files
            clock.now += LEASE_S + 1
            jobs.claim("two", kind=BATCH)
    else:
        lease.fail("file_not_found", "no file", again=False)
    assert jobs.get(waits.id).state == "cancelled"
    assert jobs.get(runs.id).cancel
    assert jobs.get(of_nobody.id).state == "queued"
    with pytest.raises(BatchOver, match=batch.id):
        submit(jobs, idempotency_key="late", batch=batch.id)
    if not end.startswith("deleted"):
        jobs.retry(batch.id)
        assert jobs.claim("two", kind=BATCH) is not None
        again = submit(jobs, **asked)
        assert (again.state, again.id != waits.id) == ("queued", True)


def test_a_batch_that_is_done_leaves_what_it_asked_for_as_it_is(jobs: Jobs) -> None:
    batch = jobs.submit(BATCH, {}, owner="anna", pipeline="", digests={}, seed=0)
    lease, clip = claim(jobs), submit(jobs, batch=batch.id)
    lease.finish(RESULT)
    assert jobs.get(clip.id).state == "queued"


def test_files_that_batches_made_do_not_count_among_an_owner_s(jobs: Jobs) -> None:
    jobs.submit(BATCH, {}, owner="anna", pipeline="", digests={}, seed=0)
    lease = claim(jobs)
    for number in range(3):
        jobs.record({}, id=f"file_{number}", owner="anna", result=RESULT, kept_s=9, lease=lease)
    given: dict[str, Any] = {"owner": "anna", "result": RESULT, "kept_s": 9.0, "most": 2}
    for number in range(2):
        jobs.record({}, id=f"file_mine_{number}", **given)
    with pytest.raises(JobError, match="2 files of this key are kept"):
        jobs.record({}, id="file_more", **given)
    assert len(jobs.page("anna", FILE).jobs) == 5


def test_a_file_of_a_batch_is_recorded_by_whoever_has_it_alone(jobs: Jobs, clock: Clock) -> None:
    batch = jobs.submit(BATCH, {}, owner="anna", pipeline="", digests={}, seed=0)
    lost, given = claim(jobs), {"id": "file_1", "owner": "anna", "kept_s": 9.0}
    clock.now += LEASE_S + 1
    held = claim(jobs, "two")
    made = jobs.record({}, result=RESULT, lease=held, **given)  # type: ignore[arg-type]
    with pytest.raises(LeaseLost, match=batch.id):
        jobs.record({}, result=replace(RESULT, uri="x"), lease=lost, **given)  # type: ignore[arg-type]
    assert jobs.get("file_1") == made
    assert jobs.unended("anna", BATCH) == [jobs.get(batch.id)]
    held.finish(RESULT)
    assert jobs.unended("anna", BATCH) == []


def test_a_key_names_one_file_for_as_long_as_it_is_there(jobs: Jobs, clock: Clock) -> None:
    def kept(id: str, digest: str) -> Job:
        result = replace(RESULT, digest=digest)
        given: dict[str, Any] = {"owner": "anna", "kept_s": 10.0, "most": 1}
        return jobs.record({}, id=id, result=result, idempotency_key="k", **given)

    assert kept("file_1", "d" * 64).id == kept("file_2", "d" * 64).id == "file_1"
    with pytest.raises(Conflict, match="was used for file_1"):
        kept("file_3", "e" * 64)
    clock.now += 11
    assert kept("file_4", "d" * 64).id == "file_4", "not the one that the next sweep takes away"
    clock.now += 11
    jobs.sweep()
    assert kept("file_5", "e" * 64).id == "file_5"


@pytest.mark.parametrize("kind", KINDS)
def test_jobs_of_before_are_known_as_their_batch_s(databases: Databases, kind: str) -> None:
    database = databases.empty(kind)
    config = Config()
    config.set_main_option(
        "script_location", str(Path(jobs_module.__file__).parents[1] / "migrations")
    )
    config.set_main_option("path_separator", "os")
    batch, ulid = new_id(BATCH, 1.0), new_id(FILE, 1.0)[5:]
    given = {
        "owner": "anna",
        "pipeline": "",
        "digests": "{}",
        "request": "{}",
        "body": "",
        "causes": "{}",
    }
    given |= dict.fromkeys(("seed", "progress", "attempt", "tries", "fence", "created"), 0)
    given |= {"state": "queued", "cancel": False, "deleted": False, "files": False}
    rows = [
        {"id": batch, "kind": BATCH, "idempotency_key": "mine"},
        {"id": "video_of_it", "kind": "video", "idempotency_key": f"{batch}/12"},
        {"id": "video_alone", "kind": "video", "idempotency_key": f"batch_{ulid}/1"},
        {"id": f"file_{batch[6:]}_errors", "kind": FILE, "idempotency_key": None},
        {"id": f"file_{ulid}", "kind": FILE, "idempotency_key": None},
        {"id": "video_of_berta", "kind": "video", "idempotency_key": f"{batch}/3"},
        {"id": "video_gone", "kind": "video", "idempotency_key": "gone"},
    ]
    rows[-2] |= {"owner": "berta"}
    rows[-1] |= {"state": "expired"}
    with database.engine().begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        connection.execute(sa.insert(JOBS), [{**given, **row} for row in rows])
    with Jobs(database.url), database.engine().connect() as connection:
        found = connection.execute(sa.select(JOBS.c.id).where(JOBS.c.batch == batch)).scalars()
        assert sorted(found) == sorted([rows[1]["id"], rows[3]["id"]])
        keys = connection.execute(sa.select(JOBS.c.id).where(JOBS.c.idempotency_key.is_not(None)))
        assert "video_gone" not in set(keys.scalars()), "its key may be used again"


def test_pages_hold_every_job_once_in_order(jobs: Jobs, clock: Clock) -> None:
    made = []
    for number in range(4):
        made.append(submit(jobs).id)
        clock.now += number % 2  # two of one moment
    submit(jobs, owner="berta")
    for order in ("asc", "desc"):
        found: list[str] = []
        last, more = None, True
        while more:
            page = jobs.page("anna", "video", last, 3, order)
            found += [one.id for one in page.jobs]
            last, more = page.jobs[-1], page.has_more
        assert sorted(found) == sorted(made)
        created = [jobs.get(id).created for id in found]
        assert created == sorted(created, reverse=order == "desc")
    assert len(jobs.page().jobs) == 5
    assert not jobs.page("anna", "image").jobs
    newest, *rest = jobs.page("anna").jobs
    jobs.delete(newest.id)
    assert jobs.page("anna", after=newest).jobs == rest, "the next part, though the last went"


def test_a_clock_that_was_set_back_keeps_nobody_waiting(jobs: Jobs, clock: Clock) -> None:
    submit(jobs)
    clock.now -= 3600
    lease = claim(jobs)
    clock.now -= 3600
    assert lease.beat(1.0) is False  # renewed, by the clock as it is now
    assert jobs.claim("two") is None
    clock.now -= 3600  # and its runner is lost
    assert claim(jobs, "two").job.causes == {"lost": 1}
    with pytest.raises(LeaseLost):
        lease.beat(2.0)


def test_a_job_that_is_put_off_for_long_is_not_taken_for_one_of_another_clock(
    jobs: Jobs, clock: Clock
) -> None:
    submit(jobs)
    claim(jobs).release(after_s=LONGEST_WAIT_S)
    assert jobs.claim("two") is None
    clock.now += LONGEST_WAIT_S
    assert jobs.claim("two") is not None


@pytest.mark.parametrize("id", ["video_\0", "video_\ud800", "\0"])
def test_an_id_that_no_database_keeps_is_an_unknown_one(jobs: Jobs, id: str) -> None:
    for ask in (jobs.get, jobs.cancel, jobs.delete, jobs.retry):
        with pytest.raises(NotFound, match="there is no job"):
            ask(id)
