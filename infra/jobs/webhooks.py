"""Who wants to be told of events, and what is still to be told: the outbox's other side.

A delivery is claimed by moving its time ahead, so that of several couriers one has it, and one that is killed loses
nothing: it is due again a minute later. Whoever is told may so be told twice, under the same id.
"""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from infra.database import keeps, open_engine, reading, take_turns, writing
from infra.documents import parse_json
from infra.jobs.idempotency import asked_before, make_sure_of_words, words
from infra.jobs.ids import new_id
from infra.jobs.outbox import post
from infra.jobs.table import DELIVERIES, ENDPOINTS

MOST_TRIES: Final = 5
CLAIM_S: Final = 60.0  # how long a courier may take over one delivery
PAUSE_S: Final = 5.0  # before the second try; four times as long before each further one
BOTH_S: Final = 24 * 3600.0  # how long an old secret that is kept signs, too
FURTHEST_S: Final = (
    2 * PAUSE_S * 4 ** (MOST_TRIES - 2)
)  # ahead of any time that is given to a delivery
KEPT_S: Final = 7 * 24 * 3600.0  # how long a delivery that ended can be looked at


MOST_OF_AN_OWNER: Final = 20  # endpoints
CREATE_LOCK: Final = 0x686F6F6B  # "hook": on Postgres whoever counts and inserts holds it


class WebhookError(ValueError):
    """There is no such endpoint."""


class TooMany(ValueError):
    """The owner has as many endpoints as may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEndpoint:
    """An address that wants to be told of events; its secret is derived from `id` and a generation."""

    id: str
    owner: str
    name: str
    url: str
    events: tuple[str, ...]
    generation: int
    both_until: float | None  # Unix s: until then the secret before this one signs, too
    created: float
    updated: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one endpoint, claimed to be told."""

    id: str
    body: str
    endpoint: WebhookEndpoint


