"""Which batch asked for a job, and under which key a webhook endpoint was asked for."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0006"
down_revision: Final = "0005"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Add the columns; a batch's clips are known by their keys, "batch_.../3", its files by their names."""
    op.add_column("jobs", sa.Column("batch", sa.String(60)))
    op.create_index("ix_jobs_batch", "jobs", ["batch"])
    op.execute(
        "UPDATE jobs SET batch = substr(idempotency_key, 1, 32) WHERE EXISTS (SELECT 1 FROM jobs AS asking"
        " WHERE asking.kind = 'batch' AND asking.owner = jobs.owner"
        " AND asking.id = substr(jobs.idempotency_key, 1, 32))"
    )
    op.execute(
        "UPDATE jobs SET batch = 'batch_' || substr(id, 6, 26)"
        " WHERE kind = 'file' AND substr(id, 32) IN ('_output', '_errors')"
    )
    op.execute("UPDATE jobs SET idempotency_key = NULL WHERE state = 'expired'")
    for column in ("idempotency_key", "rotation_key"):
        op.add_column("webhook_endpoints", sa.Column(column, sa.String(200)))
    for column in ("body", "rotation_body"):
        op.add_column("webhook_endpoints", sa.Column(column, sa.String(64)))
    name = "ix_webhook_endpoints_owner_idempotency_key"
    op.create_index(name, "webhook_endpoints", ["owner", "idempotency_key"], unique=True)


def downgrade() -> None:
    """Drop the columns, and with them what they said."""
    op.drop_index("ix_webhook_endpoints_owner_idempotency_key", "webhook_endpoints")
    op.drop_index("ix_jobs_batch", "jobs")
    for column in ("rotation_body", "body", "rotation_key", "idempotency_key"):
        op.drop_column("webhook_endpoints", column)
    op.drop_column("jobs", "batch")
