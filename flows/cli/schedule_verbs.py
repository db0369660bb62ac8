"""`schedule add|list|pause|resume|rm|runs`: the verbs about training again by itself."""

from typing import Annotated, Any

import typer

from flows.cli.terminal import (
    AsJson,
    Overrides,
    console,
    ready,
    show_json,
    show_table,
    tell_of_no_worker,
    use_stack,
)
from flows.cli.training_verbs import RecipeFile

schedule = typer.Typer(
    help="Train recipes again: by the clock, on new data, on drift.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="One of `atelier schedule list`.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    schedule.command("add")(add)
    schedule.command("list")(list_schedules)
    schedule.command("pause")(pause)
    schedule.command("resume")(resume)
    schedule.command("rm")(remove)
    schedule.command("runs")(runs)
    app.add_typer(schedule, name="schedule")


def add(
    recipe: RecipeFile,
    overrides: Overrides = None,
    cron: Annotated[str, typer.Option(help='Minute hour day month weekday: "0 3 * * *".')] = "",
    timezone: Annotated[str, typer.Option(help="Of --cron, e.g. Europe/Berlin; UTC else.")] = "",
    every: Annotated[str, typer.Option(help="A length of time: 6h, 30m, 1d.")] = "",
    on_data_change: Annotated[str, typer.Option(metavar="DATASET")] = "",
    on_drift: Annotated[str, typer.Option(metavar="ENDPOINT")] = "",
    promote: Annotated[
        bool, typer.Option("--promote", help="Go on through the gate into production.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe again and again; what comes out is a candidate with its gate report."""
    use_stack()
    from flows.scheduling import schedules

    trigger = schedules.Trigger(
        cron=cron,
        timezone=timezone,
        every=every,
        on_data_change=on_data_change,
        on_drift=on_drift,
    )
    schedules.check(recipe, overrides or [], trigger)
    ready()
    tell_of_no_worker()
    name = schedules.add(recipe, overrides or [], trigger, to_production=promote)
    if as_json:
        show_json({"name": name})
    else:
        console.print(
            f"[bold]{name}[/] is scheduled; look at it with: atelier schedule list", markup=True
        )


def list_schedules(as_json: AsJson = False) -> None:
    """List schedules: their trigger, the next run, the last and how it ended."""
    use_stack()
    from flows.scheduling import schedules

    found = schedules.listed()
    if as_json:
        show_json(found)
        return
    show_table(
        "schedules",
        ("name", "recipe", "trigger", "next run", "last run", "state", "version"),
        [
            (
                one["name"],
                one["recipe"],
                one["trigger"],
                "paused" if one["paused"] else next(iter(one["next"]), None),
                *_last(one["last"]),
            )
            for one in found
        ],
    )


def pause(name: Name) -> None:
    """Pause a schedule; a run at work goes on."""
    use_stack()
    from flows.scheduling import schedules

    schedules.pause(name)
    console.print(f"{name} is paused; atelier schedule resume {name}")


def resume(name: Name) -> None:
    """Resume a paused schedule; what it missed is not made up for."""
    use_stack()
    from flows.scheduling import schedules

    schedules.resume(name)
    console.print(f"{name} is on again")


def remove(name: Name) -> None:
    """Remove a schedule; the versions that it made stay."""
    use_stack()
    from flows.scheduling import schedules

    schedules.remove(name)
    console.print(f"{name} is removed")


def runs(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    as_json: AsJson = False,
) -> None:
    """Show a schedule's runs, the newest first: state, version, gate, page."""
    use_stack()
    from flows.scheduling import schedules

    found = schedules.runs(name, limit)
    if as_json:
        show_json(found)
        return
    columns = ("due", "state", "attempts", "version", "gate", "page")
    show_table(
        f"runs of {name}",
        columns,
        [[run[column] or None for column in columns] for run in found],
    )


def _last(run: dict[str, Any] | None) -> tuple[object, object, object]:
    return (None, None, None) if run is None else (run["due"], run["state"], run["version"] or None)
