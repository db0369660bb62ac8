"""Train every stage of a recipe, and its judge, at the same time as far as the cluster has room; register each."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from prefect import flow, task
from prefect.futures import wait
from prefect.runtime import flow_run

from flows import progress
from flows.checking import missampled, unsuited
from flows.context import environment, git_commit, modality_of, named, registry
from flows.identity.code import training_code
from flows.identity.why import CODE, reason, training_work
from flows.prepare import prepare_dataset, prepare_for
from flows.provenance.cards import model_card
from flows.recipe import Recipe, split
from flows.scheduling.concurrency import training_slots
from flows.training.halting import ends_with_the_caller
from flows.training.room import lined_up
from flows.training.spec import Need, TrainingSpec
from flows.training.specifying import training_spec
from infra.documents import read_json
from infra.settings import settings
from infra.storage import MANIFEST, seal

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

    from infra.registry.registry import Version


PLACES: Final[Any] = {
    "prepared": True,
    "base": {"path"},
    "needs": {"__all__": {"path", "made"}},
}
"""Of a TrainingSpec, where things lie on this machine."""


@task(task_run_name="train {spec.name}")
def train_stage(spec: TrainingSpec, experiment: str) -> dict[str, Any]:
    """Train one network on Ray and register it; equal work done before is found by its identity."""
    from flows.training.ray_train import fit

    if found := registry().find(spec.name, spec.identity):
        return named(found)
    here, work = settings(), work_of(spec)
    tags = {
        "atelier.identity": spec.identity,
        "atelier.git_commit": git_commit(),
        "atelier.flow_run": flow_run.id or "",
    }
    run_id = registry().start_run(experiment, spec.identity, tags)
    registry().log_params(run_id, _flat(spec))
    status: Literal["FINISHED", "FAILED"] = "FAILED"
    try:
        trained = fit(
            spec,
            run_id=run_id,
            tracking_uri=here.mlflow_uri,
            runs=here.runs,
            ray_url=here.ray_url if spec.resources.num_workers else None,
            on_progress=progress.reporter(spec.name),
        )
        version = publish(spec, work["code"], trained.directory, trained.metrics, run_id)
        status = "FINISHED"
    finally:
        registry().end_run(run_id, status)
    return named(version)


def publish(
    spec: TrainingSpec,
    code: dict[str, Any],
    final: Path,
    metrics: dict[str, float],
    run_id: str,
) -> "Version":
    """Register the weights with their card and lineage; the identity is the idempotency key."""
    facts: dict[str, Any] = {
        "kind": "model",
        "name": spec.name,
        "data_identity": spec.data_identity,
        "code_identity": spec.code_identity,
        "seed": spec.seed,
        "run_id": run_id,
        "git_commit": git_commit(),
        "environment": environment(),
        "metrics": metrics,
    }
    if spec.needs:
        facts["needs"] = " ".join(one.says for one in spec.needs.values())
        facts["needs_digests"] = " ".join(one.digest for one in spec.needs.values())
    if spec.base is not None:
        facts["base"] = f"{spec.base.name}:{spec.base.version}"
        facts["base_digest"] = spec.base.digest
    with tempfile.TemporaryDirectory(prefix="atelier-") as folder:
        directory = Path(folder) / "version"
        shutil.copytree(final, directory, ignore=shutil.ignore_patterns(MANIFEST))
        done = read_json(final / MANIFEST)["steps"]  # fewer, where patience was over
        (directory / "card.md").write_text(model_card(spec, facts, done))
        (directory / CODE).write_text(json.dumps(code, indent=1))
        (directory / "training.json").write_text(spec.model_dump_json(indent=1, exclude=PLACES))
        seal(directory, facts)
        tags = {
            "atelier.kind": "model",
            "atelier.family": spec.family,
            "atelier.dataset": spec.dataset,
            "atelier.data_identity": spec.data_identity,
            "atelier.code_identity": spec.code_identity,
        }
        made = registry().publish(spec.name, directory, key=spec.identity, tags=tags, run_id=run_id)
        registry().keep(made, directory)  # it is judged next, by workers that have no MLflow loaded
        return made


@flow(flow_run_name="train {recipe.name}")
def train(recipe: Recipe) -> dict[str, Any]:
    """Prepare the data and train all stages and the judge; returns {stage: {"name", "version", "digest"}}."""
    return train_stages(recipe, prepare_for(recipe))


def train_stages(
    recipe: Recipe, prepared: dict[str, Any], there: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Train what needs nobody, and then, time after time, what needs only those; returns as `train`.

    Stages that are `there` are taken as they are.
    """
    trained: dict[str, Any] = dict(there or {})
    waiting = [*recipe.stages, *(["judge"] if recipe.judge else [])]
    waiting = [name for name in waiting if name not in trained]
    while waiting:
        ready = [name for name in waiting if needed(recipe, name) <= trained.keys()]
        if not ready:
            raise ValueError(f"{waiting[0]} needs a stage that is not there: {recipe.name}")
        specs = {
            name: training_spec(recipe, name, _data_of(recipe, name, prepared), trained)
            for name in ready
        }
        trained |= _train_together(recipe, specs)
        waiting = [name for name in waiting if name not in ready]
    return trained


