"""The outbox: who wants to hear of a job's end, written in the transaction that ends it, so that no news is lost."""

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from infra.documents import parse_json
from infra.jobs.ids import new_id
from infra.jobs.table import DELIVERIES, ENDPOINTS


def announce(connection: Connection, row: Mapping[str, Any], state: str, now: float) -> None:
    """Put the news that a job ended into the outbox: one delivery an endpoint of its owner that listens for it."""
    event = f"{row['kind']}.{state}"
    query = sa.select(ENDPOINTS.c.id, ENDPOINTS.c.events).where(ENDPOINTS.c.owner == row["owner"])
    for endpoint, events in connection.execute(query).all():
        if event in parse_json(events, "an endpoint's events"):
            post(connection, endpoint, event, {"id": row["id"]}, now)


def written(event: str, data: Mapping[str, Any], now: float) -> tuple[str, str]:
    """Return the id of an event and what is sent for it."""
    id = new_id("evt", now)
    body = {"id": id, "object": "event", "created_at": int(now), "type": event, "data": dict(data)}
    return id, json.dumps(body)


def post(
    connection: Connection, endpoint: str, event: str, data: Mapping[str, Any], now: float
) -> str:
    """Put one event for one endpoint into the outbox, to be delivered at once; return its id."""
    id, body = written(event, data, now)
    values = {"id": id, "endpoint": endpoint, "body": body, "tries": 0}
    connection.execute(sa.insert(DELIVERIES), {**values, "due": now, "created": now})
    return id
