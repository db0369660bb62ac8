"""`data list|prepare|validate|rm`: the verbs about datasets."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from flows.cli import completing
from flows.cli.terminal import AsJson, aside, console, show_json, show_table
from infra.settings import settings

data_app = typer.Typer(help="Datasets: list, prepare, validate, remove.", no_args_is_help=True)
NAME_HELP: Final = (
    "One of `atelier data list`, or with --path what your own files are: folder, webdataset or parquet"
    " (of pictures), clips, text, pairs, dialogues, labelled-audio, speech."
)
Name = Annotated[str, typer.Argument(help=NAME_HELP, autocompletion=completing.datasets)]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    data_app.command("list")(list_datasets)
    data_app.command("prepare")(prepare)
    data_app.command("validate")(validate)
    data_app.command("rm")(remove)
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
            found.size if found.modality != "text" else found.size.removesuffix(" at most"),
            " ".join(f"{count}" for count in found.rows.values())
            or ("no files" if found.problem else "not prepared"),
            (found.identity or "")[:8],
        )
        for found in listed
    ]
    show_table("datasets", ("name", "maker", "size", "train, val., test", "identity"), rows)
    root = f"{settings().project.resolve()}/"
    for found in listed:
        if found.problem:
            console.print(f"{found.name}: {found.problem.replace(root, '')}", style="dim")


def prepare(
    name: Name,
    path: Annotated[
        Path | None,
        typer.Option(help="Where the files are: your own, or those of a dataset like mnist."),
    ] = None,
    as_name: Annotated[
        str, typer.Option("--name", help="What to call your own; the path's name if not given.")
    ] = "",
    image_size: Annotated[
        int | None, typer.Option(help="Pictures and clips: pixels a side, 8 to 512.")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Pictures: sizes in place of squares, each cropped as little as possible: 32x32,40x24,24x40."
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Clips: frames of each, 2 to 256; longer files are cut.")
    ] = None,
    frame_rate: Annotated[
        float | None, typer.Option(help="Clips: frames a second, 120 at most.")
    ] = None,
    pieces: Annotated[
        int | None,
        typer.Option(help="Captions: so many pieces of words at most, so that no word is unknown."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Text: characters, words or bytes, and how many: words:2000.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Pairs: how source files end, en.")] = None,
    target: Annotated[str | None, typer.Option(help="Pairs: how target files end, de.")] = None,
    sample_rate: Annotated[
        int | None,
        typer.Option(help="Sounds: Hz, 4000 to 48000; of speech the files' own if not given."),
    ] = None,
    clip_samples: Annotated[
        int | None,
        typer.Option(help="Sounds: how long every one is made; longer ones are refused."),
    ] = None,
    most_seconds: Annotated[
        float | None, typer.Option(help="Speech: longer sounds are refused; 30 if not given.")
    ] = None,
    loudness: Annotated[
        float | None,
        typer.Option(
            help="Speech: make all as loud, in dB of full scale (-23), peaks under -1 dB."
        ),
    ] = None,
    trim: Annotated[
        float | None,
        typer.Option(help="Speech: cut what is so many dB below the loudest (40) at both ends."),
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Sounds: names as labels, {word}_{speaker}_{index}.wav.")
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(help="What is only tested: index=0,1,2 of a pattern, a name among pairs."),
    ] = None,
) -> None:
    """Make, check and shard a dataset; repeats only what changed."""
    from data.catalog import add_own, entered, point
    from data.catalog import prepare as repeat_stages
    from data.makers import OWN, maker

    project = settings().project
    chosen = settings_of(
        image_size=image_size,
        sizes=sizes,
        frames=frames,
        frame_rate=frame_rate,
        pieces=pieces,
        tokenizer=tokenizer,
        source=source,
        target=target,
        sample_rate=sample_rate,
        clip_samples=clip_samples,
        most_seconds=most_seconds,
        loudness=loudness,
        trim=trim,
        pattern=pattern,
        test=test,
    )
    known = set(maker(name).Config.model_fields) if name in OWN else set()
    if foreign := sorted(set(chosen) - known):
        option = foreign[0].replace("_", "-")
        raise ValueError(f"`atelier data prepare {name}` takes no --{option}")
    own = name if name in OWN else ""
    if own:
        if path is None:
            raise ValueError(f"which files? `atelier data prepare {name} --path PATH`")
        name = as_name or _called(path)
    elif as_name:
        raise ValueError(f"`atelier data prepare {name}` takes no --name: it is called {name}")
    with entered(name, project):
        if own and path is not None:
            add_own(own, name, path, chosen, project)
        elif path is not None:
            point(name, path, project)
        ready = repeat_stages(
            name, project, lambda stage: aside.print(f"  {name}: stage {stage}", style="dim")
        )
    splits = ", ".join(f"{split} {s['rows']}" for split, s in ready.header["splits"].items())
    did = f"ran {', '.join(ready.ran)}" if ready.ran else "nothing changed"
    console.print(f"[bold]{name}[/]: {splits} ({did})", markup=True)
    console.print(f"identity {ready.identity}, in {ready.path}", style="dim")
    if ready.report is not None:
        console.print(f"report: {ready.report}")


def settings_of(
    tokenizer: str | None, test: str | None, sizes: str | None, **others: Any
) -> dict[str, Any]:
    """Return what the options say of one's own files as params.yaml has it, those not given left out."""
    listed = sizes.replace(" ", "").split(",") if sizes else None
    given = {**others, "sizes": listed, "tokenizer": _tokenizer(tokenizer), "test": _tested(test)}
    return {name: value for name, value in given.items() if value is not None}


