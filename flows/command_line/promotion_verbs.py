"""`history`, `promote`, `rollback`: the verbs about what stands where."""

from typing import Annotated, Literal

import typer

from flows.command_line.terminal import AsJson, Ref, console, ready, show_json, show_table


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (history, promote, rollback):
        app.command()(verb)


def history(name: str, as_json: AsJson = False) -> None:
    """Show every transition of a name: who, when, from, to, why."""
    from flows.workshop import ledger

    rows = ledger().history(name)
    if as_json:
        fields = (
            "id",
            "stage",
            "from_version",
            "to_version",
            "at",
            "actor",
            "reason",
            "forced",
            "hash",
        )
        show_json([{field: getattr(row, field) for field in fields} for row in rows])
        return
    show_table(
        f"history of {name}",
        ("when (UTC)", "place", "from", "to", "who", "why", "hash"),
        [
            (
                f"{row.at:%Y-%m-%d %H:%M:%S}",
                row.stage,
                row.from_version or "-",
                row.to_version or "-",
                row.actor,
                f"forced: {row.reason}" if row.forced else row.reason,
                row.hash[:10],
            )
            for row in rows
        ],
    )
    console.print(f"chain verified: {ledger().verify()} rows", style="dim")


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
    from flows.promote import promote as promote_flow

    found = promote_flow(ref, to, force)
    if as_json:
        show_json(found)
    elif found["changed"]:
        console.print(
            f"[bold]{found['ref']}[/] is in {to}; take it back with: atelier rollback {ref.split(':')[0]}"
        )
    else:
        console.print(f"{found['ref']} is in {to} already")


def rollback(
    name: str,
    place: Annotated[
        Literal["staging", "production"], typer.Option("--in", help="Where.")
    ] = "production",
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")] = "rolled back",
    as_json: AsJson = False,
) -> None:
    """Put the version before the present one back in its place."""
    ready()
    from flows.promote import rollback as rollback_flow

    found = rollback_flow(name, place, reason)
    if as_json:
        show_json(found)
    else:
        console.print(f"[bold]{found['ref']}[/] is in {place} again")
