"""The ledger: an append-only, hash-chained table of every promotion and rollback, with compare-and-swap.

It is the truth about what is served: `head(name, "production")` names the version, and MLflow's aliases only follow it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, get_args

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from infra.database import METADATA, keeps, open_engine, reading, writing
from infra.documents import parse_json
from infra.ledger.hash_chain import LedgerError, canonical, check, hash_of, move, sha256, stamp
from infra.storage import faultpoint

Stage: TypeAlias = Literal["staging", "production", "canary", "shadow"]
"""Where a version can stand. `canary` and `shadow` last as long as a rollout does: it ends with None."""
STAGES: Final[tuple[str, ...]] = get_args(Stage)
SEEN: Final = 1000  # rows kept in memory for head()

TRANSITIONS: Final = sa.Table(
    "transitions",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("stage", sa.String(20), nullable=False),
    sa.Column("from_version", sa.Integer),
    sa.Column("to_version", sa.Integer),
    sa.Column("to_digest", sa.String(64)),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("key", sa.String(200), nullable=False, unique=True),
    sa.Column("body", sa.String(64), nullable=False),  # sha256 of what was asked under the key
    sa.Column("actor", sa.String(200), nullable=False),
    # UTC in ISO 8601 as text: the very bytes that are hashed, and sorted alike on every database
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("report", sa.Text),
    sa.Column("forced", sa.Boolean, nullable=False),
    sa.Column("approvals", sa.Text),
    sa.Column("prev_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.UniqueConstraint("name", "stage", "epoch"),
)
TIP: Final = sa.Table(
    "ledger_tip",  # how many rows there are and the last one's hash: a cut tail shows
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)


class Conflict(LedgerError):
    """Somebody else moved this stage first; `winner` is the row that stands (None: there is none yet)."""

    def __init__(self, message: str, winner: "Row | None") -> None:
        super().__init__(message)
        self.winner = winner


class KeyReused(LedgerError):
    """The idempotency key was used before, for something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One transition: at `epoch`, `stage` of `name` moved from one version to another (None: to none)."""

    id: int
    name: str
    stage: str
    from_version: int | None
    to_version: int | None
    to_digest: str | None
    epoch: int
    actor: str
    at: datetime
    reason: str
    report: Mapping[str, Any] | None
    forced: bool
    approvals: Sequence[Mapping[str, Any]] | None
    prev_hash: str
    hash: str

    def as_json(self) -> dict[str, Any]:
        """Return the row as a document of plain JSON values."""
        return {**asdict(self), "at": self.at.isoformat()}


class Ledger:
    """The transitions in one database (SQLite or Postgres, by SQLAlchemy's address)."""

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        # asked for every request: compiled once, and a row that was read once is known by its hash
        compiled = sa.union_all(*(_newest(place) for place in STAGES)).compile(
            self._engine, compile_kwargs={"render_postcompile": True}
        )
        self._standing_sql, self._standing_order = str(compiled), compiled.positiontup
        self._seen: dict[str, Row] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the ledger may be used again and reopens them."""
        self._engine.dispose()

    def transition(
        self,
        *,
        name: str,
        stage: Stage,
        to_version: int | None,
        to_digest: str | None,
        expected_epoch: int,
        key: str,
        actor: str,
        reason: str = "",
        report: Mapping[str, Any] | None = None,
        forced: bool = False,
        approvals: Sequence[Mapping[str, Any]] | None = None,
        within: Callable[[Connection], None] | None = None,
    ) -> Row:
        """Move a stage to a version if nobody moved it since `expected_epoch`; return the durable row.

        Args:
            name: The pipeline.
            stage: Which of its stages moves.
            to_version: Its new version; None takes the stage out of service.
            to_digest: That version's digest; None with it.
            expected_epoch: The head's epoch when the decision was made; 0 where there was no head.
            key: Names this attempt: a repeated call with the same key and body returns the row of the first.
            actor: Who moves it.
            reason: Why, in words.
            report: The gate's report; JSON values.
            forced: Moved against the gate.
            approvals: Who approved it, when and why; JSON values.
            within: Called in the same transaction after the row is written: what it writes stands or falls with it.

        Raises:
            Conflict: another transition came first; the message says whose, when and to what.
            KeyReused: `key` was used for another transition.
            LedgerError: a value that no transition can have.
            Busy: the database was locked for 20 s; repeat the call with the same key.
        """
        asked = {
            "name": name,
            "stage": stage,
            "to_version": to_version,
            "to_digest": to_digest,
            "actor": actor,
            "reason": reason,
            "report": None if report is None else canonical(report),
            "forced": forced,
            "approvals": None if approvals is None else canonical(approvals),
        }
        _check(asked, key, expected_epoch)
        body = sha256(canonical({**asked, "expected_epoch": expected_epoch}))
        with writing(self._engine) as connection:
            # on Postgres the tip's row lock makes writers take turns; SQLite's lock is held already
            tip = connection.execute(sa.select(TIP).with_for_update()).one()
            if earlier := _first(
                connection, sa.select(TRANSITIONS).where(TRANSITIONS.c.key == key)
            ):
                return _replay(earlier, key, body)
            head = _head(connection, name, stage)
            if (head["epoch"] if head else 0) != expected_epoch:
                raise _conflict(head, name, stage, expected_epoch)
            row = _append(connection, tip, head, {**asked, "key": key, "body": body})
            if within is not None:
                within(connection)
            faultpoint("ledger.commit")
        faultpoint("ledger.committed")
        return _row(row)

    def head(self, name: str, stage: Stage) -> Row | None:
        """Return the newest transition of a stage, or None where there never was one."""
        return self.standing(name).get(stage)

    def standing(self, name: str) -> dict[str, Row]:
        """Return the newest transition of each of a name's stages, all as of one moment."""
        order = self._standing_order
        if not keeps(name):
            return {}
        with reading(self._engine) as connection:
            found = connection.exec_driver_sql(
                self._standing_sql, (name,) * len(order) if order else {"n": name}
            )
            return {stage: self._known(connection, digest) for stage, digest in found}

    def _known(self, connection: Connection, digest: str) -> Row:
        row = self._seen.get(digest)  # asked once: another thread may clear them
        if row is None:
            query = sa.select(TRANSITIONS).where(TRANSITIONS.c.hash == digest)
            found = _first(connection, query)
            assert found is not None, "rows are never removed"
            if len(self._seen) >= SEEN:
                self._seen.clear()
            row = self._seen[digest] = _row(found)
        return row

    def fallback(self, name: str, stage: Stage) -> Row | None:
        """Return the transition to whose version a rollback returns, or None where there is none.

        A return to the version before takes the later one off: after 1, 2, 3 and a rollback to 2, the next is to 1.
        """
        columns = (TRANSITIONS.c.hash, TRANSITIONS.c.to_digest)
        here = (TRANSITIONS.c.name == name) & (TRANSITIONS.c.stage == stage)
        stood: list[tuple[str | None, str]] = []  # digest and the row's hash, the present one last
        with reading(self._engine) as connection:
            query = sa.select(*columns).where(here).order_by(TRANSITIONS.c.epoch)
            for hash_, digest in connection.execute(query):
                if len(stood) > 1 and stood[-2][0] == digest:
                    stood.pop()
                else:
                    stood.append((digest, hash_))
            earlier = [hash_ for digest, hash_ in stood[:-1] if digest is not None]
            return self._known(connection, earlier[-1]) if earlier else None

    def heads(self) -> list[Row]:
        """Return every stage's newest transition, by name and stage."""
        newest = (
            sa.select(sa.func.max(TRANSITIONS.c.id))
            .group_by(TRANSITIONS.c.name, TRANSITIONS.c.stage)
            .scalar_subquery()
        )
        order = (TRANSITIONS.c.name, TRANSITIONS.c.stage)
        return self._rows(
            sa.select(TRANSITIONS).where(TRANSITIONS.c.id.in_(newest)).order_by(*order)
        )

    def history(self, name: str) -> list[Row]:
        """Return every transition of `name`, oldest first."""
        here = TRANSITIONS.c.name == name
        query = sa.select(TRANSITIONS).where(here).order_by(TRANSITIONS.c.id)
        return self._rows(query) if keeps(name) else []

    def about(self, name: str, version: int) -> list[Row]:
        """Return the transitions of `name` to a version and away from it, oldest first."""
        moved = (TRANSITIONS.c.to_version == version) | (TRANSITIONS.c.from_version == version)
        here = (TRANSITIONS.c.name == name) & moved
        return self._rows(sa.select(TRANSITIONS).where(here).order_by(TRANSITIONS.c.id))

    def at(self, name: str, stage: Stage, when: datetime) -> Row | None:
        """Return the transition that was in force at a moment (with a time zone), or None before the first.

        Raises:
            LedgerError: `when` has no time zone, or is before or after all time in UTC.
        """
        if when.tzinfo is None:
            raise LedgerError(f"{when.isoformat()} has no time zone; add one, as in +00:00")
        try:
            moment = stamp(when)
        except OverflowError:
            raise LedgerError(f"{when.isoformat()} is before or after all time in UTC") from None
        here = (TRANSITIONS.c.name == name) & (TRANSITIONS.c.stage == stage)
        query = (
            sa.select(TRANSITIONS)
            .where(here, TRANSITIONS.c.at <= moment)
            .order_by(TRANSITIONS.c.epoch.desc())
            .limit(1)
        )
        found = self._rows(query)
        return found[0] if found else None

    def verify(self) -> int:
        """Return how many rows there are after recomputing the whole chain.

        Raises:
            Broken: a row was altered, inserted, moved or removed; names the first such row.
        """
        with reading(self._engine) as connection:
            # the tip first: rows that are appended meanwhile come after it
            tip = connection.execute(sa.select(TIP)).one()
            query = (
                sa.select(TRANSITIONS)
                .where(TRANSITIONS.c.id <= tip.rows)
                .order_by(TRANSITIONS.c.id)
            )
            rows = [dict(row) for row in connection.execute(query).mappings()]
        return check(rows, tip.rows, tip.hash)

    def _rows(self, query: sa.Select[Any]) -> list[Row]:
        with reading(self._engine) as connection:
            return [_row(dict(row)) for row in connection.execute(query).mappings()]


def _check(asked: Mapping[str, Any], key: str, expected_epoch: int) -> None:
    if asked["stage"] not in STAGES:
        raise LedgerError(f"unknown stage {asked['stage']!r}; choose one of {', '.join(STAGES)}")
    for what, value, most in (
        ("name", asked["name"], 100),
        ("key", key, 200),
        ("actor", asked["actor"], 200),
    ):
        if not 0 < len(value) <= most:
            raise LedgerError(f"a transition's {what} has 1 to {most} characters, got {len(value)}")
    version, digest = asked["to_version"], asked["to_digest"]
    if (version is None) != (digest is None):
        raise LedgerError(f"give a version and its digest, or neither; got {version} and {digest}")
    if version is not None and version < 1:
        raise LedgerError(f"versions count from 1, got {version}")
    if expected_epoch < 0:
        raise LedgerError(f"epochs count from 0, got {expected_epoch}")


def _newest(place: str) -> sa.Select[Any]:
    """Select stage and hash of the newest transition of name `n` in a place: two steps into an index."""
    row, other = TRANSITIONS.alias(), TRANSITIONS.alias()
    name: sa.BindParameter[str] = sa.bindparam("n")
    stage: sa.ColumnElement[str] = sa.literal_column(f"'{place}'")  # one of STAGES
    last = sa.select(sa.func.max(other.c.epoch)).where(other.c.name == name, other.c.stage == stage)
    return sa.select(row.c.stage, row.c.hash).where(
        row.c.name == name, row.c.stage == stage, row.c.epoch == last.scalar_subquery()
    )


def _head(connection: Connection, name: str, stage: str) -> dict[str, Any] | None:
    here = (TRANSITIONS.c.name == name) & (TRANSITIONS.c.stage == stage)
    newest = sa.select(TRANSITIONS).where(here).order_by(TRANSITIONS.c.epoch.desc()).limit(1)
    return _first(connection, newest)


def _first(connection: Connection, query: sa.Select[Any]) -> dict[str, Any] | None:
    found = connection.execute(query).mappings().first()
    return dict(found) if found else None


def _replay(earlier: Mapping[str, Any], key: str, body: str) -> Row:
    if earlier["body"] != body:
        raise KeyReused(
            f"key {key!r} was used at {earlier['at']} for {move(earlier)}, not for this; take a new key"
        )
    return _row(earlier)


def _conflict(head: Mapping[str, Any] | None, name: str, stage: str, expected: int) -> Conflict:
    if head is None:
        return Conflict(
            f"{name} has no {stage} yet (epoch 0), but epoch {expected} was expected; "
            f"look at `atelier history {name}`",
            None,
        )
    return Conflict(
        f"{head['actor']} was first: {move(head)} at {head['at']} (epoch {head['epoch']}, "
        f"you expected {expected}); look at `atelier history {name}` and decide again",
        _row(head),
    )


def _append(
    connection: Connection,
    tip: sa.Row[Any],
    head: Mapping[str, Any] | None,
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    last = connection.scalar(sa.select(TRANSITIONS.c.at).where(TRANSITIONS.c.id == tip.rows))
    row: dict[str, Any] = {
        **asked,
        "id": tip.rows + 1,
        "from_version": head["to_version"] if head else None,
        "epoch": head["epoch"] + 1 if head else 1,
        # a clock that was set back does not reorder history
        "at": max(stamp(datetime.now(UTC)), last or ""),
        "prev_hash": tip.hash,
    }
    row["hash"] = hash_of(row)
    connection.execute(sa.insert(TRANSITIONS), row)
    connection.execute(sa.update(TIP).values(rows=row["id"], hash=row["hash"]))
    return row


def _row(values: Mapping[str, Any]) -> Row:
    fields = {name: values[name] for name in Row.__dataclass_fields__}
    for name in ("report", "approvals"):
        text = values[name]
        fields[name] = None if text is None else parse_json(text, f"the ledger's {name}")
    fields["at"] = datetime.fromisoformat(values["at"])
    return Row(**fields)
