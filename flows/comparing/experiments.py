"""Every family's experiment: a recipe by several seeds and its broken controls, all really trained, none promoted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from httpx import HTTPError
from prefect import flow
from pydantic import BaseModel, ConfigDict

from data.params import CatalogError
from flows.context import registry
from flows.evaluating.gate import Condition, GateReport
from flows.evaluation import judge_pipeline
from flows.prepare import prepare_for
from flows.recipe import Bound, Recipe, Stage
from flows.recipes.loader import control_of
from flows.train import needed, train_stages
from infra.documents import read_json
from infra.pipelines import SAMPLING
from infra.storage import MANIFEST

FAILURES: Final = (
    ValueError,
    OSError,
    RuntimeError,
    LookupError,
    HTTPError,
)  # Prefect's is httpx's


class Side(BaseModel):
    """What the gate said of one trained model, and what its training cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: str = ""
    commit: str = ""  # at which it was judged
    cpu_seconds: float = 0.0  # of its stages' trainings, the judge's not counted
    conditions: dict[str, Condition] = {}
    passed: bool = False
    note: str = ""  # why it has no conditions


class Broken(BaseModel):
    """A control, and the metrics that must refuse it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: Side
    refused_by: tuple[str, ...]

    @property
    def refused(self) -> bool:
        """Whether all of them do, or it diverged."""
        return bool(self.side.note) or all(_fails(self.side, name) for name in self.refused_by)


class Row(BaseModel):
    """One experiment of the table: a line a metric of its gate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    families: tuple[str, ...]
    bounds: dict[str, Bound]
    seeds: tuple[Side, ...] = ()  # the model as it is, one a seed; none: it was not run
    controls: tuple[Broken, ...] = ()
    peer: str = ""  # of the metric before the colon
    note: str = ""

    @property
    def good(self) -> bool | None:
        """Whether every seed clears the gate and no control does; None where nothing was run."""
        if not self.seeds:
            return None
        honest = all(side.passed for side in self.seeds)
        return honest and all(control.refused for control in self.controls)

    @property
    def notes(self) -> list[str]:
        """What is to be said beside the table."""
        found = [self.note] if self.note else []
        for number, side in enumerate(self.seeds):
            failed = [one.says for one in side.conditions.values() if not one.passed]
            found += [f"seed {number}: {says}" for says in [side.note, *failed] if says]
        for number, control in enumerate(self.controls, 1):
            which = f"control {number}" if len(self.controls) > 1 else "the control"
            if control.side.note:
                found.append(f"{which} diverged: {control.side.note}")
            elif not control.refused:
                found.append(f"{which} is not refused by {', '.join(control.refused_by)}")
        return [f"{self.name}: {says}" for says in found]


def run(recipe: Recipe, seeds: int = 1) -> Row:
    """Return a recipe's row; where its data is not there, or it failed, it says so and costs the others nothing."""
    try:
        return experiment(recipe, seeds)
    except CatalogError as error:
        return row(recipe, note=f"not run: {error}")
    except FAILURES as error:
        return row(recipe, note=f"failed: {error}")


@flow(flow_run_name="experiment {recipe.name}")
def experiment(recipe: Recipe, seeds: int = 1) -> Row:
    """Train and judge a recipe, by so many seeds from its own on, and its controls; nothing is promoted.

    One training after the other, so that the CPU-seconds of each are its own. Equal work done before is found, so what
    was killed is taken up again. The recipe's own judge looks at all.
    """
    prepared = prepare_for(recipe)
    trained: dict[str, Any] = {}
    honest = []
    for number in range(seeds):
        seeded, judge = by_seed(recipe, number, trained)
        try:
            found = one_by_one(seeded, prepared, judge)
        except ArithmeticError as error:  # it diverged, which is an answer
            honest.append(Side(note=f"diverged: {error}"))
            continue
        trained = trained or found
        honest.append(side(judge_pipeline(seeded, found, prepared), found, list(recipe.stages)))
    controls = [_broken(recipe, number, trained, prepared) for number in range(len(recipe.control))]
    return row(recipe, honest, controls)


def by_seed(
    recipe: Recipe, number: int, trained: Mapping[str, Any]
) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe by its seed of this number, and of what was trained the judge, which looks at all seeds."""
    judge = {name: version for name, version in trained.items() if name == "judge"}
    return recipe.model_copy(update={"seed": recipe.seed + number}), judge


def _broken(recipe: Recipe, number: int, trained: dict[str, Any], prepared: dict[str, Any]) -> Side:
    """Train and judge one of a recipe's controls; what it leaves, or only samples otherwise, is not trained twice."""
    broken = control_of(recipe, number)
    same = unchanged(recipe, broken, trained)
    changed = {name: stage for name, stage in broken.stages.items() if name not in same}
    try:
        parts = broken.model_copy(update={"stages": changed})
        stages = one_by_one(parts, prepared, same)
    except ArithmeticError as error:
        return Side(note=str(error))
    return side(judge_pipeline(broken, stages, prepared), stages, list(recipe.stages))


