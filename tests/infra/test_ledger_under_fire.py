"""Any order of calls, and promoters that are killed at any moment, leave a whole ledger."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infra.database import open_engine, reading
from infra.ledger.ledger import Conflict, KeyReused, Ledger, Row
from infra.ledger.promotions import PROMOTIONS
from tests.databases_kit import Databases

VERSIONS = st.integers(1, 5)
PLACES = st.sampled_from(
    [(name, stage) for name in ("a", "b") for stage in ("staging", "production")]
)


class LedgerMachine(RuleBasedStateMachine):
    """Any order of moves, stale moves and repeated moves leaves what a list of rows would hold."""

    databases: Databases
    kind: str

    @initialize()
    def opens(self) -> None:
        self.database = self.databases.migrated(self.kind)
        self.ledger = Ledger(self.database.url)
        self.rows: list[Row] = []
        self.calls: list[dict[str, Any]] = []

    def expected(self, name: str, stage: str) -> Row | None:
        return next(
            (row for row in reversed(self.rows) if (row.name, row.stage) == (name, stage)), None
        )

    @rule(place=PLACES, version=VERSIONS | st.none(), forced=st.booleans())
    def moves(self, place: tuple[str, str], version: int | None, forced: bool) -> None:
        head = self.expected(*place)
        call = {
            "name": place[0],
            "stage": place[1],
            "to_version": version,
            "to_digest": None if version is None else "d" * version,
            "expected_epoch": head.epoch if head else 0,
            "key": f"call-{len(self.calls)}",
            "actor": "anna",
            "report": {"metrics": {"alignment": 0.5}} if forced else None,
            "forced": forced,
        }
        row = self.ledger.transition(**call)  # type: ignore[arg-type]
        assert row.from_version == (head.to_version if head else None)
        self.rows.append(row)
        self.calls.append(call)

    @rule(place=PLACES, off=st.sampled_from([-2, -1, 1, 3]))
    def moves_on_a_stale_view(self, place: tuple[str, str], off: int) -> None:
        head = self.expected(*place)
        epoch = max(0, (head.epoch if head else 0) + off)
        if epoch != (head.epoch if head else 0):
            with pytest.raises(Conflict) as lost:
                self.ledger.transition(
                    name=place[0],
                    stage=place[1],
                    to_version=1,
                    to_digest="d",
                    expected_epoch=epoch,
                    key="stale",
                    actor="ann",
                )
            assert lost.value.winner == head

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0))
    def repeats(self, which: int) -> None:
        index = which % len(self.calls)
        assert self.ledger.transition(**self.calls[index]) == self.rows[index]

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0))
    def takes_a_key_again(self, which: int) -> None:
        with pytest.raises(KeyReused):
            self.ledger.transition(**{**self.calls[which % len(self.calls)], "actor": "eve"})

    @invariant()
    def agrees_with_the_list(self) -> None:
        places = [(name, stage) for name in ("a", "b") for stage in ("production", "staging")]
        expected = {place: self.expected(*place) for place in places}
        for (name, stage), row in expected.items():
            assert self.ledger.head(name, stage) == row  # type: ignore[arg-type]
        assert self.ledger.heads() == [row for row in expected.values() if row]
        assert self.ledger.verify() == len(self.rows)

    def teardown(self) -> None:
        self.ledger.close()
        self.databases.drop(self.database)


@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 25), ("postgresql", 10)])
def test_any_order_of_calls_leaves_a_whole_ledger(
    databases: Databases, kind: str, examples: int
) -> None:
    machine = type("Machine", (LedgerMachine,), {"databases": databases, "kind": kind})
    quick = settings(
        max_examples=examples,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase.settings = quick
    machine.TestCase().runTest()


PROMOTERS = Path(__file__).with_name("promoters.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "wanted_kills", "wanted_rows"), [("sqlite", 100, 1000), ("postgresql", 20, 100)]
)
def test_four_racing_promoters_lose_and_double_nothing_while_they_are_killed(
    databases: Databases,
    tmp_path: Path,
    record_property: Any,
    kind: str,
    wanted_kills: int,
    wanted_rows: int,
) -> None:
    url, began = databases.migrated(kind).url, time.monotonic()
    command = [sys.executable, PROMOTERS, url, tmp_path, str(wanted_kills), str(wanted_rows)]
    kills = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    seconds = time.monotonic() - began
    with Ledger(url) as ledger:
        kept = ledger.history("shapes")
        assert ledger.verify() == len(kept)
    rows = {row.id: row for row in kept}
    answered, conflicts = 0, 0
    for log in tmp_path.glob("promoter-*.log"):
        # a line that a kill cut short was no answer
        for line in log.read_text().split("\n")[:-1]:
            verb, *rest = line.split()
            if verb == "conflict":
                conflicts += 1
                winner, expected, said = rows[int(rest[0])], int(rest[1]), rest[2]
                assert said == "True", "a conflict did not say who won"
                assert winner.epoch > expected, "a conflict without a reason"
            if verb == "moved":
                version, row = int(rest[0]), rows[int(rest[1])]
                assert row.to_version == version, "an answered transition is lost or altered"
                answered += 1
    versions = [row.to_version for row in rows.values()]
    assert len(versions) == len(set(versions)), "a transition was made twice"
    assert len(rows) >= answered >= wanted_rows
    assert kills >= wanted_kills
    _agrees(url, {row.to_version for row in rows.values()})
    record_property("kills", kills)
    record_property("transitions", len(rows))
    record_property("conflicts", conflicts)
    print(  # noqa: T201
        f"\n{kills} kills, {len(rows)} transitions, {conflicts} conflicts that name the winner, "
        f"0 lost, 0 doubled, chain verified, {seconds:.0f} s"
    )


def _agrees(url: str, moved: set[int | None]) -> None:
    """The journal says `committed` or `done` exactly where the ledger has the row."""
    engine = open_engine(url)
    with reading(engine) as connection:
        states = connection.execute(sa.select(PROMOTIONS.c.version, PROMOTIONS.c.state)).all()
    engine.dispose()
    assert {version for version, state in states if state in {"committed", "done"}} == moved
