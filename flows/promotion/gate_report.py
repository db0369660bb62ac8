"""The report of a version's own gate: judged figures against bounds, against production, and stages that still fit."""

from pathlib import Path

from flows.context import ledger, registry
from flows.evaluating.gate import Condition, Evaluation, GateReport, check, compare
from flows.evaluating.pipeline import StageMismatch, check_fit, check_interfaces
from flows.recipe import Gate, Recipe
from infra.documents import read_json
from infra.pipelines import is_pipeline, read_pipeline
from infra.registry.registry import Version
from infra.settings import settings
from infra.storage import write_json


def gate_of(version: Version) -> Gate:
    """Return the policy that a pipeline version was published with.

    Raises:
        ValueError: it is a stage.
    """
    directory = registry().fetch(version)
    if not is_pipeline(directory):
        raise ValueError(
            f"{version.ref} is a stage, not a pipeline: promote {version.name.split('.')[0]!r}"
        )
    return Recipe.model_validate_json((directory / "recipe.json").read_text()).gate


def gate_report(version: Version) -> GateReport:
    """Return the report of the version's gate, compared with what is in production now where the gate asks for it."""
    gate, directory = gate_of(version), registry().fetch(version)
    head = ledger().head(version.name, "production")
    production, votes, baseline, against = None, None, None, None
    if head is not None and head.to_digest is not None and head.to_digest != version.digest:
        there = f"{version.name}:{head.to_version}"
        if gate.no_worse_than == "production":
            against = there
            production = comparable(there, head.to_digest, version)
            baseline = _baseline(gate, version, there)
        if gate.wins is not None:
            from infra.ledger.votes import wins

            against = there
            votes = wins(settings().database, version.digest, head.to_digest)
    report = check(gate, _evaluation(directory), production, votes, baseline)
    more = [
        _fits(directory),
        *(_beside_base(gate, version) if gate.no_worse_than == "base" else []),
    ]
    return report.model_copy(update={"against": against}).joined(more)


def _beside_base(gate: Gate, version: Version) -> list[Condition]:
    """Return how an adapter does what its base was judged by: the same prompts and seeds, data and judge."""
    base = read_pipeline(registry().fetch(version)).base
    if base is None:
        says = f"{version.ref} adapts no pipeline that it could be compared with"
        return [Condition(name="against the base", passed=False, says=says)]
    whole = registry().by_digest(base.name, base.sha256)
    if whole is None:
        says = f"{base.ref} with sha256 {base.sha256[:12]}, which it adapts, is not registered here"
        return [Condition(name="against the base", passed=False, says=says)]
    found = comparable(version.ref, version.digest, whole)
    return compare(found, _evaluation(registry().fetch(whole)), whole.ref, gate.margin)


def _baseline(gate: Gate, version: Version, production: str) -> Evaluation | None:
    """Return the evaluation of the gate's baseline; None where that is in production, or the candidate itself."""
    if gate.baseline is not None:
        found = registry().get(f"{version.name}:{gate.baseline}")
        ref, digest = found.ref, found.digest
    else:
        stood = [row for row in ledger().history(version.name) if row.stage == "production"]
        row = next(row for row in stood if row.to_digest is not None)
        assert row.to_digest is not None
        ref, digest = f"{version.name}:{row.to_version}", row.to_digest
    return (
        None if digest == version.digest or ref == production else comparable(ref, digest, version)
    )


def comparable(ref: str, digest: str, candidate: Version) -> Evaluation:
    """Return the evaluation of an earlier version on the candidate's prompts, seeds, data and judge.

    Where data or judge have changed since it was judged, it is judged anew on the candidate's, once: the finding is
    kept. Where that data is not here any more its old evaluation is returned, which the gate refuses to compare.
    """
    serving = registry().fetch(ref, digest=digest)
    directory = registry().fetch(candidate)
    before, wanted = _evaluation(serving), _evaluation(directory)
    if before.evaluation_set == wanted.evaluation_set:
        return before
    kept = settings().state / "evaluations" / f"{digest}-{wanted.evaluation_set}.json"
    if kept.is_file():
        return Evaluation.model_validate_json(kept.read_text())
    found = _judged_anew(serving, directory, wanted)
    if found is None or found.evaluation_set != wanted.evaluation_set:
        return before
    write_json(kept, found.model_dump(mode="json"))
    return found


def _judged_anew(serving: Path, directory: Path, wanted: Evaluation) -> Evaluation | None:
    """Judge the pipeline in `serving` as the candidate in `directory` was; None where its data is not prepared here."""
    from data.catalog import prepared
    from data.params import CatalogError
    from flows.evaluating.evaluate import evaluate_on_ray
    from flows.evaluation import order_of
    from infra.stack.cluster import connect

    recipe = Recipe.model_validate_json((directory / "recipe.json").read_text())
    identity = read_json(directory / "MANIFEST.json").get("data_identity")
    try:
        ready = prepared(recipe.data.name, settings().project)
    except CatalogError:
        return None
    if ready.identity != identity:
        return None
    judge = None
    if wanted.judge is not None:
        name, _, number = wanted.judge.version.partition(":")
        judge = {"name": name, "version": int(number), "digest": wanted.judge.sha256}
    connect(settings().ray_url)
    data = {"path": str(ready.path), "identity": ready.identity}
    order = order_of(recipe, read_pipeline(serving), judge, data)
    evaluation, _ = evaluate_on_ray(order)
    return evaluation


def _fits(directory: Path) -> Condition:
    pipeline = read_pipeline(directory)
    stages = pipeline.stages
    try:
        check_fit(pipeline)
        check_interfaces(
            [
                (
                    stage,
                    registry().weights(
                        registry().fetch(f"{stage.name}:{stage.version}", digest=stage.sha256)
                    ),
                )
                for stage in stages
            ]
        )
    except StageMismatch as error:
        return Condition(name="stages fit", passed=False, says=str(error))
    says = f"its {len(stages)} stages fit" if len(stages) > 1 else "its stage fits"
    return Condition(name="stages fit", passed=True, says=says)


def _evaluation(directory: Path) -> Evaluation:
    return Evaluation.model_validate_json((directory / "evaluation.json").read_text())
