"""Every family's experiment: a recipe and its broken controls, all really trained and judged, and none promoted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from prefect import flow
from pydantic import BaseModel, ConfigDict

from data.params import CatalogError
from flows.evaluation import judge_pipeline
from flows.judging.gate import Condition, GateReport
from flows.prepare import prepare_dataset
from flows.recipe import Recipe, control_of, load
from flows.train import train_stages
from flows.workshop import registry
from infra.documents import read_json
from infra.storage import MANIFEST


class Side(BaseModel):
    """What the gate said of one of the two, and what its training cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: str = ""
    cpu_seconds: float = 0.0  # of its stages' trainings, the judge's not counted
    conditions: dict[str, Condition] = {}
    passed: bool = False
    note: str = ""  # why it has no conditions


class Row(BaseModel):
    """One experiment of the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    families: tuple[str, ...]
    metric: str  # that the control is refused by, the first of them
    bound: str
    honest: Side | None = None  # None: it was not run
    control: Side | None = None
    refused: bool | None = (
        None  # the control, by every metric that the recipe names; None: it has none
    )
    peer: str = ""
    note: str = ""

    @property
    def good(self) -> bool | None:
        """Whether the model clears its gate and the control does not; None where nothing was run."""
        if self.honest is None:
            return None
        return self.honest.passed and self.refused is not False


def recipes(folder: Path, only: Sequence[str] = ()) -> list[Recipe]:
    """Return the recipes that declare a control, or those named, in the order of their names.

    Raises:
        RecipeError: one of them cannot be used.
        ValueError: a name that is no recipe's; the message lists those that there are.
    """
    found = {path.stem: load(path) for path in sorted(folder.glob("*.yaml"))}
    if unknown := [name for name in only if name not in found]:
        raise ValueError(f"no recipe {unknown[0]!r}; choose from {', '.join(found)}")
    return [one for name, one in found.items() if (name in only if only else one.control)]


def run(recipe: Recipe) -> list[Row]:
    """Return a row a control of a recipe, one at least; where its data is not there it says so and is not run."""
    try:
        found = experiment(recipe)
    except CatalogError as error:
        return [row(recipe, None, None, note=f"not run: {error}")]
    except ArithmeticError as error:  # one failure costs the other rows nothing
        return [row(recipe, Side(), None, note=f"diverged: {error}")]
    honest = side(found["version"], found["trained"], list(recipe.stages))
    controls = [
        Side(note=one["diverged"])
        if "diverged" in one
        else side(one["version"], one["trained"], list(recipe.stages))
        for one in found["controls"]
    ]
    if not controls:
        return [row(recipe, honest, None)]
    return [row(recipe, honest, one, number=number) for number, one in enumerate(controls)]


@flow(flow_run_name="experiment {recipe.name}")
def experiment(recipe: Recipe) -> dict[str, Any]:
    """Train and judge a recipe and its controls; equal work done before is found, and nothing is promoted.

    One training after the other, so that the CPU-seconds of each are its own. The same judge looks at all, and
    what a control leaves as it is (another stage) is not trained twice.
    """
    prepared = prepare_dataset(recipe.data.name)
    trained = one_by_one(recipe, prepared)
    found = {"version": judge_pipeline(recipe, trained, prepared), "trained": trained}
    controls = [_broken(recipe, number, trained, prepared) for number in range(len(recipe.control))]
    return {**found, "controls": controls}


def _broken(
    recipe: Recipe, number: int, trained: dict[str, Any], prepared: dict[str, Any]
) -> dict[str, Any]:
    """Train and judge one of a recipe's controls."""
    broken = control_of(recipe, number)
    same = {
        name: version
        for name, version in trained.items()
        if name == "judge" or recipe.stages[name] == broken.stages[name]
    }
    changed = {name: stage for name, stage in broken.stages.items() if name not in same}
    try:
        parts = broken.model_copy(update={"stages": changed, "judge": None})
        stages = one_by_one(parts, prepared) | same
    except ArithmeticError as error:  # it diverged, which is an answer
        return {"diverged": str(error)}
    return {"version": judge_pipeline(broken, stages, prepared), "trained": stages}


