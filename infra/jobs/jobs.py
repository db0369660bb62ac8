"""Jobs: submitted once by key, bounded by owner, claimed by one runner at a time, ended once.

A claim is compare-and-swap: it raises the row's fencing number, and all that its holder writes later names that number.
A lease that ran out may be claimed by another; whoever held it is then told `LeaseLost` at his next word.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final, Literal, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from infra.database import keeps, open_engine, reading, take_turns, writing
from infra.jobs.idempotency import asked_before, words
from infra.jobs.ids import new_id
from infra.jobs.leases import Lease, cancel, end, gathered, give_back
from infra.jobs.table import (
    BATCH,
    CANCELLED,
    ENDS,
    FILE,
    JOBS,
    STAGES,
    Error,
    Job,
    Output,
    Result,
    job,
    outputs,
)
from infra.ledger.hash_chain import canonical

LEASE_S: Final = 10.0  # after a kill -9 nobody waits longer than this
KEPT_S: Final = 24 * 3600.0  # how long what came of a job can be fetched
REMEMBERED_S: Final = 30 * 24 * 3600.0  # how long it is listed after that
MOST_TRIES: Final = 3  # attempts at a stage
MOST_OPEN: Final = 20  # jobs of an owner that have not ended
MOST_QUEUED: Final = 1000  # jobs that wait, all owners together
LONGEST_WAIT_S: Final = 120.0  # the OpenAI client does not retry after longer ones
ASKED: Final = 500  # ids in one question
COSTED: Final = 20  # jobs from which a stage's cost is known
FURTHEST_S: Final = 2 * LONGEST_WAIT_S  # ahead of any time that is given to a job that waits
SUBMIT_LOCK: Final = 0x6A6F6273  # "jobs": on Postgres whoever counts and inserts holds it


class JobError(ValueError):
    """What cannot be done with a job; one line that says why."""


class NotFound(JobError):
    """There is no such job."""


class BatchOver(JobError):
    """The batch that asks for a job is called off, or over."""


class Full(JobError):
    """The owner, or all together, have as many jobs as may be; there should be room after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    jobs: Sequence[Job]
    has_more: bool


