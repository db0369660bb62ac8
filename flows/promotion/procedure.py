"""A promotion or rollback as a transaction: written down, loaded beside, smoked, committed, projected.

Every step is durable before the next one begins, and whoever is killed between two leaves a journal row whose lease
runs out: `reconcile` then finishes it (the ledger has its row) or undoes it. Nothing here needs Prefect, so a
rollback works while the orchestrator is down.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, cast

from flows.context import actor, ledger, person, promotions, registry
from flows.evaluating.gate import GateReport, document
from flows.promotion.gate_report import gate_of, gate_report
from flows.promotion.release import load_versions, pins, project_aliases, serve_wanted
from flows.promotion.smoke import draws_once, smoke
from flows.promotion.smoke_checks import Candidate, SmokeFailed
from infra import serving
from infra.database import DatabaseError
from infra.ledger.hash_chain import canonical
from infra.ledger.leases import holding, new_holder
from infra.ledger.ledger import Conflict, Row
from infra.ledger.promotions import Promotion, PromotionError, advance
from infra.pipelines import read_pipeline
from infra.registry.registry import Unreachable
from infra.settings import settings
from infra.storage import faultpoint

Place = Literal["staging", "production"]
FAULTPOINTS: Final = (
    "promote.intended",
    "promote.gated",
    "promote.load",
    "promote.loaded",
    "promote.smoke",
    "promote.smoked",
    "promote.commit",
    "ledger.commit",
    "ledger.committed",
    "promote.committed",
    "promote.projected",
    "promote.done",
)
"""Where a promotion or a rollback can be cut off: before and after each durable step. Tests iterate over them."""


class Refused(ValueError):
    """The gate or the smoke refused a version; the message says which conditions failed."""


def request(ref: str, place: Place = "production", force: str = "") -> dict[str, Any]:
    """Promote a version behind its gate, or write down that it waits for approval.

    Returns:
        {"ref", "place", "changed", "epoch"}, and "waiting" with the promotion's id where approval is asked for.

    Raises:
        Refused: the gate or the smoke failed.
        flows.context.Nameless: another person must approve it, and no key says who asks.
        infra.ledger.ledger.Conflict: somebody else was first; the message says who.
        infra.serving.ServingError: the version cannot be loaded, or Serve does not answer.
    """
    version = registry().get(ref)
    gate = gate_of(version)
    approved = gate.approvals is not None and place == "production"
    who = person() if approved else actor()
    head = ledger().head(version.name, place)
    epoch = head.epoch if head else 0
    if head is not None and head.to_digest == version.digest:
        return {"ref": version.ref, "place": place, "changed": False, "epoch": epoch}
    for row in promotions().waiting():
        if (row.digest, row.place, row.epoch, row.actor) == (version.digest, place, epoch, who):
            return _waits(row)
    holder = new_holder()
    row = promotions().intend(
        kind="promote",
        name=version.name,
        place=place,
        version=version.number,
        digest=version.digest,
        epoch=epoch,
        actor=who,
        reason=force or "promoted",
        forced=bool(force),
        holder=holder,
    )
    with _at_work(row, holder):
        _reach("promote.intended")
        report = gate_report(version)
        kept = canonical(document(report))
        if not report.passed and not force:
            why = f"the gate refuses {version.ref}: {report.refusal()}"
            promotions().advance(row.id, holder, "refused", report=kept, error=why)
            where = "" if place == "production" else f" --to {place}"
            raise Refused(
                f"{why}; it stays registered: train longer or otherwise, or pass over the gate by"
                f" atelier promote {version.ref}{where} --force REASON"
            )
        row = promotions().advance(row.id, holder, "gated", report=kept)
        _reach("promote.gated")
        if approved:
            assert gate.approvals is not None
            policy = gate.approvals.model_dump(mode="json", include={"count", "by"})
            expires = datetime.now(UTC) + timedelta(hours=gate.approvals.hours)
            return _waits(promotions().wait(row.id, holder, policy, expires))
        return _carry_on(row, holder)


def go_on(row: Promotion) -> dict[str, Any]:
    """Carry on with a promotion that waited: promote it once it is approved and nobody else does.

    Raises:
        PromotionError: it ended otherwise than in its place; the message says how.
    """
    if row.state == "waiting":
        return _waits(row)
    holder = new_holder()
    if row.state == "gated" and promotions().take_up(row.id, holder):
        with _at_work(row, holder):
            return _carry_on(row, holder)
    row = promotions().get(row.id)
    if row.ended and row.state != "done":
        raise PromotionError(f"promotion {row.id} is {row.state}: {row.error}")
    changed = row.state == "done"
    return {"ref": row.ref, "place": row.place, "changed": changed, "epoch": row.epoch + changed}


def roll_back(
    name: str, place: Place = "production", reason: str = "rolled back"
) -> dict[str, Any]:
    """Return to the version that stood in `place` before the present one; recorded like a promotion.

    It is held loaded since, so this takes as long as one picture. MLflow is not asked on the way.

    Raises:
        Refused: there is none, or it draws no picture any more.
        infra.ledger.ledger.Conflict: somebody else was first; the message says who.
    """
    now = ledger().head(name, place)
    before = ledger().fallback(name, place)
    if now is None or before is None or before.to_version is None or before.to_digest is None:
        raise Refused(f"{name} has no earlier version in {place} to roll back to")
    holder = new_holder()
    row = promotions().intend(
        kind="rollback",
        name=name,
        place=place,
        version=before.to_version,
        digest=before.to_digest,
        epoch=now.epoch,
        actor=actor(),
        reason=reason,
        forced=False,
        holder=holder,
    )
    with _at_work(row, holder):
        _reach("promote.intended")
        return _carry_on(row, holder)


def finish(row: Promotion, holder: str) -> None:
    """Make aliases and cards follow a committed promotion, and end it."""
    project_aliases(row.name)
    _reach("promote.projected")
    promotions().advance(row.id, holder, "done")
    _reach("promote.done")


def _carry_on(row: Promotion, holder: str) -> dict[str, Any]:
    """Load, smoke, commit, project: all that follows the gate and the approvals."""
    directory = registry().fetch(row.ref, digest=row.digest)
    new = Candidate(row.ref, read_pipeline(directory))
    _reach("promote.load")
    needed = [pin["digest"] for pin in pins(new.pipeline)]
    if row.kind == "promote" or not serving.loaded(settings(), needed):
        load_versions({row.ref: row.digest})
    row = promotions().advance(row.id, holder, "loaded")
    _reach("promote.loaded")
    _reach("promote.smoke")
    report = _smoked(row, new)
    kept = None if report is None else canonical(document(report))
    row = promotions().advance(row.id, holder, "smoked", report=kept)
    _reach("promote.smoked")
    moved = _commit(row, holder, report)
    _reach("promote.committed")
    with suppress(Unreachable):  # the switch is made; what is shown of it is the reconciler's then
        finish(row, holder)
    return {"ref": row.ref, "place": row.place, "changed": True, "epoch": moved.epoch}


def _smoked(row: Promotion, new: Candidate) -> GateReport | None:
    """Return the promotion's report with what the smoke found; a rollback has none."""
    if row.report is None:
        draws_once(new)
        return None
    report = GateReport.model_validate(row.report)
    gate = gate_of(registry().get(row.ref))
    found = smoke(new, _champion(row), gate.max_slowdown)
    failed = [condition.says for condition in found if not condition.passed]
    if failed and not row.forced:
        raise Refused(f"the smoke refuses {row.ref}: {'; '.join(failed)}")
    return report.joined(found)


