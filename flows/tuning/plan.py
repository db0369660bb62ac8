"""What a search tries: trial n's values are a function of seed and n, so a longer search goes on from a shorter one."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from flows.identity.code import search_code
from flows.recipe import Recipe
from flows.recipes.loader import RecipeError, changed, searched_stage
from flows.training.rows import check_rows
from flows.training.spec import TrainingSpec
from flows.tuning.space import Found, Range, Search
from infra.storage import atomic_write


class Trial(BaseModel):
    """A trial that has ended: the search's memory of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int  # 0: the recipe's own values
    values: dict[str, Any]
    state: Literal["finished", "stopped", "failed"]  # stopped: early, by the scheduler
    curve: tuple[tuple[int, float], ...]  # steps done, validation loss
    why: str = ""  # it failed
    at: float = 0.0  # when it ended, seconds since 1970
    run_id: str = ""  # its MLflow run, once that has everything

    @property
    def step(self) -> int:
        """How many steps were done when it was last measured."""
        return self.curve[-1][0] if self.curve else 0

    @property
    def loss(self) -> float:
        """Its last validation loss."""
        return self.curve[-1][1] if self.curve else math.inf


@dataclass(frozen=True)
class Plan:
    """A search in full: its identity and what each of its trials trains."""

    identity: str  # equal searches have an equal one, however many trials are asked for
    rules: Search
    values: tuple[dict[str, Any], ...]  # by number
    specs: tuple[TrainingSpec, ...]


def draw(space: Range, random: Random) -> Any:
    """Return a value of the space; numbers that are not whole have four significant digits."""
    if space.choice is not None:
        return random.choice(space.choice)
    if space.int_uniform is not None:
        return random.randint(*space.int_uniform)
    low, high = space.ends
    if space.log_uniform is not None:
        value = math.exp(random.uniform(math.log(low), math.log(high)))
    else:
        value = random.uniform(low, high)
    return min(max(float(f"{value:.4g}"), low), high)


def values_of(search: Search, seed: int, number: int) -> dict[str, Any]:
    """Return trial `number`'s values by path; none for trial 0, which is the recipe as it stands."""
    if number == 0:
        return {}
    return {
        field: draw(space, Random(f"{seed}/{number}/{field}"))
        for field, space in search.space.items()
    }


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the searched stage's fields changed."""
    name = searched_stage(recipe)
    stages = {**recipe.stages, name: changed(recipe.stages[name], values)}
    return recipe.model_copy(update={"stages": stages})


def found(recipe: Recipe, search_run: str, number: int, values: dict[str, Any]) -> Recipe:
    """Return the recipe with a trial's values, to be trained in full, that says where they come from."""
    assert recipe.search is not None
    measured = {"training.validate_every": recipe.search.validate_every}
    origin = Found(search=search_run, trial=number, values=values)
    return with_values(recipe, {**values, **measured}).model_copy(update={"found_by": origin})


def trial_recipe(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a trial trains: for `max_steps`, in its own process."""
    rules = recipe.search
    assert rules is not None
    budget = {
        "training.steps": rules.max_steps,
        "training.validate_every": rules.validate_every,
        "resources.num_workers": 0,
    }
    return with_values(recipe, {**values, **budget})


def check_batches(recipe: Recipe, count: int) -> None:
    """Refuse one of the first `count` trials whose batch the stage's workers could not share, trained in full.

    Raises:
        RecipeError: names the trial.
    """
    assert recipe.search is not None
    name = searched_stage(recipe)
    for number in range(count):
        values = values_of(recipe.search, recipe.seed, number)
        try:
            check_rows(with_values(recipe, values).stages[name])
        except ValueError as error:
            raise RecipeError(f"search.space: trial {number} of {values}: {error}") from None


def plan(rules: Search, seed: int, specs: tuple[TrainingSpec, ...]) -> Plan:
    """Return the search whose trial n trains `specs[n]`, of `trial_recipe` with `values_of` n."""
    document = {
        "trial": specs[0].identity,
        "rules": rules.model_dump(mode="json", exclude={"trials"}),
        "seed": seed,
        "code": search_code().digest,
    }
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    values = tuple(values_of(rules, seed, number) for number in range(len(specs)))
    return Plan(f"{specs[0].name}-search-{digest[:12]}", rules, values, specs)


def check(recipe: Recipe) -> None:
    """Refuse a space that the family or the workers would refuse in a search or after it; imports torch.

    Raises:
        RecipeError: no search, a field that the family's config or its optimisers do not have, or as `check_batches`.
    """
    from models import configure, trainable

    stage = recipe.stages[searched_stage(recipe)]
    assert recipe.search is not None
    if stage.needs or stage.starts_from:
        what = "learns from other stages' outputs" if stage.needs else "starts from another stage"
        raise RecipeError(f"search.stage: {stage.family} {what}, and a search trains a stage alone")
    players = trainable(stage.family).players
    for field, space in recipe.search.space.items():
        section, _, rest = field.partition(".")
        if field.startswith("training.optimizers.") and field.split(".")[2] not in players:
            raise RecipeError(
                f"search.space: {field}: {stage.family} has no player {field.split('.')[2]!r};"
                f" choose one of {', '.join(players)}"
            )
        for value in space.ends if section == "config" else ():
            try:
                configure(stage.family, stage.preset, {**stage.config, rest: value}, {})
            except (ValueError, TypeError) as error:
                raise RecipeError(f"search.space: {field}: {error}") from None
    check_batches(recipe, 1 + recipe.search.trials)


class Records:
    """The trials of a search that have ended, one file each; what a killed search starts from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> dict[int, Trial]:
        """Return what has ended, by number."""
        read = (Trial.model_validate_json(path.read_bytes()) for path in self.folder.glob("*.json"))
        return {trial.number: trial for trial in read}

    def write(self, trial: Trial) -> None:
        """Keep a trial, durably."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / f"{trial.number:04d}.json") as file:
            file.write(trial.model_dump_json(indent=1).encode())
