"""`edit`, `vary`: a picture from a picture; `sheet`, `gallery`: what a pipeline draws by stages, and every family."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flows.cli.terminal import Ref, console, use_stack
from infra.settings import settings

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS: Final = 8
Picture = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="PNG, JPEG or WebP.")]
Drawn = Annotated[Path, typer.Option("-o", "--output", help="Where to write the PNG.")]
Seed = Annotated[int | None, typer.Option(min=0)]
Steps = Annotated[int | None, typer.Option(min=1)]
Guidance = Annotated[float | None, typer.Option(min=0)]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the PNG.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (edit, vary, sheet, gallery):
        app.command()(verb)


def edit(
    name: Ref,
    picture: Picture,
    output: Drawn,
    prompt: Annotated[
        str, typer.Argument(help='What is to be there; "" where no text is read.')
    ] = "",
    mask: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="A PNG as large as the picture, transparent where it is to be drawn anew; else the picture itself is.",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="How far from what is there; 1: from noise alone."),
    ] = None,
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """Draw a picture anew where it is transparent, through the served API; the rest stays, bit by bit."""
    from flows.cli import client

    wishes = {"strength": strength, "seed": seed, "steps": steps, "guidance": guidance}
    _keep(client.edit(name, picture, prompt, mask, **wishes), output)


def vary(
    name: Ref,
    picture: Picture,
    output: Drawn,
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """Draw another picture of what a picture shows, through the served API."""
    from flows.cli import client

    _keep(client.vary(name, picture, seed=seed, steps=steps, guidance=guidance), output)


def _keep(picture: bytes, output: Path) -> None:
    from infra.storage import atomic_write

    with atomic_write(output) as file:
        file.write(picture)
    console.print(f"{output}  (where it came from: atelier verify {output})")


def sheet(
    ref: Ref,
    prompt: Annotated[
        list[str] | None, typer.Option("-p", "--prompt", help="A column; again for another one.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first column; the others follow.")] = 0,
    output: Output = None,
) -> None:
    """Draw a pipeline stage by stage: a column a prompt, a row a stage that shows something."""
    use_stack()
    from flows.comparing.compare import Incomparable, side
    from flows.comparing.gallery import drawn, prompts_of
    from flows.reports.stages import by_stages

    one = side(ref)
    if one.pipeline.modality != "image":
        raise Incomparable(
            f"{one.version.ref} gives {one.pipeline.modality}: a sheet is of pictures"
        )
    if prompt and not one.pipeline.reads_text:
        raise Incomparable(f"{one.version.ref} reads no text: leave --prompt out")
    prompts = prompt or prompts_of(one, min(ROWS, len(one.pipeline.try_prompts)))
    if one.pipeline.reads_text and not prompts:
        raise Incomparable(f"{one.version.ref} has no prompts to try: give some by --prompt")
    seeds = [seed + row for row in range(len(prompts) or ROWS)]
    made = drawn(one, prompts, seeds)
    labels = prompts or [f"seed {number}" for number in seeds]
    name = one.version.ref.replace(":", "-")
    _write(by_stages(one.pipeline, labels, made), output, f"{name}-stages.png")


def gallery(
    columns: Annotated[int, typer.Option(min=1, max=32, help="Pictures a family.")] = ROWS,
    output: Output = None,
) -> None:
    """Draw a row of pictures for every family that has a version in production, or one that passed its gate."""
    use_stack()
    from flows.comparing.compare import Incomparable
    from flows.comparing.gallery import by_family, drawn, prompts_of
    from flows.reports.stages import Row, table

    rows = []
    for family, one in by_family().items():
        made = drawn(one, prompts_of(one, columns), range(columns))
        rows.append(Row(f"{family}\n{one.version.ref}", list([*made.values()][-1])))
        console.print(f"{family}: {one.version.ref}")
    if not rows:
        raise Incomparable(
            "no version draws pictures yet: make one, `atelier run flows/recipes/shapes.yaml`"
        )
    _write(table(rows), output, "gallery.png")


def _write(image: "Image", output: Path | None, name: str) -> None:
    import io

    from infra.storage import atomic_write

    path = output or settings().state / "pages" / name
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
    console.print(f"written: {path}")
