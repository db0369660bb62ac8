"""Promote a pipeline version: gate, load it beside the serving one, then one compare-and-swap in the ledger."""

from pathlib import Path
from typing import Any, Literal

from prefect import flow, task

from flows.deploy import load_versions, project_aliases
from flows.judging.gate import Evaluation, GateReport, check, document
from flows.recipe import Recipe
from flows.workshop import actor, ledger, registry

Place = Literal["staging", "production"]


class Refused(ValueError):
    """The gate refused a version; the message says which conditions failed."""


@task(task_run_name="gate {ref}")
def gate_report(ref: str) -> dict[str, Any]:
    """Return the report of the version's own gate, compared with what is in production now."""
    version = registry().get(ref)
    directory = registry().fetch(version)
    if not (directory / "pipeline.json").is_file():
        raise Refused(
            f"{version.ref} is a stage, not a pipeline: promote {version.name.split('.')[0]!r}"
        )
    recipe = Recipe.model_validate_json((directory / "recipe.json").read_text())
    head = ledger().head(version.name, "production")
    production = None
    if head is not None and head.to_version is not None and head.to_version != version.number:
        serving = registry().get(f"{version.name}:{head.to_version}")
        production = _evaluation(registry().fetch(serving))
    return document(check(recipe.gate, _evaluation(directory), production))


@flow(flow_run_name="promote {ref} to {place}")
def promote(ref: str, place: Place = "production", force: str = "") -> dict[str, Any]:
    """Promote `ref` behind its gate; `force` is the reason for passing over a refusal, and is recorded.

    Returns:
        The ledger's row as JSON; a version that is there already is a no-op.

    Raises:
        Refused: the gate failed.
        infra.ledger.Conflict: somebody else was first; the message says who.
    """
    version = registry().get(ref)
    before = ledger().head(version.name, place)
    if before is not None and before.to_digest == version.digest:
        return {"ref": version.ref, "place": place, "changed": False, "epoch": before.epoch}
    report = gate_report(version.ref)
    verdict = GateReport.model_validate(report)
    if not verdict.passed and not force:
        raise Refused(f"the gate refuses {version.ref}: {verdict.refusal()}")
    load_versions([version.ref])
    epoch = before.epoch if before else 0
    row = ledger().transition(
        name=version.name,
        stage=place,
        to_version=version.number,
        to_digest=version.digest,
        expected_epoch=epoch,
        key=f"{version.name}/{place}/{epoch}/{version.number}/{actor()}",
        actor=actor(),
        reason=force or "promoted",
        report=report,
        forced=not verdict.passed,
    )
    project_aliases(version.name)
    return {"ref": version.ref, "place": place, "changed": True, "epoch": row.epoch}


@flow(flow_run_name="roll back {name}")
def rollback(name: str, place: Place = "production", reason: str = "rolled back") -> dict[str, Any]:
    """Return to the version that stood in `place` before the present one; recorded like a promotion."""
    rows = [row for row in ledger().history(name) if row.stage == place]
    if not rows or rows[-1].from_version is None:
        raise Refused(f"{name} has no earlier version in {place} to roll back to")
    now = rows[-1]
    version = registry().get(f"{name}:{now.from_version}")
    load_versions([version.ref])
    row = ledger().transition(
        name=name,
        stage=place,
        to_version=version.number,
        to_digest=version.digest,
        expected_epoch=now.epoch,
        key=f"{name}/{place}/{now.epoch}/{version.number}/{actor()}",
        actor=actor(),
        reason=reason,
    )
    project_aliases(name)
    return {"ref": version.ref, "place": place, "changed": True, "epoch": row.epoch}


def _evaluation(directory: Path) -> Evaluation:
    return Evaluation.model_validate_json((directory / "evaluation.json").read_text())