class Webhooks:
    """Endpoints and their deliveries in one database."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = open_engine(url), clock

    def close(self) -> None:
        """Close the connections; they are reopened when needed."""
        self._engine.dispose()

    def create(
        self,
        owner: str,
        name: str,
        url: str,
        events: Sequence[str],
        idempotency_key: str | None = None,
    ) -> WebhookEndpoint:
        """Tell an address of these events of an owner's from now on; once for an idempotency key.

        Raises:
            TooMany: the owner has 20 already.
            infra.jobs.idempotency.Conflict: the key was used for another request.
        """
        now = self._clock()
        row = {"owner": owner, "name": name, "url": url, "events": json.dumps(list(events))}
        body = words("webhook_endpoint", row)
        id = new_id("we", now)
        count = sa.select(sa.func.count()).select_from(ENDPOINTS).where(ENDPOINTS.c.owner == owner)
        with writing(self._engine) as connection:
            take_turns(connection, CREATE_LOCK)
            found = asked_before(connection, ENDPOINTS, owner, idempotency_key, body)
            if found is not None:
                return _endpoint(found)
            if (connection.scalar(count) or 0) >= MOST_OF_AN_OWNER:
                most = MOST_OF_AN_OWNER
                raise TooMany(f"{most} webhook endpoints of this key, no more may be: delete one")
            key = {"idempotency_key": idempotency_key, "body": body}
            both = {"generation": 1, "created": now, "updated": now}
            connection.execute(sa.insert(ENDPOINTS), {"id": id, **row, **key, **both})
            return _get(connection, id, owner)

    def list(self, owner: str) -> Sequence[WebhookEndpoint]:
        """Return an owner's endpoints, oldest first."""
        order = (ENDPOINTS.c.created, ENDPOINTS.c.id)
        query = sa.select(ENDPOINTS).where(ENDPOINTS.c.owner == owner).order_by(*order)
        with reading(self._engine) as connection:
            return [_endpoint(dict(row)) for row in connection.execute(query).mappings()]

    def get(self, id: str, owner: str) -> WebhookEndpoint:
        """Return one endpoint of an owner's.

        Raises:
            WebhookError: there is none.
        """
        with reading(self._engine) as connection:
            return _get(connection, id, owner)

    def update(
        self,
        id: str,
        owner: str,
        *,
        name: str | None = None,
        url: str | None = None,
        events: Sequence[str] | None = None,
    ) -> WebhookEndpoint:
        """Change what is given; errors as in `get`."""
        given = {"name": name, "url": url, "events": events and json.dumps(list(events))}
        changed = {key: value for key, value in given.items() if value is not None}
        with writing(self._engine) as connection:
            return _set(connection, id, owner, self._clock(), **changed)

    def rotate(
        self, id: str, owner: str, *, keep_old: bool, idempotency_key: str | None = None
    ) -> WebhookEndpoint:
        """Give an endpoint another secret, once for an idempotency key.

        With `keep_old` the one before signs for a day, too. Errors as in `get` and `create`.
        """
        both = self._clock() + BOTH_S if keep_old else None
        body = words("rotation", {"id": id, "keep_old": keep_old})
        with writing(self._engine) as connection:
            take_turns(connection, CREATE_LOCK)
            row = _row(connection, id, owner)
            if idempotency_key is not None and row["rotation_key"] == idempotency_key:
                make_sure_of_words(id, idempotency_key, row["rotation_body"], body)
                return _endpoint(row)
            key = {"rotation_key": idempotency_key, "rotation_body": body}
            return _set(
                connection, id, owner, self._clock(), generation=row["generation"] + 1,
                both_until=both, **key,
            )  # fmt: skip

    def delete(self, id: str, owner: str) -> None:
        """Tell an address of nothing more; errors as in `get`."""
        with writing(self._engine) as connection:
            _get(connection, id, owner)
            connection.execute(sa.delete(DELIVERIES).where(DELIVERIES.c.endpoint == id))
            connection.execute(sa.delete(ENDPOINTS).where(ENDPOINTS.c.id == id))

    def test(self, id: str, owner: str, event: str, data: Mapping[str, Any]) -> str:
        """Send one event to an endpoint, whether it listens for it or not; return its id. Errors as in `get`."""
        with writing(self._engine) as connection:
            _get(connection, id, owner)
            return post(connection, id, event, data, self._clock())

    def claim(self, but: Collection[str] = ()) -> Delivery | None:
        """Return what has waited longest to be told, for a minute, to no owner of `but`; None: nothing is due."""
        now = self._clock()
        waits = sa.select(DELIVERIES).join(ENDPOINTS, ENDPOINTS.c.id == DELIVERIES.c.endpoint)
        # a time further ahead than any that is given came from a clock that was set back
        due = (DELIVERIES.c.due <= now) | (DELIVERIES.c.due > now + FURTHEST_S)
        waits = waits.where(due, ENDPOINTS.c.owner.not_in(but))
        waits = waits.order_by(DELIVERIES.c.due, DELIVERIES.c.id).limit(1)
        mine = waits.with_for_update(skip_locked=True, of=DELIVERIES)
        with reading(self._engine) as connection:
            if connection.execute(waits).first() is None:
                return None
        with writing(self._engine) as connection:
            row = connection.execute(mine).mappings().first()
            if row is None:
                return None
            here = DELIVERIES.c.id == row["id"]
            # a courier that is killed over it has tried it, too
            claimed = {"due": now + CLAIM_S, "tries": row["tries"] + 1}
            connection.execute(sa.update(DELIVERIES).where(here).values(**claimed))
            query = sa.select(ENDPOINTS).where(ENDPOINTS.c.id == row["endpoint"])
            endpoint = connection.execute(query).mappings().one()
            return Delivery(row["id"], row["body"], _endpoint(dict(endpoint)))

    def delivered(self, id: str) -> None:
        """Note that an event was taken."""
        self._end(id, None)

    def failed(self, id: str, error: str) -> None:
        """Note why an event was not taken: it is tried again 5, 20, 80 and 320 s later, and then given up."""
        with reading(self._engine) as connection:
            tries = connection.scalar(sa.select(DELIVERIES.c.tries).where(DELIVERIES.c.id == id))
        if tries is None:  # its endpoint was deleted meanwhile
            return
        if tries >= MOST_TRIES:
            self._end(id, error)
            return
        due = self._clock() + PAUSE_S * 4 ** (tries - 1)
        with writing(self._engine) as connection:
            here = sa.update(DELIVERIES).where(DELIVERIES.c.id == id)
            connection.execute(here.values(due=due, error=error))

    def sweep(self) -> None:
        """Forget deliveries that ended a week ago, and those of endpoints that went while a job ended."""
        old = DELIVERIES.c.due.is_(None) & (DELIVERIES.c.ended < self._clock() - KEPT_S)
        nobody_s = DELIVERIES.c.endpoint.not_in(sa.select(ENDPOINTS.c.id))
        with writing(self._engine) as connection:
            connection.execute(sa.delete(DELIVERIES).where(old | nobody_s))

    def _end(self, id: str, error: str | None) -> None:
        with writing(self._engine) as connection:
            here = sa.update(DELIVERIES).where(DELIVERIES.c.id == id)
            connection.execute(here.values(due=None, ended=self._clock(), error=error))


def _get(connection: Connection, id: str, owner: str) -> WebhookEndpoint:
    return _endpoint(_row(connection, id, owner))


def _row(connection: Connection, id: str, owner: str) -> dict[str, Any]:
    here = (ENDPOINTS.c.id == id) & (ENDPOINTS.c.owner == owner)
    row = (
        connection.execute(sa.select(ENDPOINTS).where(here)).mappings().first()
        if keeps(id)
        else None
    )
    if row is None:
        raise WebhookError(f"there is no webhook endpoint {id!r}, or not any more")
    return dict(row)


def _set(connection: Connection, id: str, owner: str, now: float, **values: Any) -> WebhookEndpoint:
    """Change what is given of an endpoint."""
    _get(connection, id, owner)
    if values:
        here = sa.update(ENDPOINTS).where(ENDPOINTS.c.id == id)
        connection.execute(here.values(**values, updated=now))
    return _get(connection, id, owner)


def _endpoint(row: Mapping[str, Any]) -> WebhookEndpoint:
    known = {one.name: row[one.name] for one in fields(WebhookEndpoint)}
    events = tuple(parse_json(row["events"], "an endpoint's events"))
    return WebhookEndpoint(**{**known, "events": events})
