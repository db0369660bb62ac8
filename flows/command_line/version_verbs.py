"""`models`, `show`, `history`, `promote`, `rollback`, `verify`, `generate`: the verbs about versions."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.command_line.terminal import AsJson, console, ready, show_json, show_table, use_stack

Ref = Annotated[str, typer.Argument(metavar="NAME[:v|@alias]")]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (models, show, history, promote, rollback, verify, generate):
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
    from flows.workshop import ledger, registry

    heads = {(row.name, row.to_version): row.stage for row in ledger().heads()}
    rows = [
        (
            v.name,
            v.number,
            v.kind,
            heads.get((v.name, v.number), ""),
            v.digest[:12],
            f"{v.created:%Y-%m-%d %H:%M}",
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
    from models import FAMILIES, Family, trainable

    rows = []
    for name in sorted(FAMILIES):
        cls = trainable(name)
        assert issubclass(cls, Family)
        able = cls(cls.presets["tiny"]).capabilities
        gives = [word for word in ("likelihood", "upscales", "stepwise") if getattr(able, word)]
        rows.append((name, able.modality, able.condition, " ".join(gives), " ".join(cls.presets)))
    columns = ("family", "modality", "condition", "also", "presets")
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        show_table("families", columns, rows)


def show(ref: Ref, as_json: AsJson = False) -> None:
    """Show a version: its card, its lineage, its gate report."""
    use_stack()
    from flows.workshop import registry

    version = registry().get(ref)
    directory = registry().fetch(version)
    manifest = json.loads((directory / "MANIFEST.json").read_text())
    if as_json:
        show_json({"ref": version.ref, "digest": version.digest, "tags": version.tags, **manifest})
        return
    from rich.markdown import Markdown

    console.print(Markdown((directory / "card.md").read_text()))
    console.print(f"\n{version.ref}  sha256 {version.digest}\nfiles: {directory}", style="dim")


def history(name: str, as_json: AsJson = False) -> None:
    """Show every transition of a name: who, when, from, to, why."""
    from flows.workshop import ledger

    rows = ledger().history(name)
    if as_json:
        fields = (
            "id",
            "stage",
            "from_version",
            "to_version",
            "at",
            "actor",
            "reason",
            "forced",
            "hash",
        )
        show_json([{field: getattr(row, field) for field in fields} for row in rows])
        return
    show_table(
        f"history of {name}",
        ("when (UTC)", "place", "from", "to", "who", "why", "hash"),
        [
            (
                f"{row.at:%Y-%m-%d %H:%M:%S}",
                row.stage,
                row.from_version or "-",
                row.to_version or "-",
                row.actor,
                f"forced: {row.reason}" if row.forced else row.reason,
                row.hash[:10],
            )
            for row in rows
        ],
    )
    console.print(f"chain verified: {ledger().verify()} rows", style="dim")


def promote(
    ref: Ref,
    to: Annotated[Literal["staging", "production"], typer.Option(help="Where to.")] = "production",
    force: Annotated[
        str, typer.Option(help="A reason for passing over the gate; it is recorded.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Promote a pipeline version behind its gate; requests move to it without a failed one."""
    ready()
    from flows.promote import promote as promote_flow

    found = promote_flow(ref, to, force)
    if as_json:
        show_json(found)
    elif found["changed"]:
        console.print(
            f"[bold]{found['ref']}[/] is in {to}; take it back with: atelier rollback {ref.split(':')[0]}"
        )
    else:
        console.print(f"{found['ref']} is in {to} already")


def rollback(
    name: str,
    place: Annotated[
        Literal["staging", "production"], typer.Option("--in", help="Where.")
    ] = "production",
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")] = "rolled back",
    as_json: AsJson = False,
) -> None:
    """Put the version before the present one back in its place."""
    ready()
    from flows.promote import rollback as rollback_flow

    found = rollback_flow(name, place, reason)
    if as_json:
        show_json(found)
    else:
        console.print(f"[bold]{found['ref']}[/] is in {place} again")


def verify(file: Path, as_json: AsJson = False) -> None:
    """Read a picture's receipt and walk back to the versions, the run and the data it came from."""
    use_stack()
    from flows.workshop import registry
    from infra.receipts import read

    receipt = read(file)
    version = registry().get(receipt.version)
    if version.digest != receipt.digest:
        raise ValueError(
            f"{file} names {receipt.version} with sha256 {receipt.digest[:12]}, "
            f"but the registry's has {version.digest[:12]}: it was made elsewhere"
        )
    directory = registry().fetch(version)
    manifest = json.loads((directory / "MANIFEST.json").read_text())
    found = {
        **receipt.model_dump(mode="json"),
        "run": manifest["run_id"],
        "data_identity": manifest["data_identity"],
        "git_commit": manifest["git_commit"],
    }
    if as_json:
        show_json(found)
        return
    show_table(
        f"{file}: verified",
        ("", ""),
        [(key, value) for key, value in found.items() if key != "stages"],
    )
    show_table(
        "stages",
        ("name", "version", "sha256"),
        [(s.name, s.version, s.sha256) for s in receipt.stages],
    )


def generate(
    name: Ref,
    prompt: Annotated[str, typer.Argument(help='e.g. "a small red circle on the left"')],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the PNG.")],
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    guidance: Annotated[float | None, typer.Option(min=0)] = None,
) -> None:
    """Paint one picture through the served API."""
    from flows.command_line.client import paint
    from infra.storage import atomic_write

    picture = paint(name, prompt, seed=seed, steps=steps, guidance=guidance)
    with atomic_write(output) as file:
        file.write(picture)
    console.print(f"{output}  (where it came from: atelier verify {output})")
