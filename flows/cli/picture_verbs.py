"""`sheet`, `gallery`: what a pipeline draws stage by stage, and what every family draws."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from flows.cli.terminal import Ref, console, kind_of_file, use_stack
from infra.settings import settings

if TYPE_CHECKING:
    from PIL.Image import Image

    from flows.comparing.compare import Side
    from infra.media.clips import Kind

ROWS: Final = 8
ANIMATED: Final = ("webp", "gif", "mp4")
MOVES: Final = ("clip", "mesh")
RATE: Final = 8.0  # frames a second, of clips that do not say and of what is turned
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", help="Where to write the PNG; of what moves or turns a WebP, GIF or MP4."
    ),
]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (sheet, gallery):
        app.command()(verb)


def sheet(
    ref: Ref,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--beside", metavar="NAME[:v|@alias]", help="Another version that speaks: a row."
        ),
    ] = None,
    voice: Annotated[str | None, typer.Option(help="Of versions that speak: whose.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("-p", "--prompt", help="A column; again for another one.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first column; the others follow.")] = 0,
    output: Output = None,
) -> None:
    """Draw a pipeline stage by stage: a column a prompt, a row a stage that shows something.

    Of clips it is an animation, and of meshes: they are turned once around.

    Of what speaks: spectrograms of recordings, of these through its vocoder, and of what it and those --beside say; a
    FLAC file of the same name has all of it to be heard.
    """
    use_stack()
    from flows.comparing.compare import Incomparable, side
    from flows.comparing.gallery import drawn, prompts_of
    from flows.reports.stages import by_stages, moving
    from infra.media.clips import encoded

    one = side(ref)
    if one.pipeline.modality == "audio" and one.pipeline.speaks:
        _speech_sheet([one, *map(side, beside or [])], prompt, voice, seed, output)
        return
    if beside or voice:
        raise Incomparable(f"{one.version.ref} does not speak: leave --beside and --voice out")
    if one.pipeline.modality not in {"image", *MOVES}:
        raise Incomparable(
            f"{one.version.ref} gives {one.pipeline.modality}: a sheet is of pictures, clips, meshes or speech"
        )
    if prompt and not one.pipeline.reads_text:
        raise Incomparable(f"{one.version.ref} reads no text: leave --prompt out")
    prompts = prompt or prompts_of(one, min(ROWS, len(one.pipeline.try_prompts)))
    if one.pipeline.reads_text and not prompts:
        raise Incomparable(f"{one.version.ref} has no prompts to try: give some by --prompt")
    seeds = [seed + row for row in range(len(prompts) or ROWS)]
    labels = prompts or [f"seed {number}" for number in seeds]
    moves = one.pipeline.modality in MOVES
    name = f"{one.version.ref.replace(':', '-')}-stages.{'webp' if moves else 'png'}"
    path = output or settings().state / "pages" / name
    kind = kind_of_file(path, *(ANIMATED if moves else ("png",)))
    made = drawn(one, prompts, seeds)
    if not moves:
        _write(by_stages(one.pipeline, labels, made), path)
        return
    frames = moving(one.pipeline, labels, made)
    _store(encoded(frames, one.pipeline.rate({}) or RATE, cast("Kind", kind)).content, path)


def _speech_sheet(
    sides: "list[Side]",
    prompt: list[str] | None,
    voice: str | None,
    seed: int,
    output: Path | None,
) -> None:
    from data.catalog import prepared
    from flows.comparing.compare import Incomparable
    from flows.comparing.gallery import loaded
    from flows.comparing.spoken import Speaking, after_another, rows_of
    from flows.reports.spectrograms import sheet as drawn
    from infra.media.sounds import flac

    first = sides[0]
    path = (
        output or settings().state / "pages" / f"{first.version.ref.replace(':', '-')}-speech.png"
    )
    kind_of_file(path, "png")
    for one in sides[1:]:
        if not one.pipeline.speaks:
            raise Incomparable(f"{one.version.ref} does not speak: leave it out of --beside")
    prompts = prompt or list(first.pipeline.try_prompts)
    if not prompts:
        raise Incomparable(f"{first.version.ref} has no prompts to try: give some by --prompt")
    data = prepared(first.recipe["data"]["name"], settings().project)
    who = voice or data.header["attributes"]["speaker"][0]
    versions = [Speaking(one.version.ref, one.pipeline, loaded(one)) for one in sides]
    rows = rows_of(versions, prompts, who, data.path, seed)
    _store(drawn(rows, prompts), path)
    sound_T, rate = after_another(rows)
    _store(flac(sound_T.numpy(), rate), path.with_suffix(".flac"))


def gallery(
    columns: Annotated[int, typer.Option(min=1, max=32, help="Pictures a family.")] = ROWS,
    output: Output = None,
) -> None:
    """Draw a row of pictures for every family that has a version in production, or one that passed its gate."""
    use_stack()
    from flows.comparing.compare import Incomparable
    from flows.comparing.gallery import by_family, drawn, prompts_of
    from flows.reports.stages import Row, table, turning

    path = output or settings().state / "pages" / "gallery.png"
    kind_of_file(path, "png")
    rows = []
    for family, one in by_family().items():
        made = drawn(one, prompts_of(one, columns), range(columns))
        last = [*made.values()][-1]
        seen = turning(last, 1) if one.pipeline.modality == "mesh" else last
        pictures = seen[:, seen.shape[1] // 2] if one.pipeline.modality in MOVES else seen
        rows.append(Row(f"{family}\n{one.version.ref}", list(pictures)))
        console.print(f"{family}: {one.version.ref}")
    if not rows:
        raise Incomparable(
            "no version draws pictures yet: make one, `atelier run flows/recipes/shapes.yaml`"
        )
    _write(table(rows), path)


def _write(image: "Image", path: Path) -> None:
    import io

    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    _store(buffer.getvalue(), path)


def _store(content: bytes, path: Path) -> None:
    from infra.storage import atomic_write

    with atomic_write(path) as file:
        file.write(content)
    console.print(f"written: {path}")
