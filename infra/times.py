"""How times are told: people are told them in UTC, by a text that says so; programs in ISO 8601 with the offset."""

from datetime import UTC, datetime


def utc(moment: datetime) -> str:
    """Return a time that knows its zone as "2026-11-20 12:00:00 UTC"."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
