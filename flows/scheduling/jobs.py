"""What the worker runs: this project's own flows by this interpreter, whatever a deployment or a run says.

Prefect takes the command, the environment, the folder and the code of a run from its deployment, which whoever writes
to Prefect may change. Here they are ours, and what asks for others is refused, with the reason in the run's state.
"""

import ast
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prefect import Flow, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flows import load_flow_from_entrypoint
from prefect.workers import process
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from infra.settings import settings

if TYPE_CHECKING:
    from prefect.client.schemas.objects import Flow as ApiFlow
    from prefect.client.schemas.objects import WorkPool

ENTRYPOINT: Final = re.compile(r"flows/([a-z][a-z0-9_]*)\.py:([a-z][a-z0-9_]*)")


class Refused(ValueError):
    """A run that asks for something that is not ours."""


def own_flow(entrypoint: str | None) -> str:
    """Return an entrypoint that names a flow of this project; its file is read, not imported: that may take torch.

    Raises:
        Refused: it names none.
    """
    match = ENTRYPOINT.fullmatch(entrypoint or "")
    if match is None or match[2] not in _flows(settings().project / "flows" / f"{match[1]}.py"):
        raise Refused(f"{entrypoint!r} is no flow of this project (flows/NAME.py:FLOW)")
    return match[0]


def _flows(path: Path) -> set[str]:
    """Return the names of the functions of a file that are made flows by `@flow` or `@flow(...)`."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError):
        return set()
    return {
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(ast.unparse(one).partition("(")[0] == "flow" for one in node.decorator_list)
    }


def check(run: FlowRun, deployment: DeploymentResponse | None) -> str:
    """Return the entrypoint of a run that asks for nothing but one of our flows.

    Raises:
        Refused: it asks for more; names what.
    """
    if deployment is None:
        raise Refused("the worker runs deployments alone, and this run has none")
    asked: dict[str, Any] = {
        "job_variables": {**(deployment.job_variables or {}), **(run.job_variables or {})},
        "pull_steps": deployment.pull_steps,
        "storage": deployment.storage_document_id,
        "path": deployment.path,
    }
    for name, value in asked.items():
        if value:
            raise Refused(f"the worker takes no {name} from a deployment or a run, got {value!r}")
    return own_flow(deployment.entrypoint)


class Job(ProcessJobConfiguration):
    """How a run's process is started: by our command, in our environment and folder."""

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: "ApiFlow | None" = None,
        work_pool: "WorkPool | None" = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Drop what the pool's template says; the process is told the flow, and does not ask Prefect again.

        Raises:
            Refused: the run asks for what is not ours.
        """
        entrypoint = check(flow_run, deployment)
        self.command = shlex.join([sys.executable, "-m", "flows.scheduling.engine"])
        self.working_dir = settings().project.resolve()
        self.env = {}
        super().prepare_for_flow_run(
            flow_run, deployment, flow, work_pool, worker_name, worker_id=worker_id
        )
        self.env["PREFECT__FLOW_ENTRYPOINT"] = entrypoint


async def _flow_of(run: FlowRun) -> "Flow[..., Any]":
    async with get_client() as client:
        assert run.deployment_id is not None
        deployment = await client.read_deployment(run.deployment_id)
    return load_flow_from_entrypoint(check(run, deployment))


def make_worker(name: str, pool: str, limit: int) -> ProcessWorker:
    """Return Prefect's process worker with our jobs.

    A crashed run's hooks would be loaded in this process, from where its deployment says by then: Prefect 3.8 has no
    setting for that, so the function's name in its module is given to ours.
    """
    vars(process)["load_flow_from_flow_run"] = _flow_of
    worker = ProcessWorker(work_pool_name=pool, name=name, limit=limit)
    worker.job_configuration = Job
    return worker