def _data_of(recipe: Recipe, name: str, prepared: dict[str, Any]) -> dict[str, Any]:
    """Return what a stage, or the judge, learns from: the recipe's data, which are prepared, or the judge's own."""
    if name != "judge" or recipe.judged_by == recipe.data:
        return prepared
    return prepare_dataset(recipe.judged_by.name)


def needed(recipe: Recipe, name: str) -> set[str]:
    """Return the stages that a stage, or the judge, learns from or starts from."""
    if name not in recipe.stages:
        return set()
    stage = recipe.stages[name]
    start = {stage.starts_from} if stage.starts_from else set()
    return start | {split(wanted)[0] for wanted in stage.needs.values()}


def _train_together(recipe: Recipe, specs: Mapping[str, TrainingSpec]) -> dict[str, Any]:
    """Start these trainings at once; they ask for room in their order, and another flow's trainings wait."""
    missing = {
        name: spec for name, spec in specs.items() if not registry().find(spec.name, spec.identity)
    }
    new = [*missing.values()]
    check_specs(new)
    check_sampling(recipe, missing)
    for spec in new:
        if because := reason(spec.name, work_of(spec)):
            progress.say(f"{spec.name} is trained anew: {because}")
    on_ray = [spec.name for spec in new if spec.resources.num_workers]
    with training_slots(new), lined_up(on_ray), ends_with_the_caller():
        for spec in new:
            for name, need in spec.needs.items():
                make_outputs(need, spec, name)
        futures = {name: train_stage.submit(spec, recipe.name) for name, spec in specs.items()}
        return outcomes(futures)


def outcomes(futures: "Mapping[str, PrefectFuture[Any]]") -> dict[str, Any]:
    """Return what tasks return, once all have ended: one that failed frees no slot that another still trains on."""
    wait([*futures.values()])
    return {name: future.result() for name, future in futures.items()}


@task(task_run_name="make {name} for {spec.name}")
def make_outputs(need: Need, spec: TrainingSpec, name: str) -> None:
    """Make what a stage learns from beside the data, unless it was made before."""
    from flows.training.frozen import make

    if make(need, spec.prepared, settings().ray_url, here=not spec.resources.num_workers):
        progress.say(f"{need.says} made {name} of every row of {spec.dataset}, for {spec.name}")


def work_of(spec: TrainingSpec) -> dict[str, Any]:
    """Return what a training is made of, part by part."""
    return training_work(spec, training_code(spec.family, modality_of(spec.prepared)))


def check_specs(specs: Sequence[TrainingSpec]) -> None:
    """Refuse a family, preset or setting that does not exist or does not suit the data, before anything is trained.

    Raises:
        ValueError: names the stage and what is wrong with it.
    """
    from data.loaders import facts_of, read_header
    from flows.training import starting
    from flows.training.counting import check_passes
    from models import trainable
    from models.declared import of

    for spec in specs:
        try:
            family = trainable(spec.family)
            if lines := unsuited(spec, of(family), read_header(spec.prepared)):
                raise ValueError(lines[0])
            config = starting.config_of(
                spec, facts_of(spec.prepared, spec.image_size, stills=spec.stills)
            )
            if spec.inherits:
                starting.check_inherited(spec, config)
            elif spec.base is not None:
                starting.check(spec, config, spec.base.path, spec.base.says)
            if family.counts:
                check_passes(spec, family(config))
        except ValueError as error:
            raise ValueError(f"{spec.name}: {error}") from None


def check_sampling(recipe: Recipe, specs: Mapping[str, TrainingSpec]) -> None:
    """Refuse options that a stage's samples cannot be drawn by, now that its data is prepared, before it is trained.

    Raises:
        ValueError: names the stage, the option and what is wrong with it.
    """
    from data.loaders import facts_of
    from flows.training.starting import config_of
    from models import trainable
    from models.family import Family
    from models.outline import outline

    for name in specs.keys() & recipe.stages.keys():
        spec, sampling = specs[name], recipe.stages[name].sampling
        facts = facts_of(spec.prepared, spec.image_size, stills=spec.stills)
        model = outline(trainable(spec.family), config_of(spec, facts))
        if isinstance(model, Family) and (lines := [*missampled(model, sampling)]):
            raise ValueError(f"stages.{name}.{lines[0]}")


def _flat(spec: TrainingSpec) -> dict[str, str]:
    document = spec.model_dump(mode="json", exclude=PLACES)
    flat: dict[str, str] = {}
    for key, value in document.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{key}.{name}".rstrip("."): json.dumps(item)[:500] for name, item in inner}
    return flat
