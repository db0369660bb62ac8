"""What Ray Serve holds and MLflow shows: projections of the ledger, safe to make again at any time."""

import logging
from collections.abc import Collection, Mapping
from typing import Any, cast

from flows.context import ledger, promotions, registry
from infra.ledger.ledger import Stage
from infra.pipelines import Pipeline, PipelineError, read_pipeline
from infra.registry.registry import RegistryError, Unreachable
from infra.settings import settings
from infra.storage import IntegrityError

log = logging.getLogger("atelier.release")


def pins(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Return a pipeline's stage versions, and those that they adapt, as Serve is told of them."""
    of_family = [(one, stage.family) for stage in pipeline.stages for one in stage.pins]
    return [
        {"name": one.name, "number": one.number, "digest": one.digest, "family": family}
        for one, family in of_family
    ]


def stage_versions(versions: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the stage versions that these pipeline versions (digest by "shapes:4") pin, each once."""
    found: dict[str, dict[str, Any]] = {}
    for ref, digest in versions.items():
        for pin in pins(read_pipeline(registry().fetch(ref, digest=digest))):
            found[pin["digest"]] = pin
    return list(found.values())


def wanted() -> dict[str, str]:
    """Return the pipeline versions to hold loaded, with their digests.

    They are the ledger's heads, the one before each for a rollback, and those that are being promoted. A challenger
    is held while its rollout lasts and no longer: perhaps it cannot be loaded.
    """
    found: dict[str, str] = {}
    for row in ledger().heads():
        place = cast(Stage, row.stage)
        before = ledger().fallback(row.name, place) if place in {"staging", "production"} else None
        for one in (row, before):
            if one is not None and one.to_version is not None and one.to_digest is not None:
                found[f"{row.name}:{one.to_version}"] = one.to_digest
    for intent in promotions().open():
        if intent.state != "waiting":
            found[intent.ref] = intent.digest
    return found


def serve_wanted(
    extra: Mapping[str, str] | None = None, *, needed: Collection[str] | None = None
) -> list[str]:
    """Have every replica hold the wanted versions and `extra` (digest by "shapes:4"); returns their names.

    `needed` are the stage digests to wait for; None: all. A wanted version that was deleted, damaged or made by a
    newer Atelier stops nobody else: it is told, and what is loaded of its endpoint stays so.

    Raises:
        RegistryError, IntegrityError, PipelineError: one of `extra` cannot be read, or MLflow does not answer.
        infra.serving.ServingError: as `infra.serving.deploy`.
    """
    from infra import serving

    asked = extra or {}
    others, lost = readable({ref: one for ref, one in wanted().items() if ref not in asked})
    for ref, why in lost.items():
        log.warning("%s is to be served and cannot be read: %s", ref, why)
    pins = stage_versions({**others, **asked})
    endpoints = {ref.partition(":")[0] for ref in lost}
    serving.deploy(settings(), pins, needed=needed, left_alone=endpoints)
    return [*others, *asked]


def readable(versions: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return those of these pipeline versions (digest by "shapes:4") that can be read, and why the others cannot.

    Raises:
        Unreachable: MLflow does not answer, so nobody knows.
    """
    there, lost = dict[str, str](), dict[str, str]()
    for ref, digest in versions.items():
        try:
            read_pipeline(registry().fetch(ref, digest=digest))
        except Unreachable:
            raise
        except (RegistryError, IntegrityError, PipelineError) as error:
            lost[ref] = str(error)
        else:
            there[ref] = digest
    return there, lost


def load_versions(versions: Mapping[str, str]) -> None:
    """Load these pipeline versions (digest by "shapes:4") beside what is served, and wait for them alone.

    Raises:
        infra.serving.VersionRefused: a replica cannot load one; what is served goes on.
    """
    serve_wanted(versions, needed=[pin["digest"] for pin in stage_versions(versions)])


def project_aliases(name: str) -> None:
    """Make MLflow's aliases say what the ledger says, and renew the cards of the versions that moved."""
    from flows.provenance.cards import renew_all

    heads = ledger().standing(name).items()
    standing = {place: row.to_version for place, row in heads if row.to_version is not None}
    newest = registry().get(name).number
    registry().project(name, {"candidate": newest, **standing})
    renew_all(name)
