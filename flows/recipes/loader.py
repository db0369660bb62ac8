"""From a YAML file to a `Recipe` whose parts fit each other, or one line that says which field does not, and why."""

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Final, get_args

from pydantic import ValidationError

from flows.recipe import Recipe, Stage, drawing, split
from flows.tuning.space import Search
from infra.documents import DocumentError, parse_yaml, read_yaml
from infra.pipelines import SAMPLING
from infra.settings import settings
from models import near
from models.declared import ranks

_NOT_SEARCHED: Final = {"training.steps", "training.validate_every"}  # the search sets them


class RecipeError(ValueError):
    """A recipe that cannot be used, in one line that says which field and why."""


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe at `path` with `a.b=value` overrides (values are YAML).

    Raises:
        RecipeError: no such file, bad YAML, an unknown field or a value outside its range; names the field.
    """
    try:
        document = read_yaml(path)
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}{_meant(path)}") from None
    except DocumentError as error:
        raise RecipeError(str(error)) from None
    if not isinstance(document, dict):
        raise RecipeError(f"{path} must hold a mapping, like flows/recipes/shapes.yaml")
    said: set[str] = set()
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not all(key.split(".")):
            raise RecipeError(f"--set takes a.b=value, got {override!r}")
        if key in said:
            raise RecipeError(f"--set {override}: {key} is set twice")
        said.add(key)
        try:
            _set(document, key.split("."), parse_yaml(value, repr(value)), f"--set {override}")
        except DocumentError as error:
            raise RecipeError(f"--set {override}: {error}") from None
    try:
        recipe = Recipe.model_validate(document)
        _check_options(recipe)
        _check_starts(recipe)
        _check_pipeline(recipe)
        _check_needs(recipe)
        _check_judge(recipe)
        _check_bases(recipe)
        _check_adapters(recipe)
        if recipe.search is not None:
            _check_search(recipe, recipe.search)
        for number in range(len(recipe.control)):
            _check_control(recipe, number)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_first(error)}") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    return recipe


def _meant(path: Path) -> str:
    """Return how an error goes on about a file that is not there: the project's recipe of about that name."""
    known = {one.stem: one for one in (settings().project / "flows" / "recipes").glob("*.yaml")}
    found = get_close_matches(path.stem, known, n=1)
    return f"; did you mean {os.path.relpath(known[found[0]])}?" if found else ""


def controlled(folder: Path, only: Sequence[str] = ()) -> list[Recipe]:
    """Return the recipes that declare a control, in the order of their names, or those named.

    Raises:
        RecipeError: one of them cannot be used.
        ValueError: a name that is no recipe's; the message lists those that there are.
    """
    found = {path.stem: load(path) for path in sorted(folder.glob("*.yaml"))}
    if unknown := [name for name in only if name not in found]:
        raise ValueError(f"no recipe {unknown[0]!r}; choose from {', '.join(found)}")
    return [found[name] for name in only] or [one for one in found.values() if one.control]


def searched_stage(recipe: Recipe) -> str:
    """Return the stage that the recipe's search is about.

    Raises:
        RecipeError: it has no search, does not say which stage, or names one that is not there.
    """
    if recipe.search is None:
        raise RecipeError(
            f"recipe {recipe.name} has no `search:` section, so there is nothing to tune"
        )
    chosen = recipe.search.stage or (next(iter(recipe.stages)) if len(recipe.stages) == 1 else "")
    if chosen not in recipe.stages:
        what = f"no stage {chosen!r}" if chosen else "several stages"
        raise RecipeError(
            f"search.stage: the recipe has {what}; name one of {', '.join(recipe.stages)}"
        )
    return chosen


def changed(stage: Stage, values: Mapping[str, Any]) -> Stage:
    """Return the stage with these values at their paths, validated anew.

    Raises:
        RecipeError: no such field, or a value that it refuses; names the path.
    """
    document = stage.model_dump(mode="json")
    for field, value in values.items():
        _set(document, field.split("."), value, field)
    try:
        return Stage.model_validate(document)
    except ValidationError as error:
        raise RecipeError(_first(error)) from None


