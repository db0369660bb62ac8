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
        "UPDATE jobs SET batch = substr(idempotency_key, 1, 32)"
        " WHERE substr(idempotency_key, 1, 32) IN (SELECT id FROM jobs WHERE kind = 'batch')"
    )
    op.execute(
        "UPDATE jobs SET batch = 'batch_' || substr(id, 6, 26)"
        " WHERE kind = 'file' AND substr(id, 32) IN ('_output', '_errors')"
    )
    op.add_column("webhook_endpoints", sa.Column("idempotency_key", sa.String(200)))
    op.add_column("webhook_endpoints", sa.Column("body", sa.String(64)))
    name = "ix_webhook_endpoints_owner_idempotency_key"
    op.create_index(name, "webhook_endpoints", ["owner", "idempotency_key"], unique=True)


def downgrade() -> None:
    """Drop the columns, and with them what they said."""
    op.drop_index("ix_webhook_endpoints_owner_idempotency_key", "webhook_endpoints")
    op.drop_index("ix_jobs_batch", "jobs")
    op.drop_column("webhook_endpoints", "body")
    op.drop_column("webhook_endpoints", "idempotency_key")
    op.drop_column("jobs", "batch")
