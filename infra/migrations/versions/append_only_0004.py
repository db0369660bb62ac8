"""A written transition stays as it is on Postgres too, and on SQLite also under INSERT OR REPLACE."""

from typing import Final

from alembic import op

revision: Final = "0004"
down_revision: Final = "0003"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Create the triggers; who owns the table can still take them off, which the hash chain shows."""
    dialect = op.get_context().dialect.name
    if dialect == "sqlite":
        # REPLACE removes the row in its way without asking the trigger for DELETE
        op.execute(
            "CREATE TRIGGER transitions_no_replace BEFORE INSERT ON transitions WHEN EXISTS (SELECT 1 FROM transitions"
            " WHERE id = NEW.id OR key = NEW.key OR (name, stage, epoch) = (NEW.name, NEW.stage, NEW.epoch))"
            " BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        )
    if dialect == "postgresql":
        op.execute(
            "CREATE FUNCTION transitions_append_only() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$"
        )
        for verb, each in (("UPDATE", "ROW"), ("DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
            op.execute(
                f"CREATE TRIGGER transitions_no_{verb.lower()} BEFORE {verb} ON transitions"
                f" FOR EACH {each} EXECUTE FUNCTION transitions_append_only()"
            )


def downgrade() -> None:
    """Drop the triggers."""
    dialect = op.get_context().dialect.name
    if dialect == "sqlite":
        op.execute("DROP TRIGGER transitions_no_replace")
    if dialect == "postgresql":
        op.execute("DROP FUNCTION transitions_append_only() CASCADE")
