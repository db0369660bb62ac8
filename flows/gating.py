"""The report of a version's own gate: judged figures against bounds, against production, and stages that still fit."""

from pathlib import Path

from flows.judging.gate import Condition, Evaluation, GateReport, check
from flows.judging.pipeline import StageMismatch, check_fit, check_interfaces
from flows.recipe import Gate, Recipe
from flows.served import pipeline_of
from flows.workshop import ledger, registry
from infra.registry import Version
from infra.settings import settings


def gate_of(version: Version) -> Gate:
    """Return the policy that a pipeline version was published with.

    Raises:
        ValueError: it is a stage.
    """
    directory = registry().fetch(version)
    if not (directory / "pipeline.json").is_file():
        raise ValueError(
            f"{version.ref} is a stage, not a pipeline: promote {version.name.split('.')[0]!r}"
        )
    return Recipe.model_validate_json((directory / "recipe.json").read_text()).gate


def gate_report(version: Version) -> GateReport:
    """Return the report of the version's gate, compared with what is in production now."""
    gate, directory = gate_of(version), registry().fetch(version)
    head = ledger().head(version.name, "production")
    production, votes, against = None, None, None
    if head is not None and head.to_digest is not None and head.to_digest != version.digest:
        against = f"{version.name}:{head.to_version}"
        production = _evaluation(registry().fetch(against, digest=head.to_digest))
        if gate.wins is not None:
            from infra.votes import wins

            votes = wins(settings().database, version.digest, head.to_digest)
    report = check(gate, _evaluation(directory), production, votes)
    return report.model_copy(update={"against": against}).joined([_fits(directory)])


def _fits(directory: Path) -> Condition:
    stages = pipeline_of(directory).stages
    try:
        check_fit(stages)
        check_interfaces(
            [
                (stage, registry().fetch(f"{stage.name}:{stage.version}", digest=stage.sha256))
                for stage in stages
            ]
        )
    except StageMismatch as error:
        return Condition(name="stages fit", passed=False, says=str(error))
    says = f"its {len(stages)} stages fit" if len(stages) > 1 else "its stage fits"
    return Condition(name="stages fit", passed=True, says=says)


def _evaluation(directory: Path) -> Evaluation:
    return Evaluation.model_validate_json((directory / "evaluation.json").read_text())
