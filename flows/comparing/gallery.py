"""Which versions a gallery of all families shows, and what they draw."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from flows.comparing.compare import Side, side
from flows.context import ledger, registry

if TYPE_CHECKING:
    from torch import Tensor

    from infra.registry.registry import Version
    from models.family import Family

PASSED: Final = "passed"


def by_family() -> dict[str, Side]:
    """Return, for every family whose pictures, clips or meshes are promoted or passed a gate, the version to show.

    One in production before one that is not, then the newest. A family is that of the stage that a request's options
    are for: of a cascade the first that draws.
    """
    produced = {(row.name, row.to_version) for row in ledger().heads() if row.stage == "production"}
    found: dict[str, tuple[tuple[bool, float], Side]] = {}
    for version in _candidates(produced):
        one = side(version.ref)
        if one.pipeline.modality not in {"image", "clip", "mesh"}:
            continue
        rank = ((version.name, version.number) in produced, version.created.timestamp())
        family = one.pipeline.lead.family
        if family not in found or found[family][0] < rank:
            found[family] = rank, one
    return {family: one for family, (_, one) in sorted(found.items())}


def _candidates(produced: set[tuple[str, int | None]]) -> "list[Version]":
    """Return of every name what stands in production and the newest version that passed its gate."""
    chosen = []
    for name in registry().names():
        versions = [one for one in registry().versions(name) if one.kind == "pipeline"]
        passed = [one for one in versions if one.tags.get("atelier.gate") == PASSED]
        chosen += [one for one in versions if (one.name, one.number) in produced] + passed[-1:]
    return chosen


def prompts_of(one: Side, count: int) -> list[str]:
    """Return so many of a version's prompts to try, over and over; none where it reads no text."""
    tried: Sequence[str] = one.pipeline.try_prompts
    if not one.pipeline.reads_text or not tried:
        return []
    return [tried[number % len(tried)] for number in range(count)]


def drawn(one: Side, prompts: Sequence[str], seeds: Sequence[int]) -> "dict[str, Tensor]":
    """Return what every node of a version makes of prompts and seeds, in the order they run."""
    from flows.evaluating.pipeline import made_by_nodes

    return dict(made_by_nodes(loaded(one), one.pipeline, prompts, seeds))


def loaded(one: Side) -> "list[Family]":
    """Return the networks of a version's stages, in their order."""
    from flows.evaluating.pipeline import load_model

    return [
        load_model(
            *registry().weights(registry().fetch(stage.name, stage.version, digest=stage.sha256))
        )
        for stage in one.pipeline.stages
    ]
