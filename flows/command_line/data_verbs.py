"""`data list|prepare|validate`: the verbs about datasets."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated

import typer

from flows.command_line.terminal import AsJson, console, show_json, show_table
from infra.settings import settings

data_app = typer.Typer(help="Datasets: list, prepare, validate.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="One of `atelier data list`, or `folder` with --path.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    data_app.command("list")(list_datasets)
    data_app.command("prepare")(prepare)
    data_app.command("validate")(validate)
    app.add_typer(data_app, name="data")


def list_datasets(as_json: AsJson = False) -> None:
    """List the datasets of params.yaml and which are prepared here."""
    from data.catalog import datasets

    listed = datasets(settings().project)
    if as_json:
        show_json([dataclasses.asdict(found) for found in listed])
        return
    rows = [
        (
            found.name,
            found.maker,
            f"{found.image_size} px",
            " ".join(f"{split} {count}" for split, count in found.rows.items())
            or found.problem
            or "not prepared",
            (found.identity or "")[:12],
        )
        for found in listed
    ]
    show_table("datasets", ("name", "maker", "size", "rows", "identity"), rows)


def prepare(
    name: Name,
    path: Annotated[
        Path | None,
        typer.Option(help="Where the files are: of `folder`, or of a dataset like mnist."),
    ] = None,
    as_name: Annotated[
        str,
        typer.Option("--name", help="`folder`: what to call them; the folder's name if not given."),
    ] = "",
    image_size: Annotated[int, typer.Option(help="`folder`: pixels a side, 8 to 512.")] = 32,
) -> None:
    """Make, check and shard a dataset; repeats only what changed."""
    from data.catalog import add_folder, point
    from data.catalog import prepare as repeat_stages

    project = settings().project
    if name == "folder":
        if path is None:
            raise ValueError("which folder? `atelier data prepare folder --path DIR`")
        name = as_name or re.sub(r"[^a-z0-9]+", "-", path.resolve().name.lower()).strip("-")
        add_folder(name, path, image_size, project)
    elif path is not None:
        point(name, path, project)
    ready = repeat_stages(name, project)
    splits = ", ".join(f"{split} {s['rows']}" for split, s in ready.header["splits"].items())
    did = f"ran {', '.join(ready.ran)}" if ready.ran else "nothing changed"
    console.print(f"[bold]{name}[/]: {splits} ({did})")
    console.print(f"identity {ready.identity}, in {ready.path}", style="dim")
    if ready.report is not None:
        console.print(f"report: {ready.report}")


def validate(name: Name) -> None:
    """Judge a prepared dataset's facts again with its Great Expectations suite."""
    from data.catalog import prepared
    from data.stages import validate as judge

    ready = prepared(name, settings().project)
    judge(name, settings().project)
    console.print(f"{name} meets every expectation; report: {ready.report}")
