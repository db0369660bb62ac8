"""What becomes of killed runs, on the run's own Prefect and a pool that no worker serves."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from flows.scheduling import crash_recovery
from tests.command_kit import begun

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

HERE = "this machine's worker"


@pytest.fixture
def client(
    stack: Mapping[str, float], monkeypatch: pytest.MonkeyPatch
) -> "Iterator[SyncPrefectClient]":
    from prefect import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    monkeypatch.setattr(crash_recovery, "POOL", "nobody-s")
    monkeypatch.setattr(crash_recovery, "YOUNG_S", 0.0)
    with get_client(sync_client=True) as one:
        one.create_work_pool(WorkPoolCreate(name="nobody-s", type="process"), overwrite=True)
        yield one


@pytest.fixture
def run(client: "SyncPrefectClient") -> Iterator[Any]:
    flow = client.create_flow_from_name("killed")
    made = client.create_deployment(flow, "killed", work_pool_name="nobody-s")
    yield client.create_flow_run_from_deployment(made, parameters={})
    client.delete_deployment(made)


@pytest.mark.cluster
def test_a_crashed_run_is_taken_up_twice_and_then_given_up(
    client: "SyncPrefectClient", run: Any
) -> None:
    from prefect.states import Crashed, Running

    said = []
    for _ in range(crash_recovery.ATTEMPTS):
        client.set_flow_run_state(run.id, Running())
        client.set_flow_run_state(run.id, Crashed())
        said += crash_recovery.take_up_again(client)
    assert [line.partition(": ")[2].partition(":")[0] for line in said] == [
        "attempt 2 of 3",
        "attempt 3 of 3",
        "given up after 3 attempts",
    ]
    now = client.read_flow_run(run.id)
    assert now.state_name == "Crashed"
    assert crash_recovery.GIVEN_UP in now.tags
    assert crash_recovery.take_up_again(client) == []


@pytest.mark.cluster
def test_a_run_is_dead_only_where_its_own_machine_has_no_such_process(
    client: "SyncPrefectClient", run: Any
) -> None:
    from prefect.states import Running

    code = "import sys; print('up', flush=True); sys.stdin.read()"
    environment = {"PREFECT__FLOW_RUN_ID": str(run.id)}
    with begun(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        client.update_flow_run(run.id, infrastructure_pid=str(process.pid))
        client.update_flow_run_labels(run.id, {"prefect.worker.name": HERE})
        client.set_flow_run_state(run.id, Running())
        assert crash_recovery.bury_the_dead(client, HERE) == []
        process.kill()
    assert crash_recovery.bury_the_dead(client, "another machine's worker") == []
    (line,) = crash_recovery.bury_the_dead(client, HERE)
    assert line.endswith(f"its process {process.pid} is gone")
    assert client.read_flow_run(run.id).state_name == "Crashed"


@pytest.mark.cluster
def test_a_run_that_prefect_can_end_no_more_does_not_keep_the_others_waiting(
    client: "SyncPrefectClient", run: Any
) -> None:
    from prefect.states import Crashed, Pending, Running

    flow = client.create_flow_from_name("poisoned")
    made = client.create_deployment(
        flow, "poisoned", work_pool_name="nobody-s", concurrency_limit=1
    )
    poisoned = client.create_flow_run_from_deployment(made, parameters={})
    client.update_flow_run(poisoned.id, infrastructure_pid="4194304")  # above every pid
    client.update_flow_run_labels(poisoned.id, {"prefect.worker.name": HERE})
    client.set_flow_run_state(poisoned.id, Pending())
    client.delete_deployment(made)  # and with it the limit whose lease the run holds
    client.set_flow_run_state(run.id, Running())
    client.set_flow_run_state(run.id, Crashed())
    said = [*crash_recovery.bury_the_dead(client, HERE), *crash_recovery.take_up_again(client)]
    assert [line for line in said if line.startswith(f"{run.name}: attempt 2 of 3")]
    assert not crash_recovery.bury_the_dead(client, HERE), said