def control_of(recipe: Recipe, number: int = 0) -> Recipe:
    """Return the recipe of one of the broken controls: another name, and what it sets.

    Raises:
        RecipeError: the recipe has no such control, or one that sets what a recipe cannot have.
    """
    if number >= len(recipe.control):
        raise RecipeError(f"recipe {recipe.name} has {len(recipe.control)} controls")
    document = recipe.model_dump(mode="json", exclude={"control", "peer", "search"})
    document["name"] = f"{recipe.name}-control" + (f"-{number + 1}" if number else "")
    for field, value in recipe.control[number].set.items():
        _set(document, field.split("."), value, f"control.set {field}")
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError(f"control.set: {_first(error)}") from None


def _check_options(recipe: Recipe) -> None:
    """Refuse an option that has a field of its own; recipes that are stored with their versions may have such."""
    judge = {"judge": recipe.judge} if recipe.judge else {}
    stages = {f"stages.{name}": stage for name, stage in recipe.stages.items()}
    for where, stage in {**stages, **judge}.items():
        if twice := sorted(stage.options.keys() & set(SAMPLING)):
            raise RecipeError(f"{where}.options: {twice[0]} has a field of its own: say it there")


def _check_pipeline(recipe: Recipe) -> None:
    """Refuse a graph of stages that the recipe does not have, or has and does not use."""
    if recipe.pipeline is None:
        return
    if "generate" not in recipe.pipeline:
        raise RecipeError(f"pipeline: it needs the entrance generate, got {[*recipe.pipeline]}")
    for entrance, nodes in recipe.pipeline.items():
        if odd := [name for node in nodes if (name := split(node)[0]) not in recipe.stages]:
            what = f"there is no stage {odd[0]!r}{near(odd[0], sorted(recipe.stages))}"
            raise RecipeError(f"pipeline.{entrance}: {what}")
    used = {split(node)[0] for nodes in recipe.pipeline.values() for node in nodes}
    asked = [name for name, stage in drawing(recipe).items() if not ranks(stage.family)]
    if idle := [name for name in asked if name not in used]:
        raise RecipeError(f"pipeline: the stage {idle[0]} is trained and in no entrance")


def _check_needs(recipe: Recipe) -> None:
    """Refuse a stage that learns from what is not there before it."""
    before: list[str] = []
    for name, stage in recipe.stages.items():
        for port, wanted in stage.needs.items():
            where, (source, entry) = f"stages.{name}.needs.{port}", split(wanted)
            if source not in before:
                known = f"one of {', '.join(before)}" if before else "none is"
                raise RecipeError(
                    f"{where}: {wanted!r} is no stage that stands before {name}: {known}"
                )
            if not entry:
                raise RecipeError(
                    f"{where}: name an entry of {source}, as in {source}/encode, got {wanted!r}"
                )
        if stage.needs and recipe.pipeline is None:
            raise RecipeError(
                f"stages.{name}.needs: say in `pipeline:` how the stages are wired where it draws"
            )
        if stage.needs and stage.training.augment.asked:
            raise RecipeError(
                f"stages.{name}.training.augment: what {name} needs is made of the pictures as they"
                " are; leave it out"
            )
        before.append(name)
    if recipe.judge is not None and recipe.judge.needs:
        raise RecipeError("judge.needs: a judge learns from the data alone; leave it out")


def _check_starts(recipe: Recipe) -> None:
    """Refuse a stage that starts from what is not there before it."""
    before: list[str] = []
    for name, stage in recipe.stages.items():
        if (start := stage.starts_from) is not None:
            where = f"stages.{name}.starts_from"
            if start not in before:
                known = f"one of {', '.join(before)}" if before else "none is"
                raise RecipeError(
                    f"{where}: {start!r} is no stage that stands before {name}: {known}"
                )
            if recipe.pipeline is None:
                raise RecipeError(
                    f"{where}: say in `pipeline:` which stages draw, and how they are wired"
                )
        before.append(name)
    if recipe.judge is not None and recipe.judge.starts_from:
        raise RecipeError("judge.starts_from: a judge learns from the data alone; leave it out")


def _check_judge(recipe: Recipe) -> None:
    """Refuse a judge of pictures of another size, where the stages stand one behind the other."""
    last = [*recipe.stages.values()][-1]
    wired = recipe.pipeline is not None or last.training.lora  # then ports say what comes out
    drawn = None if wired else last.image_size
    if recipe.judge is not None and drawn is not None and recipe.judge.image_size != drawn:
        found = recipe.judge.image_size or "none, which is the dataset's"
        raise RecipeError(
            f"judge.image_size must be {drawn}, the size that the last stage draws at, got {found}"
        )


