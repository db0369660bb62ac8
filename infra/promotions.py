"""The journal of promotions: what was intended, how far it came, who approved it, who is at work on it."""

from typing import Final

import sqlalchemy as sa

from infra.database import METADATA

PROMOTIONS: Final = sa.Table(
    "promotions",
    METADATA,
    sa.Column("id", sa.String(200), primary_key=True),  # the ledger row's idempotency key
    sa.Column("kind", sa.String(20), nullable=False),  # promote, rollback
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("place", sa.String(20), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),  # the head's when the decision was made
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("report", sa.Text),
    sa.Column("forced", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("error", sa.Text),  # why it was refused or undone
    sa.Column("flow_run", sa.String(36)),  # the suspended flow that waits for approval
    sa.Column("holder", sa.String(64)),  # who works on it
    sa.Column("lease", sa.String(32)),  # until when, UTC
    sa.Column("expires", sa.String(32)),  # when waiting for approval ends, UTC
    sa.Column("created", sa.String(32), nullable=False),
    sa.Column("updated", sa.String(32), nullable=False),
)
APPROVALS: Final = sa.Table(
    "approvals",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("promotion", sa.String(200), nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("verdict", sa.String(10), nullable=False),  # approve, reject
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
    sa.UniqueConstraint("promotion", "actor"),
)
