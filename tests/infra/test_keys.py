"""API keys pass until they are revoked, and are kept nowhere."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from infra.keys import KeyNotFound, Keys
from tests.databases_kit import Database


@pytest.fixture
def keys(database: Database) -> Iterator[Keys]:
    with closing(Keys(database.url)) as keys:
        yield keys


def test_a_key_passes_and_others_do_not(keys: Keys) -> None:
    key = keys.create("laptop")
    assert key.startswith("sk-atelier-")
    assert len(key) == len("sk-atelier-") + 43
    assert keys.find(key)
    for other in ("", "sk-atelier-", key[:-1], key + "x", key.swapcase(), "clé", "\ud800", "\0"):
        assert not keys.find(other)


def test_two_keys_with_equal_first_letters_both_pass(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter(["AAAAAAAA" + "b" * 35, "AAAAAAAA" + "c" * 35])
    monkeypatch.setattr("secrets.token_urlsafe", lambda _bytes: next(drawn))
    first, second = keys.create("one"), keys.create("two")
    assert keys.find(first)
    assert keys.find(second)
    assert not keys.find("sk-atelier-AAAAAAAA" + "d" * 35)


def test_a_revoked_key_is_refused_at_once_by_every_process(keys: Keys, database: Database) -> None:
    key, other = keys.create("laptop"), keys.create("phone")
    with closing(Keys(database.url)) as elsewhere:
        assert elsewhere.find(key)
        revoked = keys.revoke("laptop")
        assert revoked.revoked is not None
        assert not elsewhere.find(key)
        assert elsewhere.find(other)
    assert keys.revoke("laptop") == revoked


def test_after_the_first_key_requests_need_one_even_when_all_are_revoked(keys: Keys) -> None:
    assert not keys.any()
    keys.create("laptop")
    assert keys.any()
    keys.revoke("1")
    assert keys.any()


def test_the_platforms_own_keys_are_told_apart_and_nobody_else_can_make_one(keys: Keys) -> None:
    key = keys.create_ours("smoke")
    found = keys.find(key)
    assert found is not None
    assert found.ours
    assert not keys.any()
    with pytest.raises(
        ValueError, match="labels that begin with 'atelier:' are the platform's own"
    ):
        keys.create(" atelier:smoke")
    mine = keys.find(keys.create("atelier"))
    assert mine is not None
    assert not mine.ours
    assert keys.any()


def test_a_listing_tells_when_but_not_what(keys: Keys, database: Database) -> None:
    key = keys.create("laptop")
    [made] = keys.list()
    assert (made.label, made.revoked, made.used) == ("laptop", None, None)
    assert key.startswith(made.prefix)
    assert len(made.prefix) == len("sk-atelier-") + 8
    keys.find(key)
    assert keys.list()[0].used == made.created.date().isoformat()
    with database.engine().connect() as connection:
        stored = repr(connection.exec_driver_sql("SELECT * FROM api_keys").all())
    assert key[20:] not in stored


def test_only_its_owner_reads_the_database(tmp_path: Path) -> None:
    path = tmp_path / "atelier.db"
    with closing(Keys(f"sqlite:///{path}")) as keys:
        key = keys.create("laptop")
    assert path.stat().st_mode & 0o077 == 0
    assert key[20:].encode() not in path.read_bytes()


def test_revoking_names_the_choices(keys: Keys) -> None:
    for _ in range(2):
        keys.create("laptop")
    with pytest.raises(
        KeyNotFound, match=r"'laptop' does not name one key; give one id of: 1 .*2 "
    ):
        keys.revoke("laptop")
    assert keys.revoke("2").id == 2
    with pytest.raises(KeyNotFound, match="'phone'"):
        keys.revoke("phone")


def test_a_label_is_needed(keys: Keys) -> None:
    with pytest.raises(ValueError, match="1 to 100 characters"):
        keys.create(" ")


NO_ROOM = {
    "sqlite": [
        "CREATE TRIGGER full_disk BEFORE UPDATE ON api_keys BEGIN"
        " SELECT RAISE(ABORT, 'database or disk is full'); END"
    ],
    "postgresql": [
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE disk_full; END $$",
        "CREATE TRIGGER full_disk BEFORE UPDATE ON api_keys FOR EACH ROW"
        " EXECUTE FUNCTION full_disk()",
    ],
}


def test_a_key_passes_where_its_use_cannot_be_noted(keys: Keys, database: Database) -> None:
    key = keys.create("laptop")
    database.run(*NO_ROOM[database.kind])
    assert keys.find(key)
    assert keys.list()[0].used is None
    assert not keys.find(key + "x")
