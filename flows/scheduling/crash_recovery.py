"""Killed runs: known to be dead, and taken up again from their last finished step, with a bound.

A run's own process says that it is dead before its heartbeats stop to be missed: where the worker that started it was
killed too, the next one on the machine looks for the process. Elsewhere Prefect's rule (deployments.py) finds it.
"""

import os
import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import psutil

from infra.stack.spec import POOL

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State, StateType

ATTEMPTS: Final = 3
GIVEN_UP: Final = "given up"  # the tag of a run that crashed `ATTEMPTS` times
YOUNG_S: Final = 20.0  # a state this young may belong to a process that is being started
STUCK_S: Final = 180.0  # nobody starts a process for so long


def bury_the_dead(client: "SyncPrefectClient", worker: str) -> list[str]:
    """Call runs of this machine's worker CRASHED whose process is gone; returns a line each."""
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    lines = []
    for run in _runs(client, StateType.PENDING, StateType.RUNNING):
        assert run.state is not None
        age = (datetime.now(UTC) - run.state.timestamp).total_seconds()
        ours = run.labels.get("prefect.worker.name", worker) == worker
        if not ours or age < YOUNG_S or _process(run) is not None:
            continue
        if run.infrastructure_pid is None and not (run.state.is_pending() and age > STUCK_S):
            continue
        why = f"its process {run.infrastructure_pid or ''} is gone".replace("  ", " ")
        lines.append(f"{run.name}: {_set(client, run, Crashed(message=why)) or why}")
    return lines


def take_up_again(client: "SyncPrefectClient") -> list[str]:
    """Schedule every crashed run again, with its parameters, up to `ATTEMPTS` attempts; returns a line each."""
    from prefect.client.schemas.objects import StateType
    from prefect.states import AwaitingRetry

    lines = []
    for run in _runs(client, StateType.CRASHED):
        states = client.read_flow_run_states(run.id)
        crashes = sum(state.type == StateType.CRASHED for state in states)
        if crashes >= ATTEMPTS:
            client.update_flow_run(run.id, tags=[*run.tags, GIVEN_UP])
            lines.append(f"{run.name}: given up after {crashes} attempts")
            continue
        process = _process(run)
        if process is not None:  # silent, not dead: it must not work beside its successor
            os.kill(process.pid, signal.SIGKILL)
        message = f"attempt {crashes + 1} of {ATTEMPTS}: finished steps are found, not repeated"
        lines.append(f"{run.name}: {_set(client, run, AwaitingRetry(message=message)) or message}")
    return lines


def _set(client: "SyncPrefectClient", run: "FlowRun", state: "State") -> str:
    """Set a run's state, or give it up and say why: one that the server chokes on must not keep others waiting."""
    from httpx import HTTPStatusError

    try:
        client.set_flow_run_state(run.id, state)
    except HTTPStatusError as error:
        client.update_flow_run(run.id, tags=[*run.tags, GIVEN_UP])
        return f"given up, for Prefect answers {error.response.status_code}"
    return ""


def _runs(client: "SyncPrefectClient", *types: "StateType") -> "list[FlowRun]":
    """Return the pool's runs in these states, but those that were given up."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        WorkPoolFilter,
        WorkPoolFilterName,
    )

    states = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=states),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
    )
    return [run for run in found if run.deployment_id and GIVEN_UP not in run.tags]


def _process(run: "FlowRun") -> psutil.Process | None:
    """Return the process of this machine that executes the run, if it lives."""
    try:
        process = psutil.Process(int(run.infrastructure_pid or ""))
        if process.environ().get("PREFECT__FLOW_RUN_ID") != str(run.id):
            return None
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except (ValueError, psutil.Error, OSError):
        return None
