"""Who comes in: nobody without a credential, by another name or from another page; and no command but ours runs."""

import asyncio
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.settings import settings
from infra.stack.spec import (
    StackError,
    credential_file,
    link,
    parts,
    private_page,
    secret,
    token_file,
)
from tests.integration import doors_kit as doors

pytestmark = pytest.mark.cluster

STRANGER = """
import encodings.idna, http.client, json, os, sys  # all of it while the interpreter's files can be read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
files, doors = json.load(sys.stdin)
said = []
for path in files:
    try:
        open(path).read(); said.append("read")
    except OSError as error:
        said.append(type(error).__name__)
for port, path in doors:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path); said.append(connection.getresponse().status)
print(json.dumps(said))
"""


@pytest.fixture
def client(stack: Mapping[str, float]) -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=30) as one:
        yield one


def test_every_route_of_prefect_and_mlflow_is_closed_to_strangers(client: httpx.Client) -> None:
    prefect = settings().prefect_url.removesuffix("/api")
    routes = {prefect: doors.prefect_routes(client), settings().mlflow_uri: doors.mlflow_routes()}
    assert min(map(len, routes.values())) > 100
    assert doors.open_doors(client, routes) == []


@pytest.mark.parametrize(
    "path",
    [
        *("/api/events/in", "/api/events/out", "/api/logs/out"),
        *("/api/task_runs/subscriptions/scheduled", "/api/work_pools/atelier/workers/connect"),
    ],
)
def test_no_websocket_of_prefect_is_accepted_from_a_stranger(
    client: httpx.Client, path: str
) -> None:
    address = settings().prefect_url.removesuffix("/api") + path
    wish = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    wish |= {"Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==", "Sec-WebSocket-Protocol": "prefect"}
    assert doors.knock(client, "GET", address, wish) == 403
    ours = {**wish, "Authorization": f"Bearer {secret()}"}
    assert doors.knock(client, "GET", address, {**ours, "Origin": "http://127.0.0.1:9"}) == 403


def test_ray_shows_a_stranger_the_page_that_asks_for_the_token_and_no_more(
    client: httpx.Client,
) -> None:
    assert len(doors.ray_routes()) > 50
    assert set(doors.open_routes_of_ray(client)) <= doors.SIGN_IN_OF_RAY


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_another_user_of_the_machine_reads_no_credential_and_is_refused(
    stack: Mapping[str, float],
) -> None:
    daemons = [part.daemon for part in parts()]
    files = [credential_file(), token_file(), settings().state / "prefect" / "prefect.db"]
    files += [Path(f"/proc/{one.pid}/environ") for one in daemons if one]
    now = settings()
    knocks = [(now.prefect_port, "/api/csrf-token?client=x"), (now.mlflow_port, "/health")]
    asked = json.dumps([[str(path) for path in files], knocks])
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER],
        input=asked, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == ["PermissionError"] * len(files) + [401, 401]


@pytest.mark.parametrize("part", ["prefect", "mlflow", "ray"])
def test_a_link_opens_a_page_signed_in_and_works_once(client: httpx.Client, part: str) -> None:
    address = link(part)
    assert client.get(address).status_code == 200
    page = next(one.page for one in parts() if one.name == part)
    inside = {
        "prefect": f"{page}/api/admin/version",
        "mlflow": f"{page}/version",
        "ray": f"{page}/api/v0/nodes",
    }[part]
    assert client.get(f"{page}/", follow_redirects=True).status_code == 200
    assert client.get(inside).status_code == 200
    client.cookies.clear()
    assert client.get(address).status_code == 403
    assert client.get(inside).status_code == 401


def test_the_verb_prints_the_link_and_gives_the_browser_a_file_that_one_s_own_eyes_read(
    client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.cli.stack_verbs import open_page

    open_page("mlflow", show=True)
    printed = capsys.readouterr().out.strip()
    assert client.get(printed).status_code == 200
    page = private_page("mlflow", printed)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "ticket=" in page.read_text()
    with pytest.raises(StackError, match="no page 'mysql'; choose one of prefect, mlflow, ray"):
        open_page("mysql", show=True)


HOSTILE: list[dict[str, Any]] = [
    {"job_variables": {"command": "touch {owned}"}},
    {"job_variables": {"env": {"PYTHONSTARTUP": "{owned}"}}},
    {"entrypoint": "{evil}:main"},
    {"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "touch {owned}"}}]},
]


def test_the_worker_runs_no_command_that_a_deployment_or_a_run_brings(
    stack: Mapping[str, float], tmp_path: Path
) -> None:
    from prefect import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
    from prefect.workers.process import ProcessWorker

    from flows.scheduling.jobs import make_worker

    owned, evil = tmp_path / "owned", tmp_path / "evil.py"
    evil.write_text(f"import pathlib\npathlib.Path({str(owned)!r}).touch()\ndef main(): ...\n")
    hostile = json.loads(
        json.dumps(HOSTILE).replace("{owned}", str(owned)).replace("{evil}", str(evil))
    )

    async def submitted() -> None:
        async with make_worker("tests", "hostile", 8) as worker:
            await worker.get_and_submit_flow_runs()

    with get_client(sync_client=True) as one:
        template = ProcessWorker.get_default_base_job_template()
        pool = WorkPoolCreate(name="hostile", type="process", base_job_template=template)
        one.create_work_pool(pool, overwrite=True)
        flow = one.create_flow_from_name("hostile")
        runs = []
        for number, changes in enumerate(hostile):
            facts = {"entrypoint": "flows/promote.py:promote", **changes}
            made = one.create_deployment(
                flow, f"hostile-{number}", work_pool_name="hostile", **facts
            )
            runs.append(one.create_flow_run_from_deployment(made).id)
        made = one.create_deployment(
            flow, "hostile", work_pool_name="hostile", entrypoint=facts["entrypoint"]
        )
        brings = {"command": f"touch {owned}"}
        runs.append(one.create_flow_run_from_deployment(made, job_variables=brings).id)
        with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
            asyncio.run(submitted())
        states = [one.read_flow_run(run).state for run in runs]
    for state in states:
        assert state is not None
        assert state.name == "Crashed"
        assert "Refused" in (state.message or "")
    assert not owned.exists()
