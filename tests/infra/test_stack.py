import json
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from infra.settings import settings
from infra.stack import probes, stack
from infra.stack.daemons import Daemon, remember, start, taken
from infra.stack.doctor import doctor
from infra.stack.spec import Part, ray_folder, token_file
from tests.command_kit import commands


@contextmanager
def listening(port: int) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", port)):
        yield


@pytest.mark.parametrize(("part", "name"), [("mlflow", "mlflow"), ("ray", "gateway")])
def test_a_taken_port_is_named_with_its_owner_and_the_setting_and_nothing_starts(
    private_home: Path, part: str, name: str
) -> None:
    port = getattr(settings(), f"{name}_port")
    with listening(port), pytest.raises(stack.StackError) as refusal:
        stack.up()
    text = str(refusal.value)
    assert text.startswith(f"{part}: port {port} on 127.0.0.1 is taken by ")
    assert f"(pid {os.getpid()})" in text
    assert f"ATELIER_{name.upper()}_PORT" in text
    assert not (private_home / "run").exists()


def test_a_part_of_somebody_else_s_is_probed_and_never_started(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setenv("ATELIER_RAY_ADDRESS", "ray://127.0.0.1:1")
    monkeypatch.setattr(probes, "REMOTE_LIMIT_S", 0.2)
    settings.cache_clear()
    with pytest.raises(stack.StackError) as refusal:
        stack.up()
    lines = str(refusal.value).splitlines()
    assert len(lines) == 3
    for setting in ("ATELIER_TRACKING_URI", "PREFECT_API_URL", "ATELIER_RAY_ADDRESS"):
        assert any(line.endswith(f"start it or change {setting}") for line in lines)
    assert [part.health for part in stack.status()] == [*["unreachable"] * 3, "down"]
    assert "RAY_AUTH_TOKEN_PATH" not in stack.environment()


def test_a_child_process_of_a_client_still_knows_the_local_prefect_as_ours(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", stack.environment()["PREFECT_API_URL"])
    settings.cache_clear()
    assert all(part.external is None for part in stack.parts())


def test_nothing_runs_in_an_empty_home(private_home: Path) -> None:
    assert {part.health for part in stack.status()} == {"down"}
    assert stack.down() == []
    with pytest.raises(stack.StackError, match="mlflow has no log here; start it with"):
        next(stack.logs("mlflow"))
    with pytest.raises(stack.StackError, match="no part 'mysql'; choose one of prefect, mlflow"):
        next(stack.logs("mysql"))


def test_clients_are_told_everything_and_the_token_is_the_owner_s_alone(private_home: Path) -> None:
    told = stack.environment()
    token = Path(told["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64
    assert stack.environment() == told
    assert token.read_text() not in told.values()
    credential = private_home / "stack_token"
    assert stat.S_IMODE(credential.stat().st_mode) == 0o600
    assert told["MLFLOW_TRACKING_PASSWORD"] == credential.read_text()
    assert told["PREFECT_API_AUTH_STRING"] == f"atelier:{credential.read_text()}"
    assert told["RAY_AUTH_MODE"] == "token"
    assert told["PREFECT_API_URL"] == settings().prefect_url
    assert told["MLFLOW_TRACKING_URI"] == settings().mlflow_uri


def test_a_state_folder_that_another_verb_made_is_closed_before_a_secret_lies_in_it(
    private_home: Path,
) -> None:
    private_home.mkdir(mode=0o755)
    stack.environment()
    assert stat.S_IMODE(private_home.stat().st_mode) == 0o700


def test_a_credential_that_others_may_read_is_not_used(private_home: Path) -> None:
    stack.environment()
    (private_home / "stack_token").chmod(0o644)
    with pytest.raises(stack.StackError, match="may be read by others: chmod 600 it"):
        stack.environment()


def test_a_part_of_somebody_else_s_is_asked_with_the_environment_s_credential_alone(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    settings.cache_clear()
    assert not {name for name in stack.environment() if "AUTH_STRING" in name or "PASSWORD" in name}


def test_a_slow_start_is_told_with_what_it_does_and_without_a_terminal_s_escapes(
    tmp_path: Path,
) -> None:
    log = tmp_path / "ray.log"
    log.write_text("\x1b[36mINFO\x1b[39m  one\n\n\x1b]0;title\x07\x1b[1mtwo\x1b[0m\n")
    assert stack.tail(log, 3) == ["INFO  one", "two"]
    slow = stack.Event("ray", "waiting", 30.2, "", "two")
    assert str(slow) == "ray: still starting after 30 s (it says: two)"
    again = stack.Event("ray", "again", 31, "")
    assert str(again) == "ray: ended after 31 s, started once more"


@pytest.mark.parametrize("length", [10, 30, 90])
def test_ray_s_sockets_fit_however_long_the_home_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path / ("x" * length)))
    settings.cache_clear()
    settings().state.mkdir(mode=0o700)
    folder = ray_folder(make=True)
    socket_path = folder / "session_2026-11-20_13-55-09_832000_4194304/sockets/plasma_store"
    assert len(str(socket_path)) <= 107
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    if not folder.is_relative_to(tmp_path):
        folder.parent.rmdir()
    settings.cache_clear()


def test_the_doctor_says_what_is_wrong_and_what_to_do(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_DATABASE_URL", "postgresql://user:canary@host/atelier")
    settings.cache_clear()
    token_file().chmod(0o644)
    with listening(settings().prefect_port):
        found = {check.name: check for check in doctor()}
    assert found["python"].verdict == "ok"
    assert found["versions"].verdict == "ok", found["versions"]
    assert found["prefect"].verdict == "fail"
    assert "ATELIER_PREFECT_PORT" in found["prefect"].advice
    assert (found["mlflow"].verdict, found["mlflow"].advice) == ("warn", "atelier up")
    assert found["ray token"].verdict == "fail"
    assert found["ray token"].advice.startswith("chmod 600 ")
    assert "from ATELIER_DATABASE_URL" in found["setting database_url"].found
    assert "default (ATELIER_HOST sets it)" in found["setting host"].found
    assert not [check for check in found.values() if "canary" in check.found]
    assert all(check.advice for check in found.values() if check.verdict != "ok")


@pytest.mark.cluster
def test_a_second_up_starts_nothing_and_takes_no_time(stack: Mapping[str, float]) -> None:
    from infra.stack.stack import status, up

    assert sorted(stack) == ["mlflow", "prefect", "ray"]
    began = time.process_time()
    assert up() == {}
    assert time.process_time() - began < 1.5
    now = {part.part: part for part in status()}
    for name in stack:
        assert now[name].health == "healthy"
        assert now[name].pid is not None
        assert (now[name].memory_mb or 0) > 50


@pytest.mark.cluster
def test_every_listener_of_the_stack_is_on_loopback(stack: Mapping[str, float]) -> None:
    from infra.stack.stack import parts

    ours = {process.pid for part in parts() if part.daemon for process in part.daemon.offspring()}
    addresses = {
        connection.laddr[0]
        for connection in psutil.net_connections("tcp")
        if connection.pid in ours and connection.status == psutil.CONN_LISTEN
    }
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.cluster
@pytest.mark.parametrize(
    "path",
    [
        *("/api/version", "/api/jobs/", "/api/serve/applications/", "/nodes?view=summary"),
        *("/api/v0/actors", "/logs"),
    ],
)
def test_ray_answers_only_the_bearer_of_the_token(stack: Mapping[str, float], path: str) -> None:
    page = f"http://127.0.0.1:{settings().dashboard_port}"
    nobody = probes.get(page + path)
    stranger = probes.get(page + path, {"Authorization": f"Bearer {'0' * 64}"})
    assert nobody is not None
    assert stranger is not None
    assert (nobody[0], stranger[0]) == (401, 403)


@pytest.mark.cluster
def test_serve_s_control_is_open_to_the_bearer(stack: Mapping[str, float]) -> None:
    bearer = {"Authorization": f"Bearer {token_file().read_text()}"}
    page = f"http://127.0.0.1:{settings().dashboard_port}/api/serve/applications/"
    answer = probes.get(page, bearer, timeout_s=60)  # the first call imports Serve
    assert answer is not None
    assert answer[0] == 200
    assert json.loads(answer[1])["applications"] == {}


@pytest.mark.cluster
def test_mlflow_refuses_a_rebound_name(stack: Mapping[str, float]) -> None:
    url = f"{settings().mlflow_uri}/api/2.0/mlflow/experiments/search?max_results=1"
    rebound = probes.get(url, {"Host": "10.evil.com"})
    assert rebound is not None
    assert rebound[0] == 403


@pytest.fixture(scope="session")
def shared(stack: Mapping[str, float]) -> Mapping[str, str]:
    from infra.stack.stack import environment

    return environment()


@pytest.fixture
def mlflow_alone(
    shared: Mapping[str, str], private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A home whose Prefect and Ray are the run's, so that only MLflow is its own."""
    from infra.stack.stack import down

    monkeypatch.setenv("PREFECT_API_URL", shared["PREFECT_API_URL"])
    monkeypatch.setenv("ATELIER_RAY_ADDRESS", shared["RAY_ADDRESS"])
    settings.cache_clear()
    yield private_home
    down()


@pytest.mark.cluster
def test_a_killed_part_comes_back_by_itself_and_down_leaves_nothing(mlflow_alone: Path) -> None:
    from infra.stack.stack import logs, parts, status, up

    def mlflow() -> stack.Status:
        return next(part for part in status() if part.part == "mlflow")

    assert list(up()) == ["mlflow"]
    first, keeper = (next(p for p in parts() if p.name == n) for n in ("mlflow", "keeper"))
    daemons = [first.daemon, keeper.daemon]
    assert None not in daemons
    kill(keeper)
    assert up() == {}  # the keeper alone was missing, and nobody waits for it
    assert mlflow().restarted is None
    daemons += [keeper.daemon, kill(first)]
    while mlflow().health != "healthy":
        assert keeper.daemon, "".join(logs("keeper"))
    daemons.append(first.daemon)
    assert (mlflow().restarted or "").startswith("1 time, last at 20")
    assert "mlflow died and was started again" in "".join(logs("keeper"))
    done = commands.run("down")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"(\w+): stopped", done.stdout) == ["keeper", "mlflow"]
    assert "the local stack is down" in done.stdout
    assert not [process for one in daemons if one for process in one.offspring()]
    assert mlflow().restarted is None


@pytest.mark.cluster
def test_what_a_killed_server_left_behind_gives_its_port_back(mlflow_alone: Path) -> None:
    [part] = (one for one in stack.parts() if one.name == "mlflow")
    port = settings().mlflow_port
    leaves = f"""
import os, socket, time
server = socket.create_server(("127.0.0.1", {port}))
if os.fork() == 0:
    time.sleep(600)
"""
    daemon = start((sys.executable, "-c", leaves), dict(os.environ), part.log)
    remember(part.record, daemon)
    while daemon.alive:
        pass
    assert taken(port, "127.0.0.1", "")
    assert list(stack.up()) == ["mlflow"]


def kill(part: Part) -> Daemon:
    """Kill a part's process; gives it once it is dead."""
    daemon = part.daemon
    assert daemon is not None
    psutil.Process(daemon.pid).kill()
    while daemon.alive:
        pass
    return daemon


@pytest.mark.cluster
def test_a_part_that_dies_at_its_start_says_why_in_one_line(mlflow_alone: Path) -> None:
    from infra.stack.stack import StackError, up

    mlflow_alone.mkdir(parents=True, exist_ok=True)
    (mlflow_alone / "mlflow").write_text("a file where a folder should be")
    with pytest.raises(StackError) as refusal:
        up()
    line = str(refusal.value)
    assert "\n" not in line
    assert line.startswith("mlflow ended at its start; it said: ")
    assert "Error" in line
    assert "atelier logs mlflow" in line
