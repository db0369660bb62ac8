"""`check`, `train`, `run`, `evaluate`, `demo`: the verbs that make versions."""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from flows.cli import completing
from flows.cli.promotion_verbs import waiting
from flows.cli.terminal import (
    AsJson,
    Overrides,
    Ref,
    console,
    ready,
    show_json,
    show_table,
    training_progress,
    use_stack,
)
from infra.documents import read_json
from infra.imports import at_rest
from infra.pipelines import Modality
from infra.settings import settings

if TYPE_CHECKING:
    from flows.recipe import Recipe

INTO: Final[Mapping[Modality, str]] = {
    **{"image": " -o picture.png", "audio": " -o sound.wav", "clip": " -o clip.mp4"},
    **{"text": "", "embedding": "", "mesh": " -o thing.glb"},
}
"""Where `atelier generate` is told to write what a model makes."""
RecipeFile = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe, e.g. flows/recipes/shapes.yaml",
        autocompletion=completing.recipes,
    ),
]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command()(check)
    app.command()(train)
    app.command()(run)
    app.command()(evaluate)
    app.command()(demo)


def checked(recipe: Path, overrides: Sequence[str]) -> "Recipe":
    """Return the recipe, once nothing is known for which it would fail later.

    Raises:
        RecipeError: every reason, one a line.
    """
    return _looked_at(recipe, overrides)[0]


def _looked_at(recipe: Path, overrides: Sequence[str]) -> "tuple[Recipe, dict[str, str]]":
    with at_rest():
        from flows.checking import checked as look
        from flows.recipes.loader import load

    if load(recipe, overrides).bases:
        use_stack()
    return look(recipe, overrides, settings().project)


