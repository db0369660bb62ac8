"""From a recipe to all that fixes the outcome of training one of its stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.reading.outputs import folder_of
from flows.context import modality_of, named, registry
from flows.identity.code import training_code
from flows.provenance.bases import base_of, handed, needs_of, placed
from flows.recipe import Recipe, Stage, split
from flows.training.spec import Need, TrainingSpec

if TYPE_CHECKING:
    from infra.registry.registry import Version


def training_spec(
    recipe: Recipe,
    stage: str,
    prepared: dict[str, Any],
    trained: Mapping[str, dict[str, Any]] | None = None,
) -> TrainingSpec:
    """Return all that fixes the outcome of training `stage` ("judge" is the recipe's judge).

    `prepared` is its own dataset, and `trained` has the versions of the stages that it needs or starts from, as `named`
    gives them.

    Raises:
        RegistryError, RecipeError: there is no such version as `training.from` names.
    """
    chosen: Stage | None = recipe.judge if stage == "judge" else recipe.stages[stage]
    assert chosen is not None
    ref = chosen.training.start
    base = base_of(ref, stage) if ref else None
    if chosen.starts_from:
        base = handed((trained or {})[chosen.starts_from])
    needs = _needed(chosen, trained or {})
    if ref and not needs:  # it learns from what its base did
        needs = needs_of(ref, stage)
    return TrainingSpec(
        name=f"{recipe.name}.{stage}",
        family=chosen.family,
        preset=chosen.preset,
        config=chosen.config,
        image_size=chosen.image_size,
        seed=recipe.seed,
        training=chosen.training,
        resources=chosen.resources,
        dataset=(recipe.judged_by if stage == "judge" else recipe.data).name,
        prepared=Path(prepared["path"]),
        data_identity=prepared["identity"],
        code_identity=training_code(chosen.family, modality_of(Path(prepared["path"]))).digest,
        base=base,
        inherits=chosen.starts_from is not None,
        needs={name: _need(*one, prepared) for name, one in needs.items()},
    )


def _needed(
    stage: Stage, trained: Mapping[str, dict[str, Any]]
) -> dict[str, tuple["Version", str]]:
    """Return what a stage learns from beside the data: by input, a version and its entry."""
    found = {}
    for name, wanted in stage.needs.items():
        source, entry = split(wanted)
        version = trained[source]
        found[name] = registry().get(f"{version['name']}:{version['version']}"), entry
    return found


def _need(version: "Version", entry: str, prepared: dict[str, Any]) -> Need:
    folder = Path(prepared["path"])
    made = folder_of(folder, prepared["identity"], version.digest, entry).resolve()
    return Need(**named(version), entry=entry, path=placed(version), made=made)
