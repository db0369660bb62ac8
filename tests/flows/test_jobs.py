"""What the worker refuses to run, and how it starts what it runs; no server is asked."""

import sys
import uuid
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse

from flows.scheduling.jobs import Job, Refused, check, own_flow
from infra.settings import settings

OURS = "flows/promote.py:promote"


def deployment(**changes: Any) -> DeploymentResponse:
    facts = {"id": uuid.uuid4(), "name": "one", "flow_id": uuid.uuid4(), "entrypoint": OURS}
    return DeploymentResponse(**{**facts, **changes})


def run(**changes: Any) -> FlowRun:
    return FlowRun(flow_id=uuid.uuid4(), name="tuesday", **changes)


def test_a_run_of_ours_is_started_by_our_command_whatever_the_pool_s_template_says() -> None:
    job = Job(command="touch /tmp/owned", env={"LD_PRELOAD": "evil.so"}, working_dir="/")
    job.prepare_for_flow_run(run(), deployment())
    assert job.command == f"{sys.executable} -m flows.scheduling.engine"
    assert job.working_dir == settings().project.resolve()
    assert "LD_PRELOAD" not in job.env
    assert job.env["PREFECT__FLOW_ENTRYPOINT"] == OURS


@pytest.mark.parametrize(
    "hostile",
    [
        {"job_variables": {"command": "touch /tmp/owned"}},
        {"job_variables": {"env": {"PYTHONPATH": "/tmp"}}},
        {"job_variables": {"working_dir": "/tmp"}},
        {"job_variables": {"env.PYTHONPATH": "/tmp"}},
        {"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "id"}}]},
        {"path": "/tmp"},
        {"storage_document_id": uuid.UUID(int=7)},
        {"entrypoint": "/tmp/evil.py:main"},
        {"entrypoint": "flows/../../tmp/evil.py:main"},
        {"entrypoint": "flows/scheduling/worker.py:main"},
        {"entrypoint": "flows/context.py:subprocess"},
        {"entrypoint": "flows/nowhere.py:main"},
        {"entrypoint": "os.system"},
        {"entrypoint": None},
    ],
    ids=str,
)
def test_a_deployment_that_asks_for_more_is_refused(hostile: dict[str, Any]) -> None:
    job = Job()
    with pytest.raises(Refused):
        job.prepare_for_flow_run(run(), deployment(**hostile))
    assert job.command is None


def test_a_run_that_asks_for_more_than_its_deployment_is_refused() -> None:
    with pytest.raises(Refused, match=r"no job_variables .* got \{'command': 'id'\}"):
        check(run(job_variables={"command": "id"}), deployment())
    with pytest.raises(Refused, match="this run has none"):
        check(run(), None)


def test_every_flow_that_the_platform_deploys_may_run_and_no_other_function() -> None:
    for entrypoint in (OURS, "flows/lifecycle.py:retrain", "flows/drift.py:drift"):
        assert own_flow(entrypoint) == entrypoint
    for entrypoint in (
        "flows/lifecycle.py:settings",
        "flows/drift.py:_looked",
        "flows/scheduling/jobs.py:Job",
    ):
        with pytest.raises(Refused):
            own_flow(entrypoint)
