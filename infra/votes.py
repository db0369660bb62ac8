"""Blind votes: which of two versions' pictures a person liked better."""

from typing import Final

import sqlalchemy as sa

from infra.database import METADATA

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
