import os
import pwd
from pathlib import Path

import pytest

from flows.workshop import actor
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


def test_who_asks_with_a_key_is_its_label_until_it_is_revoked(
    account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(settings().database)
    use(keys.create("berta"), tmp_path, monkeypatch)
    assert actor() == "berta"
    keys.revoke("berta")
    assert actor() == account


def test_a_key_that_nobody_made_names_nobody(
    account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("sk-atelier-not-a-key", tmp_path, monkeypatch)
    assert actor() == account
