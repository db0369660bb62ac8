"""API keys: shown once, kept as sha256, looked up by their first letters, revoked at once."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from infra.database import METADATA, DatabaseError, keeps, open_engine, reading, writing

START: Final = "sk-atelier-"
OURS: Final = "atelier:"  # how the labels of the platform's own keys begin
PREFIX: Final = 8  # letters after START: 48 of the 256 random bits
MOST_LABEL: Final = 100

API_KEYS: Final = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("prefix", sa.String(PREFIX), nullable=False, index=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("label", sa.String(MOST_LABEL), nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
    sa.Column("revoked", sa.String(32)),
    sa.Column("used", sa.String(10)),  # a day, so that a key costs one write a day
)


class KeyNotFound(ValueError):
    """No key, or more than one, has this id, prefix or label."""


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; the key itself is not."""

    id: int
    prefix: str  # its first letters, "sk-atelier-abcdefgh"
    label: str
    created: datetime
    revoked: datetime | None
    used: str | None  # the last day it was used, "2026-11-20" (UTC)

    @property
    def ours(self) -> bool:
        """Whether it is the platform's own, and no person's."""
        return self.label.startswith(OURS)


class Keys:
    """The keys in one database (SQLite or Postgres, by SQLAlchemy's address)."""

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)

    def close(self) -> None:
        """Close the connections; they are reopened when needed."""
        self._engine.dispose()

    def create(self, label: str) -> str:
        """Return a new key of 256 random bits: the only time that it is shown.

        Raises:
            ValueError: the label is empty, longer than 100 characters, or one that the platform keeps to itself.
        """
        if not 0 < len(label.strip()) <= MOST_LABEL:
            raise ValueError(f"a key's label has 1 to {MOST_LABEL} characters, got {len(label)}")
        if label.strip().startswith(OURS):
            raise ValueError(
                f"labels that begin with {OURS!r} are the platform's own, got {label!r}"
            )
        return self._create(label)

    def create_ours(self, purpose: str) -> str:
        """Return a new key of the platform's own: no person's, so that with it alone requests need none yet."""
        return self._create(OURS + purpose)

    def _create(self, label: str) -> str:
        secret = secrets.token_urlsafe(32)
        key = START + secret
        with writing(self._engine) as connection:
            row = {"label": label.strip(), "prefix": secret[:PREFIX], "sha256": _digest(key)}
            connection.execute(sa.insert(API_KEYS), {**row, "created": _now()})
        return key

    def list(self) -> Sequence[Key]:
        """Return every key that was ever made, oldest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(sa.select(API_KEYS).order_by(API_KEYS.c.id)).mappings()
            return [_key(dict(row)) for row in rows]

    def revoke(self, which: str) -> Key:
        """Refuse a key from its next request on; return it.

        Args:
            which: The key's id, its first letters (`sk-atelier-abcdefgh`), or its label.

        Raises:
            KeyNotFound: none or several are meant; the message lists them.
        """
        with writing(self._engine) as connection:
            rows = connection.execute(sa.select(API_KEYS).order_by(API_KEYS.c.id)).mappings()
            keys = [_key(dict(row)) for row in rows]
            meant = [key for key in keys if which in {str(key.id), key.prefix, key.label}]
            standing = [key for key in meant if key.revoked is None] or meant[:1]
            if len(standing) != 1:
                raise KeyNotFound(_hint(which, standing or keys))
            here = API_KEYS.c.id == standing[0].id
            again = sa.func.coalesce(API_KEYS.c.revoked, _now())
            connection.execute(sa.update(API_KEYS).where(here).values(revoked=again))
            row = connection.execute(sa.select(API_KEYS).where(here)).mappings().one()
        return _key(dict(row))

    def find(self, key: str) -> Key | None:
        """Return what is known of a key that may pass, else None; a key's use is noted once a day, where there is room.

        The time does not tell how much of a key was right.
        """
        if not key.isascii() or not keeps(key):
            return None
        digest = _digest(key)
        prefix = key.removeprefix(START)[:PREFIX]
        with reading(self._engine) as connection:
            query = sa.select(API_KEYS).where(API_KEYS.c.prefix == prefix)
            rows = [dict(row) for row in connection.execute(query).mappings()]
        passed = None
        for row in rows:
            same = hmac.compare_digest(row["sha256"], digest)
            if same and row["revoked"] is None:
                passed = row
        if passed is None:
            return None
        today = _now()[:10]
        if passed["used"] != today:
            here = API_KEYS.c.id == passed["id"]
            with (
                suppress(DatabaseError),
                writing(self._engine) as connection,
            ):  # a full disk lets read
                connection.execute(sa.update(API_KEYS).where(here).values(used=today))
        return _key({**passed, "used": today})

    def any(self) -> bool:
        """Return whether a person's key was ever made: from then on every request needs one, revoked or not."""
        persons = sa.not_(API_KEYS.c.label.startswith(OURS, autoescape=True))
        with reading(self._engine) as connection:
            return connection.scalar(sa.select(API_KEYS.c.id).where(persons).limit(1)) is not None


def _key(row: dict[str, Any]) -> Key:
    revoked = row["revoked"]
    return Key(
        id=row["id"],
        prefix=START + row["prefix"],
        label=row["label"],
        created=datetime.fromisoformat(row["created"]),
        revoked=None if revoked is None else datetime.fromisoformat(revoked),
        used=row["used"],
    )


def _hint(which: str, keys: Sequence[Key]) -> str:
    shown = ", ".join(f"{key.id} ({key.prefix}, {key.label})" for key in keys)
    if not shown:
        return f"there is no key {which!r}, nor any other: make one with `atelier keys add NAME`"
    return f"{which!r} does not name one key; give one id of: {shown}"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
