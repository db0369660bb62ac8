"""What a schedule did and will do, as Prefect remembers it."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from infra.settings import settings

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun


def coming(client: "SyncPrefectClient", deployment_id: "UUID") -> list[datetime]:
    """Return when the next three runs are due."""
    from prefect.client.schemas.objects import StateType

    found = runs_of(client, deployment_id, [StateType.SCHEDULED], 3, newest=False)
    return [run.expected_start_time for run in found if run.expected_start_time]


def begun(client: "SyncPrefectClient", deployment_id: "UUID", limit: int) -> "list[FlowRun]":
    """Return the newest runs that have begun."""
    from prefect.client.schemas.objects import StateType

    begun = [state for state in StateType if state != StateType.SCHEDULED]
    return runs_of(client, deployment_id, begun, limit, newest=True)


def runs_of(
    client: "SyncPrefectClient", deployment_id: "UUID", states: Any, limit: int, *, newest: bool
) -> "list[FlowRun]":
    """Return runs in these states by the time at which they were due."""
    from prefect.client.schemas import filters
    from prefect.client.schemas.sorting import FlowRunSort

    order = FlowRunSort.EXPECTED_START_TIME_DESC if newest else FlowRunSort.EXPECTED_START_TIME_ASC
    state = filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=list(states)))
    of = filters.FlowRunFilterDeploymentId(any_=[deployment_id])
    return client.read_flow_runs(
        flow_run_filter=filters.FlowRunFilter(state=state, deployment_id=of),
        sort=order,
        limit=limit,
    )


def shown_run(run: "FlowRun") -> dict[str, Any]:
    """Return a run as plain values: when, state, the version made, what its gate said, its page."""
    page = settings().prefect_url.removesuffix("/api")
    return {
        "id": str(run.id),
        "due": run.expected_start_time,
        "started": run.start_time,
        "ended": run.end_time,
        "state": run.state_name,
        "message": run.state.message if run.state else None,
        "attempts": run.run_count,
        "version": run.labels.get("atelier.version"),
        "gate": run.labels.get("atelier.gate"),
        "page": f"{page}/runs/flow-run/{run.id}",
    }
