"""Roll out: let a challenger answer a share of the requests, or draw beside, before it is promoted or taken back.

The ledger's canary or shadow row is the rollout; the gateway routes, counts and stops by it
(services/routing/observer.py).
"""

from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any

from prefect import flow

from flows.context import actor, ledger, registry
from flows.promote import promote
from flows.promotion.release import load_versions, project_aliases, serve_wanted
from infra.ledger.intervals import wilson
from infra.ledger.ledger import Row
from infra.ledger.rollout_metrics import Observations
from infra.ledger.rollout_rules import PLACES, Limits, Place, Tally, Terms
from infra.serving import ServingError
from infra.settings import settings


class RolloutError(ValueError):
    """A rollout that cannot be begun or ended; one line with the way out."""


@flow(flow_run_name="{place} of {ref}")
def start_rollout(
    ref: str, place: Place, percent: float, limits: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Load `ref` beside the version in production, then give it its share; returns the ledger's row as JSON.

    Raises:
        RolloutError: no pipeline, nothing in production beside it, in production already, or a rollout is running.
        infra.serving.ServingError: a replica cannot load it.
        infra.ledger.ledger.Conflict: somebody else was first; the message says who.
    """
    terms = Terms(percent=percent, limits=Limits.model_validate(limits or {}))
    version = registry().get(ref)
    if version.kind != "pipeline":
        name = version.name.split(".")[0]
        raise RolloutError(f"{version.ref} is a stage, not a pipeline: roll out {name!r}")
    standing = ledger().standing(version.name)
    champion = standing.get("production")
    if champion is None or champion.to_version is None:
        raise RolloutError(
            f"{version.name} has no version in production beside which {version.ref} could be tried: promote it"
        )
    if champion.to_digest == version.digest:
        raise RolloutError(f"{version.ref} is in production already")
    if (running := _running(standing)) is not None:
        raise RolloutError(
            f"a {running.stage} of {running.name}:{running.to_version} is running, begun by {running.actor}:"
            f" end it with atelier rollout {running.name} --promote or --abort"
        )
    try:
        load_versions({version.ref: version.digest})
    except ServingError:
        with suppress(ServingError):
            serve_wanted()  # so that no later deploy is asked for what cannot be loaded
        raise
    epoch = standing[place].epoch if place in standing else 0
    row = ledger().transition(
        name=version.name,
        stage=place,
        to_version=version.number,
        to_digest=version.digest,
        expected_epoch=epoch,
        key=f"{version.name}/{place}/{epoch}/{version.number}/{actor()}",
        actor=actor(),
        reason=f"{place} of {percent:g} %",
        report={"terms": terms.model_dump()},
    )
    project_aliases(version.name)
    return row.as_json()


@flow(flow_run_name="end the rollout of {ref}")
def end_rollout(ref: str, reason: str) -> dict[str, Any]:
    """Send all requests to the champion again; returns the ledger's row as JSON.

    Raises:
        RolloutError: none of that name, or of that version where `ref` names one, is running.
    """
    return _end(_must_run(ref), reason).as_json()


@flow(flow_run_name="promote the challenger of {ref}")
def promote_challenger(ref: str, force: str = "") -> dict[str, Any]:
    """Promote what is being rolled out and, once it is in production, end the rollout; returns what `promote` does.

    Raises:
        RolloutError: as `end_rollout`.
    """
    running = _must_run(ref)
    found = promote(f"{running.name}:{running.to_version}", "production", force)
    now = ledger().head(running.name, "production")
    if now is not None and now.to_digest == running.to_digest:
        _end(running, "promoted")
    return found


def rollout_status(name: str) -> dict[str, Any]:
    """Return the newest rollout of a name: its terms, what both arms did, and how it ended.

    Raises:
        RolloutError: there never was one.
    """
    rows = [row for row in ledger().history(name) if row.stage in PLACES]
    begun = [row for row in rows if row.to_version is not None]
    if not begun:
        raise RolloutError(
            f"{name} was never rolled out: atelier rollout {name}:VERSION --canary 10"
        )
    row = begun[-1]
    end = next((r for r in rows if r.stage == row.stage and r.epoch == row.epoch + 1), None)
    terms = Terms.of(row.report) or Terms(percent=100)
    place: Place = "canary" if row.stage == "canary" else "shadow"
    with closing(Observations(settings().database)) as counted:
        tallies = counted.read(name, place, row.epoch)
    shape = max(tallies["champion"].latencies, key=tallies["champion"].timed, default="")
    champion = ledger().at(name, "production", row.at)
    return {
        "name": name,
        "place": place,
        "epoch": row.epoch,
        "challenger": f"{name}:{row.to_version}",
        "champion": f"{name}:{champion.to_version}" if champion else None,
        **terms.model_dump(),
        "begun": {"at": row.at.isoformat(), "actor": row.actor},
        "ended": None
        if end is None
        else {"at": end.at.isoformat(), "actor": end.actor, "reason": end.reason},
        "timed": shape,
        "arms": {arm: _arm(tally, shape) for arm, tally in tallies.items()},
    }


def _arm(tally: Tally, shape: str) -> dict[str, Any]:
    """Return an arm's counts, its failure rate with a 95 % interval, and latencies in ms of the commonest shape."""
    median, within = tally.quantile(shape, 0.5), tally.median_within(shape)
    p95 = tally.quantile(shape, 0.95)
    return {
        "requests": tally.requests,
        "failures": tally.failures,
        "failure_rate": tally.failures / tally.requests if tally.requests else None,
        "failure_rate_95": wilson(tally.failures, tally.requests),
        "not_finite": tally.not_finite,
        "flat": tally.flat,
        "repeated": tally.repeated,
        "median_ms": None if median is None else 1000 * median,
        "median_ms_99": None if within is None else [1000 * bound for bound in within],
        "p95_ms": None if p95 is None else 1000 * p95,
        "compared": tally.compared,
        "difference": tally.difference / tally.compared if tally.compared else None,
        "dropped": tally.dropped,
    }


def _running(standing: Mapping[str, Row]) -> Row | None:
    rows = (standing.get(place) for place in PLACES)
    return next((row for row in rows if row is not None and row.to_version is not None), None)


def _must_run(ref: str) -> Row:
    name = ref.partition(":")[0].partition("@")[0]
    running = _running(ledger().standing(name))
    if running is None:
        raise RolloutError(
            f"no rollout of {name} is running: atelier rollout {name} shows the last one"
        )
    if ref != name and registry().get(ref).number != running.to_version:
        raise RolloutError(
            f"the {running.stage} that is running is of {name}:{running.to_version}, not of {ref}"
        )
    return running


def _end(running: Row, reason: str) -> Row:
    place: Place = "canary" if running.stage == "canary" else "shadow"
    row = ledger().transition(
        name=running.name,
        stage=place,
        to_version=None,
        to_digest=None,
        expected_epoch=running.epoch,
        key=f"{running.name}/{place}/{running.epoch}/end/{actor()}",
        actor=actor(),
        reason=reason,
    )
    project_aliases(running.name)
    return row
