"""The journal of promotions: what was intended, how far it came, who approved it, who is at work on it.

A promotion is written down before anything is done, every step after it is one transaction, and whoever works on one
holds a lease. A lease that ran out may be taken over by compare-and-swap: the first holder's next step then fails.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from infra.database import METADATA, keeps, open_engine, reading, writing
from infra.documents import parse_json
from infra.ledger.hash_chain import canonical, stamp

LEASE_S: Final = 10.0  # after a kill -9 nobody waits longer than this
HAND_OVER_S: Final = 60.0  # how long an approved promotion waits to be taken up
NEXT: Final[Mapping[str, frozenset[str]]] = {
    "intended": frozenset({"gated", "loaded"}),  # a rollback has no gate
    "gated": frozenset({"waiting", "loaded"}),
    "waiting": frozenset({"gated"}),
    "loaded": frozenset({"smoked"}),
    "smoked": frozenset({"committed"}),
    "committed": frozenset({"done"}),
}
"""From state to state; `committed` is written in the ledger row's own transaction."""
ENDS: Final = frozenset({"done", "refused", "rejected", "expired", "undone", "superseded"})

PROMOTIONS: Final = sa.Table(
    "promotions",
    METADATA,
    sa.Column("id", sa.String(200), primary_key=True),  # the ledger row's idempotency key
    sa.Column("kind", sa.String(20), nullable=False),  # promote, rollback
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("place", sa.String(20), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),  # the head's when the decision was made
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("report", sa.Text),
    sa.Column("policy", sa.Text),  # who may approve, and how many must: {"count", "by"}
    sa.Column("forced", sa.Boolean, nullable=False),  # asked for in spite of a refusal
    sa.Column("state", sa.String(20), nullable=False, index=True),
    sa.Column("error", sa.Text),  # why it was refused or undone
    sa.Column("flow_run", sa.String(36)),  # the suspended flow that waits for approval
    sa.Column("holder", sa.String(64)),  # who works on it
    sa.Column("lease", sa.String(32)),  # until when, UTC
    sa.Column("expires", sa.String(32)),  # when waiting for approval ends, UTC
    sa.Column("created", sa.String(32), nullable=False),
    sa.Column("updated", sa.String(32), nullable=False),
)
APPROVALS: Final = sa.Table(
    "approvals",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("promotion", sa.String(200), nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("verdict", sa.String(10), nullable=False),  # approve, reject
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
    sa.UniqueConstraint("promotion", "actor"),
)


class PromotionError(ValueError):
    """A step or a verdict that this promotion cannot take; one line that says why."""


class LeaseLost(PromotionError):
    """Another process took the promotion over: nothing more may be done under this lease."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one person said of a promotion that waits."""

    actor: str
    verdict: str  # approve, reject
    reason: str
    at: datetime

    def as_json(self) -> dict[str, str]:
        """Return it as the ledger keeps it."""
        return {"actor": self.actor, "reason": self.reason, "at": self.at.isoformat()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """One row of the journal."""

    id: str
    kind: str
    name: str
    place: str
    version: int
    digest: str
    epoch: int
    actor: str
    reason: str
    report: Mapping[str, Any] | None
    policy: Mapping[str, Any] | None
    forced: bool
    state: str
    error: str | None
    flow_run: str | None
    holder: str | None
    lease: datetime | None
    expires: datetime | None
    created: datetime
    updated: datetime

    @property
    def ref(self) -> str:
        """The version: "shapes:4"."""
        return f"{self.name}:{self.version}"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDS


class Promotions:
    """The journal in one database (SQLite or Postgres, by SQLAlchemy's address)."""

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)

    def close(self) -> None:
        """Close the connections; they are reopened when needed."""
        self._engine.dispose()

    def intend(
        self,
        *,
        kind: str,
        name: str,
        place: str,
        version: int,
        digest: str,
        epoch: int,
        actor: str,
        reason: str,
        forced: bool,
        holder: str,
    ) -> Promotion:
        """Write down what is about to be done, leased to `holder`; return it with its new id."""
        now = datetime.now(UTC)
        row = {
            "id": f"{name}-{version}-{secrets.token_hex(4)}",
            "kind": kind,
            "name": name,
            "place": place,
            "version": version,
            "digest": digest,
            "epoch": epoch,
            "actor": actor,
            "reason": reason,
            "forced": forced,
            "state": "intended",
            "holder": holder,
            "lease": _after(now, LEASE_S),
            "created": stamp(now),
            "updated": stamp(now),
        }
        with writing(self._engine) as connection:
            connection.execute(sa.insert(PROMOTIONS), row)
        return self.get(str(row["id"]))

    def get(self, id: str) -> Promotion:
        """Return one promotion.

        Raises:
            PromotionError: there is none of this id.
        """
        with reading(self._engine) as connection:
            return _get(connection, id)

    def open(self) -> list[Promotion]:
        """Return every promotion that has not ended, oldest first."""
        return self._list(PROMOTIONS.c.state.in_(NEXT))

    def waiting(self) -> list[Promotion]:
        """Return the promotions that wait for approval, oldest first."""
        return self._list(PROMOTIONS.c.state == "waiting")

    def of(self, digest: str) -> list[Promotion]:
        """Return every promotion of a version, oldest first."""
        return self._list(PROMOTIONS.c.digest == digest)

    def of_flow(self, flow_run: str) -> Promotion | None:
        """Return the promotion that a flow run began or waits for."""
        found = self._list(PROMOTIONS.c.flow_run == flow_run)
        return found[-1] if found else None

    def forsaken(self, now: datetime) -> list[Promotion]:
        """Return the open promotions whose lease ran out, and those whose time to be approved is over: one query.

        A lease further ahead than any that is given came from a clock that was set back, and counts as run out.
        """
        return self._list(
            (PROMOTIONS.c.state == "waiting") & (PROMOTIONS.c.expires < stamp(now))
            | PROMOTIONS.c.state.in_(NEXT.keys() - {"waiting"}) & _free(now)
        )

    def verdicts(self, id: str) -> list[Verdict]:
        """Return what was said of a promotion, in order."""
        with reading(self._engine) as connection:
            return _verdicts(connection, id)

    def renew(self, id: str, holder: str) -> bool:
        """Lengthen a lease; return whether it was still held."""
        until = _after(datetime.now(UTC), LEASE_S)
        return self._update(
            id, PROMOTIONS.c.holder == holder, PROMOTIONS.c.state.in_(NEXT), lease=until
        )

    def release(self, id: str, holder: str) -> None:
        """Give a lease up at once, so that nobody waits for it to run out."""
        lease = stamp(datetime.now(UTC))
        self._update(id, PROMOTIONS.c.holder == holder, PROMOTIONS.c.state.in_(NEXT), lease=lease)

    def take(self, id: str, holder: str, now: datetime) -> bool:
        """Take over a promotion whose lease ran out; of several that try one gets True."""
        lease = _after(now, LEASE_S)
        open_ = PROMOTIONS.c.state.in_(NEXT.keys() - {"waiting"})
        return self._update(id, open_, _free(now), holder=holder, lease=lease)

    def take_up(self, id: str, holder: str) -> bool:
        """Take up a promotion that was just approved and that nobody works on; of several one gets True."""
        lease = _after(datetime.now(UTC), LEASE_S)
        free = (PROMOTIONS.c.state == "gated") & (PROMOTIONS.c.holder.is_(None))
        return self._update(id, free, holder=holder, lease=lease)

    def advance(self, id: str, holder: str, state: str, **values: Any) -> Promotion:
        """Move a promotion on under a lease that is held; `values` are columns that change with it.

        Raises:
            LeaseLost: somebody else took it over.
            PromotionError: no such step from where it stands.
        """
        with writing(self._engine) as connection:
            advance(connection, id, holder, state, **values)
            return _get(connection, id)

    def wait(
        self,
        id: str,
        holder: str,
        policy: Mapping[str, Any],
        expires: datetime,
    ) -> Promotion:
        """Let a promotion wait for approval, held by nobody, until `expires`."""
        with writing(self._engine) as connection:
            values = {"policy": canonical(policy), "expires": stamp(expires)}
            advance(connection, id, holder, "waiting", **values)
            _set(connection, id, holder=None, lease=None)
            return _get(connection, id)

    def suspended(self, id: str, flow_run: str) -> None:
        """Note which suspended flow run goes on with a promotion once it is approved."""
        self._update(id, PROMOTIONS.c.state == "waiting", flow_run=flow_run)

    def approve(self, id: str, actor: str, reason: str) -> Promotion:
        """Record an approval; with the last one that is needed the promotion may be taken up.

        Raises:
            PromotionError: it does not wait, its time is over, `actor` asked for it, has spoken already, or is not
                one of those that the policy names.
        """
        with writing(self._engine) as connection:
            row = self._hear(connection, id, actor, reason, "approve")
            assert row.policy is not None
            said = [one for one in _verdicts(connection, id) if one.verdict == "approve"]
            if len(said) >= row.policy["count"]:
                lease = _after(datetime.now(UTC), HAND_OVER_S)
                _set(connection, id, state="gated", holder=None, lease=lease)
            return _get(connection, id)

    def reject(self, id: str, actor: str, reason: str) -> Promotion:
        """Record a rejection, which ends the promotion; the requester's own withdraws it.

        Raises:
            PromotionError: as for `approve`, but that the requester may.
        """
        with writing(self._engine) as connection:
            self._hear(connection, id, actor, reason, "reject")
            _set(connection, id, state="rejected", error=f"{actor} rejected it: {reason}")
            return _get(connection, id)

    def expire(self, now: datetime) -> list[Promotion]:
        """End the promotions that were not approved in time; return those that this call ended."""
        late = (PROMOTIONS.c.state == "waiting") & (PROMOTIONS.c.expires < stamp(now))
        return [
            self.get(row.id)
            for row in self._list(late)
            if self._update(row.id, late, state="expired", error="nobody approved it in time")
        ]

    def _hear(
        self,
        connection: Connection,
        id: str,
        actor: str,
        reason: str,
        verdict: str,
    ) -> Promotion:
        row = _get(connection, id, lock=True)
        now = datetime.now(UTC)
        if row.state != "waiting" or row.policy is None:
            raise PromotionError(f"promotion {id} does not wait for approval: it is {row.state}")
        if row.expires is not None and row.expires < now:
            raise PromotionError(f"promotion {id} expired at {stamp(row.expires)}; promote again")
        own = row.actor == actor
        if own and verdict == "approve":
            raise PromotionError(f"{actor} asked for {id}: another person must approve it")
        by = row.policy["by"]
        if by and actor not in by and not own:
            raise PromotionError(f"{actor} may not decide on {id}; one of {', '.join(by)} may")
        earlier = [one for one in _verdicts(connection, id) if one.actor == actor]
        if earlier:
            said = {"approve": "approved", "reject": "rejected"}[earlier[0].verdict]
            raise PromotionError(f"{actor} {said} {id} already, at {stamp(earlier[0].at)}")
        said_now = {"promotion": id, "actor": actor, "verdict": verdict, "reason": reason}
        connection.execute(sa.insert(APPROVALS), {**said_now, "at": stamp(now)})
        return row

    def _list(self, where: sa.ColumnElement[bool]) -> list[Promotion]:
        order = (PROMOTIONS.c.created, PROMOTIONS.c.id)
        with reading(self._engine) as connection:
            found = connection.execute(sa.select(PROMOTIONS).where(where).order_by(*order))
            return [_promotion(dict(row)) for row in found.mappings()]

    def _update(self, id: str, *where: sa.ColumnElement[bool], **values: Any) -> bool:
        changed = {**values, "updated": stamp(datetime.now(UTC))}
        with writing(self._engine) as connection:
            here = sa.update(PROMOTIONS).where(PROMOTIONS.c.id == id, *where)
            return connection.execute(here.values(**changed)).rowcount == 1


def advance(connection: Connection, id: str, holder: str, state: str, **values: Any) -> None:
    """Move a promotion on in a transaction of the caller's, as `Promotions.advance` does in its own."""
    row = _get(connection, id, lock=True)
    if row.holder != holder or row.ended:
        why = f": {row.error}" if row.error else ""
        raise LeaseLost(f"promotion {id} was taken over, it is {row.state}{why}; promote again")
    if state not in NEXT[row.state] | (ENDS - {"done"} if row.state != "committed" else set()):
        raise PromotionError(f"promotion {id} is {row.state}: it cannot become {state}")
    _set(connection, id, state=state, **values)


def _after(now: datetime, seconds: float) -> str:
    return stamp(now + timedelta(seconds=seconds))


def _free(now: datetime) -> sa.ColumnElement[bool]:
    """Say that a lease ran out, or cannot be one that was given."""
    lease = PROMOTIONS.c.lease
    return (lease < stamp(now)) | (lease > _after(now, HAND_OVER_S + LEASE_S)) | lease.is_(None)


def _get(connection: Connection, id: str, *, lock: bool = False) -> Promotion:
    query = sa.select(PROMOTIONS).where(PROMOTIONS.c.id == id)
    query = query.with_for_update() if lock else query
    found = connection.execute(query).mappings().first() if keeps(id) else None
    if found is None:
        raise PromotionError(
            f"no promotion has the id {id!r}; list those that wait: atelier approvals"
        )
    return _promotion(dict(found))


def _verdicts(connection: Connection, id: str) -> list[Verdict]:
    query = sa.select(APPROVALS).where(APPROVALS.c.promotion == id).order_by(APPROVALS.c.id)
    return [
        Verdict(row.actor, row.verdict, row.reason, datetime.fromisoformat(row.at))
        for row in connection.execute(query)
    ]


def _set(connection: Connection, id: str, **values: Any) -> None:
    changed = {**values, "updated": stamp(datetime.now(UTC))}
    connection.execute(sa.update(PROMOTIONS).where(PROMOTIONS.c.id == id).values(**changed))


def _promotion(row: dict[str, Any]) -> Promotion:
    readers: Sequence[tuple[tuple[str, ...], Callable[[str], Any]]] = (
        (("report", "policy"), partial(parse_json, what="a promotion")),
        (("lease", "expires", "created", "updated"), datetime.fromisoformat),
    )
    for names, read in readers:
        for name in names:
            row[name] = None if row[name] is None else read(row[name])
    return Promotion(**row)
