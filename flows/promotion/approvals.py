"""Verdicts on promotions that wait: the last approval needed carries the promotion on."""

import time
from typing import Any, Final
from uuid import UUID

from flows.context import person, promotions
from flows.promotion.procedure import go_on
from infra.ledger.promotions import Promotion

TAKEN_UP_S: Final = 20.0  # a worker's next look for resumed runs comes within this
POLL_S: Final = 0.2


def approve(promotion: str, reason: str = "") -> dict[str, Any]:
    """Approve as `person()`; returns {"id", "state"}, and what came of the promotion where this approval was the last.

    The suspended flow is resumed where there is one; where no worker takes it up, this process promotes.

    Raises:
        infra.ledger.promotions.PromotionError: it does not wait, or this person may not approve it.
        flows.context.Nameless: no key says who this person is.
    """
    row = promotions().approve(promotion, person(), reason)
    if row.state == "waiting":
        return {"id": row.id, "state": row.state, "ref": row.ref, "place": row.place}
    if row.flow_run is not None and _resumed(row.flow_run):
        row = _taken_up(row)
        if row.holder is not None or row.ended:
            return {"id": row.id, "state": row.state, "ref": row.ref, "place": row.place}
    found = go_on(row)
    return {"id": row.id, "state": promotions().get(row.id).state, **found}


def hand_over(promotion: str, force: str) -> None:
    """Let a flow on the worker wait for the approval: it suspends at once and holds no process."""
    from flows.scheduling.deployments import submit

    row = promotions().get(promotion)
    if row.flow_run is None:
        wanted = {"ref": row.ref, "place": row.place, "force": force, "promotion": row.id}
        submit("promote", wanted)


def reject(promotion: str, reason: str = "") -> dict[str, Any]:
    """Reject as `person()`, which ends the promotion; returns {"id", "state"}.

    Raises:
        infra.ledger.promotions.PromotionError: it does not wait, or this person may not reject it.
        flows.context.Nameless: no key says who this person is.
    """
    row = promotions().reject(promotion, person(), reason)
    if row.flow_run is not None:
        _resumed(row.flow_run)  # it finds that it was rejected, and fails with the reason
    return {"id": row.id, "state": row.state, "ref": row.ref, "place": row.place}


def _resumed(run: str) -> bool:
    """Resume a suspended flow run; return whether it was one, and Prefect answered."""
    import httpx
    from prefect.exceptions import FlowPauseTimeout, NotPausedError, ObjectNotFound
    from prefect.flow_runs import resume_flow_run

    try:
        resume_flow_run(UUID(run))
    except (FlowPauseTimeout, NotPausedError, ObjectNotFound, RuntimeError, httpx.HTTPError):
        return False
    return True


def _taken_up(row: Promotion) -> Promotion:
    """Return the row once a worker's run works on it, or when none came."""
    deadline = time.monotonic() + TAKEN_UP_S
    while row.holder is None and not row.ended and time.monotonic() < deadline:
        time.sleep(POLL_S)
        row = promotions().get(row.id)
    return row
