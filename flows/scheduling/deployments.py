"""Flows that Prefect runs on the work pool: the built-in ones, the pool itself, and the rule that finds killed runs.

Everything here may be done again at any time: what stands already is brought up to date.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal

from infra.settings import settings
from infra.stack.spec import POOL, parts

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
    from prefect.events import AutomationCore

Collision = Literal["ENQUEUE", "CANCEL_NEW"]

TRAINING_QUEUE: Final = "training"
QUEUES: Final[Mapping[str, int | None]] = {"default": None, TRAINING_QUEUE: 2}
"""Runs at a time: of trainings one that trains and one that prepares; the rest waits without a process."""

ZOMBIE_RULE: Final = "atelier: a silent flow run is crashed"
SILENCE_S: Final = 75
"""After a heartbeat (one each 30 s); Prefect looks every 5 s, so a killed run is CRASHED within 80 s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """A flow with its parameters, as Prefect knows it: `flow/name`."""

    flow: str
    name: str
    entrypoint: str
    queue: str = "default"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    tags: Sequence[str] = ()
    schedule: "CronSchedule | IntervalSchedule | None" = None
    collision: Collision | None = None  # None: its runs may overlap

    @property
    def full_name(self) -> str:
        """How Prefect finds it."""
        return f"{self.flow}/{self.name}"


BUILT_IN: Final = (
    Deployment(
        flow="promote",
        name="atelier",
        entrypoint="flows/promote.py:promote",
        description="Promote a pipeline version behind its gate; may be suspended until others approve.",
        tags=("atelier",),
    ),
)


def submit(name: str, parameters: Mapping[str, Any]) -> str:
    """Have the worker run a built-in flow; returns the flow run's id at once.

    Raises:
        ValueError: there is no such built-in flow; the message lists them.
    """
    from prefect import get_client
    from prefect.exceptions import ObjectNotFound

    known = {deployment.flow: deployment for deployment in BUILT_IN}
    if name not in known:
        raise ValueError(f"no built-in flow {name!r}; choose one of {', '.join(known)}")
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(known[name].full_name).id
        except ObjectNotFound:  # the worker has not come up yet
            register(client)
            found = client.read_deployment_by_name(known[name].full_name).id
        run = client.create_flow_run_from_deployment(found, parameters=dict(parameters))
    return str(run.id)


def register(client: "SyncPrefectClient") -> None:
    """Make the work pool, the built-in deployments and the rule for killed runs, or bring them up to date."""
    make_pool(client)
    for deployment in BUILT_IN:
        put(client, deployment)
    put_automation(client, zombie_rule())


def make_pool(client: "SyncPrefectClient") -> None:
    """Make the work pool: its runs start in the project, by this interpreter.

    A pool of somebody else's Prefect, or of another type, is left as it is: its runs start in an image.
    """
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    variables["working_dir"]["default"] = str(settings().project.resolve())
    variables["command"]["default"] = shlex.join([sys.executable, "-m", "flows.scheduling.engine"])
    pool = WorkPoolCreate(name=POOL, type="process", base_job_template=template)
    try:
        found = client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(pool, overwrite=True)
    else:
        ours = any(part.name == "worker" for part in parts())
        if ours and found.type == "process" and found.base_job_template != template:
            client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))
    for name, limit in QUEUES.items():
        try:
            client.read_work_queue_by_name(name, work_pool_name=POOL)
        except ObjectNotFound:
            try:
                client.create_work_queue(name, concurrency_limit=limit, work_pool_name=POOL)
            except ObjectAlreadyExists:
                continue


def put(client: "SyncPrefectClient", deployment: Deployment) -> "UUID":
    """Make a deployment or bring it up to date; returns its id."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
    from prefect.utilities.callables import parameter_schema

    module, function = deployment.entrypoint.replace("/", ".").split(".py:")
    schema = parameter_schema(getattr(import_module(module), function))
    schedules = []
    if deployment.schedule is not None:
        schedules = [DeploymentScheduleCreate(schedule=deployment.schedule, active=True)]
    options = None
    if deployment.collision is not None:
        strategy = ConcurrencyLimitStrategy(deployment.collision)
        options = ConcurrencyOptions(collision_strategy=strategy)
    return client.create_deployment(
        flow_id=client.create_flow_from_name(deployment.flow),
        name=deployment.name,
        entrypoint=deployment.entrypoint,
        description=deployment.description,
        parameters=dict(deployment.parameters),
        parameter_openapi_schema=schema.model_dump(exclude_unset=True),
        enforce_parameter_schema=True,
        tags=list(deployment.tags),
        schedules=schedules,
        paused=False,
        concurrency_limit=None if options is None else 1,
        concurrency_options=options,
        work_pool_name=POOL,
        work_queue_name=deployment.queue,
    )


def zombie_rule() -> "AutomationCore":
    """Return the automation that calls a run CRASHED which neither beats nor says how it ended.

    It counts from a heartbeat, not from Running: somebody else's flow on the same Prefect may live without any. So a
    run killed in the instant before its first one is found only by the worker that started it (crash_recovery.py).
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events import AutomationCore, EventTrigger, Posture, ResourceSpecification
    from prefect.events.actions import ChangeFlowRunState

    ends = ("Completed", "Failed", "TimedOut", "Cancelled", "Crashed", "RolledBack")
    rests = ("Paused", "Suspended", "AwaitingRetry", "Scheduled")
    states = {f"prefect.flow-run.{state}" for state in (*ends, *rests)}
    beat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=ZOMBIE_RULE,
        description="A killed flow run says nothing: its heartbeats stop.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            after={beat},
            expect={beat, *states},
            threshold=1,
            within=timedelta(seconds=SILENCE_S),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"no heartbeat for {SILENCE_S} s: it was killed"
            )
        ],
    )


def put_automation(client: "SyncPrefectClient", automation: "AutomationCore") -> None:
    """Make an automation, or bring the first of its name up to date and remove its doubles.

    An equal one is left alone: an update gives its trigger another id, and what the server was counting under the old
    one, such as the silence of a killed run, is forgotten.
    """
    found = client.read_automations_by_name(automation.name)
    if not found:
        client.create_automation(automation)
        return
    first, *doubles = found
    if first.model_dump(exclude={"id"}) != automation.model_dump():
        client.update_automation(first.id, automation)
    for double in doubles:
        client.delete_automation(double.id)
