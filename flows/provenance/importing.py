"""Take in a checkpoint of others: read it whole, register it as a stage, and judge it as a recipe says."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prefect import flow

from data.catalog import known
from flows.context import named, registry
from flows.evaluation import judge_pipeline
from flows.prepare import prepare_dataset
from flows.provenance import language_checkpoints, speech_checkpoints, unclip_checkpoints
from flows.provenance.checkpoint_stages import learned, parted, wired
from flows.provenance.checkpoints import (
    INDEX,
    Checkpoint,
    CheckpointError,
    document_of,
    publish,
    publish_unjudged,
    read,
)
from flows.recipe import Recipe
from flows.train import train_stages
from infra.settings import settings

if TYPE_CHECKING:
    from infra.registry.registry import Version

STAGE: Final = "model"  # what denoises, or writes, of a pipeline without a recipe


def import_checkpoint(
    folder: Path,
    source: str,
    name: str,
    recipe: Recipe | None = None,
    image_size: int | None = None,
    prior: Path | None = None,
) -> "tuple[Checkpoint, Version]":
    """Return what was read, and the pipeline version that was made of it; nothing is published of what is refused.

    Args:
        folder: The checkpoint, as diffusers saves one.
        source: What its card says it came from.
        name: Of the model here.
        recipe: By whose data, judge and gate it is judged; it has one stage. None: it is not judged.
        image_size: Pixels a side of what it draws. None: its own.
        prior: The folder of a prior pipeline, where the checkpoint is a decoder that has none.

    Raises:
        CheckpointError, IntegrityError, ValueError: what is wrong with the checkpoint or the recipe, in one line.
    """
    found = _read(folder, source, image_size, prior)
    if recipe is not None:
        _check(recipe, name, found)
    stage = STAGE if recipe is None else next(iter(recipe.stages))
    parts = parted(found, stage)
    versions = {called: publish(part, name, called) for called, part in parts.items()}
    whole = _whole(recipe or _recipe_of(name, found), stage, parts, versions)
    if recipe is None:
        return found, publish_unjudged(whole, versions)
    judged = judge_checkpoint(whole, {called: named(one) for called, one in versions.items()})
    return found, registry().get(f"{judged['name']}:{judged['version']}")


def _recipe_of(name: str, found: Checkpoint) -> Recipe:
    """Return the recipe of a checkpoint that nobody judged: one stage, and a gate without a condition."""
    config = found.document["config"]
    asked = {name: config[name] for name in ("steps", "guidance") if name in config}
    stage = {"family": found.family, **asked, "training": {"steps": 1}}
    return Recipe.model_validate(
        {
            **{"name": name, "description": f"{found.source}, as it was."},
            **{"data": {"name": "none"}, "stages": {STAGE: stage}},
            "try_prompts": found.tried,
        }
    )


def _whole(
    recipe: Recipe,
    stage: str,
    parts: Mapping[str, Checkpoint],
    versions: "Mapping[str, Version]",
) -> Recipe:
    """Return a checkpoint's recipe with all its stages as they are, whatever it trains: nothing is adapted yet."""
    asked = recipe.stages[stage]
    gate = recipe.gate
    if gate.no_worse_than == "base":
        gate = gate.model_copy(update={"no_worse_than": None})
    stages, needs = {}, learned(stage, parts)
    for called, version in versions.items():
        training = asked.training.model_copy(update={"lora": None, "base": version.ref})
        own: dict[str, object] = {"training": training, "family": parts[called].family}
        if called != stage:
            own |= dict.fromkeys(("steps", "guidance")) | {"options": {}}
        if called in needs:
            own |= {"needs": needs[called]}
        stages[called] = asked.model_copy(update=own)
    update = {"stages": stages, "gate": gate, "pipeline": wired(stage, parts)}
    return recipe.model_copy(update=update)


def _read(folder: Path, source: str, image_size: int | None, prior: Path | None) -> Checkpoint:
    """Read a folder as whoever saved it lays it out: transformers have the config of a network at the top."""
    if unclip_checkpoints.is_one(folder):
        return unclip_checkpoints.read(folder, source, image_size, prior)
    if prior is not None:
        raise CheckpointError(f"{folder} draws from no prior: leave --prior out")
    if (folder / INDEX).is_file() or not (folder / language_checkpoints.CONFIG).is_file():
        return read(folder, source, image_size)
    if image_size is not None:
        raise CheckpointError(f"{folder} makes no pictures, of no image size: leave it out")
    asked = document_of(folder / language_checkpoints.CONFIG)
    named = asked.get("architectures") if isinstance(asked, dict) else None
    speaks = named in [[one] for one in speech_checkpoints.SPEAKING]
    taken = speech_checkpoints.read if speaks else language_checkpoints.read
    return taken(folder, source)


def _check(recipe: Recipe, name: str, found: Checkpoint) -> None:
    if recipe.name != name:
        raise CheckpointError(f"the recipe is that of {recipe.name}: give --name {recipe.name}")
    families = [stage.family for stage in recipe.stages.values()]
    if families != [found.family]:
        raise CheckpointError(
            f"the recipe of this checkpoint has one stage, of family {found.family}; got"
            f" {', '.join(families)}"
        )
    _check_rate(recipe, found)


def _check_rate(recipe: Recipe, found: Checkpoint) -> None:
    rate = found.document["config"].get("sample_rate")
    if rate is None:
        return
    data = recipe.data.name
    learned = known(data, settings().project).get("sample_rate")
    if learned != rate:
        raise CheckpointError(
            f"{found.source} speaks at {rate} Hz, and {data}, which the recipe judges it by, has sounds of"
            f" {learned} Hz: prepare them at {rate} Hz"
        )


@flow(flow_run_name="judge checkpoint {recipe.name}")
def judge_checkpoint(recipe: Recipe, trained: dict[str, dict[str, object]]) -> dict[str, object]:
    """Train the recipe's judge, if it has one, and judge what was taken in as a pipeline."""
    prepared = prepare_dataset(recipe.data.name)
    return judge_pipeline(recipe, train_stages(recipe, prepared, trained), prepared)
