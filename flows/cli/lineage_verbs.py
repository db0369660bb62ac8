"""`verify`, `replay`, `lineage`, `export`, `import`, `import-checkpoint`: what made this, and how it travels."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from flows.cli.terminal import (
    AsJson,
    Ref,
    console,
    ready,
    show_json,
    show_table,
    training_progress,
    use_stack,
)

if TYPE_CHECKING:
    from flows.provenance.tracing import Replay, Trace, Verification

Picture = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="A picture, a clip, a mesh, a sound or a text's answer, with a receipt.",
    ),
]

Trust = Annotated[
    str,
    typer.Option(
        metavar="SIGNER", help="The fingerprint of a signer to trust from now on, if right."
    ),
]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (verify, replay, lineage, export):
        app.command()(verb)
    app.command("import")(import_version)
    app.command()(import_checkpoint)
    app.command()(export_lora)
    app.command()(import_lora)


def verify(
    file: Picture,
    receipt: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="The receipt of a file that it lies beside: the header."),
    ] = None,
    trust: Trust = "",
    as_json: AsJson = False,
) -> None:
    """Check a file's receipt: signature, signer, content, version, ledger; exit code 1 when one of them is wrong."""
    use_stack()
    from flows.provenance import tracing

    checked = tracing.verify(file, receipt, trust)
    if as_json:
        show_json(checked.as_json())
    else:
        _show(file, checked)
    if not checked.verified:
        raise typer.Exit(1)


def _show(file: Path, checked: "Verification") -> None:
    outcomes = {True: "right", False: "WRONG", None: "not checked"}
    rows = [(check.name, outcomes[check.passed], check.says) for check in checked.checks]
    show_table(f"{file}: {checked.says}", ("check", "", ""), rows)
    apart = {"verified", "checks", "ledger", "stages", "stages_here", "signature"}
    facts = {name: value for name, value in checked.as_json().items() if name not in apart}
    if facts.get("messages"):
        facts["messages"] = "\n".join(f"{role}: {said}" for role, said in facts["messages"])
    named = [(name, value) for name, value in facts.items() if value not in (None, "")]
    show_table("the receipt says", ("", ""), named)
    if checked.found is None:
        return
    stages = zip(checked.receipt.stages, checked.found.stages, strict=True)
    show_table(
        "stages, bytes verified",
        ("in the receipt", "here", "sha256"),
        [(f"{then.name}:{then.version}", here.ref, then.sha256) for then, here in stages],
    )


