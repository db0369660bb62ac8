"""What the gateways saw of a rollout: counts and latencies of each arm, by ledger row."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa

from infra.database import METADATA, open_engine, reading, writing
from infra.ledger.rollout_rules import Arm, Place, Tally

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
_KEY: Final = ("name", "place", "epoch", "arm", "gateway")


class Observations:
    """The tallies in one database; every gateway writes rows of its own, so that none undoes another's."""

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)

    def close(self) -> None:
        """Close the connections; they are reopened when needed."""
        self._engine.dispose()

    def record(
        self, name: str, place: Place, epoch: int, gateway: str, tallies: Mapping[Arm, Tally]
    ) -> None:
        """Write all that this gateway has counted so far of a rollout, over what it wrote before."""
        table, now = OBSERVATIONS.c, datetime.now(UTC).isoformat(timespec="microseconds")
        with writing(self._engine) as connection:
            for arm, tally in tallies.items():
                key = dict(zip(_KEY, (name, place, epoch, arm, gateway), strict=True))
                values = {"document": tally.model_dump_json(), "updated": now}
                here = sa.and_(*(table[column] == value for column, value in key.items()))
                changed = connection.execute(sa.update(OBSERVATIONS).where(here).values(values))
                if not changed.rowcount:
                    connection.execute(sa.insert(OBSERVATIONS).values({**key, **values}))

    def read(
        self, name: str, place: Place, epoch: int, *, without: str | None = None
    ) -> dict[Arm, Tally]:
        """Return each arm's tally, summed over the gateways but the one to leave out."""
        table = OBSERVATIONS.c
        here = (table.name == name) & (table.place == place) & (table.epoch == epoch)
        if without is not None:
            here &= table.gateway != without
        found: dict[Arm, Tally] = {"champion": Tally(), "challenger": Tally()}
        with reading(self._engine) as connection:
            for arm, document in connection.execute(
                sa.select(table.arm, table.document).where(here)
            ):
                found[arm].add(Tally.model_validate_json(document))
        return found
