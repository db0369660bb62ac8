"""`tune`: the verb that looks for better values."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import completing
from flows.cli.terminal import (
    AsJson,
    Overrides,
    console,
    ready,
    show_json,
    show_table,
    training_progress,
)
from flows.cli.training_verbs import checked


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command()(tune)


def tune(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe with a `search:` section.",
            autocompletion=completing.recipes,
        ),
    ],
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="How many trials to draw; the recipe's number without it."),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Search a recipe's space, train the best values in full and register them as candidate."""
    from flows.recipes.loader import searched_stage

    wanted = checked(recipe, overrides or [])
    searched_stage(wanted)
    ready()
    from flows.tune import tune as tune_flow

    with training_progress():
        made = tune_flow(wanted, trials)
    if as_json:
        show_json(made)
        return
    _show(made)


def _show(made: dict[str, Any]) -> None:
    found = made["search"]
    fields = list(next((row["values"] for row in found["trials"] if row["values"]), {}))
    rows = [
        (
            row["number"],
            *(row["values"].get(field, "as written") for field in fields),
            "" if row["validation_loss"] is None else f"{row['validation_loss']:.4g}",
            row["step"],
            row["why"] or {"stopped": "stopped early"}.get(row["state"], row["state"]),
        )
        for row in found["trials"]
    ]
    short = [field.removeprefix("training.").removeprefix("optimizers.") for field in fields]
    show_table("trials, best first", ("trial", *short, "validation loss", "steps", "ended"), rows)
    saved = 100 * (1 - found["steps_spent"] / found["steps_in_full"])
    console.print(
        f"\n{found['steps_spent']} of {found['steps_in_full']} steps done, {saved:.0f} % saved by stopping early;"
        f" MLflow run {found['run']}"
    )
    ref = f"{made['version']['name']}:{made['version']['version']}"
    console.print(
        f"[bold]{ref}[/] is trial {found['best']} trained in full, a candidate", markup=True
    )
    console.print(f"next: atelier show {ref}   then   atelier promote {ref}")
