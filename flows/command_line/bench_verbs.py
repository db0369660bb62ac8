"""`bench families`: every experiment with its gate and its broken control, in one table."""

from pathlib import Path
from typing import Annotated

import typer

from flows.command_line.terminal import (
    AsJson,
    aside,
    console,
    ready,
    show_json,
    show_table,
    training_progress,
)
from infra.settings import settings


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    bench = typer.Typer(help="Measure what the house promises.", no_args_is_help=True)
    bench.command()(families)
    bench.callback()(_bench)
    app.add_typer(bench, name="bench")


def _bench() -> None:
    """Measure what the house promises."""


def families(
    only: Annotated[
        str, typer.Option(metavar="NAME,...", help="These recipes; else all that have a control.")
    ] = "",
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table there as Markdown.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run every family's experiment and its broken control; 1 if a gate is missed or a control passes."""
    names = [name for name in only.split(",") if name]
    ready()
    from flows import experiments

    rows = []
    with training_progress():
        for recipe in experiments.recipes(settings().project / "flows" / "recipes", names):
            found = experiments.run(recipe)
            rows += found
            for one in found:
                told = "  ".join(experiments.cells(one))
                aside.print(f"  {told}", markup=False, soft_wrap=True)
    if write is not None:
        write.write_text(experiments.markdown(rows))
    if as_json:
        show_json([{**row.model_dump(mode="json"), "good": row.good} for row in rows])
    else:
        shown = [experiments.cells(row) for row in rows]
        show_table("experiments", experiments.COLUMNS, shown)
        for note in experiments.notes(rows):
            console.print(note, style="dim", markup=False, soft_wrap=True)
    if any(row.good is False for row in rows):
        raise typer.Exit(1)
