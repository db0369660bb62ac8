"""`models`, `show`, `generate`: the verbs about versions."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from flows.cli.terminal import (
    AsJson,
    Ref,
    aside,
    console,
    kind_of_file,
    printable,
    show_json,
    show_markdown,
    show_table,
    use_stack,
)
from infra.documents import parse_json, read_json

if TYPE_CHECKING:
    from infra.registry.registry import Version

TAKES: Final[Mapping[str, Set[str]]] = {
    **{"image": {"steps", "guidance", "size"}, "clip": {"steps", "guidance", "seconds"}},
    **{"audio": {"seconds"}, "text": frozenset(), "mesh": {"steps", "guidance"}},
}
"""Which options `generate` has for what a model makes."""
WRITTEN: Final = {
    **{"image": ("png",), "audio": ("wav",)},
    **{"clip": ("mp4", "gif", "webp"), "mesh": ("glb", "obj")},
}
"""How the files are called that it writes; a text's as one likes."""
JOBS: Final = {"clip": "/videos", "mesh": "/meshes"}
"""Where what takes long is asked for."""


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (models, show, generate):
        app.command()(verb)


def models(
    families: Annotated[
        bool, typer.Option("--families", help="The model classes, not the versions.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List registered versions and where they stand."""
    if families:
        _families(as_json)
        return
    use_stack()
    from flows.context import ledger, registry

    places: dict[tuple[str, int | None], list[str]] = {}
    for row in ledger().heads():
        places.setdefault((row.name, row.to_version), []).append(row.stage)
    rows = [
        (
            v.name,
            v.number,
            v.kind,
            " ".join(places.get((v.name, v.number), ())),
            v.digest[:12],
            v.created,
        )
        for name in registry().names()
        for v in registry().versions(name)
    ]
    columns = ("name", "version", "kind", "stands in", "sha256", "created")
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        show_table("versions", columns, rows)


def _families(as_json: bool) -> None:
    from models import FAMILIES, configure, trainable
    from models.family import Family
    from models.outline import outline

    rows = []
    for name in sorted(FAMILIES):
        cls = trainable(name)
        captions = {"vocabulary": ("zero", "one"), "max_words": 1}
        asked = {"text": "caption"} if hasattr(cls.presets["tiny"], "text") else {}
        configs = [*cls.presets.values(), configure(name, "tiny", asked, captions)]
        seen = [outline(cls, config) for config in configs]
        able = [model.capabilities for model in seen if isinstance(model, Family)]
        first = seen[0]
        assert isinstance(first, Family)
        ports = [one for one in first.inputs.values() if not one.optional and one.kind != "text"]
        reads = "text" if able[0].condition == "text" else "captions"
        gives = ("likelihood", "upscales", "stepwise", "tokenizes", "chats", "embeds", "recalls")
        rows.append(
            (
                name,
                " ".join(port.kind for port in first.outputs.values()),
                " ".join(port.kind for port in ports),
                reads if able[-1].condition == "text" else "",
                " ".join(word for word in gives if any(getattr(one, word) for one in able)),
                " ".join(cls.presets),
            )
        )
    columns = ("family", "makes", "of", "reads", "also", "presets")
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        show_table("families", columns, rows)
        console.print(
            "captions: where the dataset has some; also: in one preset at least", style="dim"
        )


def show(
    ref: Ref,
    reasons: Annotated[
        bool, typer.Option("--why", help="What made it different from the version before it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a version: its sealed card, where it stands now and how it came there, its gate report."""
    use_stack()
    from flows.context import ledger, registry
    from flows.provenance.cards import live_card

    version = registry().get(ref)
    if reasons:
        _show_why(version, as_json)
        return
    directory = registry().fetch(version)
    manifest = read_json(directory / "MANIFEST.json")
    report = _newest_report(version.digest, directory)
    if as_json:
        rows = [row.as_json() for row in ledger().about(version.name, version.number)]
        live = {"ref": version.ref, "digest": version.digest, "tags": version.tags, "history": rows}
        show_json({**live, "report": report, **manifest})
        return
    show_markdown((directory / "card.md").read_text())
    show_markdown(live_card(version))
    if report:
        _gate_table(version.ref, report)
    console.print(f"\n{version.ref}  sha256 {version.digest}\nfiles: {directory}", style="dim")


def _show_why(version: "Version", as_json: bool) -> None:
    from flows.identity.why import Why, why

    def tables(found: Why) -> None:
        rows = [tuple(row.values()) for row in found.as_json()["changes"]]
        title = f"{found.ref} was made of other things than {found.before}"
        show_table(title, ("what", "name", "before", "now"), rows)
        for one in found.stages.values():
            tables(one)

    found = why(version)
    if as_json:
        show_json(found.as_json())
    elif found.before is None:
        console.print(f"{found.ref} is the first version of its name")
    else:
        tables(found)


def _newest_report(digest: str, directory: Path) -> dict[str, Any] | None:
    """Return the gate's report of a version's last promotion, else the one it was published with."""
    from flows.context import promotions

    reports = [row.report for row in promotions().of(digest) if row.report is not None]
    if reports:
        return dict(reports[-1])
    stored = directory / "report.json"
    return read_json(stored) if stored.is_file() else None


def _gate_table(ref: str, report: dict[str, Any]) -> None:
    from flows.evaluating.gate import GateReport

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    found = GateReport.model_validate(report)
    rows = []
    for one in found.conditions:
        spread = "-" if one.low is None else f"{shown(one.low)} .. {shown(one.high)}"
        limits = [f">= {one.at_least:g}"] if one.at_least is not None else []
        limits += [f"<= {one.at_most:g}"] if one.at_most is not None else []
        verdict = "pass" if one.passed else "FAIL"
        limit = " and ".join(limits) or "-"
        rows.append((verdict, one.name, shown(one.value), spread, limit, one.says))
    against = f", against {found.against}" if found.against else ""
    title = f"gate of {ref}{against}: {'passed' if found.passed else 'failed'}"
    show_table(title, ("verdict", "condition", "value", "95 %", "bound", "in words"), rows)


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
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of a picture, clip or mesh.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Of a picture, clip or mesh.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Of a sound or clip.")] = None,
    size: Annotated[str | None, typer.Option(help="Of a picture: one of the model's own.")] = None,
) -> None:
    """Make one picture, clip, mesh, sound or text through the served API; text comes as it is written."""
    from flows.cli import client
    from infra.storage import atomic_write

    card = client.card(name)
    modality = card.get("modality", "image")
    if modality == "embedding":
        raise typer.BadParameter(
            f"{name} makes nothing of a prompt but embeddings: ask /v1/embeddings"
        )
    told = {"steps": steps, "guidance": guidance, "seconds": seconds, "size": size}
    asked = {option: value for option, value in told.items() if value is not None}
    if odd := asked.keys() - TAKES[modality]:
        raise typer.BadParameter(f"{name} makes {modality}: it takes no --{min(odd)}")
    if output is not None and modality in WRITTEN:
        kind_of_file(output, *WRITTEN[modality])
    chats = "chat" in card.get("abilities", ())
    if modality == "text" and output is not None and output.suffix == ".json":
        made = client.answer(name, prompt, [("user", prompt)] if chats else None, seed=seed)
        choice = parse_json(made, "the answer")["choices"][0]
        said = choice["message"]["content"] if chats else choice["text"]
        console.print(printable(said), markup=False, soft_wrap=True)
        console.print(f"{output}  (where it came from: atelier verify {output})")
    elif modality == "text":
        pieces = []
        for piece in client.write(name, prompt, chats=chats, seed=seed):
            pieces.append(piece)
            console.print(printable(piece), end="", markup=False, highlight=False, soft_wrap=True)
        console.print()
        made = "".join(pieces).encode()
    elif output is None:
        raise typer.BadParameter(f"{name} makes {modality}: say where to write it with -o FILE")
    elif modality == "audio":
        made = client.speak(name, prompt, seed=seed, **asked)
    elif modality in JOBS:
        made = _awaited(JOBS[modality], name, prompt, output, {"seed": seed, **asked})
    else:
        made = client.paint(name, prompt, seed=seed, **asked)
    if output is None:
        return
    with atomic_write(output) as file:
        file.write(made)
    if modality != "text":
        console.print(f"{output}  (where it came from: atelier verify {output})")


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
