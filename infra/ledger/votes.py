"""Blind votes: which of two versions' pictures a person liked better."""

from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa

from infra.database import METADATA, open_engine, reading, take_turns, writing

CAST_LOCK: Final = 0x766F7465  # "vote": on Postgres whoever looks and inserts holds it
VOTES: Final = sa.Table(
    "votes",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("first", sa.String(64), nullable=False),  # digest, the smaller of the two
    sa.Column("second", sa.String(64), nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("winner", sa.String(64)),  # a digest; None: alike
    sa.Column("voter", sa.String(200), nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
    sa.UniqueConstraint("first", "second", "prompt", "seed", "voter"),
)


class VoteError(ValueError):
    """A vote that cannot be cast."""


class Votes:
    """The votes between two versions, in one database (SQLite or Postgres, by SQLAlchemy's address)."""

    def __init__(self, url: str, one: str, other: str) -> None:
        if one == other:
            raise VoteError(f"both versions have sha256 {one[:12]}: there is nothing to choose")
        self._pair = sorted((one, other))
        self._engine = open_engine(url)

    def close(self) -> None:
        """Close the connections; they are reopened when needed."""
        self._engine.dispose()

    def cast(self, prompt: str, seed: int, winner: str | None, voter: str) -> None:
        """Keep a voter's choice between the two pictures of a prompt and seed; a later one takes its place.

        Raises:
            VoteError: the winner is neither of the two digests, nor None for "alike".
        """
        if winner is not None and winner not in self._pair:
            raise VoteError(
                f"{winner[:12]} is neither {self._pair[0][:12]} nor {self._pair[1][:12]}"
            )
        values = {"winner": winner, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        row = {"prompt": prompt, "seed": seed, "voter": voter}
        same = [VOTES.c[name] == value for name, value in row.items()]
        with writing(self._engine) as connection:
            take_turns(connection, CAST_LOCK)
            changed = connection.execute(sa.update(VOTES).where(self._here, *same).values(values))
            if not changed.rowcount:
                first, second = self._pair
                row |= {"first": first, "second": second, **values}
                connection.execute(sa.insert(VOTES), row)

    def by(self, voter: str) -> set[tuple[str, int]]:
        """Return the (prompt, seed) pairs that this voter has chosen between."""
        query = sa.select(VOTES.c.prompt, VOTES.c.seed).where(self._here, VOTES.c.voter == voter)
        with reading(self._engine) as connection:
            return {(str(prompt), int(seed)) for prompt, seed in connection.execute(query)}

    def wins(self, digest: str) -> tuple[float, int]:
        """Return how many votes one of the two won, a tie counted half, and how many there are."""
        query = (
            sa.select(VOTES.c.winner, sa.func.count()).where(self._here).group_by(VOTES.c.winner)
        )
        with reading(self._engine) as connection:
            counts = {winner: int(count) for winner, count in connection.execute(query)}
        return counts.get(digest, 0) + counts.get(None, 0) / 2, sum(counts.values())

    @property
    def _here(self) -> sa.ColumnElement[bool]:
        return (VOTES.c.first == self._pair[0]) & (VOTES.c.second == self._pair[1])


def wins(url: str, first: str, second: str) -> tuple[float, int]:
    """Return how many votes `first` (a digest) won against `second`, a tie counted half, and how many there are."""
    if first == second:
        return 0.0, 0
    votes = Votes(url, first, second)
    try:
        return votes.wins(first)
    finally:
        votes.close()