def check(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Tell in seconds, and without the stack, what would fail later in a run of the recipe."""
    wanted, metrics = _looked_at(recipe, overrides or [])
    if as_json:
        show_json({"recipe": wanted.name, "metrics": metrics})
        return
    if wanted.bases:
        from flows.provenance.bases import unseen

        for line in unseen(wanted):
            console.print(line, style="yellow", soft_wrap=True)
    bounds = wanted.gate.metrics
    rows = [
        (name, bounds[name].says if name in bounds else "", why)
        for name, why in sorted(metrics.items(), key=lambda one: (one[0] not in bounds, one[0]))
        if not why
    ]
    show_table("metrics that will be measured", ("metric", "gate"), [row[:2] for row in rows])
    if not wanted.gate.metrics:
        console.print("the gate has no metric: nothing could be promoted")
    again = shlex.join(["atelier", "run", str(recipe), *_set_again(overrides)])
    console.print(f"{recipe} can run; next: {again}", soft_wrap=True)


def _set_again(overrides: Sequence[str] | None) -> list[str]:
    return [word for one in overrides or () for word in ("--set", one)]


def train(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Prepare the data, train every stage and the judge, and register them."""
    wanted = checked(recipe, overrides or [])
    ready()
    from flows.train import train as train_flow

    with training_progress():
        trained = train_flow(wanted)
    if as_json:
        show_json(trained)
        return
    for name, version in trained.items():
        console.print(f"{name}: [bold]{version['name']}:{version['version']}[/]", markup=True)
    again = shlex.join(["atelier", "run", str(recipe), *_set_again(overrides)])
    console.print(
        f"next: {again}   (judges and promotes; nothing is trained twice)",
        soft_wrap=True,
    )


def run(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Walk a recipe the whole way: prepare, train, evaluate, promote, deploy."""
    wanted = checked(recipe, overrides or [])
    ready()
    found = _walk(wanted)
    if as_json:
        show_json(found)
        return
    ref = f"{found['version']['name']}:{found['version']['version']}"
    _show_metrics(ref)
    if "waiting" in found["promoted"]:
        waiting(found["promoted"])
        return
    console.print(f"[bold]{ref}[/] is in production", markup=True)
    asked = (wanted.try_prompts or ("",))[0]
    console.print(f"next: {_asking(ref, asked)}", soft_wrap=True)


def evaluate(ref: Ref, as_json: AsJson = False) -> None:
    """Judge a pipeline version anew on today's data."""
    ready()
    from flows.evaluation import evaluate as evaluate_flow

    found = evaluate_flow(ref)
    if as_json:
        show_json(found)
        return
    _metrics_table(ref, found["evaluation"])
    for condition in found["report"]["conditions"]:
        verdict = "pass" if condition["passed"] else ("FAIL", "red")
        console.print(Text.assemble("  ", verdict, f"  {condition['says']}"))


def demo(overrides: Overrides = None) -> None:
    """From nothing to a served picture: the shapes recipe, then eight prompts through the HTTP API."""
    began = time.monotonic()
    wanted = checked(settings().project / "flows/recipes/shapes.yaml", overrides or [])
    with ThreadPoolExecutor(1) as beside:  # the data need no server; what is wrong the flow says
        beside.submit(_prepared, wanted.data.name)
        ready()
    found = _walk(wanted)
    ref = f"{found['version']['name']}:{found['version']['version']}"
    _show_metrics(ref)
    from flows.cli.client import paint_sheet

    sheet = settings().state / "demo" / "sheet.png"
    paint_sheet(wanted.name, wanted.try_prompts, sheet)
    here = settings()
    show_table(
        "where to look",
        ("page", "address or command"),
        [
            ("the sheet", sheet),
            ("flows (Prefect)", ".venv/bin/atelier open prefect"),
            ("runs and versions (MLflow)", ".venv/bin/atelier open mlflow"),
            ("cluster (Ray)", ".venv/bin/atelier open ray"),
            ("API", f"{here.gateway_url}  (schema: /v1/openapi.json)"),
            ("data report", here.state / "reports" / f"{wanted.data.name}.html"),
        ],
    )
    console.print(
        f"\n{ref} paints in production, {time.monotonic() - began:.0f} s after the start. Try next:"
    )
    console.print(
        f'  .venv/bin/atelier generate {wanted.name} "a large yellow cross on the right" -o cross.png',
        soft_wrap=True,
    )
    console.print(f"  .venv/bin/atelier history {wanted.name}")
    console.print("  .venv/bin/atelier open mlflow  # or prefect, or ray: its page, signed in")
    console.print("  .venv/bin/atelier down")


def _prepared(dataset: str) -> None:
    """Prepare a dataset that is not."""
    from data.catalog import CatalogError, prepare, prepared

    try:
        prepared(dataset, settings().project)
    except CatalogError:
        prepare(dataset, settings().project)


def _walk(wanted: Any) -> dict[str, Any]:
    from flows.lifecycle import lifecycle

    with training_progress():
        found: dict[str, Any] = lifecycle(wanted)
    return found


def _show_metrics(ref: str) -> None:

    from flows.context import registry

    directory = registry().fetch(registry().get(ref))
    found = read_json(directory / "evaluation.json")
    _metrics_table(ref, found)


def _asking(ref: str, prompt: str) -> str:
    """Return the command that asks a version in production; text goes to the terminal."""
    from flows.context import registry
    from infra.pipelines import read_pipeline
    from infra.serving import address

    version = registry().get(ref)
    made = read_pipeline(registry().fetch(version)).modality
    if made == "embedding":
        body = json.dumps({"model": version.name, "input": prompt})
        url = f"{address(settings())}/v1/embeddings"
        return f"curl {url} -H 'content-type: application/json' -d {shlex.quote(body)}"
    return f"atelier generate {version.name} {shlex.quote(prompt)}{INTO[made]}"


def _metrics_table(ref: str, evaluation: dict[str, Any]) -> None:
    rows = [
        (name, f"{m['value']:.4g}", f"{m['low']:.4g} .. {m['high']:.4g}", m["count"])
        for name, m in evaluation["metrics"].items()
    ]
    show_table(f"{ref}, judged", ("metric", "value", "95 % interval", "samples"), rows)
    for one in evaluation.get("left_out", []):  # none in files of before
        console.print(f"in no metric: {one}", style="yellow", soft_wrap=True)
