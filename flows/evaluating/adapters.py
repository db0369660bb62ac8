"""Pipelines of adapters (`training.lora`): the pipeline that they adapt, with them in the places of its stages."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flows.context import named, registry
from flows.evaluating.pipeline import StageMismatch
from flows.recipe import Recipe
from infra.pipelines import Pinned, PinnedStage, Pipeline, read_pipeline

if TYPE_CHECKING:
    from infra.registry.registry import Version
    from models.family import Family


def adapted(model: "Family") -> Pinned | None:
    """Return the version that a model adds to; None where it has all of its weights."""
    if model.lora is None:
        return None
    name, _, number = model.lora.base.partition(":")
    return Pinned(name=name, version=int(number), sha256=model.lora.digest)


def base_of(recipe: Recipe) -> dict[str, Any]:
    """Return the pipeline that a recipe's stages adapt, as `trained` has versions; empty where they adapt none."""
    found = _adapted_pipeline(recipe)
    return {"(base)": named(found)} if found else {}


def _adapted_pipeline(recipe: Recipe) -> "Version | None":
    refs = {one.training.lora.base for one in recipe.stages.values() if one.training.lora}
    if len(refs) > 1:
        raise StageMismatch(
            f"adapters of one pipeline name one base, got {', '.join(sorted(refs))}"
        )
    found = registry().get(refs.pop()) if refs else None
    return found if found is not None and found.kind == "pipeline" else None


def around(recipe: Recipe, stages: Sequence[PinnedStage]) -> Pipeline | None:
    """Return the pipeline that these stages adapt, with them in it; None where they adapt none.

    Raises:
        StageMismatch: it has other stages, or has them of other versions by now.
    """
    version = _adapted_pipeline(recipe)
    if version is None:
        return None
    whole = read_pipeline(registry().fetch(version))
    places = {one.stage: one for one in whole.stages}
    for stage in stages:
        if stage.stage not in places:
            raise StageMismatch(
                f"{version.ref} has no stage {stage.stage!r}: it has {', '.join(places)}"
            )
        before = places[stage.stage]
        if stage.adapts is None or stage.adapts.sha256 != before.sha256:
            adapts = stage.adapts.ref if stage.adapts else "none"
            raise StageMismatch(
                f"{stage.stage} adapts {adapts}, and {version.ref} pins {before.pin.ref}: train it anew"
            )
        places[stage.stage] = stage.model_copy(
            update={"options": {**before.options, **stage.options}, "needs": before.needs}
        )
    changed = {
        "endpoint": recipe.name,
        "base": Pinned(name=version.name, version=version.number, sha256=version.digest),
        "stages": tuple(places.values()),
        "sample": recipe.drift.sample if recipe.drift else 0.0,
        "try_prompts": recipe.try_prompts or whole.try_prompts,
    }
    return whole.model_copy(update=changed)
