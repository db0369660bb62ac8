"""What the gateways saw of a rollout: counts and latencies of each arm, by ledger row."""

from typing import Final

import sqlalchemy as sa

from infra.database import METADATA

OBSERVATIONS: Final = sa.Table(
    "observations",
    METADATA,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("place", sa.String(20), primary_key=True),  # canary, shadow
    sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),  # of that ledger row
    sa.Column("arm", sa.String(20), primary_key=True),  # champion, challenger
    sa.Column("gateway", sa.String(64), primary_key=True),  # which replica counted
    sa.Column("document", sa.Text, nullable=False),  # JSON
    sa.Column("updated", sa.String(32), nullable=False),
)
