"""Settle what a lost promoter left behind: finish what the ledger has, undo the rest; safe to run at any time."""

from datetime import UTC, datetime

from flows.context import promotions
from flows.promotion.procedure import finish
from flows.promotion.release import project_aliases, serve_wanted
from infra.ledger.leases import holding, new_holder
from infra.ledger.promotions import Promotion, PromotionError
from infra.pipelines import PipelineError
from infra.registry.registry import RegistryError
from infra.serving import ServingError
from infra.storage import IntegrityError


def reconcile() -> list[str]:
    """Settle every promotion whose holder's lease ran out, and expire those that nobody approved in time.

    One query where there is nothing to do. Of several that run at once each promotion is settled by one.

    Returns:
        What was done, a line each; also what could not be done yet and is tried again at the next call.
    """
    now = datetime.now(UTC)
    said = []
    for row in promotions().forsaken(now):
        if row.state == "waiting":
            said += [f"{one.id} expired: {one.error}" for one in promotions().expire(now)]
            continue
        holder = new_holder()
        if promotions().take(row.id, holder, now):
            with holding(promotions(), row.id, holder):
                said.append(_settle(row, holder))
    return said


def _settle(row: Promotion, holder: str) -> str:
    """End one promotion; the journal says `committed` exactly if the ledger has its row."""
    try:
        if row.state == "committed":
            serve_wanted(needed=[])
            finish(row, holder)
            return f"{row.id} finished: {row.ref} is in {row.place}"
        why = f"its promoter was lost when it was {row.state}; promote again"
        promotions().advance(row.id, holder, "undone", error=why)
        serve_wanted(needed=[])
        project_aliases(row.name)
    except (RegistryError, IntegrityError, PipelineError, ServingError) as error:
        return f"{row.id} is {promotions().get(row.id).state}, not all in line yet: {error}"
    except PromotionError as error:
        return f"{row.id} was settled by another: {error}"
    return f"{row.id} undone: {row.ref} did not reach {row.place}"
