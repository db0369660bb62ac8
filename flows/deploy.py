"""Deploy: make Ray Serve hold what the ledger names; safe to run twice, and after anything was lost."""

from collections.abc import Sequence
from typing import Any

from prefect import flow, task

from flows.judging.pipeline import Pipeline
from flows.workshop import ledger, registry
from infra.settings import settings


def stage_versions(refs: Sequence[str]) -> list[dict[str, Any]]:
    """Return the stage versions that these pipeline versions pin, each once."""
    found: dict[str, dict[str, Any]] = {}
    for ref in refs:
        directory = registry().fetch(registry().get(ref))
        pipeline = Pipeline.model_validate_json((directory / "pipeline.json").read_text())
        for stage in pipeline.stages:
            found[stage.sha256] = {
                "name": stage.name,
                "number": stage.version,
                "digest": stage.sha256,
            }
    return list(found.values())


def wanted() -> list[str]:
    """Return the pipeline versions to hold loaded: the ledger's heads, and the one before each for a rollback."""
    refs: dict[str, None] = {}
    for row in ledger().heads():
        for number in (row.to_version, row.from_version):
            if number is not None:
                refs[f"{row.name}:{number}"] = None
    return list(refs)


def serve_wanted(extra: Sequence[str] = ()) -> list[str]:
    """Have every replica load the wanted versions and `extra` beside what it serves; returns their names."""
    from infra import serving

    refs = list(dict.fromkeys([*wanted(), *extra]))
    serving.deploy(settings(), stage_versions(refs))
    return refs


@task(task_run_name="load versions")
def load_versions(extra: Sequence[str] = ()) -> list[str]:
    """`serve_wanted`, as a step of a flow."""
    return serve_wanted(extra)


def project_aliases(name: str) -> None:
    """Make MLflow's aliases say what the ledger says."""
    heads = {row.stage: row.to_version for row in ledger().heads() if row.name == name}
    aliases = {place: number for place, number in heads.items() if number is not None}
    newest = registry().versions(name)
    if newest:
        aliases["candidate"] = max(version.number for version in newest)
    registry().project(name, aliases)


@flow
def deploy() -> list[str]:
    """Serve what the ledger names; returns the pipeline versions that are loaded."""
    loaded = load_versions()
    for name in {row.name for row in ledger().heads()}:
        project_aliases(name)
    return loaded
