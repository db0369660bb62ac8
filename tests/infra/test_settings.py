from pathlib import Path

import pytest

from infra.database import open_engine
from infra.settings import Settings
from infra.settings import settings as read
from infra.stack import doctor


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ATELIER_GATEWAY_PORT", "abc", r"ATELIER_GATEWAY_PORT: .*integer.*, got 'abc'"),
        ("ATELIER_STORAGE_URI", "s3://bucket/runs", r"ATELIER_STORAGE_URI: give a folder"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    read.cache_clear()
    try:
        with pytest.raises(ValueError, match=message) as refused:
            read()
    finally:
        read.cache_clear()
    assert "\n" not in str(refused.value)


def test_runs_may_lie_on_a_mount(tmp_path: Path) -> None:
    assert Settings(storage_uri=str(tmp_path)).runs == tmp_path


def test_the_doctor_says_which_stage_runs_where_or_why_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "placement.yaml").write_text(
        "pools: [{name: all}, {name: voices, families: [wavenet]}]"
    )
    monkeypatch.setattr(doctor, "settings", Settings)
    monkeypatch.setenv("ATELIER_LAYOUT", "staged")
    for name, verdict, found in (
        ("placement.yaml", "ok", "staged: all, voices"),
        ("nowhere.yaml", "fail", "nowhere.yaml cannot be read"),
    ):
        monkeypatch.setenv("ATELIER_PLACEMENT", str(tmp_path / name))
        [check] = doctor._placement()
        assert (check.verdict, found in check.found) == (verdict, True)


def test_the_doctor_names_a_variable_that_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_GATEWAY_PROT", "8001")
    odd = [check.found for check in doctor._settings() if check.verdict == "warn"]
    assert odd == ["ATELIER_GATEWAY_PROT is no setting"]


def test_the_driver_that_the_cluster_config_names_is_installed() -> None:
    with pytest.raises(RuntimeError, match="connection"):
        open_engine("postgresql+psycopg://atelier@127.0.0.1:9/atelier")
