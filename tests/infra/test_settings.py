from pathlib import Path

import pytest

from infra.database import open_engine
from infra.settings import Settings
from infra.settings import settings as read
from infra.stack import doctor, spec


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ATELIER_GATEWAY_PORT", "abc", r"ATELIER_GATEWAY_PORT: .*integer.*, got 'abc'"),
        ("ATELIER_STORAGE_URI", "s3://bucket/runs", r"ATELIER_STORAGE_URI: give a folder"),
        ("ATELIER_GATEWAY_PORT", "0", r"ATELIER_GATEWAY_PORT: .* equal to 1, got '0'"),
        ("ATELIER_RAY_PORT", "70000", r"ATELIER_RAY_PORT: .* equal to 65535, got '70000'"),
        ("ATELIER_HOST", " ", r"ATELIER_HOST: give a host's name or address alone, .* got ' '"),
        ("ATELIER_HOST", "http://x", r"ATELIER_HOST: give a host's name"),
        ("ATELIER_TRACKING_URI", "mlflow", r"ATELIER_TRACKING_URI: .*http://mlflow:5000, got"),
        ("ATELIER_PUBLIC_URL", "http://x:99999", r"ATELIER_PUBLIC_URL: Port out of range"),
        ("PREFECT_API_URL", "http://x:a", r"PREFECT_API_URL: Port could not be cast"),
        (
            "ATELIER_PROJECT",
            "/nowhere",
            r"ATELIER_PROJECT: there is no such folder, got '/nowhere'",
        ),
        ("ATELIER_WORKER_SILENCE_S", "inf", r"ATELIER_WORKER_SILENCE_S: .*finite.*, got 'inf'"),
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


def test_two_parts_have_no_port_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_GATEWAY_PORT", "8001")
    monkeypatch.setenv("ATELIER_MLFLOW_PORT", "8001")
    read.cache_clear()
    with pytest.raises(ValueError, match=r"^ATELIER_GATEWAY_PORT and ATELIER_MLFLOW_PORT are both"):
        read()
    read.cache_clear()


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "HOST", "GATEWAY_PORT", "API_KEY_FILE", "PUBLIC_URL"):
        monkeypatch.setenv(f"ATELIER_{name}", "")
    found = Settings()
    assert (found.home, found.host, found.gateway_port) == (Path(".atelier"), "127.0.0.1", 8000)
    assert (found.api_key.get_secret_value(), found.public_url) == ("none", None)


def test_runs_may_lie_on_a_mount_which_is_the_same_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings(storage_uri=str(tmp_path)).runs == tmp_path
    found = Settings(project=tmp_path, storage_uri="mount")
    monkeypatch.chdir("/")
    assert (found.runs, found.samples) == (tmp_path / "mount", tmp_path / "mount" / "samples")


def test_a_key_that_cannot_be_read_is_named_with_its_variable(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ATELIER_API_KEY_FILE: .* cannot be read: Is a dir"):
        _ = Settings(api_key_file=tmp_path).api_key


def test_a_state_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(spec, "settings", lambda: Settings(home=tmp_path / "file"))
    with pytest.raises(OSError, match=r"made the folder of ATELIER_HOME: File exists: '.*file'"):
        spec.state_folder()


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
    monkeypatch.setenv(
        "ATELIER_PREFECT_API_URL", "http://prefect:4200/api"
    )  # PREFECT_API_URL is one
    odd = [check.found for check in doctor._settings() if check.verdict == "warn"]
    assert odd[1:] == ["ATELIER_PREFECT_API_URL is no setting"]


def test_the_doctor_shows_no_part_of_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "postgresql://anna:open@sesame@pg/atelier"
    monkeypatch.setattr(doctor, "settings", lambda: Settings(database_url=address))
    [shown] = [one.found for one in doctor._settings() if one.name == "setting database_url"]
    assert shown.startswith("postgresql://***@pg/atelier, from")


def test_the_driver_that_the_cluster_config_names_is_installed() -> None:
    with pytest.raises(RuntimeError, match="connection"):
        open_engine("postgresql+psycopg://atelier@127.0.0.1:9/atelier")


def test_a_server_s_address_may_end_in_a_slash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api/")
    found = Settings(tracking_uri="http://mlflow:5000/")
    assert (found.prefect_url, found.mlflow_uri) == (
        "http://prefect:4200/api",
        "http://mlflow:5000",
    )
    assert Settings(tracking_uri="sqlite:////m.db").mlflow_uri == "sqlite:////m.db"
