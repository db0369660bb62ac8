"""Pipelines around stages of others: those that adapters change, and those whose one part was trained further."""

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
    """Return the pipeline that stays around a recipe's stages, as `trained` has versions; empty where none does."""
    found = _adapted_pipeline(recipe) or _started_pipeline(recipe)
    return {"(base)": named(found)} if found else {}


def _adapted_pipeline(recipe: Recipe) -> "Version | None":
    refs = {one.training.lora.base for one in recipe.stages.values() if one.training.lora}
    if len(refs) > 1:
        raise StageMismatch(
            f"adapters of one pipeline name one base, got {', '.join(sorted(refs))}"
        )
    found = registry().get(refs.pop()) if refs else None
    return found if found is not None and found.kind == "pipeline" else None


def _started_pipeline(recipe: Recipe) -> "Version | None":
    """Return the pipeline whose stage a recipe trains further that alone gives nothing to judge, as latents are."""
    refs = {one.training.base for one in recipe.stages.values()}
    if recipe.pipeline is not None or len(refs) != 1 or None in refs:
        return None
    found = registry().get(str(refs.pop()))
    if found.kind != "pipeline":
        return None
    stages = read_pipeline(registry().fetch(found)).stages
    last = next((one for one in stages if one.stage == [*recipe.stages][-1]), None)
    if last is None or len(stages) == 1 or not last.outputs.keys() <= {"latent", "embedding"}:
        return None
    return found


def around(recipe: Recipe, stages: Sequence[PinnedStage]) -> Pipeline | None:
    """Return the pipeline that stays around these stages, with them in it; None where none does.

    Raises:
        StageMismatch: it has other stages, or has them of other versions by now.
    """
    adapts = _adapted_pipeline(recipe)
    version = adapts or _started_pipeline(recipe)
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
        if adapts and (stage.adapts is None or stage.adapts.sha256 != before.sha256):
            whose = stage.adapts.ref if stage.adapts else "none"
            raise StageMismatch(
                f"{stage.stage} adapts {whose}, and {version.ref} pins {before.pin.ref}: train it anew"
            )
        places[stage.stage] = stage.model_copy(
            update={"options": {**before.options, **stage.options}, "needs": before.needs}
        )
    pinned = Pinned(name=version.name, version=version.number, sha256=version.digest)
    changed = {
        "endpoint": recipe.name,
        "base": pinned if adapts else None,
        "stages": tuple(places.values()),
        "sample": recipe.drift.sample if recipe.drift else 0.0,
        "try_prompts": recipe.try_prompts or whole.try_prompts,
    }
    return whole.model_copy(update=changed)