def _champion(row: Promotion) -> Candidate | None:
    """Return what is in production beside the version of `row`, where there is another."""
    head = ledger().head(row.name, "production")
    if head is None or head.to_digest is None or head.to_digest == row.digest:
        return None
    ref = f"{row.name}:{head.to_version}"
    return Candidate(ref, read_pipeline(registry().fetch(ref, digest=head.to_digest)))


def _commit(row: Promotion, holder: str, report: GateReport | None) -> Row:
    """Move the ledger; the journal row becomes `committed` in the same transaction, or neither is written."""
    _reach("promote.commit")
    said = promotions().verdicts(row.id)
    return ledger().transition(
        name=row.name,
        stage=cast(Place, row.place),
        to_version=row.version,
        to_digest=row.digest,
        expected_epoch=row.epoch,
        key=row.id,
        actor=row.actor,
        reason=row.reason,
        report=None if report is None else document(report),
        forced=row.forced and report is not None and not report.passed,
        approvals=[one.as_json() for one in said if one.verdict == "approve"] or None,
        within=lambda connection: advance(connection, row.id, holder, "committed"),
    )


def _waits(row: Promotion) -> dict[str, Any]:
    found = {"ref": row.ref, "place": row.place, "changed": False, "epoch": row.epoch}
    return {**found, "waiting": row.id}


def _reach(point: str) -> None:
    assert point in FAULTPOINTS, point
    faultpoint(point)


@contextmanager
def _at_work(row: Promotion, holder: str) -> Iterator[None]:
    """Hold the lease, and end the journal row by what went wrong, so that nobody waits for the lease."""
    with holding(promotions(), row.id, holder):
        try:
            yield
        except Conflict as error:
            _end(row, holder, "superseded", error)
            raise
        except SmokeFailed as error:
            refused = Refused(f"the smoke refuses {row.ref}: {error}")
            _end(row, holder, "refused", refused)
            raise refused from None
        except (Refused, serving.VersionRefused) as error:
            _end(row, holder, "refused", error)
            raise
        except (ValueError, OSError, RuntimeError, LookupError) as error:
            _end(row, holder, "undone", error)
            raise


def _end(row: Promotion, holder: str, state: str, error: BaseException) -> None:
    """End a journal row that is not committed, and let Serve drop what it was to hold.

    What cannot be written now is the reconciler's, once the lease is given up.
    """
    with suppress(PromotionError, DatabaseError, OSError):
        promotions().advance(row.id, holder, state, error=" ".join(str(error).split()))
    if state == "refused":
        with suppress(serving.ServingError):
            serve_wanted(needed=[])
