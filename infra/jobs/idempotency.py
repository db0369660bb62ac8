"""What is asked again: a key of an owner's names one request, and the same words under it give what came of it."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from infra.ledger.hash_chain import canonical, sha256


class Conflict(ValueError):
    """The idempotency key was used before, for another request."""


def words(kind: str, asked: Mapping[str, Any]) -> str:
    """Return the sha256 of what is asked for, by which a repeated key is compared."""
    return sha256(canonical({"kind": kind, "request": dict(asked)}))


def asked_before(
    connection: Connection, table: sa.Table, owner: str, idempotency_key: str | None, body: str
) -> dict[str, Any] | None:
    """Return the row that an owner's key names; `body` is what is asked now, in `words`.

    Raises:
        Conflict: the key was used for another request.
    """
    if idempotency_key is None:
        return None
    same = (table.c.owner == owner) & (table.c.idempotency_key == idempotency_key)
    row = connection.execute(sa.select(table).where(same)).mappings().first()
    if row is None:
        return None
    make_sure_of_words(row["id"], idempotency_key, row["body"], body)
    return dict(row)


def make_sure_of_words(id: str, idempotency_key: str, said: str, body: str) -> None:
    """Refuse a key that was used for other words, to make or change `id`.

    Raises:
        Conflict: it was.
    """
    if said != body:
        raise Conflict(
            f"the idempotency key {idempotency_key!r} was used for {id}, which asks for something else; "
            "take a new key"
        )