class Jobs:
    """The jobs in one database (SQLite or Postgres, by SQLAlchemy's address).

    Args:
        url: The database.
        lease_s: How long a claim holds without a beat.
        kept_s: How long after its end a job expires.
        most_open: Jobs of one owner that have not ended.
        most_queued: Jobs that wait, of all owners together.
        clock: Unix seconds; those of all who share a database agree within a second or so, or leases end early.
    """

    def __init__(
        self,
        url: str,
        *,
        lease_s: float = LEASE_S,
        kept_s: float = KEPT_S,
        most_open: int = MOST_OPEN,
        most_queued: int = MOST_QUEUED,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine: Engine = open_engine(url)
        self._lease_s, self._kept_s = lease_s, kept_s
        self._most_open, self._most_queued = most_open, most_queued
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; they are reopened when needed."""
        self._engine.dispose()

    def submit(
        self,
        kind: str,
        request: Mapping[str, Any],
        *,
        owner: str,
        pipeline: str,
        digests: Mapping[str, str],
        seed: int,
        id: str | None = None,
        idempotency_key: str | None = None,
        asked: Mapping[str, Any] | None = None,
        deadline: float | None = None,
        batch: str | None = None,
    ) -> Job:
        """Write down a job and return it; the same key and request return the job that there is.

        Args:
            kind: What is made: "video", "image". Begins its id.
            request: What was asked for; JSON values.
            owner: Whose it is: only theirs see it, and their quota is charged.
            pipeline: The version that makes it, as people write it: "clips:4".
            digests: The digest of every version that it is pinned to, by its name: of `pipeline`, and of its stages.
            seed: The seed that everything follows from.
            id: Of `new_id`, where files were kept for the job already; they go with it.
            idempotency_key: Names this attempt of the owner's to submit.
            asked: The owner's own words, by which a repeated key is compared; None: the request.
            deadline: Unix seconds; what is not done by then fails.
            batch: The batch that asks for it, and with which it is called off.

        Raises:
            Full: the owner's quota or the queue is full.
            BatchOver: the batch is called off, or over.
            infra.jobs.idempotency.Conflict: the key was used for another request.
        """
        now = self._clock()
        body = words(kind, request if asked is None else asked)
        row = {
            **{"id": id or new_id(kind, now), "kind": kind, "owner": owner, "pipeline": pipeline},
            "digests": canonical(dict(digests)),
            "request": json.dumps(dict(request), allow_nan=False),
            "seed": seed,
            "idempotency_key": idempotency_key,
            **{"body": body, "batch": batch},
            **{"state": "queued", "cancel": False, "deleted": False, "files": id is not None},
            **{"progress": 0.0, "attempt": 0, "tries": 0, "causes": "{}", "fence": 0},
            **{"due": now, "deadline": deadline, "created": now},
        }
        with writing(self._engine) as connection:
            take_turns(connection, SUBMIT_LOCK)
            _free(connection, owner, idempotency_key, now)
            found = asked_before(connection, JOBS, owner, idempotency_key, body)
            if found is not None:
                return job(found)
            if batch is not None:
                _make_sure_of_batch(connection, batch)
            self._make_sure_of_room(connection, owner, now)
            connection.execute(sa.insert(JOBS), row)
            return self._get(connection, str(row["id"]))

    def earlier(
        self, kind: str, asked: Mapping[str, Any], *, owner: str, idempotency_key: str | None
    ) -> Job | None:
        """Return the job that was submitted under a key in these words, whatever would be made of them today.

        Raises:
            infra.jobs.idempotency.Conflict: the key was used for another request.
        """
        with reading(self._engine) as connection:
            found = asked_before(connection, JOBS, owner, idempotency_key, words(kind, asked))
        return None if found is None else job(found)

    def get(self, id: str) -> Job:
        """Return one job.

        Raises:
            NotFound: there is none, or it was deleted.
        """
        with reading(self._engine) as connection:
            return self._get(connection, id)

    def stages(self, id: str) -> dict[str, Output]:
        """Return the outputs of a job's finished stages, by node, in the order they were finished."""
        with reading(self._engine) as connection:
            return outputs(connection, id)

    def finished(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """Return which stages of these jobs are finished; of one without any nothing is said."""
        found: dict[str, list[str]] = {}
        query = sa.select(STAGES.c.job, STAGES.c.node).where(STAGES.c.job.in_(ids))
        with reading(self._engine) as connection:
            for id, node in connection.execute(query):
                found.setdefault(id, []).append(node)
        return found

    def fetchable(self, ids: Sequence[str]) -> set[str]:
        """Return those of these jobs whose result can be had."""
        there = (JOBS.c.id.in_(ids), JOBS.c.result.is_not(None), sa.not_(JOBS.c.deleted))
        with reading(self._engine) as connection:
            return set(connection.scalars(sa.select(JOBS.c.id).where(*there)))

    def costs(self, pipeline: str) -> dict[str, float]:
        """Return how many seconds each node of a pipeline version took at its latest jobs, in the middle."""
        newest = sa.select(JOBS.c.id).where(
            JOBS.c.pipeline == pipeline, JOBS.c.started.is_not(None)
        )
        newest = newest.order_by(JOBS.c.created.desc()).limit(COSTED)
        query = sa.select(STAGES.c.node, STAGES.c.seconds).where(STAGES.c.job.in_(newest))
        took: dict[str, list[float]] = {}
        with reading(self._engine) as connection:
            for node, seconds in connection.execute(query):
                took.setdefault(node, []).append(seconds)
        return {node: median(seconds) for node, seconds in took.items()}

    def page(
        self,
        owner: str | None = None,
        kind: str | None = None,
        after: Job | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> Page:
        """Return a part of the list of jobs, by when they were made; None: of all owners, of all kinds but files.

        A file is listed for as long as it is there. The job `after` which the part begins may be gone meanwhile.
        """
        query = sa.select(JOBS).where(sa.not_(JOBS.c.deleted))
        if owner is not None:
            query = query.where(JOBS.c.owner == owner)
        query = query.where(JOBS.c.kind != FILE if kind is None else JOBS.c.kind == kind)
        query = query.where(JOBS.c.result.is_not(None)) if kind == FILE else query
        place = sa.tuple_(JOBS.c.created, JOBS.c.id)
        up = order == "asc"
        if after is not None:
            here = sa.tuple_(sa.literal(after.created), sa.literal(after.id))
            query = query.where(place > here if up else place < here)
        columns = (JOBS.c.created, JOBS.c.id)
        query = query.order_by(*(one.asc() if up else one.desc() for one in columns))
        with reading(self._engine) as connection:
            rows = connection.execute(query.limit(limit + 1)).mappings().all()
        return Page([job(dict(row)) for row in rows[:limit]], len(rows) > limit)

    def unended(self, owner: str, kind: str) -> list[Job]:
        """Return an owner's jobs of a kind that have not ended."""
        mine = (JOBS.c.owner == owner, JOBS.c.kind == kind, JOBS.c.due.is_not(None))
        with reading(self._engine) as connection:
            rows = connection.execute(sa.select(JOBS).where(*mine)).mappings().all()
        return [job(dict(row)) for row in rows]

    def cancel(self, id: str) -> Job:
        """Cancel a job: one that waits at once, one under way at its next step boundary. Others stay as they are.

        Raises:
            NotFound: there is none.
        """
        with writing(self._engine) as connection:
            cancel(connection, self._row(connection, id), self._clock(), self._kept_s)
            return self._get(connection, id)

    def delete(self, id: str) -> None:
        """Cancel a job and forget it; its files go at the next sweep. Its key may be used again.

        Raises:
            NotFound: there is none.
        """
        with writing(self._engine) as connection:
            row = self._row(connection, id)
            _set(connection, id, deleted=True, idempotency_key=None)
            cancel(connection, {**row, "deleted": True}, self._clock(), self._kept_s)

    def prolong(self, id: str, until: float) -> None:
        """Keep what came of a job until then at least, in Unix seconds; what is gone stays so."""
        here = (JOBS.c.id == id, JOBS.c.result.is_not(None), JOBS.c.expires < until)
        with writing(self._engine) as connection:
            connection.execute(sa.update(JOBS).where(*here).values(expires=until))

    def retry(self, id: str) -> Job:
        """Queue a job that failed or was cancelled once more; its finished stages are kept.

        Raises:
            NotFound: there is none.
            JobError: it neither failed nor was cancelled, or what it had made is gone.
        """
        with writing(self._engine) as connection:
            row = self._row(connection, id)
            if row["state"] not in {"failed", "cancelled"}:
                raise JobError(
                    f"{id} is {row['state']}: only what failed or was cancelled can be tried again"
                )
            again = {"state": "queued", "cancel": False, "tries": 0, "due": self._clock()}
            none = ("ended", "expires", "error_code", "error_message", "deadline")
            _set(connection, id, **again, **dict.fromkeys(none))
            return self._get(connection, id)

    def record(
        self,
        request: Mapping[str, Any],
        *,
        id: str,
        owner: str,
        result: Result,
        kept_s: float,
        most: int | None = None,
        lease: Lease | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Write down a file that is there as a job that is completed, to be kept for so long; the newest of an id.

        The same key and file return the one that there is. What a batch made, under its `lease`, is bounded by its
        work, and not counted.

        Raises:
            LeaseLost: the batch is another's now.
            JobError: the owner has `most` files that no batch made already.
            infra.jobs.idempotency.Conflict: the key was used for another request.
        """
        now, body = self._clock(), words(FILE, {**request, "sha256": result.digest})
        row = {
            **{"id": id, "kind": FILE, "owner": owner, "pipeline": "", "digests": "{}", "seed": 0},
            **{"request": json.dumps(dict(request)), "body": body},
            "batch": lease and lease.job.id,
            "idempotency_key": idempotency_key,
            **{"state": "completed", "cancel": False, "deleted": False, "files": True},
            **{"progress": 100.0, "attempt": 0, "tries": 0, "causes": "{}", "fence": 0},
            **{"created": now, "ended": now, "expires": now + kept_s},
            "result": json.dumps(asdict(result)),
        }
        kept = (JOBS.c.owner == owner, JOBS.c.kind == FILE, JOBS.c.result.is_not(None))
        mine = (*kept, JOBS.c.batch.is_(None), ~JOBS.c.deleted, JOBS.c.expires > now)
        with writing(self._engine) as connection:
            take_turns(connection, SUBMIT_LOCK)
            if lease is not None:
                lease.hold(connection)
            _free(connection, owner, idempotency_key, now)
            found = asked_before(connection, JOBS, owner, idempotency_key, body)
            if found is not None:
                return job(found)
            if most is not None:
                count = sa.select(sa.func.count()).select_from(JOBS).where(*mine)
                if (connection.scalar(count) or 0) >= most:
                    raise JobError(f"{most} files of this key are kept, no more; delete one")
            connection.execute(sa.delete(JOBS).where(JOBS.c.id == id, JOBS.c.kind == FILE))
            connection.execute(sa.insert(JOBS), row)
            return self._get(connection, id)

    def claim(
        self, runner: str, *, kind: str | None = None, but: str | None = None
    ) -> Lease | None:
        """Return the job that waits longest, leased to `runner`, or None where none waits.

        Those of one `kind` alone, or all `but` those of one.

        On the way there it ends those whose deadline has passed, that are to be cancelled, or whose runners were lost
        too often.
        """
        now = self._clock()
        # a time further ahead than any that is given came from a clock that was set back
        ahead = JOBS.c.due > now + max(FURTHEST_S, 2 * self._lease_s)
        due = (JOBS.c.due <= now) | ahead
        waits = sa.select(JOBS).where(due).order_by(JOBS.c.due, JOBS.c.id).limit(1)
        waits = waits if kind is None else waits.where(JOBS.c.kind == kind)
        waits = waits if but is None else waits.where(JOBS.c.kind != but)
        with reading(self._engine) as connection:
            if _first(connection, waits) is None:  # whoever only looks takes no write lock
                return None
        while True:
            with writing(self._engine) as connection:
                row = _first(connection, waits.with_for_update(skip_locked=True))
                if row is None:
                    return None
                if not self._buried(connection, row, now):
                    return self._lease(connection, row, runner, now)

    def sweep(self) -> None:
        """End what is past its deadline, expire what is past its time, forget what expired long ago."""
        now = self._clock()
        late = JOBS.c.due.is_not(None) & (JOBS.c.deadline < now)
        idle = (JOBS.c.state == "queued") | (JOBS.c.due < now)
        over = JOBS.c.state.in_(ENDS - {"expired"}) & (JOBS.c.expires < now)
        called_off = over & (JOBS.c.state == "cancelled")
        why = {"error_code": CANCELLED.code, "error_message": CANCELLED.message}
        gone = (JOBS.c.state == "expired") & (JOBS.c.expires < now - REMEMBERED_S)
        with writing(self._engine) as connection:
            query = sa.select(JOBS).where(late, idle).with_for_update(skip_locked=True)
            for row in connection.execute(query).mappings().all():
                self._buried(connection, dict(row), now)
            connection.execute(sa.update(JOBS).where(called_off).values(**why))
            expired = {"state": "expired", "result": None, "idempotency_key": None}
            connection.execute(sa.update(JOBS).where(over).values(**expired))
            forgotten = sa.select(JOBS.c.id).where(gone, sa.not_(JOBS.c.files))
            connection.execute(sa.delete(STAGES).where(STAGES.c.job.in_(forgotten)))
            connection.execute(sa.delete(JOBS).where(gone, sa.not_(JOBS.c.files)))

    def leftovers(self) -> list[str]:
        """Return jobs, at most a hundred, that nobody can ask for any more and whose files are still to be removed."""
        gone = JOBS.c.due.is_(None) & (JOBS.c.deleted | (JOBS.c.state == "expired"))
        with reading(self._engine) as connection:
            query = sa.select(JOBS.c.id).where(gone, JOBS.c.files | JOBS.c.deleted).limit(100)
            return list(connection.scalars(query))

    def unknown(self, ids: Sequence[str]) -> list[str]:
        """Return those of the ids that no job has."""
        known: set[str] = set()
        with reading(self._engine) as connection:
            for start in range(0, len(ids), ASKED):
                some = JOBS.c.id.in_(ids[start : start + ASKED])
                known.update(connection.scalars(sa.select(JOBS.c.id).where(some)))
        return [one for one in ids if one not in known]

    def cleared(self, id: str) -> None:
        """Note that a job's files are gone: its stages go, but for those that count, and a deleted job itself."""
        here = JOBS.c.id == id
        idle = sa.select(JOBS.c.id).where(here, JOBS.c.deleted | (JOBS.c.kind != BATCH))
        with writing(self._engine) as connection:
            connection.execute(sa.delete(STAGES).where(STAGES.c.job.in_(idle)))
            connection.execute(sa.update(JOBS).where(here).values(files=False))
            connection.execute(sa.delete(JOBS).where(here, JOBS.c.deleted))

    def _make_sure_of_room(self, connection: Connection, owner: str, now: float) -> None:
        count = sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.due.is_not(None))
        mine = connection.scalar(count.where(JOBS.c.owner == owner)) or 0
        if mine >= self._most_open:
            wait = self._estimate(connection, mine, now)
            raise Full(
                f"{mine} of your jobs have not ended, at most {self._most_open} may; wait for one, or cancel one",
                wait,
            )
        queued = connection.scalar(count.where(JOBS.c.state == "queued")) or 0
        if queued >= self._most_queued:
            wait = self._estimate(connection, queued, now)
            raise Full(f"{queued} jobs wait, at most {self._most_queued} may; try again", wait)

    def _estimate(self, connection: Connection, waiting: int, now: float) -> float:
        """Return in how many seconds so many jobs should be done, from how long the last ones took."""
        done = sa.select(JOBS.c.ended - JOBS.c.started).where(JOBS.c.state == "completed")
        took = list(connection.scalars(done.order_by(JOBS.c.expires.desc()).limit(20)))
        held = (JOBS.c.state == "in_progress") & (JOBS.c.due > now)
        runners = connection.scalar(
            sa.select(sa.func.count(sa.distinct(JOBS.c.holder))).where(held)
        )
        each = sum(took) / len(took) if took else 10.0
        return min(LONGEST_WAIT_S, max(1.0, waiting * each / (runners or 1)))

    def _buried(self, connection: Connection, row: Mapping[str, Any], now: float) -> bool:
        """End a job that is not to be worked on any more; return whether it was one."""
        lost = row["state"] == "in_progress"
        late = row["deadline"] is not None and row["deadline"] < now
        often = lost and row["tries"] >= MOST_TRIES
        if gathered(row) and (row["cancel"] or late or often) and row["tries"] <= MOST_TRIES:
            return False  # once more, for its files
        if row["cancel"]:
            end(connection, row, now, self._kept_s, "cancelled")
        elif late:
            say = f"it was not done by its deadline, {now - row['deadline']:.3g} s ago"
            end(connection, row, now, self._kept_s, "failed", ("deadline_exceeded", say))
        elif often:
            end(connection, row, now, self._kept_s, "failed", _lost(row), cause="lost")
        else:
            return False
        return True

    def _lease(
        self, connection: Connection, row: Mapping[str, Any], runner: str, now: float
    ) -> Lease:
        lost = None
        if row["state"] == "in_progress":  # its lease ran out
            lost = Error(*_lost(row)) if row["tries"] >= MOST_TRIES else None
            row = {**row, **give_back(row, "lost")}
        values = {
            "state": "in_progress",
            "holder": runner,
            "fence": row["fence"] + 1,
            "attempt": row["attempt"] + 1,
            "tries": row["tries"] + 1,
            "causes": row["causes"],
            "files": True,
            "due": now + self._lease_s,
            "started": now if row["started"] is None else row["started"],
        }
        _set(connection, row["id"], **values)
        claimed = job({**row, **values})
        return Lease(
            self._engine,
            claimed,
            values["fence"],
            lease_s=self._lease_s,
            kept_s=self._kept_s,
            most_tries=MOST_TRIES,
            clock=self._clock,
            lost=lost,
        )

    def _get(self, connection: Connection, id: str) -> Job:
        return job(self._row(connection, id, lock=False))

    def _row(self, connection: Connection, id: str, *, lock: bool = True) -> dict[str, Any]:
        query = sa.select(JOBS).where(JOBS.c.id == id, sa.not_(JOBS.c.deleted))
        row = _first(connection, query.with_for_update() if lock else query) if keeps(id) else None
        if row is None:
            raise NotFound(f"there is no job {id!r}, or not any more")
        return row


def _free(connection: Connection, owner: str, idempotency_key: str | None, now: float) -> None:
    """Let an owner's key be used again where what it named is over, and waits for the sweep."""
    over = (JOBS.c.idempotency_key == idempotency_key, JOBS.c.expires <= now)
    if idempotency_key is not None:
        here = sa.update(JOBS).where(JOBS.c.owner == owner, *over)
        connection.execute(here.values(idempotency_key=None))


def _make_sure_of_batch(connection: Connection, batch: str) -> None:
    """Let no batch ask for more that is called off; its row is held, so that whoever ends it sees what it asked for."""
    query = sa.select(JOBS).where(JOBS.c.id == batch, JOBS.c.due.is_not(None), ~JOBS.c.cancel)
    if _first(connection, query.with_for_update(read=True)) is None:
        raise BatchOver(f"{batch} is called off, or over: it asks for nothing more")


def _lost(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the code and message of a job whose runners were lost too often."""
    say = f"{row['tries']} runners in a row were lost while they worked on the same stage"
    return "lost", say


def _set(connection: Connection, id: str, **values: Any) -> None:
    connection.execute(sa.update(JOBS).where(JOBS.c.id == id).values(**values))


def _first(connection: Connection, query: sa.Select[Any]) -> dict[str, Any] | None:
    found = connection.execute(query).mappings().first()
    return dict(found) if found else None
