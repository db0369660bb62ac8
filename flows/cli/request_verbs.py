"""`generate`, `edit`, `vary`: requests to the served API, and files of what it answers."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from flows.cli.terminal import Ref, aside, console, kind_of_file, printable
from infra.documents import parse_json

TAKES: Final[Mapping[str, Set[str]]] = {
    **{"image": {"steps", "guidance", "size"}, "clip": {"steps", "guidance", "seconds"}},
    **{"audio": {"seconds", "voice"}, "text": frozenset(), "mesh": {"steps", "guidance"}},
}
"""Which options `generate` has for what a model makes."""
WRITTEN: Final = {
    **{"image": ("png",), "audio": ("wav",)},
    **{"clip": ("mp4", "gif", "webp"), "mesh": ("glb", "obj")},
}
"""How the files are called that it writes; a text's as one likes."""
JOBS: Final = {"clip": "/videos", "mesh": "/meshes"}
"""Where what takes long is asked for."""
Picture = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="PNG, JPEG or WebP.")]
Drawn = Annotated[Path, typer.Option("-o", "--output", help="Where to write the PNG.")]
Seed = Annotated[int | None, typer.Option(min=0)]
Steps = Annotated[int | None, typer.Option(min=1)]
Guidance = Annotated[float | None, typer.Option(min=0)]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (generate, edit, vary):
        app.command()(verb)


def generate(
    name: Ref,
    prompt: Annotated[
        str, typer.Argument(help='e.g. "a small red circle on the left"; "" where none is read')
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Where to write the PNG or WAV; a clip as .mp4, .gif or .webp; "
            "a mesh as .glb or .obj; "
            "a text, with its receipt if FILE.json.",
        ),
    ] = None,
    seed: Seed = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of a picture, clip or mesh.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Of a picture, clip or mesh.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Of a sound or clip.")] = None,
    size: Annotated[str | None, typer.Option(help="Of a picture: one of the model's own.")] = None,
    voice: Annotated[str | None, typer.Option(help="Of speech: one of the model's own.")] = None,
) -> None:
    """Make one picture, clip, mesh, sound or text through the served API; text comes as it is written."""
    from flows.cli import client

    card = client.card(name)
    modality = card.get("modality", "image")
    if modality == "embedding":
        raise typer.BadParameter(
            f"{name} makes nothing of a prompt but embeddings: ask /v1/embeddings"
        )
    told = {"steps": steps, "guidance": guidance, "seconds": seconds, "size": size, "voice": voice}
    asked = {option: value for option, value in told.items() if value is not None}
    if odd := asked.keys() - TAKES[modality]:
        raise typer.BadParameter(f"{name} makes {modality}: it takes no --{min(odd)}")
    if modality == "text":
        _text(name, prompt, output, seed, chats="chat" in card.get("abilities", ()))
        return
    if output is None:
        raise typer.BadParameter(f"{name} makes {modality}: say where to write it with -o FILE")
    kind_of_file(output, *WRITTEN[modality])
    if modality == "audio":
        made = client.speak(name, prompt, seed=seed, **asked)
    elif modality in JOBS:
        made = _awaited(JOBS[modality], name, prompt, output, {"seed": seed, **asked})
    else:
        made = client.paint(name, prompt, seed=seed, **asked)
    _keep(made, output)


def _text(name: str, prompt: str, output: Path | None, seed: int | None, *, chats: bool) -> None:
    """Show a text as it is written; FILE.json gets all of the answer, another file the text alone."""
    from flows.cli import client
    from infra.storage import atomic_write

    if output is not None and output.suffix == ".json":
        made = client.answer(name, prompt, [("user", prompt)] if chats else None, seed=seed)
        choice = parse_json(made, "the answer")["choices"][0]
        said = choice["message"]["content"] if chats else choice["text"]
        console.print(printable(said), soft_wrap=True)
        _keep(made, output)
        return
    pieces = []
    for piece in client.write(name, prompt, chats=chats, seed=seed):
        pieces.append(piece)
        console.print(printable(piece), end="", highlight=False, soft_wrap=True)
    console.print()
    if output is not None:
        with atomic_write(output) as file:
            file.write("".join(pieces).encode())


def _awaited(route: str, name: str, prompt: str, output: Path, asked: Mapping[str, Any]) -> bytes:
    """Return what a job makes, and say meanwhile how far it is and which stages are done."""
    from flows.cli import client

    done: list[str] = []
    with aside.status(f"{name}: queued") as line:

        def told(job: Mapping[str, Any]) -> None:
            line.update(f"{name}: {job['status'].replace('_', ' ')}, {job['progress']} %")
            for stage in job["stages"][len(done) :]:
                done.append(stage)
                aside.print(f"  {stage} is done, {job['progress']} %", style="dim")

        kind = kind_of_file(output)
        return client.await_job(route, name, prompt, told, output_format=kind, **asked)


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

    kind_of_file(output, "png")
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

    kind_of_file(output, "png")
    _keep(client.vary(name, picture, seed=seed, steps=steps, guidance=guidance), output)


def _keep(made: bytes, output: Path) -> None:
    from infra.storage import atomic_write

    with atomic_write(output) as file:
        file.write(made)
    console.print(f"{output}  (where it came from: atelier verify {output})")
