"""The ledger's hash chain: how a row is hashed, how it reads, and how a whole table is checked."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

GENESIS: Final = "0" * 64
LATER: Final = frozenset(
    {"approvals"}
)  # columns that came after the first rows: hashed only where set


class LedgerError(ValueError):
    """A transition that cannot be made."""


class Broken(LedgerError):
    """The table is not what was written: a row was altered, inserted or removed."""


def move(row: Mapping[str, Any]) -> str:
    """Return what a row did, in words."""
    before, after = (
        "nothing" if row[side] is None else f"{row['name']}:{row[side]}"
        for side in ("from_version", "to_version")
    )
    return f"{row['stage']} from {before} to {after}"


def check(rows: Sequence[Mapping[str, Any]], count: int, last: str) -> int:
    """Return how many rows there are; raise Broken that names the first row that is not as written."""
    before = GENESIS
    epochs: dict[tuple[str, str], int] = {}
    held: dict[tuple[str, str], int | None] = {}
    for expected, row in enumerate(rows, start=1):
        at, place = row["id"], (row["name"], row["stage"])
        if at != expected:
            raise Broken(f"ledger row {expected} is missing: row {at} comes in its place")
        if row["prev_hash"] != before:
            raise Broken(f"ledger row {at} does not follow row {at - 1}: its prev_hash differs")
        if row["hash"] != hash_of(row):
            raise Broken(f"ledger row {at} ({move(row)}) was altered: its hash differs")
        if row["epoch"] != epochs.get(place, 0) + 1 or row["from_version"] != held.get(place):
            raise Broken(f"ledger row {at} ({move(row)}) skips an epoch of {row['name']}")
        before, epochs[place], held[place] = row["hash"], row["epoch"], row["to_version"]
    if (len(rows), before) != (count, last):
        raise Broken(f"ledger row {len(rows) + 1} is missing: {count} rows were written")
    return len(rows)


def hash_of(row: Mapping[str, Any]) -> str:
    """Return a row's hash: of all its other columns."""
    return sha256(
        canonical(
            {
                name: value
                for name, value in row.items()
                if name != "hash" and not (name in LATER and value is None)
            }
        )
    )


def canonical(value: Any) -> str:
    """Return JSON that is the same text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(text: str) -> str:
    """Return the hex digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def stamp(when: datetime) -> str:
    """Return a time as the ledger writes it: UTC, ISO 8601, microseconds."""
    return when.astimezone(UTC).isoformat(timespec="microseconds")