def replay(
    file: Picture,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write it anew.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a picture, clip, mesh, sound or text again from its receipt; exit code 1 when more than rounding differs."""
    use_stack()
    from flows.provenance import tracing
    from infra.storage import atomic_write

    found = tracing.trace(file)
    compared = _again(file, found)
    again = compared.picture
    if output is not None:
        with atomic_write(output) as target:
            target.write(again)
    if as_json:
        show_json(
            {
                "same": compared.same,
                "pixels": compared.pixels,
                "differing": compared.differing,
                "most": compared.most,
                "worst_frame": compared.worst,
                "notes": list(compared.notes),
                "ledger": found.says,
            }
        )
    else:
        console.print(f"{file}: {compared.says}", style="" if compared.same else "red")
        for note in (*compared.notes, found.says):
            console.print(f"  {note}", style="dim")
    if not compared.same:
        raise typer.Exit(1)


def _again(file: Path, found: "Trace") -> "Replay":
    """Make what a receipt names once more, through the gateway or, of a picture, in this process."""
    from flows.cli.client import NoGateway, answer, paint, speak
    from flows.provenance import tracing

    tracing.check_replayable(found)
    asked, ref, through = found.receipt, found.version.ref, "through the gateway"
    if found.pipeline.modality == "text":
        names = ("seed", "max_tokens", "temperature", "top_k", "top_p", "stop", "echo")
        rules = {name: getattr(asked, name) for name in names}
        again = answer(ref, asked.prompt_tokens or asked.prompt, asked.messages, **rules)
        return tracing.compare_texts(found, again, where=through)
    if found.pipeline.modality == "audio":
        knobs = ("seconds", "speed", "temperature", "top_k", "top_p")
        more = {name: getattr(asked, name) for name in knobs}
        if found.pipeline.speaks:  # sentence by sentence, in a voice
            own = asked.options or {}
            more |= {"voice": own.get("voice", "default"), "speed": own.get("speed", asked.speed)}
        again = speak(ref, asked.prompt, seed=asked.seed, **more)
        return tracing.compare_sounds(found, file.read_bytes(), again, where=through)
    if found.pipeline.modality in {"clip", "mesh"}:
        return _awaited_again(file.read_bytes(), found)
    where = through
    mixed = asked.blend and dict(zip(("prompt", "weight"), asked.blend, strict=True))
    try:
        again = paint(ref, asked.prompt, seed=asked.seed, blend=mixed, **asked.sampling)
    except NoGateway:
        again = tracing.redraw(found)
        where = "in this process on the CPU, since no gateway answers"
    return tracing.compare_pixels(found, file.read_bytes(), again, where=where)


def _awaited_again(first: bytes, found: "Trace") -> "Replay":
    """Make a clip or mesh once more, in a file of the same kind: what packing loses of both is the same."""
    from flows.cli.client import NoGateway, await_job
    from flows.provenance import tracing
    from infra.media import clips, meshes

    moves, sampling = found.pipeline.modality == "clip", dict(found.receipt.sampling)
    kind = clips.kind_of(first) if moves else meshes.kind_of(first)
    if moves:
        sampling["fps"] = sampling.pop("frame_rate", None)
    where = "through the gateway"
    try:
        again = await_job(
            "/videos" if moves else "/meshes", found.version.ref, found.receipt.prompt, lambda _: None,
            output_format=kind, seed=found.receipt.seed, **sampling,
        )  # fmt: skip
    except NoGateway:
        again = tracing.redraw(found, kind)
        where = "in this process on the CPU, since no gateway answers"
    compared = tracing.compare_clips if moves else tracing.compare_meshes
    return compared(found, first, again, where=where)


def lineage(
    what: Annotated[str, typer.Argument(metavar="NAME[:v]|FILE")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write the HTML page.")
    ] = None,
    mermaid: Annotated[
        bool, typer.Option("--mermaid", help="Print the graph as Mermaid text.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Draw what a version or a picture came from: data, runs, versions, pipeline, endpoint, receipt."""
    if as_json and mermaid:
        raise typer.BadParameter("give one of --json and --mermaid")
    use_stack()
    from flows.provenance.lineage import graph_of, mermaid_text
    from flows.reports.lineage import page
    from infra.settings import settings
    from infra.storage import atomic_write

    graph = graph_of(what)
    if as_json:
        show_json(graph.as_json())
    if mermaid:
        console.print(mermaid_text(graph), soft_wrap=True, end="")
    if as_json or mermaid:
        if output is None:
            return
    else:
        for node in graph.nodes:
            lines = ", ".join(node.lines)
            line = Text.assemble(f"  {node.column:<9} ", (node.title, "bold"), f"  {lines}")
            console.print(line, soft_wrap=True)
    path = output or settings().state / "pages" / f"lineage-{graph.name}.html"
    with atomic_write(path) as file:
        file.write(page(graph).encode())
    if not as_json and not mermaid:
        console.print(f"page: {path}")


def export(name: Ref, folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """Write a pipeline version with its stages, judge and history as one signed folder."""
    use_stack()
    from flows.context import signing
    from flows.provenance import bundle

    index = bundle.export(name, folder)
    size = sum(file.bytes for file in index.files.values())
    show_table(
        f"{folder}: {len(index.files)} files, {size / 2**20:.1f} MiB",
        ("what", "version", "sha256"),
        [(one.role, one.ref, one.digest) for one in index.versions],
    )
    signer = signing().fingerprint()
    console.print(f"signed by {signer}", soft_wrap=True)
    console.print(f"there: atelier import {folder} --trust {signer}", style="dim", soft_wrap=True)


def import_version(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    trust: Trust = "",
    as_json: AsJson = False,
) -> None:
    """Check an exported folder (signature, every file) and publish its versions here."""
    use_stack()
    from flows.provenance.bundle import import_folder

    found = import_folder(folder, trust)
    ref = found.version.ref
    if as_json:
        digest = found.version.digest
        show_json(
            {"ref": ref, "digest": digest, "published": found.published, "signer": found.signer}
        )
        return
    did = ", ".join(found.published) if found.published else "nothing: all of it was here"
    console.print(f"[bold]{ref}[/]  sha256 {found.version.digest}", soft_wrap=True, markup=True)
    console.print(f"published {did}; signed by {found.signer}", style="dim", soft_wrap=True)
    console.print(f"next: atelier show {ref}, atelier promote {ref}")


def import_checkpoint(
    source: Annotated[
        str, typer.Argument(metavar="PATH", help="A folder, as diffusers or transformers save one.")
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What it is called here.")],
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="By whose data, judge and gate it is judged."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, help="Pixels a side that it draws; its own size where not given."),
    ] = None,
    download: Annotated[
        bool,
        typer.Option("--download", help="PATH is OWNER/NAME of the Hugging Face hub: fetch it."),
    ] = False,
    prior: Annotated[
        str,
        typer.Option(
            metavar="PATH", help="Of a decoder of embeddings, like Kandinsky's: its prior's folder."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Take in a checkpoint of others (Stable Diffusion, Llama, VITS): safetensors, no code of its own, not fetched."""
    from flows.recipes.loader import load

    asked = load(recipe) if recipe is not None else None
    use_stack() if asked is None else ready()
    os.environ["HF_HUB_OFFLINE"] = "0" if download else "1"  # the stack's own processes ask nobody
    from flows.provenance.checkpoints import downloaded
    from flows.provenance.importing import import_checkpoint as take_in

    places = [
        downloaded(one) if download else (Path(one), str(Path(one).resolve()))
        for one in (source, prior)
        if one
    ]
    (folder, *beside), origins = zip(*places, strict=True)
    with training_progress():
        found, version = take_in(folder, " with ".join(origins), name, asked, image_size, *beside)
    gate = version.tags.get("atelier.gate", "unknown")
    if as_json:
        said = {"ref": version.ref, "digest": version.digest, "gate": gate}
        show_json({**said, "licence": found.licence, "left_out": found.left_out})
        return
    console.print(f"[bold]{version.ref}[/]  sha256 {version.digest}", soft_wrap=True, markup=True)
    left = f"; not taken in: {', '.join(found.left_out)}" if found.left_out else ""
    console.print(f"licence {found.licence}{left}", style="dim", soft_wrap=True)
    after = f"atelier promote {version.ref}" if asked else "judge it: --recipe RECIPE"
    console.print(f"gate {gate}; next: {after}", soft_wrap=True)


def export_lora(name: Ref, file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Write an adapter of a checkpoint as a LoRA file that diffusers reads."""
    use_stack()
    from flows.provenance import lora_files

    version, layers = lora_files.write(name, file)
    console.print(f"{file}: {layers} layers of {version.ref}", soft_wrap=True)


def import_lora(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Safetensors, as diffusers saves them.")
    ],
    base: Annotated[
        str, typer.Option("--base", metavar="NAME[:v|@alias]", help="The checkpoint's pipeline.")
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What it is called here.")],
) -> None:
    """Take in a LoRA file of others, as an adapter of a checkpoint that was taken in."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    use_stack()
    from flows.provenance import lora_files

    version = lora_files.take_in(file, base, name)
    console.print(f"[bold]{version.ref}[/]  sha256 {version.digest}", soft_wrap=True, markup=True)