def one_by_one(recipe: Recipe, prepared: dict[str, Any]) -> dict[str, Any]:
    """Train the recipe's networks in turn; returns {stage: {"name", "version", "digest"}}."""
    found: dict[str, Any] = {}
    for name, stage in recipe.stages.items():
        alone = recipe.model_copy(update={"stages": {name: stage}, "judge": None})
        found |= train_stages(alone, prepared)
    if recipe.judge is not None:
        found |= train_stages(recipe.model_copy(update={"stages": {}}), prepared)
    return found


def side(version: dict[str, Any], trained: dict[str, Any], stages: Sequence[str]) -> Side:
    """Return what stands with a judged version and its stages."""
    ref = f"{version['name']}:{version['version']}"
    directory = registry().fetch(ref, digest=version["digest"])
    report = GateReport.model_validate_json((directory / "report.json").read_bytes())
    spent = 0.0
    for stage in stages:
        one = trained[stage]
        folder = registry().fetch(one["name"], one["version"], digest=one["digest"])
        spent += read_json(folder / MANIFEST)["metrics"].get("cpu_seconds", 0.0)
    return Side(
        ref=ref,
        cpu_seconds=round(spent, 1),
        conditions={condition.name: condition for condition in report.conditions},
        passed=report.passed,
    )


def row(
    recipe: Recipe, honest: Side | None, control: Side | None, note: str = "", number: int = 0
) -> Row:
    """Return a recipe's row: the control of this number must fail by every metric that it names."""
    named = recipe.control[number].refused_by if recipe.control else tuple(recipe.gate.metrics)
    metric = next(iter(named), "")
    bound = recipe.gate.metrics.get(metric)
    refused = None
    if control is not None:
        failed = {name for name, condition in control.conditions.items() if not condition.passed}
        refused = bool(control.note) or set(named) <= failed
    notes = [note] if note else []
    if honest is not None and not honest.passed:
        notes += [one.says for one in honest.conditions.values() if not one.passed]
    if refused is False:
        notes.append(f"the control is not refused by {', '.join(named)}")
    if control is not None and control.note:
        notes.append(f"the control diverged: {control.note}")
    return Row(
        name=recipe.name + (f", control {number + 1}" if number else ""),
        families=tuple(stage.family for stage in recipe.stages.values()),
        metric=metric,
        bound="" if bound is None else bound.says,
        honest=honest,
        control=control,
        refused=refused,
        peer=f"{recipe.peer.name} {recipe.peer.value:g}" if recipe.peer else "",
        note="; ".join(notes),
    )


COLUMNS: Final = ("experiment", "metric", "value", "gate", "control", "CPU-s", "peer", "")


def cells(one: Row, *, spread: bool = False) -> tuple[str, ...]:
    """Return a row of the table as text; `spread` adds the intervals."""
    control = _value(one.control, one.metric, spread)
    if one.refused is not None:
        control += ", refused" if one.refused else ", PASSED"
    return (
        one.name,
        one.metric,
        _value(one.honest, one.metric, spread),
        one.bound,
        control,
        f"{one.honest.cpu_seconds:.0f}" if one.honest else "-",
        one.peer or "-",
        {True: "good", False: "FAILED", None: "missing"}[one.good],
    )


def _value(one: Side | None, metric: str, spread: bool) -> str:
    if one is None:
        return "-"
    if metric not in one.conditions or (found := one.conditions[metric]).value is None:
        return "not measured"
    if not spread or found.low is None or found.high is None:
        return f"{found.value:.4g}"
    return f"{found.value:.4g} ({found.low:.4g} .. {found.high:.4g})"


def notes(rows: Sequence[Row]) -> list[str]:
    """Return what is to be said of rows beside the table."""
    return [f"{one.name}: {one.note}" for one in rows if one.note]


def markdown(rows: Sequence[Row]) -> str:
    """Return the table as Markdown, with intervals, and the notes below."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for one in rows:
        texts = (cell.replace("|", "\\|") for cell in cells(one, spread=True))
        lines.append("| " + " | ".join(texts) + " |")
    said = [f"- {note}" for note in notes(rows)]
    return "\n".join([*lines, *([""] if said else []), *said]) + "\n"
