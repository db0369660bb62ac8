"""`history`, `promote`, `rollback`, `approve`, `reject`, `approvals`: the verbs about what stands where."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.cli.terminal import (
    AsJson,
    Ref,
    aside,
    console,
    ready,
    show_json,
    show_table,
    tell_of_no_worker,
    use_stack,
)
from infra.times import utc

if TYPE_CHECKING:
    from infra.ledger.ledger import Row

Promotion = Annotated[str, typer.Argument(metavar="ID", help="As `atelier approvals` lists it.")]
Reason = Annotated[str, typer.Option(help="Why; it is recorded.")]
FIELDS = (
    "id",
    "stage",
    "from_version",
    "to_version",
    "at",
    "actor",
    "reason",
    "forced",
    "approvals",
    "hash",
)


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (history, promote, rollback, approve, reject, approvals):
        app.command()(verb)


def history(
    name: str,
    at: Annotated[
        str, typer.Option(metavar="TIME", help="What stood where then: 2026-11-20T12:00, in UTC.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show every transition of a name: who, when, from, to, why, and who approved it."""
    from flows.context import ledger
    from infra.ledger.ledger import STAGES

    rows = ledger().history(name)
    if not rows:
        _make_sure_of(name)
    if at:
        found = [ledger().at(name, stage, _moment(at)) for stage in STAGES]  # type: ignore[arg-type]
        shown = [row for row in found if row is not None and row.to_version is not None]
    else:
        shown = rows
    if as_json:
        show_json([{field: getattr(row, field) for field in FIELDS} for row in shown])
        return
    show_table(
        f"{name} at {utc(_moment(at))}" if at else f"history of {name}",
        ("when", "place", "from", "to", "who", "why", "approved by", "hash"),
        [_line(row) for row in shown],
    )
    console.print(f"chain verified: {ledger().verify()} rows", style="dim")


def _make_sure_of(name: str) -> None:
    """Refuse a name that nobody registered; where MLflow does not answer, say that nobody knows.

    Raises:
        infra.registry.mlflow_client.RegistryError: there is no such name; the message lists near ones.
    """
    use_stack()
    from flows.context import registry
    from infra.registry.mlflow_client import Unreachable

    try:
        registry().get(name)
    except Unreachable as error:
        aside.print(f"whether {name} is registered is not known: {error}")


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time; write 2026-11-20T12:00 or ...+01:00") from None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _line(row: "Row") -> tuple[object, ...]:
    return (
        row.at,
        row.stage,
        row.from_version or "-",
        row.to_version or "-",
        row.actor,
        f"forced: {row.reason}" if row.forced else row.reason,
        ", ".join(str(one["actor"]) for one in row.approvals or ()) or "-",
        row.hash[:10],
    )


def promote(
    ref: Ref,
    to: Annotated[Literal["staging", "production"], typer.Option(help="Where to.")] = "production",
    force: Annotated[
        str, typer.Option(help="A reason for passing over the gate; it is recorded.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Promote a pipeline version behind its gate; requests move to it without a failed one."""
    ready()
    tell_of_no_worker()
    from flows.promote import promote as promote_flow

    found = promote_flow(ref, to, force)
    if "waiting" in found:
        from flows.promotion.approvals import hand_over

        hand_over(found["waiting"], force)
    if as_json:
        show_json(found)
    else:
        _show(found)


def rollback(
    name: str,
    place: Annotated[
        Literal["staging", "production"], typer.Option("--in", help="Where.")
    ] = "production",
    reason: Reason = "rolled back",
    as_json: AsJson = False,
) -> None:
    """Put the version before the present one back in its place; needs neither Prefect nor MLflow."""
    use_stack()
    from flows.promotion.procedure import roll_back

    found = roll_back(name, place, reason)
    if as_json:
        show_json(found)
    else:
        console.print(f"[bold]{found['ref']}[/] is in {place} again", markup=True)


def approve(promotion: Promotion, reason: Reason = "", as_json: AsJson = False) -> None:
    """Approve a promotion that waits; the last approval that it needs carries it on."""
    use_stack()
    from flows.promotion import approvals as verdicts

    found = verdicts.approve(promotion, reason)
    if as_json:
        show_json(found)
    elif found["state"] == "waiting":
        console.print(f"approved; {found['ref']} waits for more approvals")
    elif found.get("changed"):
        _show(found)
    else:
        console.print(f"approved; {found['ref']} is on its way to {found['place']}")


def reject(promotion: Promotion, reason: Reason = "", as_json: AsJson = False) -> None:
    """Reject a promotion that waits, which ends it; the requester's own rejection withdraws it."""
    use_stack()
    from flows.promotion import approvals as verdicts

    found = verdicts.reject(promotion, reason)
    if as_json:
        show_json(found)
    else:
        console.print(f"rejected: {found['ref']} does not go to {found['place']}")


def approvals(as_json: AsJson = False) -> None:
    """List the promotions that wait for approval."""
    from flows.context import promotions

    columns = ("id", "version", "to", "asked by", "approved by", "needs", "until")
    rows = []
    for row in promotions().waiting():
        assert row.policy is not None
        said = ", ".join(one.actor for one in promotions().verdicts(row.id)) or "-"
        who = f"{row.policy['count']} of {', '.join(row.policy['by']) or 'anybody else'}"
        rows.append((row.id, row.ref, row.place, row.actor, said, who, row.expires))
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        show_table("promotions that wait", columns, rows)


def _show(found: dict[str, Any]) -> None:
    """Say what a promotion came to, and the next command to try."""
    if "waiting" in found:
        waiting(found)
    elif found["changed"]:
        name = found["ref"].split(":")[0]
        console.print(
            f"[bold]{found['ref']}[/] is in {found['place']}; take it back with: atelier rollback {name}",
            markup=True,
        )
    else:
        console.print(f"{found['ref']} is in {found['place']} already")


def waiting(found: dict[str, Any]) -> None:
    """Say what a promotion waits for, and what the approver types."""
    from flows.context import promotions

    row = promotions().get(found["waiting"])
    assert row.policy is not None
    assert row.expires is not None
    count, by = row.policy["count"], row.policy["by"]
    who = f"one of {', '.join(by)}" if by else f"somebody other than {row.actor}"
    many = "" if count == 1 else f", {count} in all"
    console.print(f"{row.ref} passed its gate and waits until {utc(row.expires)} for {who}{many}")
    console.print(
        f"they type: atelier approve {row.id} --reason WHY   (or: atelier reject {row.id})"
    )
