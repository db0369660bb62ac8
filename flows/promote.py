"""Promote a pipeline version, or take it back, as Prefect flows around `flows.promotion.procedure`."""

import math
from datetime import UTC, datetime
from typing import Any

from prefect import flow

from flows.context import promotions
from flows.promotion.procedure import FAULTPOINTS, Place, Refused, go_on, request, roll_back


@flow(flow_run_name="promote {ref} to {place}", persist_result=True)
def promote(
    ref: str, place: Place = "production", force: str = "", promotion: str = ""
) -> dict[str, Any]:
    """Promote `ref` behind its gate; `force` is the reason for passing over a refusal, and is recorded.

    Where the gate's policy asks for approvals, a run of a deployment suspends and holds no worker until it is
    approved; elsewhere the flow ends, and `atelier approve` carries the promotion on.

    Args:
        ref: The version.
        place: Where to.
        force: Why, in spite of what the gate says.
        promotion: The id of one that waits already, to go on with it once it is approved.

    Returns:
        {"ref", "place", "changed", "epoch"}, and "waiting" with the promotion's id while it waits; a version that
        is there already is a no-op.

    Raises:
        Refused: the gate or the smoke failed.
        infra.ledger.ledger.Conflict: somebody else was first; the message says who.
    """
    run = deployed_run()
    begun = promotions().get(promotion) if promotion else promotions().of_flow(run)
    found = request(ref, place, force) if begun is None else go_on(begun)
    if "waiting" in found and run:
        suspend(found["waiting"], run)
    return found


@flow(flow_run_name="roll back {name}")
def rollback(name: str, place: Place = "production", reason: str = "rolled back") -> dict[str, Any]:
    """Return to the version that stood in `place` before the present one; recorded like a promotion."""
    return roll_back(name, place, reason)


def deployed_run() -> str:
    """Return this flow run's id where it is a run of a deployment that may be suspended, else ""."""
    from prefect.runtime import deployment, flow_run

    if deployment.id is None or flow_run.parent_flow_run_id is not None:
        return ""
    return str(flow_run.id)


def suspend(promotion: str, run: str) -> None:
    """End this process; the run goes on from the start when it is resumed, and fails when its time is over."""
    from prefect.flow_runs import suspend_flow_run

    promotions().suspended(promotion, run)
    row = promotions().get(promotion)
    assert row.expires is not None
    left = (row.expires - datetime.now(UTC)).total_seconds()
    suspend_flow_run(timeout=max(1, math.ceil(left)))


__all__ = ["FAULTPOINTS", "Place", "Refused", "promote", "rollback"]
