"""Drift: have the prompts, or the pictures answered, moved away from what the version was promoted on?

The gateway keeps a share of the answers of a version whose recipe asks for it (`drift: {sample: 0.1}`): pictures with
their receipts. Prompts are compared with those that the version was promoted on; pictures with what the same version
draws for the served prompts with other seeds, which is a pure function of the version.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from prefect import flow

from flows.context import ledger, registry
from flows.evaluating.gate import Evaluation
from flows.evaluating.pictures import fixed_requests, named, wanted_attributes
from flows.evaluating.pipeline import draw, load_model
from flows.recipe import Recipe
from flows.reports.drift import DriftReport, Finding, write_page
from infra.ledger.intervals import wilson
from infra.pipelines import PinnedStage, read_pipeline
from infra.receipts.receipts import read
from infra.settings import settings
from infra.storage import oldest_first

if TYPE_CHECKING:
    from torch import Tensor

    from models.judges.attribute_judge import AttributeJudge

LEAST: Final = 100  # answers, before anything is said
STABILITY_LIMIT: Final = 0.25
SIGNIFICANT: Final = 0.01
MOST: Final = 500  # answers compared, the newest
FRESH_SEED: Final = 2**40  # above what evaluations and most users ask for


class TooFew(ValueError):
    """There are not enough kept answers to say anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Pictures (N, C, H, W) in [0, 1] and the prompts they were drawn for."""

    prompts: list[str]
    pictures: "Tensor"


def kept(name: str, digest: str, first: PinnedStage, channels: int) -> Sample:
    """Return the answers that the gateway kept of one version, oldest first, with as many channels as its judge sees.

    Those for which a user chose other options, or another size, than the pipeline's own are left out: they differ by
    wish.

    Raises:
        TooFew: there are fewer than 100.
    """
    import numpy as np
    import torch
    from PIL import Image

    folder, mode = settings().samples / name, "L" if channels == 1 else "RGB"
    prompts, pictures = [], []
    for path, _ in oldest_first(folder, "*.png")[-MOST:]:
        receipt = read(path)
        own = receipt.sampling == first.options
        if receipt.digest == digest and own:
            with Image.open(path) as image:
                pixels = np.atleast_3d(np.asarray(image.convert(mode)))
            pictures.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255)
            prompts.append(receipt.prompt)
    if len(pictures) < LEAST:
        raise TooFew(
            f"{len(pictures)} answers of {name} are kept, {LEAST} are needed: let the gateway keep some with "
            "`drift: {sample: 0.1}` in the recipe, and wait"
        )
    return Sample(prompts=prompts, pictures=torch.stack(pictures))


def compare(
    judge: "AttributeJudge", evaluated: list[str], served: Sample, redrawn: "Tensor"
) -> list[Finding]:
    """Return the findings.

    Args:
        judge: Of the version's own evaluation.
        evaluated: The prompts that it was promoted on.
        served: What was asked and answered.
        redrawn: (N, C, H, W) what the version draws for the served prompts with other seeds: a change in what is
            asked for does not count a second time as a change of the pictures.
    """
    from models.judges.drift import energy_test

    attributes = {name: list(values) for name, values in judge.config.attributes}
    read = [understood(prompt, attributes) for prompt in served.prompts]
    known = [prompt for prompt, plain in zip(served.prompts, read, strict=True) if plain]
    unread = len(read) - len(known)
    least, _ = wilson(unread, len(read))
    findings = [
        Finding(
            about="prompts that the judge cannot read",
            value=unread / len(read),
            limit="<= 0.5",
            drifted=least > 0.5,
            says=f"{unread} of {len(read)} prompts name no value of some attribute",
        )
    ]
    if known:
        findings += _asked(attributes, evaluated, known)
        findings.append(_alignment(judge, attributes, known, served.pictures[read], redrawn[read]))
    energy, p = energy_test(judge.features(redrawn), judge.features(served.pictures))
    findings.append(
        Finding(
            about="pictures",
            value=p,
            limit=f"p >= {SIGNIFICANT:g}",
            drifted=p < SIGNIFICANT,
            says=f"answers against the same prompts drawn anew: energy distance {energy:.4g}, p = {p:.3f}",
        )
    )
    return findings


def understood(prompt: str, attributes: dict[str, list[str]]) -> bool:
    """Return whether a prompt names a value of every attribute."""
    return all(named(prompt, values) is not None for values in attributes.values())


def _asked(
    attributes: dict[str, list[str]], evaluated: list[str], served: list[str]
) -> list[Finding]:
    """Return a finding an attribute: is each value asked for as often as then, but for what chance does?"""
    from models.judges.drift import stability_index, stability_test

    tables = [wanted_attributes(prompts, attributes) for prompts in (evaluated, served)]
    findings = []
    for column, (name, values) in enumerate(attributes.items()):
        then, now = (
            {value: int((table[:, column] == place).sum()) for place, value in enumerate(values)}
            for table in tables
        )
        index, p = stability_index(then, now), stability_test(then, now)
        moved = index > STABILITY_LIMIT and p < SIGNIFICANT  # of many values few prompts move it
        findings.append(
            Finding(
                about=f"{name} asked for",
                value=index,
                limit=f"<= {STABILITY_LIMIT:g}, or p >= {SIGNIFICANT:g}",
                drifted=moved,
                says=f"{name} asked for: stability index {index:.3f}, p = {p:.3f}",
                expected=then,
                found=now,
            )
        )
    return findings


def _alignment(
    judge: "AttributeJudge",
    attributes: dict[str, list[str]],
    prompts: list[str],
    served: "Tensor",
    redrawn: "Tensor",
) -> Finding:
    """Return whether the answers show what was asked for as often as the version does."""
    wanted = wanted_attributes(prompts, attributes)
    hits, own = (
        int((judge.predict(pictures) == wanted).all(1).sum()) for pictures in (served, redrawn)
    )
    (low, high), (own_low, own_high) = (wilson(n, len(prompts)) for n in (hits, own))
    return Finding(
        about="alignment",
        value=hits / len(prompts),
        limit=f"interval reaches {own_low:.3f}",
        drifted=high < own_low,
        says=f"alignment of answers {hits / len(prompts):.3f} [{low:.3f}, {high:.3f}], "
        f"drawn anew {own / len(prompts):.3f} [{own_low:.3f}, {own_high:.3f}]",
    )


def examine(name: str) -> DriftReport:
    """Return what the kept answers of the version in production show.

    Raises:
        ValueError: nothing is in production, or its recipe has no judge.
        TooFew: fewer than 100 answers are kept.
    """
    import torch

    from data.catalog import prepared
    from flows.evaluating.evaluate import load_judge_network

    row = ledger().head(name, "production")
    if row is None or row.to_version is None or row.to_digest is None:
        raise ValueError(f"{name} has no version in production; promote one")
    directory = registry().fetch(f"{name}:{row.to_version}", digest=row.to_digest)
    pipeline = read_pipeline(directory)
    if pipeline.modality != "image":
        raise ValueError(
            f"{name}:{row.to_version} gives {pipeline.modality}: drift is looked for in pictures alone"
        )
    recipe = Recipe.model_validate_json((directory / "recipe.json").read_text())
    record = Evaluation.model_validate_json((directory / "evaluation.json").read_text()).judge
    if record is None:
        raise ValueError(f"{name}:{row.to_version} was judged without a judge; drift needs one")
    judge = load_judge_network(registry().fetch(record.version, digest=record.sha256))
    served = kept(name, row.to_digest, pipeline.lead, judge.config.channels)
    captions = prepared(recipe.data.name, settings().project).header["captions"]
    evaluated, _ = fixed_requests(pipeline, captions, recipe.evaluation)
    models = [
        load_model(
            *registry().weights(
                registry().fetch(f"{stage.name}:{stage.version}", digest=stage.sha256)
            )
        )
        for stage in pipeline.stages
    ]
    seeds = [FRESH_SEED + place for place in range(len(served.prompts))]
    redrawn = draw(models, pipeline, served.prompts, seeds)
    redrawn = (redrawn * 255).round() / 255  # as answers are: 8 bits
    with torch.no_grad():
        findings = compare(judge, evaluated, served, redrawn)
    return DriftReport(
        name=name,
        version=f"{name}:{row.to_version}",
        digest=row.to_digest,
        answers=len(served.prompts),
        findings=findings,
    )


@flow(flow_run_name="drift {name}")
def drift(name: str) -> dict[str, Any]:
    """Examine what `name` answered, write its page, and tell Prefect when it drifted; returns the report and the page.

    Where too few answers are kept there is no report, and `says` tells so.

    The event is `atelier.drift.detected` of `atelier.endpoint.NAME`: a schedule with `--on-drift NAME` trains on it.
    """
    from prefect.events import emit_event

    try:
        report = examine(name)
    except TooFew as error:
        return {"report": None, "drifted": False, "says": str(error)}
    page = write_page(report)
    if report.drifted:
        emit_event(
            event="atelier.drift.detected",
            resource={"prefect.resource.id": f"atelier.endpoint.{name}"},
            payload={
                "version": report.version,
                "says": [f.says for f in report.findings if f.drifted],
            },
        )
    return {"report": report.model_dump(mode="json"), "drifted": report.drifted, "page": str(page)}
