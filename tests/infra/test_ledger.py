"""The ledger keeps every transition once, in order, and shows it when somebody changes one."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

import infra.database
from infra.database import REVISION, Busy, DatabaseError, open_engine
from infra.jobs.table import DELIVERIES, ENDPOINTS, JOBS, STAGES
from infra.keys import Keys
from infra.ledger.hash_chain import Broken, LedgerError
from infra.ledger.ledger import METADATA, Conflict, KeyReused, Ledger, Row
from infra.ledger.promotions import APPROVALS, PROMOTIONS
from infra.ledger.rollout_metrics import OBSERVATIONS
from infra.ledger.votes import VOTES
from tests.databases_kit import KINDS, Database, Databases

MIGRATIONS = str(Path(infra.database.__file__).parent / "migrations")


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    with Ledger(database.url) as ledger:
        yield ledger


def move(ledger: Ledger, version: int | None, expected_epoch: int, **other: Any) -> Row:
    asked = {
        "name": "shapes",
        "stage": "production",
        "to_version": version,
        "to_digest": None if version is None else f"{version:064x}",
        "key": f"{version}-{expected_epoch}",
        "actor": "anna",
    }
    return ledger.transition(expected_epoch=expected_epoch, **{**asked, **other})


def test_a_transition_becomes_the_head(ledger: Ledger) -> None:
    assert ledger.head("shapes", "production") is None
    row = move(ledger, 3, 0, reason="first", report={"alignment": 0.9}, forced=True)
    assert ledger.head("shapes", "production") == row
    assert (row.id, row.epoch, row.from_version, row.to_version) == (1, 1, None, 3)
    assert (row.report, row.reason, row.forced) == ({"alignment": 0.9}, "first", True)
    assert ledger.head("shapes", "staging") is None
    assert ledger.history("shapes") == [row]
    assert ledger.verify() == 1


def test_a_rollback_and_a_withdrawal_are_transitions(ledger: Ledger) -> None:
    moves = [move(ledger, version, epoch) for epoch, version in enumerate([3, 4, 3, None])]
    assert [row.from_version for row in moves] == [None, 3, 4, 3]
    head = ledger.head("shapes", "production")
    assert head is not None
    assert (head.to_version, head.to_digest, head.epoch) == (None, None, 4)


def test_the_loser_is_told_who_won_when_and_what(ledger: Ledger) -> None:
    move(ledger, 3, 0)
    won = move(ledger, 4, 1, actor="berta")
    with pytest.raises(Conflict) as lost:
        move(ledger, 5, 1, actor="carl")
    assert lost.value.winner == won
    for part in ("berta was first", "shapes:3 to shapes:4", won.at.isoformat(), "epoch 2"):
        assert part in str(lost.value)
    assert ledger.verify() == 2


def test_an_epoch_that_never_was_is_a_conflict_without_a_winner(ledger: Ledger) -> None:
    with pytest.raises(Conflict, match="shapes has no production yet") as lost:
        move(ledger, 3, 2)
    assert lost.value.winner is None


def test_a_repeated_call_returns_the_first_row_even_after_later_ones(ledger: Ledger) -> None:
    first = move(ledger, 3, 0, report={"b": 1, "a": [2.5]})
    move(ledger, 4, 1)
    assert move(ledger, 3, 0, report={"a": [2.5], "b": 1}) == first
    assert ledger.verify() == 2


@pytest.mark.parametrize(
    "other", [{"actor": "berta"}, {"forced": True}, {"report": {}}, {"name": "b"}]
)
def test_a_key_stands_for_one_body(ledger: Ledger, other: dict[str, Any]) -> None:
    move(ledger, 3, 0, key="once")
    with pytest.raises(KeyReused, match="'once' was used at"):
        move(ledger, 3, 0, key="once", **other)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stage": "prod"}, "unknown stage 'prod'; choose one of staging, production"),
        ({"to_digest": None}, "a version and its digest, or neither"),
        ({"to_version": 0}, "count from 1"),
        ({"key": ""}, "key has 1 to 200"),
        ({"name": "n" * 101}, "name has 1 to 100"),
    ],
)
def test_what_cannot_be_is_refused(ledger: Ledger, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        move(ledger, 3, 0, **wrong)
    assert ledger.verify() == 0


def test_the_ledger_answers_what_was_in_production_at_a_moment(ledger: Ledger) -> None:
    first, second = move(ledger, 3, 0), move(ledger, 4, 1)
    instant = timedelta(microseconds=1)
    for when, row in [
        (first.at - instant, None),
        (first.at, first),
        (second.at - instant, first),
        (datetime.now(UTC) + timedelta(days=1), second),
    ]:
        assert ledger.at("shapes", "production", when) == row
    with pytest.raises(LedgerError, match="no time zone"):
        ledger.at("shapes", "production", datetime(2026, 11, 20))
    east = timezone(timedelta(hours=5))
    with pytest.raises(LedgerError, match="is before or after all time in UTC"):
        ledger.at("shapes", "production", datetime(1, 1, 1, tzinfo=east))


def test_a_name_that_no_database_keeps_stands_nowhere(ledger: Ledger) -> None:
    for name in ("shapes\0", "shapes\ud800"):
        assert ledger.standing(name) == {}
        assert ledger.head(name, "production") is None
        assert ledger.history(name) == []


def test_a_clock_that_is_set_back_does_not_reorder_history(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = move(ledger, 3, 0)

    class Back(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return (first.at - timedelta(hours=1)).astimezone(tz)

    monkeypatch.setattr("infra.ledger.ledger.datetime", Back)
    second = move(ledger, 4, 1)
    monkeypatch.undo()
    assert second.at == first.at
    assert ledger.at("shapes", "production", first.at) == second


def test_a_second_rollback_goes_one_version_further_back(ledger: Ledger) -> None:
    def fallback() -> int | None:
        row = ledger.fallback("shapes", "production")
        return row.to_version if row else None

    found = []
    for epoch, version in enumerate([1, 2, 3, 2, 1, 4, None]):
        move(ledger, version, epoch)
        found.append(fallback())
    assert found == [None, 1, 2, 1, None, 1, 4]


def test_heads_lists_the_newest_of_every_stage(ledger: Ledger) -> None:
    move(ledger, 1, 0, name="shapes", stage="staging", key="a")
    move(ledger, 1, 0, name="shapes", key="b")
    last = move(ledger, 2, 1, name="shapes", key="c")
    other = move(ledger, 7, 0, name="digits", key="d")
    assert [(row.name, row.stage) for row in ledger.heads()] == [
        ("digits", "production"),
        ("shapes", "production"),
        ("shapes", "staging"),
    ]
    assert ledger.heads()[:2] == [other, last]


def test_another_process_sees_a_transition_at_once(ledger: Ledger, database: Database) -> None:
    with Ledger(database.url) as elsewhere:
        for epoch in range(5):
            row = move(ledger, epoch + 1, epoch)
            assert elsewhere.head("shapes", "production") == row


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE transitions SET to_version = 9 WHERE id = 2", "row 2 .*was altered"),
        ("UPDATE transitions SET actor = 'eve' WHERE id = 1", "row 1 .*was altered"),
        ("UPDATE transitions SET report = '{}' WHERE id = 3", "row 3 .*was altered"),
        ("DELETE FROM transitions WHERE id = 2", "row 2 is missing: row 3"),
        ("DELETE FROM transitions WHERE id = 3", "row 3 is missing: 3 rows were written"),
        ("UPDATE transitions SET prev_hash = hash WHERE id = 2", "row 2 does not follow row 1"),
    ],
)
def test_a_changed_table_is_detected_and_the_row_named(
    ledger: Ledger, database: Database, statement: str, message: str
) -> None:
    for epoch in range(3):
        move(ledger, epoch + 1, epoch)
    database.tamper(statement)
    with pytest.raises(Broken, match=message):
        ledger.verify()


COLUMNS = ", ".join(column.name for column in METADATA.tables["transitions"].columns)
COPY = f"({COLUMNS}) SELECT {COLUMNS} FROM transitions WHERE true"


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        ("sqlite", "UPDATE transitions SET actor = 'eve'"),
        ("sqlite", "DELETE FROM transitions"),
        ("sqlite", f"INSERT OR REPLACE INTO transitions {COPY}"),
        ("postgresql", "UPDATE transitions SET actor = 'eve'"),
        ("postgresql", "DELETE FROM transitions"),
        ("postgresql", "TRUNCATE transitions"),
        (
            "postgresql",
            f"INSERT INTO transitions {COPY} ON CONFLICT (id) DO UPDATE SET actor = 'eve'",
        ),
    ],
)
def test_the_database_refuses_to_change_a_row(
    databases: Databases, kind: str, statement: str
) -> None:
    database = databases.migrated(kind)
    with Ledger(database.url) as ledger:
        move(ledger, 3, 0)
        with pytest.raises(DBAPIError, match="append-only"):
            database.run(statement)
        assert ledger.verify() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_database_from_before_the_triggers_gets_them_when_it_is_opened(
    databases: Databases, kind: str
) -> None:
    database = databases.migrated(kind)
    with Ledger(database.url) as ledger:
        move(ledger, 3, 0)
    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    config.set_main_option("path_separator", "os")
    with database.engine().begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
    with Ledger(database.url) as ledger:
        with pytest.raises(DBAPIError, match="append-only"):
            database.run("DELETE FROM transitions")
        assert ledger.verify() == 1


@pytest.mark.parametrize("place", ["ledger.commit", "ledger.committed"])
def test_an_ambiguous_failure_is_settled_by_the_same_call(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("ATELIER_FAULT", f"{place}:enospc")
    with pytest.raises(OSError, match="No space left"):
        move(ledger, 3, 0)
    monkeypatch.delenv("ATELIER_FAULT")
    assert ledger.verify() == (1 if place == "ledger.committed" else 0)
    assert move(ledger, 3, 0).id == ledger.verify() == 1


def test_a_locked_database_is_busy_after_a_while_and_well_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.database, "BUSY_MS", 100)
    with Ledger(database.url) as ledger:
        with database.engine().connect() as holder:
            lock = {
                "sqlite": "BEGIN IMMEDIATE",
                "postgresql": "SELECT 1 FROM ledger_tip FOR UPDATE",
            }
            holder.exec_driver_sql(lock[database.kind])
            with pytest.raises(Busy, match="was locked by another process"):
                move(ledger, 3, 0)
            assert ledger.head("shapes", "production") is None
        assert move(ledger, 3, 0).epoch == 1


def test_the_migrations_make_the_tables_that_the_code_declares(database: Database) -> None:
    assert Keys.__module__ == "infra.keys"
    with database.engine().connect() as connection:
        journals = (PROMOTIONS, APPROVALS, OBSERVATIONS, VOTES)
        for table in (*journals, JOBS, STAGES, ENDPOINTS, DELIVERIES):
            assert table.name in METADATA.tables
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


@pytest.mark.parametrize("kind", KINDS)
def test_many_may_open_a_new_database_at_once(databases: Databases, kind: str) -> None:
    url = databases.empty(kind).url
    failed: list[BaseException] = []

    def opens() -> None:
        try:
            Ledger(url).close()
        except DatabaseError as error:
            failed.append(error)

    threads = [threading.Thread(target=opens) for _ in range(4)]
    code = f"from infra.ledger.ledger import Ledger; Ledger({url!r}).close()"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(timeout=60) for other in others] == [0, 0]
    assert failed == []
    with Ledger(url) as ledger:
        assert ledger.verify() == 0


def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    database.run("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseError, match=r"another version of atelier.*9999"):
        Ledger(database.url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "needs a file"),
        ("shapes.db", "cannot use the database address"),
        ("oracular://x", "cannot use the database address"),
        ("sqlite:////proc/nowhere/atelier.db", "cannot create the database"),
    ],
)
def test_an_address_that_cannot_be_is_refused(url: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message):
        open_engine(url)
