"""Who approved a transition."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Add the column; rows without approvals keep their hash."""
    op.add_column("transitions", sa.Column("approvals", sa.Text))


def downgrade() -> None:
    """Drop the column, and with it what it said."""
    op.drop_column("transitions", "approvals")