def _check_bases(recipe: Recipe) -> None:
    """Refuse a stage that starts from whatever this recipe made last: it would never be the same work again."""
    for name, ref in recipe.bases.items():
        if ref.removesuffix("@candidate") in {recipe.name, f"{recipe.name}.{name}"}:
            raise RecipeError(
                f"{name}: training.from {ref} is another version after each run of this recipe:"
                f" name one, {recipe.name}:1 or {recipe.name}@production"
            )


def _check_adapters(recipe: Recipe) -> None:
    """Refuse adapters around which no one pipeline could stay, and to be compared with a base that there is not."""
    refs = {
        name: stage.training.lora and stage.training.lora.base
        for name, stage in recipe.stages.items()
    }
    named = sorted({ref for ref in refs.values() if ref})
    if len(named) > 1:
        raise RecipeError(
            f"training.lora.base: adapters of one pipeline name one base, got {', '.join(named)}"
        )
    of_pipeline = [ref for ref in named if "." not in ref]  # the other names are stages'
    if of_pipeline and None in refs.values():
        whole = next(name for name, ref in refs.items() if ref is None)
        raise RecipeError(
            f"stages.{whole}: {named[0]} stays around its adapters, and {whole} is none: leave it out"
        )
    if recipe.gate.no_worse_than == "base" and not of_pipeline:
        raise RecipeError(
            "gate.no_worse_than: with its base an adapter of a pipeline is compared, and no stage is one"
        )


def _check_control(recipe: Recipe, number: int) -> None:
    _check_options(control_of(recipe, number))
    refused_by = recipe.control[number].refused_by
    asked = [*refused_by, *([recipe.peer.metric] if recipe.peer else [])]
    if unknown := [name for name in asked if name not in recipe.gate.metrics]:
        known = ", ".join(recipe.gate.metrics)
        raise RecipeError(
            f"control.refused_by: the gate has no metric {unknown[0]!r}; choose from {known}"
        )


def _check_search(recipe: Recipe, search: Search) -> None:
    """Refuse a space with a path or a value that the stage would refuse in the middle of a search."""
    stage = recipe.stages[searched_stage(recipe)]
    for field, space in search.space.items():
        if not field.startswith(("training.", "config.")) or field in _NOT_SEARCHED:
            raise RecipeError(
                f"search.space: {field!r} cannot be searched; take a field of the stage's training or"
                " config, like training.optimizers.model.learning_rate (the length of a trial is max_steps)"
            )
        for value in space.ends:
            try:
                changed(stage, {field: value})
            except RecipeError as error:
                raise RecipeError(f"search.space: {error}") from None


def _first(error: ValidationError) -> str:
    """Return the first of the errors in one line; a field that nobody knows comes before all that follows from it."""
    found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    first = found[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields(error, first["loc"][:-1])
        return f"{where}: there is no such field{near(str(first['loc'][-1]), known)}{more}"
    if first["type"] == "missing":
        return f"{where}: this field is missing{more}"
    if first["type"] == "model_type":
        return f"{where}: this is a section of fields, got {shortened(first['input'])}{more}"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}, got {shortened(first['input'])}{more}"


def _fields(error: ValidationError, place: Sequence[int | str]) -> list[str]:
    """Return the names of the fields at a place in the document that was refused."""
    kind: Any = Stage if error.title == "Stage" else Recipe
    for part in place:
        section = hasattr(kind, "model_fields")
        inner = [one for one in get_args(kind) if one is not Ellipsis]
        kind = kind.model_fields[part].annotation if section else inner[-1]
        if isinstance(kind, UnionType):  # a section or None
            kind = next(one for one in get_args(kind) if hasattr(one, "model_fields"))
    return sorted(field.alias or name for name, field in kind.model_fields.items())


def shortened(value: Any) -> str:
    """Return a value as an error shows it: no dump of a whole section."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _set(document: dict[str, Any], keys: Sequence[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        document = document.setdefault(key, {})
        if not isinstance(document, dict):
            raise RecipeError(f"{override}: {key!r} is a value, not a section")
    document[keys[-1]] = value
