"""Evaluate a pipeline: pin its stages, check that they fit, judge what it draws, register it with the findings."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect import flow, task
from prefect.runtime import flow_run

from flows import progress
from flows.context import git_commit, modality_of, named, registry
from flows.evaluating.adapters import adapted, around, base_of
from flows.evaluating.evaluate import Order, evaluate_on_ray
from flows.evaluating.gate import Evaluation, check
from flows.evaluating.pipeline import (
    MODALITIES,
    able_of,
    check_fit,
    clips_of,
    entrances_of,
    facts_of_tokenizer,
    interface_hash,
    opened,
    output_of,
    ports_of,
    sizes_of,
)
from flows.identity.code import judging_code
from flows.identity.why import CODE, judging_work, reason
from flows.prepare import prepare_dataset
from flows.provenance.cards import pipeline_card
from flows.recipe import Recipe, drawing, last_of
from infra.documents import MOST_OF_OURS, read_json
from infra.pipelines import FURTHER, PinnedStage, Pipeline, read_pipeline
from infra.settings import settings
from infra.storage import seal

if TYPE_CHECKING:
    from models.family import Family


def pin(recipe: Recipe, trained: dict[str, Any], facts: dict[str, Any]) -> Pipeline:
    """Return the pipeline that pins these stage versions.

    Raises:
        StageMismatch: two stages do not fit; the message names both.
    """
    stages: list[PinnedStage] = []
    models: dict[str, Family] = {}
    for name, stage in drawing(recipe).items():
        version = trained[name]
        directory = registry().fetch(version["name"], version["version"], digest=version["digest"])
        models[name] = opened(*registry().weights(directory))
        stages.append(
            PinnedStage(
                stage=name,
                name=version["name"],
                version=version["version"],
                sha256=version["digest"],
                family=stage.family,
                interface=interface_hash(models[name]),
                **ports_of(models[name]),
                needs=stage.needs,
                options=stage.sampling,
                adapts=adapted(models[name]),
            )
        )
    if (whole := around(recipe, stages)) is not None:
        check_fit(whole)
        return whole
    entrances = entrances_of(recipe, stages)
    made = output_of(entrances["generate"], stages)
    timed = made.kind == "clip"
    clips = clips_of(entrances["generate"], models, facts["frame_rate"]) if timed else {}
    able = able_of(entrances["generate"], models)
    pipeline = Pipeline(
        endpoint=recipe.name,
        modality=MODALITIES[made.kind],
        abilities=(*able, *(name for way, name in FURTHER.items() if way in entrances)),
        stages=tuple(stages),
        entrances=entrances,
        vocabulary=tuple(facts.get("vocabulary", ())),
        **sizes_of(entrances["generate"], stages, models),
        **clips,
        sample_rate=int(made.space.removesuffix(" Hz")) if made.kind == "sound" else None,
        resolution=made.shape[-1] if made.kind == "volume" else None,
        tokenizer=facts_of_tokenizer(models[last_of(recipe)]) if made.kind == "text" else None,
        sample=recipe.drift.sample if recipe.drift else 0.0,
        try_prompts=recipe.try_prompts,
    )
    check_fit(pipeline)
    return pipeline


def judging_identity(work: dict[str, Any]) -> str:
    """Return the key under which equal judging of equal stages is found again."""
    text = json.dumps({**work, "code": work["code"]["digest"]}, sort_keys=True)
    return f"{work['config']['name']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def work_of(recipe: Recipe, trained: dict[str, Any], prepared: dict[str, Any]) -> dict[str, Any]:
    """Return what the judging of these stages is made of, part by part."""
    trained = {**trained, **base_of(recipe)}
    stages = [*recipe.stages.values(), *([recipe.judge] if recipe.judge else [])]
    modality = modality_of(Path(prepared["path"]))
    code = judging_code([one.family for one in stages], modality)
    return judging_work(recipe, trained, prepared["identity"], code)


@task(task_run_name="judge {recipe.name}")
def judge_pipeline(
    recipe: Recipe, trained: dict[str, Any], prepared: dict[str, Any]
) -> dict[str, Any]:
    """Judge these stages as one pipeline and register it; returns {"name", "version", "digest"}."""
    from infra.stack.cluster import connect

    work = work_of(recipe, trained, prepared)
    key = judging_identity(work)
    if found := registry().find(recipe.name, key):
        return named(found)
    if because := reason(recipe.name, work):
        progress.say(f"{recipe.name} is judged anew: {because}")
    facts = read_json(Path(prepared["path"]) / "dataset.json", most=MOST_OF_OURS)
    pipeline = pin(recipe, trained, facts)
    connect(settings().ray_url)
    order = order_of(recipe, pipeline, trained.get("judge"), prepared)
    progress.say(f"{recipe.name}: its samples are drawn and judged")
    evaluation, files = evaluate_on_ray(order)
    run_id = record(recipe.name, key, evaluation, files)
    files[CODE] = json.dumps(work["code"], indent=1).encode()
    status: Literal["FINISHED", "FAILED"] = "FAILED"
    try:
        version = _publish(recipe, pipeline, prepared, evaluation, files, run_id=run_id, key=key)
        status = "FINISHED"
    finally:
        registry().end_run(run_id, status)
    return named(version)


def order_of(
    recipe: Recipe, pipeline: Pipeline, judge: dict[str, Any] | None, prepared: dict[str, Any]
) -> Order:
    """Return what the judging workers need, addresses and digests only."""
    import ray

    from data import catalog

    own = recipe.judged_by != recipe.data
    judged_on = catalog.prepared(recipe.judged_by.name, settings().project) if own else None
    return Order(
        pipeline=pipeline.model_dump(mode="json"),
        judge=judge,
        prepared=prepared["path"],
        judged_on=str(judged_on.path) if judged_on else prepared["path"],
        data_identity=prepared["identity"],
        spec=recipe.evaluation.model_dump(mode="json"),
        tracking_uri=settings().mlflow_uri,
        cache=str(settings().state / "versions"),
        num_gpus=1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0,
    )


def record(experiment: str, key: str, evaluation: Evaluation, files: dict[str, bytes]) -> str:
    """Write metrics and the gallery to an MLflow run of their own, which is to be ended; returns its id."""
    tags = {"atelier.identity": key, "atelier.flow_run": flow_run.id or ""}
    run_id = registry().start_run(experiment, key, tags)
    values = {name: metric.value for name, metric in evaluation.metrics.items()}
    registry().log_metrics(run_id, values, step=0)
    with tempfile.TemporaryDirectory(prefix="atelier-") as folder:
        _write(Path(folder), files)
        for name in files:
            parent = Path("gallery") / Path(name).parent
            registry().log_file(run_id, Path(folder) / name, parent.as_posix())
    return run_id


def _publish(
    recipe: Recipe,
    pipeline: Pipeline,
    prepared: dict[str, Any],
    evaluation: Evaluation,
    files: dict[str, bytes],
    *,
    run_id: str,
    key: str,
) -> Any:
    report = check(recipe.gate, evaluation, production=None)
    with tempfile.TemporaryDirectory(prefix="atelier-") as folder:
        directory = Path(folder) / "version"
        directory.mkdir()
        card = pipeline_card(recipe, pipeline, prepared["identity"], evaluation, report)
        texts = {
            "pipeline.json": pipeline.model_dump_json(indent=1),
            "recipe.json": recipe.model_dump_json(indent=1),
            "evaluation.json": evaluation.model_dump_json(),
            "report.json": report.model_dump_json(indent=1),
            "card.md": card,
        }
        for name, text in texts.items():
            (directory / name).write_text(text)
        _write(directory, files)
        metrics = {name: metric.value for name, metric in evaluation.metrics.items()}
        facts = {
            "kind": "pipeline",
            "name": recipe.name,
            "data_identity": prepared["identity"],
            "git_commit": git_commit(),
            "run_id": run_id,
            "metrics": metrics,
        }
        if recipe.found_by is not None:
            facts["search"] = recipe.found_by.search
        seal(directory, facts)
        stages = " ".join(f"{stage.name}:{stage.version}" for stage in pipeline.stages)
        tags = {
            "atelier.kind": "pipeline",
            "atelier.data_identity": prepared["identity"],
            "atelier.stages": stages,
            "atelier.gate": "passed" if report.passed else "failed",
        }
        return registry().publish(recipe.name, directory, key=key, tags=tags, run_id=run_id)


def _write(directory: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


@flow(flow_run_name="evaluate {ref}")
def evaluate(ref: str) -> dict[str, Any]:
    """Judge a registered pipeline version anew, on today's data; returns {"evaluation", "report"}."""
    from infra.stack.cluster import connect

    version = registry().get(ref)
    directory = registry().fetch(version)
    if not (directory / "recipe.json").is_file():
        whole = version.name.split(".")[0]
        raise ValueError(f"{version.ref} is a stage, not a pipeline: evaluate {whole!r}")
    recipe = Recipe.model_validate_json((directory / "recipe.json").read_text())
    pipeline = read_pipeline(directory)
    before = Evaluation.model_validate_json((directory / "evaluation.json").read_text())
    prepared = prepare_dataset(recipe.data.name)
    judge = None
    if before.judge is not None:
        pinned = before.judge.version  # its number where it was judged
        found = registry().by_digest(pinned, before.judge.sha256) or registry().get(pinned)
        judge = named(found)
    connect(settings().ray_url)
    order = order_of(recipe, pipeline, judge, prepared)
    evaluation, files = evaluate_on_ray(order)
    key = f"evaluate-{version.ref}-{evaluation.evaluation_set}"
    run_id = record(recipe.name, key, evaluation, files)
    registry().tag_run(run_id, {"atelier.version": version.ref})
    registry().end_run(run_id)
    report = check(recipe.gate, evaluation, production=None)
    return {
        "evaluation": evaluation.model_dump(mode="json", exclude={"outcomes"}),
        "report": report.model_dump(mode="json"),
    }
