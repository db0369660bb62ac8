"""`compare`, `vote`: which of two versions is the better one; `drift`: whether one is still what it was."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from flows.cli.terminal import AsJson, Ref, console, show_json, show_table, use_stack
from infra.settings import settings

if TYPE_CHECKING:
    from flows.comparing.compare import Comparison, Side


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (compare, vote, drift):
        app.command()(verb)


def compare(
    a: Ref,
    b: Ref,
    folder: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write page and sheet.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two pipeline versions: metrics, stages, recipe, and what both draw of the same prompts and seeds."""
    use_stack()
    from flows.comparing import compare as comparing

    first, second = comparing.side(a), comparing.side(b)
    found = comparing.compare(first, second)
    if as_json:
        won, count = _votes(first, second)
        show_json({**found.as_json(), "votes": {"won": won, "votes": count}})
        if folder is None:
            return
    else:
        _show(found)
    names = [one.version.ref.replace(":", "-") for one in (first, second)]
    folder = folder or settings().state / "pages" / "-and-".join(names)
    page, sheet = _write(found, folder)
    if not as_json:
        console.print(f"page: {page}")
        if sheet is not None:
            console.print(f"sheet: {sheet}")
        console.print(f"next: atelier vote {first.version.ref} {second.version.ref}", style="dim")


def _show(found: "Comparison") -> None:
    rows = []
    for metric in found.metrics:
        texts = [
            f"{one.value:.4g} ({one.low:.4g} .. {one.high:.4g})" if one else "-"
            for one in (metric.first, metric.second)
        ]
        change = metric.change
        shown = f"{change.value:+.4f} ({change.low:+.4f} .. {change.high:+.4f})" if change else ""
        rows.append((metric.name, *texts, shown, metric.verdict))
    title = f"A is {found.first.version.ref}, B is {found.second.version.ref}"
    show_table(title, ("metric", "A", "B", "B - A, paired", ""), rows)
    console.print(found.paired, style="dim")
    stages = [(stage, "same" if same else "differs", a, b) for stage, a, b, same in found.stages]
    show_table("stages", ("stage", "", "A", "B"), stages)
    show_table("recipe, where it differs", ("field", "A", "B"), found.recipe)


def _write(found: "Comparison", folder: Path) -> tuple[Path, Path | None]:
    """Write the page, and the sheet where both draw a common request."""
    from flows.comparing.compare import Incomparable
    from flows.comparing.samples import Pictures, Texts, draw_both
    from flows.reports.compare import page, sheet
    from infra.ledger.intervals import wilson
    from infra.storage import atomic_write

    pictures: Pictures | Texts | None = None
    why = ""
    try:
        pictures = draw_both(found.first, found.second)
    except Incomparable as error:
        why = str(error)
    won, count = _votes(found.first, found.second)
    with atomic_write(folder / "compare.html") as file:
        file.write(page(found, pictures, why, (won, count, *wilson(won, count))).encode())
    if pictures is None:
        return folder / "compare.html", None
    with atomic_write(folder / "compare.png") as file:
        file.write(sheet(found, pictures))
    return folder / "compare.html", folder / "compare.png"


def _votes(first: "Side", second: "Side") -> tuple[float, int]:
    """Return what B won of how many blind votes."""
    from infra.ledger.votes import wins

    return wins(settings().database, second.version.digest, first.version.digest)


def vote(
    a: Ref,
    b: Ref,
    count: Annotated[int, typer.Option(min=1, max=500, help="How many pairs.")] = 24,
) -> None:
    """Vote blindly between two versions' pictures of the same prompts and seeds, on a page in the browser."""
    use_stack()
    from flows.comparing import compare as comparing
    from flows.comparing.samples import Pictures, draw_both
    from flows.comparing.voting import Booth, Pair, serve
    from flows.context import actor
    from flows.reports.compare import picture_png
    from infra.ledger.intervals import wilson
    from infra.ledger.votes import Votes
    from infra.pages import data_uri

    first, second = comparing.side(a), comparing.side(b)
    for side in (first, second):
        if (kind := side.pipeline.modality) not in {"image", "mesh"}:
            raise comparing.Incomparable(
                f"{side.version.ref} gives {kind}: blind votes are for pictures, and meshes from four sides"
            )
    one, other = first.version.digest, second.version.digest
    votes = Votes(settings().database, one, other)
    drawn = draw_both(first, second, count)
    assert isinstance(drawn, Pictures)
    asked = zip(drawn.prompts, drawn.seeds, drawn.first, drawn.second, strict=True)
    pairs = [
        Pair(prompt, seed, data_uri(picture_png(left)), data_uri(picture_png(right)))
        for prompt, seed, left, right in asked
    ]
    booth = Booth(pairs, votes, one, other, actor())
    if booth.finished:
        console.print(f"every one of the {len(pairs)} pairs has your vote already")
    else:
        serve(booth, lambda address: console.print(f"vote at {address} (Ctrl-C ends it)", soft_wrap=True))  # fmt: skip
    won, total = votes.wins(other)
    low, high = wilson(won, total)
    if not total:
        console.print("no votes yet")
        return
    console.print(
        f"B ({second.version.ref}) won {won:g} of {total} votes against A ({first.version.ref}): "
        f"{won / total:.1%}, 95 % interval {low:.1%} to {high:.1%}; {booth.cast_now} cast now"
    )


def drift(name: str, as_json: AsJson = False) -> None:
    """Look at the answers that the gateway kept: have prompts or pictures moved away from what was promoted?"""
    use_stack()
    from flows.drift import drift as drift_flow

    found = drift_flow(name)
    if as_json:
        show_json(found)
        return
    report = found["report"]
    if report is None:
        console.print(found["says"])
        return
    show_table(
        f"{report['version']}, {report['answers']} kept answers",
        ("", "question", "found", "limit"),
        [
            (
                Text("drifted", "red") if one["drifted"] else "steady",
                one["about"],
                one["says"],
                one["limit"],
            )
            for one in report["findings"]
        ],
    )
    console.print(f"page: {found['page']}")
