"""`recipe new`: a first recipe for data at hand."""

import os
import re
from typing import Annotated

import typer

from flows.cli import completing
from flows.cli.terminal import console
from infra.settings import settings

recipe_app = typer.Typer(help="Recipes: write one for your data.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    recipe_app.callback()(_recipes)
    recipe_app.command("new")(new)
    app.add_typer(recipe_app, name="recipe")


def _recipes() -> None:
    """Recipes: write one for your data."""


def new(
    name: Annotated[str, typer.Argument(help="The recipe's name, and the model's: flowers.")],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATASET",
            help="A prepared dataset to learn.",
            autocompletion=completing.datasets,
        ),
    ],
    family: Annotated[
        str, typer.Option(help="What is to learn it; what suits the data if not given.")
    ] = "",
) -> None:
    """Write a recipe for a prepared dataset: what can be measured of it, bounds, and a broken control."""
    from data.catalog import prepared
    from data.loaders import records
    from flows.checking import check
    from flows.cli.drafting import draft
    from flows.recipe import NAME
    from flows.recipes.loader import load
    from infra.storage import atomic_write

    project = settings().project
    if not re.fullmatch(NAME, name):
        raise ValueError(f"recipe name {name!r}: use lower-case letters, digits and -, 41 at most")
    path = project / "flows" / "recipes" / f"{name}.yaml"
    if path.exists():
        raise ValueError(f"{path} is there already: choose another name, or remove it")
    ready = prepared(data, project)
    text = ready.header["modality"] == "text"
    roles = [role for role, _ in records(ready.path, "train")[0]] if text else []
    written = draft(name, ready.header, roles, family)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(written.encode())
    try:
        check(load(path), project)
    except ValueError:
        path.unlink()
        raise
    shown = os.path.relpath(path)
    console.print(f"{shown} is written; next: atelier run {shown}", soft_wrap=True)