def unchanged(recipe: Recipe, broken: Recipe, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was trained that a control leaves: stages that learn the same, of stages that do, and the judge."""
    same = {name: version for name, version in trained.items() if name == "judge"}
    for name in recipe.stages:  # those that a stage needs stand before it
        kept = name in trained and needed(recipe, name) <= same.keys()
        if kept and _learned(recipe.stages[name]) == _learned(broken.stages[name]):
            same[name] = trained[name]
    return same


def _learned(stage: Stage) -> Stage:
    """Return a stage without how it is sampled."""
    return stage.model_copy(update={**dict.fromkeys(SAMPLING), "options": {}})


def one_by_one(
    recipe: Recipe, prepared: dict[str, Any], there: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train the recipe's networks in turn, but for those that are `there`; returns as `train_stages`."""
    found = dict(there or {})
    for name, stage in recipe.stages.items():
        alone = recipe.model_copy(update={"stages": {name: stage}, "judge": None})
        found = train_stages(alone, prepared, found)
    if recipe.judge is not None:
        found = train_stages(recipe.model_copy(update={"stages": {}}), prepared, found)
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
        commit=read_json(directory / MANIFEST).get("git_commit", "")[:7],
        cpu_seconds=round(spent, 1),
        conditions={condition.name: condition for condition in report.conditions},
        passed=report.passed,
    )


def row(
    recipe: Recipe, honest: Sequence[Side] = (), controls: Sequence[Side] = (), note: str = ""
) -> Row:
    """Return a recipe's row: each control must fail by every metric that it names."""
    pairs = zip(recipe.control, controls, strict=False)
    peer = recipe.peer
    return Row(
        name=recipe.name,
        families=tuple(stage.family for stage in recipe.stages.values()),
        bounds=dict(recipe.gate.metrics),
        seeds=tuple(honest),
        controls=tuple(Broken(side=one, refused_by=told.refused_by) for told, one in pairs),
        peer=f"{peer.metric}: {peer.name} {peer.value:g}" if peer else "",
        note=note,
    )


COLUMNS: Final = (
    *("experiment", "metric", "gate", "worst (95 %)", "mean", "spread", "control"),
    *("seeds", "CPU-s", "commit", "peer", ""),
)


def lines(one: Row) -> list[tuple[str, ...]]:
    """Return a row's lines of the table as text, one a metric: its worst seed, all of them, and the controls."""
    return [_line(one, name) for name in one.bounds] if one.seeds else []


def _line(one: Row, metric: str) -> tuple[str, ...]:
    first = one.seeds[0]
    found = [side.conditions[metric] for side in one.seeds if metric in side.conditions]
    values = [each.value for each in found if each.value is not None]
    good = not any(_fails(side, metric) for side in one.seeds)
    good = good and not any(_passes(control, metric) for control in one.controls)
    peered = one.peer.startswith(f"{metric}: ")
    return (
        one.name,
        metric,
        one.bounds[metric].says,
        _worst(found) if len(values) == len(one.seeds) else "not measured",
        f"{sum(values) / len(values):.4g}" if len(values) > 1 else "-",
        f"{max(values) - min(values):.2g}" if len(values) > 1 else "-",
        "; ".join(_refusal(control, metric) for control in one.controls) or "-",
        str(len(one.seeds)),
        f"{sum(side.cpu_seconds for side in one.seeds) / len(one.seeds):.0f}",
        first.commit or "-",
        one.peer.removeprefix(f"{metric}: ") if peered else "-",
        "good" if good else "FAILED",
    )


def _worst(found: Iterable[Condition]) -> str:
    """Return the value, and its interval, that is nearest to a bound, or furthest behind it."""

    def room(one: Condition) -> float:
        low, high = (one.value if end is None else end for end in (one.low, one.high))
        assert low is not None
        assert high is not None
        sides = [low - one.at_least] if one.at_least is not None else []
        return min([*sides, *([one.at_most - high] if one.at_most is not None else [])])

    worst = min(found, key=room)
    ends = worst.low is not None and worst.high is not None
    return f"{worst.value:.4g}" + (f" ({worst.low:.4g} .. {worst.high:.4g})" if ends else "")


def _refusal(control: Broken, metric: str) -> str:
    """Return a control's value of a metric, and whether that refuses it, or should."""
    if control.side.note:
        return "diverged"
    condition = control.side.conditions.get(metric)
    value = condition.value if condition else None
    shown = "not measured" if value is None else f"{value:.4g}"
    if _fails(control.side, metric):
        return f"{shown}, refused"
    return f"{shown}, PASSED" if _passes(control, metric) else shown


def _passes(control: Broken, metric: str) -> bool:
    """Whether a control passes a metric that must refuse it."""
    named = metric in control.refused_by and not control.side.note
    return named and not _fails(control.side, metric)


def _fails(side: Side, metric: str) -> bool:
    return metric not in side.conditions or not side.conditions[metric].passed


BEGIN: Final = "<!-- atelier bench families -->"
END: Final = "<!-- end -->"


def written(rows: Sequence[Row], document: str) -> str:
    """Return a document with the rows in its table of experiments; lines of experiments that were not run stay.

    The table stands between two remarks; an empty document gets both.

    Raises:
        ValueError: the document has other text, and no such table.
    """
    before, begin, rest = document.partition(BEGIN)
    table, end, after = rest.partition(END)
    if document.strip() and not (begin and end):
        raise ValueError(
            f"it has no table of experiments: put the lines {BEGIN} and {END} where it is to stand"
        )
    run = {one.name for one in rows if one.seeds}
    kept = [line for line in table.splitlines() if line.startswith("| ")][1:]
    said = [line for line in table.splitlines() if line.startswith("- ")]
    texts = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        for one in rows
        for cells in lines(one)
    ]
    told = [line for line in kept if line.split(" | ")[0].removeprefix("| ") not in run]
    body = sorted([*told, *texts], key=lambda line: line.split(" | ")[0])
    notes = [line for line in said if line.removeprefix("- ").partition(":")[0] not in run]
    notes = sorted([*notes, *(f"- {says}" for one in rows if one.seeds for says in one.notes)])
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    block = "\n".join([BEGIN, *head, *body, *([""] if notes else []), *notes, END])
    return before + block + (after if end else "\n")