def _called(path: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.resolve().stem.lower()).strip("-")


def _tokenizer(given: str | None) -> dict[str, Any] | None:
    """Return KIND or KIND:SIZE as params.yaml has it."""
    if given is None:
        return None
    kind, _, size = given.partition(":")
    if size and not size.isdecimal():
        raise ValueError(f"--tokenizer {given!r}: give a kind and a size, such as words:2000")
    return {"kind": kind, "size": int(size)} if size else {"kind": kind}


def _tested(given: str | None) -> dict[str, list[str]] | str | None:
    """Return FIELD=VALUE,VALUE as params.yaml has it; a name as it is."""
    if given is None or "=" not in given:
        return given
    field, _, values = given.partition("=")
    return {field: values.split(",")}


def remove(name: Name) -> None:
    """Remove a dataset of your own: its entry and what was made of it; your files stay."""
    from data.catalog import forget
    from data.makers import OWN
    from data.params import entry

    project = settings().project
    if (maker := entry(name, project).maker) not in OWN:
        raise ValueError(f"{name} is made by {maker!r}, not of your own files: it stays")
    forget(name, project)
    console.print(f"{name} is removed; your files are where they were")
    for recipe in _learning(name, project):
        console.print(f"{recipe} learns from it: prepare it anew before that is run, or remove it")


def _learning(name: str, project: Path) -> list[Path]:
    """Return the project's recipes, relative to it, whose stages or judge learn from a dataset."""
    from flows.recipes.loader import RecipeError, load

    found = []
    for path in sorted((project / "flows" / "recipes").glob("*.yaml")):
        try:
            recipe = load(path)
        except RecipeError:
            continue  # it runs with no dataset
        judged_by = recipe.judge.data if recipe.judge else None
        if name in {recipe.data.name, judged_by and judged_by.name}:
            found.append(path.relative_to(project))
    return found


def validate(name: Name) -> None:
    """Judge a prepared dataset's facts again with its Great Expectations suite."""
    from data.catalog import prepared
    from data.stages import validate as judge

    ready = prepared(name, settings().project)
    judge(name, settings().project)
    console.print(f"{name} meets every expectation; report: {ready.report}")
