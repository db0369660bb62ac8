"""`bench families`: every experiment with its gate and its broken control, in one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.terminal import (
    AsJson,
    aside,
    console,
    ready,
    show_json,
    show_table,
    training_progress,
)
from infra.settings import settings

if TYPE_CHECKING:
    from flows.comparing.experiments import Row


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
    seeds: Annotated[
        int, typer.Option(min=1, help="Train the recipe by so many seeds, its controls by one.")
    ] = 1,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put the rows into the table of this Markdown file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run every family's experiment and its broken controls; 1 if a gate is missed or a control passes."""
    from flows.recipes.loader import controlled

    names = [name for name in only.split(",") if name]
    chosen = controlled(settings().project / "flows" / "recipes", names)
    ready()
    from flows.comparing import experiments

    if write is not None:
        _into(write, [])  # it can be written
    rows = []
    with training_progress():
        for recipe in chosen:
            one = experiments.run(recipe, seeds)
            rows.append(one)
            if write is not None:
                _into(write, [one])
            for cells in experiments.lines(one):
                aside.print("  " + "  ".join(cells), soft_wrap=True)
    if as_json:
        show_json([{**row.model_dump(mode="json"), "good": row.good} for row in rows])
    else:
        shown = [cells for row in rows for cells in experiments.lines(row)]
        show_table("experiments", experiments.COLUMNS, shown)
        for note in (note for row in rows for note in row.notes):
            console.print(note, style="dim", soft_wrap=True)
    if any(row.good is False or row.note.startswith("failed") for row in rows):
        raise typer.Exit(1)


def _into(file: Path, rows: "Sequence[Row]") -> None:
    """Put rows into the table of a document; each as soon as it is there.

    Raises:
        ValueError: the file is another document.
    """
    from flows.comparing.experiments import written

    try:
        file.write_text(written(rows, file.read_text() if file.exists() else ""))
    except ValueError as error:
        raise ValueError(f"--write {file}: {error}") from None
