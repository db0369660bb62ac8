"""A lease on a job: what its holder may write, as long as nobody else has claimed it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from infra.database import reading, writing
from infra.documents import parse_json
from infra.jobs.outbox import announce
from infra.jobs.table import BATCH, JOBS, STAGES, Error, Job, Output, Result, outputs
from infra.storage import faultpoint

ALMOST: Final = 99.0  # no more than this before the result is written down
PAUSE_S: Final = 5.0  # before the second attempt; twice as long before the third


class LeaseLost(Exception):
    """Another runner claimed the job, or it ended: nothing more may be written under this lease."""


class Lease:
    """One attempt at a job, by one runner."""

    def __init__(
        self,
        engine: Engine,
        job: Job,
        fence: int,
        *,
        lease_s: float,
        kept_s: float,
        most_tries: int,
        clock: Callable[[], float],
        lost: Error | None = None,
    ) -> None:
        self.job, self.fence = job, fence
        self.lost = lost  # why nothing more is to be made of a batch: its files are to be gathered
        self._engine, self._clock = engine, clock
        self._lease_s, self._kept_s, self._most_tries = lease_s, kept_s, most_tries
        self._until = clock() + lease_s
        self._progress = job.progress

    def beat(self, progress: float) -> bool:
        """Renew the lease where that is due, note the progress (0..99), and return whether the job is to be cancelled.

        Cheap enough for ten times a second: it only reads, unless a third of the lease or a percent has passed.

        Raises:
            LeaseLost: somebody else has the job.
        """
        progress = min(ALMOST, max(self._progress, progress))
        now = self._clock()
        left = self._until - now
        renew = not self._lease_s * 2 / 3 <= left <= self._lease_s  # more: the clock was set back
        if not renew and progress < self._progress + 1:
            with reading(self._engine) as connection:
                query = sa.select(JOBS.c.cancel).where(*self._mine)
                wanted = connection.scalar(query)
            if wanted is None:
                raise self._lost()
            return bool(wanted)
        with writing(self._engine) as connection:
            renewed = {"due": now + self._lease_s, "progress": progress}
            wanted = bool(self._write(connection, **renewed)["cancel"])
        self._until, self._progress = now + self._lease_s, progress
        return wanted

    def stages(self) -> dict[str, Output]:
        """Return the outputs of the stages that are finished, by node: they need not be made again."""
        with reading(self._engine) as connection:
            return outputs(connection, self.job.id)

    def stage_done(self, node: str, digest: str, uri: str, *, seconds: float = 0.0) -> None:
        """Commit a stage: its output is sealed under `uri`. Attempts are counted anew from here on.

        Raises:
            LeaseLost: somebody else has the job: what was made is to be thrown away.
        """
        now = self._clock()
        made = {"digest": digest, "uri": uri, "seconds": seconds, "fence": self.fence, "at": now}
        with writing(self._engine) as connection:
            self._write(connection, due=now + self._lease_s, tries=1)
            here = (STAGES.c.job == self.job.id) & (STAGES.c.node == node)
            connection.execute(sa.delete(STAGES).where(here))
            connection.execute(sa.insert(STAGES), {"job": self.job.id, "node": node, **made})
            faultpoint("jobs.stage")
        faultpoint("jobs.staged")
        self._until = now + self._lease_s

    def finish(self, result: Result) -> None:
        """Complete the job.

        Raises:
            LeaseLost: somebody else has the job.
        """
        with writing(self._engine) as connection:
            row = self.hold(connection)
            end(connection, row, self._clock(), self._kept_s, "completed", result=result)
            faultpoint("jobs.finish")
        faultpoint("jobs.finished")

    def fail(self, code: str, message: str, again: bool) -> None:
        """End this attempt by an error; with `again` the job is tried once more, three times at most.

        Raises:
            LeaseLost: somebody else has the job.
        """
        with writing(self._engine) as connection:
            row, now = self.hold(connection), self._clock()
            if row["cancel"]:
                end(connection, row, now, self._kept_s, "cancelled", cause=code)
            elif again and row["tries"] < self._most_tries:
                pause = PAUSE_S * 2 ** (row["tries"] - 1)
                self._write(connection, **give_back(row, code), due=now + pause)
            else:
                error = (code, message)
                end(connection, row, now, self._kept_s, "failed", error, cause=code)

    def cancelled(self) -> None:
        """End the job, as was wanted.

        Raises:
            LeaseLost: somebody else has the job.
        """
        with writing(self._engine) as connection:
            end(connection, self.hold(connection), self._clock(), self._kept_s, "cancelled")

    def release(self, after_s: float = 0.0) -> None:
        """Give the job back unharmed, for others or for later: this attempt does not count.

        Raises:
            LeaseLost: somebody else has the job.
        """
        with writing(self._engine) as connection:
            row = self.hold(connection)
            back = {**give_back(row, None), "tries": max(0, row["tries"] - 1)}
            self._write(connection, **back, due=self._clock() + after_s)

    @property
    def _mine(self) -> tuple[sa.ColumnElement[bool], ...]:
        held = (JOBS.c.fence == self.fence) & (JOBS.c.state == "in_progress")
        return (JOBS.c.id == self.job.id, held)

    def hold(self, connection: Connection) -> Mapping[str, Any]:
        """Hold the job's row until a transaction ends, so that nobody claims it meanwhile.

        Raises:
            LeaseLost: somebody else has the job.
        """
        query = sa.select(JOBS).where(*self._mine).with_for_update()
        row = connection.execute(query).mappings().first()
        if row is None:
            raise self._lost()
        return dict(row)

    def _write(self, connection: Connection, **values: Any) -> Mapping[str, Any]:
        query = sa.update(JOBS).where(*self._mine).values(**values).returning(JOBS)
        row = connection.execute(query).mappings().first()
        if row is None:
            raise self._lost()
        return dict(row)

    def _lost(self) -> LeaseLost:
        return LeaseLost(f"{self.job.id} is another's now, or over (fence {self.fence})")


def end(
    connection: Connection,
    row: Mapping[str, Any],
    now: float,
    kept_s: float,
    state: str,
    error: tuple[str, str] | None = None,
    *,
    result: Result | None = None,
    cause: str | None = None,
) -> None:
    """End a job in a transaction that holds its row, and put the news of it into the outbox.

    With a batch that is not completed ends what it asked for.
    """
    done = 100.0 if state == "completed" else row["progress"]
    values: dict[str, Any] = {
        **{"state": state, "cancel": False, "due": None, "holder": None, "progress": done},
        **{"ended": now, "expires": now + kept_s, "causes": _counted(row, cause)},
        "error_code": error and error[0],
        "error_message": error and error[1],
        "result": result and json.dumps(asdict(result)),
    }
    connection.execute(sa.update(JOBS).where(JOBS.c.id == row["id"]).values(**values))
    if not row["deleted"]:
        announce(connection, row, state, now)
    if row["kind"] == BATCH and state != "completed":
        _call_off(connection, row["id"], now, kept_s)


def cancel(connection: Connection, row: Mapping[str, Any], now: float, kept_s: float) -> None:
    """Cancel a job in a transaction that holds its row: one that waits at once, one under way at its next beat."""
    here = sa.update(JOBS).where(JOBS.c.id == row["id"])
    if row["state"] == "queued" and gathered(row):
        connection.execute(here.values(cancel=True, due=now))
    elif row["state"] == "queued":
        end(connection, row, now, kept_s, "cancelled")
    elif row["state"] == "in_progress":
        connection.execute(here.values(cancel=True))


def gathered(row: Mapping[str, Any]) -> bool:
    """Return whether a job that is called off goes to a runner all the same, who gathers what is finished of it."""
    return bool(row["kind"] == BATCH and row["attempt"] and not row["deleted"])


def _call_off(connection: Connection, batch: str, now: float, kept_s: float) -> None:
    """Cancel what a batch asked for, and forget for what: the batch tried again asks anew."""
    query = sa.select(JOBS).where(JOBS.c.batch == batch, JOBS.c.due.is_not(None))
    for row in connection.execute(query.with_for_update()).mappings().all():
        here = sa.update(JOBS).where(JOBS.c.id == row["id"])
        connection.execute(here.values(batch=None, idempotency_key=None))
        cancel(connection, dict(row), now, kept_s)


def give_back(row: Mapping[str, Any], cause: str | None) -> dict[str, Any]:
    """Return the columns of a job that waits once more, since its attempt ended by `cause`."""
    return {"state": "queued", "holder": None, "causes": _counted(row, cause)}


def _counted(row: Mapping[str, Any], cause: str | None) -> str:
    causes = dict(parse_json(row["causes"], "a job's causes"))
    if cause is not None:
        causes[cause] = causes.get(cause, 0) + 1
    return json.dumps(causes)
