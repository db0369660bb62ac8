"""`models`, `show`: which versions there are, and what one of them is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.terminal import (
    AsJson,
    Ref,
    console,
    show_json,
    show_markdown,
    show_table,
    use_stack,
)
from infra.documents import read_json

if TYPE_CHECKING:
    from infra.registry.registry import Version


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (models, show):
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
