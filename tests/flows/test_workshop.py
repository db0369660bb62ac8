import os
import pwd
from contextlib import closing
from pathlib import Path

import pytest

from flows.context import Nameless, actor, person
from infra.keys import Keys
from infra.settings import settings


@pytest.fixture
def account(private_home: Path) -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def use(key: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "key").write_text(key)
    monkeypatch.setenv("ATELIER_API_KEY_FILE", str(folder / "key"))
    settings.cache_clear()


def test_who_asks_is_the_account_whatever_the_environment_says(
    account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    assert actor() == account


def test_who_asks_with_a_key_is_its_label_and_nobody_once_it_is_revoked(
    account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Keys(settings().database)) as keys:
        use(keys.create("berta"), tmp_path, monkeypatch)
        assert actor() == person() == "berta"
        keys.revoke("berta")
    for asks in (actor, person):
        with pytest.raises(Nameless, match=r"ATELIER_API_KEY_FILE .* was revoked"):
            asks()


def test_a_key_that_nobody_made_names_nobody(
    account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("sk-atelier-not-a-key", tmp_path, monkeypatch)
    assert actor() == account, "there are no keys here: the gateway asks for none either"
    with closing(Keys(settings().database)) as keys:
        keys.create("berta")
    with pytest.raises(Nameless, match="unknown here"):
        actor()


def test_an_account_tells_two_people_apart_on_one_machine_without_keys_alone(
    account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert person() == account
    database = settings().database
    monkeypatch.setenv("ATELIER_DATABASE_URL", database)  # as containers share one
    settings.cache_clear()
    with pytest.raises(Nameless, match=r"API keys: make yours by `atelier keys add NAME`"):
        person()
    monkeypatch.delenv("ATELIER_DATABASE_URL")
    settings.cache_clear()
    assert person() == account
    with closing(Keys(database)) as keys:
        keys.create("anna")
    with pytest.raises(Nameless, match="ATELIER_API_KEY_FILE"):
        person()  # else who asked with the key could approve without it
    assert actor() == account
