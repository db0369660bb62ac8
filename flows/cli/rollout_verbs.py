"""`rollout`: try a version on some of the requests before it is promoted."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from flows.cli.terminal import (
    AsJson,
    Ref,
    console,
    ready,
    show_json,
    show_table,
    use_stack,
)
from infra.documents import parse_yaml
from infra.times import utc


def register(app: typer.Typer) -> None:
    """Add this verb to the command line."""
    app.command()(rollout)


def rollout(
    ref: Ref,
    canary: Annotated[
        float | None,
        typer.Option(help="Let the version answer so many percent of the requests."),
    ] = None,
    shadow: Annotated[
        float | None,
        typer.Option(help="Draw so many percent of the requests beside, and compare."),
    ] = None,
    limits: Annotated[
        list[str] | None,
        typer.Option("--limit", metavar="NAME=VALUE", help="Change what stops the challenger."),
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Show both arms (also without any option).")
    ] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Promote the challenger and end the rollout.")
    ] = False,
    force: Annotated[
        str, typer.Option(help="With --promote: a reason for passing over the gate.")
    ] = "",
    abort: Annotated[
        bool, typer.Option("--abort", help="End it: the champion answers everything.")
    ] = False,
    reason: Annotated[str, typer.Option(help="With --abort: why; it is recorded.")] = "",
    as_json: AsJson = False,
) -> None:
    """Roll out a version by canary or shadow, show how it does, promote it or take it back.

    Limits: min_requests (20), max_error_rate (0.05), max_slowdown (1.5, of the median), and how many answers may be
    max_not_finite (0), max_flat (2), max_repeated (2).
    """
    asked = [canary is not None, shadow is not None, status, promote, abort]
    if sum(asked) > 1:
        raise typer.BadParameter("give one of --canary, --shadow, --status, --promote, --abort")
    for option, value, goes, needs in (
        ("--limit", limits, canary is not None or shadow is not None, "--canary or --shadow"),
        ("--force", force, promote, "--promote"),
        ("--reason", reason, abort, "--abort"),
    ):
        if value and not goes:
            raise typer.BadParameter(f"{option} goes with {needs}")
    name = ref.partition(":")[0].partition("@")[0]
    if canary is not None or shadow is not None:
        _start(ref, name, canary, shadow, limits or [], as_json)
        return
    if promote:
        ready()
        from flows.promotion.rollout import promote_challenger

        found = promote_challenger(ref, force)
        message = f"[bold]{found['ref']}[/] is in {found['place']}; take it back with: atelier rollback {name}"
        if "waiting" in found:
            message = f"it waits for approval, the rollout goes on; then: atelier rollout {name} --promote"
        show_json(found) if as_json else console.print(message, markup=True)
        return
    if abort:
        ready()
        from flows.promotion.rollout import end_rollout

        row = end_rollout(ref, reason or "taken back")
        show_json(row) if as_json else console.print(f"the {row['stage']} of {name} has ended")
        return
    _show(name, as_json)


def limits_of(said: Sequence[str]) -> dict[str, Any]:
    """Return --limit NAME=VALUE as `Limits` takes them.

    Raises:
        typer.BadParameter: no such name, one said twice, or no value.
    """
    from infra.ledger.rollout_rules import Limits

    given: dict[str, Any] = {}
    for one in said:
        name, equals, value = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"--limit takes NAME=VALUE, got {one!r}")
        if name not in Limits.model_fields:
            known = ", ".join(Limits.model_fields)
            raise typer.BadParameter(f"--limit {one}: no limit {name!r}; choose one of {known}")
        if name in given:
            raise typer.BadParameter(f"--limit {one}: {name} is set twice")
        given[name] = parse_yaml(value, f"--limit {one}")
    return given


def _start(
    ref: str,
    name: str,
    canary: float | None,
    shadow: float | None,
    limits: list[str],
    as_json: bool,
) -> None:
    from pydantic import ValidationError

    from infra.ledger.rollout_rules import Place, Terms

    place: Place = "shadow" if canary is None else "canary"
    percent = shadow if canary is None else canary
    assert percent is not None
    given = limits_of(limits)
    try:
        Terms.model_validate({"percent": percent, "limits": given})
    except ValidationError as error:
        first = error.errors()[0]
        where = first["loc"][-1]
        message = f"{where}: {first['msg'].lower()}, got {first['input']!r}"
        raise typer.BadParameter(message) from None
    ready()
    from flows.promotion.rollout import start_rollout

    row = start_rollout(ref, place, percent, given)
    if as_json:
        show_json(row)
        return
    does = "answers" if place == "canary" else "is compared on"
    console.print(
        f"[bold]{name}:{row['to_version']}[/] {does} {percent:g} % of the requests for {name};"
        f" watch it with: atelier rollout {name}",
        markup=True,
    )


def _show(name: str, as_json: bool) -> None:
    use_stack()
    from flows.promotion.rollout import rollout_status

    found = rollout_status(name)
    if as_json:
        show_json(found)
        return
    arms = found["arms"]
    show_table(
        f"{found['place']} of {found['challenger']} at {found['percent']:g} %, champion {found['champion']}",
        ("", "champion", "challenger"),
        [(what, read(arms["champion"]), read(arms["challenger"])) for what, read in ROWS],
    )
    if found["timed"]:
        console.print(f"latencies are of requests for {found['timed']}", style="dim")
    if found["ended"] is None:
        console.print(
            f"running; next: atelier rollout {name} --promote, or --abort", style="bold green"
        )
    else:
        ended = found["ended"]
        console.print(
            f"ended by {ended['actor']} at {utc(datetime.fromisoformat(ended['at']))}: {ended['reason']}",
            style="bold",
        )


def _rate(arm: dict[str, Any]) -> str:
    low, high = arm["failure_rate_95"]
    return f"{arm['failures']}  ({100 * low:.1f} to {100 * high:.1f} %)"


def _ms(arm: dict[str, Any]) -> str:
    if arm["median_ms"] is None:
        return "-"
    low, high = arm["median_ms_99"]
    return f"{arm['median_ms']:.0f} ms  ({low:.0f} to {high:.0f})"


ROWS = (
    ("requests", lambda arm: arm["requests"]),
    ("failed (95 % interval)", _rate),
    ("not finite", lambda arm: arm["not_finite"]),
    ("of one colour or empty", lambda arm: arm["flat"]),
    ("repeated", lambda arm: arm["repeated"]),
    ("median (99 % interval)", _ms),
    ("p95", lambda arm: "-" if arm["p95_ms"] is None else f"{arm['p95_ms']:.0f} ms"),
    ("compared", lambda arm: arm["compared"] or "-"),
    (
        "mean difference of pixels",
        lambda arm: "-" if arm["difference"] is None else f"{arm['difference']:.4f}",
    ),
    ("left out", lambda arm: arm["dropped"] or "-"),
)
