"""What can be known of a recipe before anything is started: every reason for which it would fail later."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from data.catalog import CatalogError, known
from data.modalities import modality
from flows.context import environment, registry
from flows.evaluating.measured import Able, measured, refusals, unmeasured
from flows.evaluating.modalities import unseen
from flows.identity.code import stamp
from flows.recipe import Judge, Recipe, Stage, drawing, last_of, split
from flows.recipes.loader import RecipeError, control_of, load
from flows.training.rows import check_rows
from flows.training.spec import TrainingSpec
from infra.documents import read_json
from infra.imports import at_rest
from infra.pipelines import Modality
from infra.settings import settings
from infra.stack.spec import state_folder
from infra.storage import write_json
from models import FAMILIES, JUDGES, near
from models.declared import Declared, declared
from models.ports import Port

if TYPE_CHECKING:
    from models.family import Family, Trainable

LEARNED: Final = {
    **{"image": "image_size", "clip": "image_size"},
    **{"audio": "sample_rate", "speech": "sample_rate", "text": "tokenizer"},
}
"""The fact of a dataset without which a network cannot learn its modality."""
OTHERS: Final[Mapping[str, Modality]] = {"clip": "image", "image": "mesh"}
"""What else may come out of what was learned from: of clips single frames, of pictures of things the things."""
SIDES: Final = {"left", "right", "clockwise", "counterclockwise"}
NUMERALS: Final = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}

TYPES: Final = {int: "a whole number", float: "a number", str: "a text"}
RANGED: Final = ("steps", "guidance", "seconds", "frame_rate")
"""Options that a Config has, too, in the same range."""


def checked(path: Path, overrides: Sequence[str], project: Path) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe at `path`, once nothing is known for which it would fail later, and what `check` returns.

    Raises:
        RecipeError: it cannot be read, or every reason, one a line.
    """
    recipe = load(path, overrides)
    try:
        return recipe, check(recipe, project)
    except RecipeError as error:
        lines = str(error).splitlines()
        first = lines if len(lines) == 1 else ["this would fail later:", *lines]
        raise RecipeError(f"{path}: " + "\n".join(first)) from None


def check(recipe: Recipe, project: Path) -> dict[str, str]:
    """Return the metrics that the recipe's evaluation will have, each with what keeps it from being measured.

    A recipe that passed is known again while it, what is known of its data, and the code are the same: torch, which
    takes seconds to import, is not needed twice.

    Raises:
        RecipeError: the recipe would fail later; a line for each reason, which names the field.
    """
    try:
        data = known(recipe.data.name, project)
    except CatalogError as error:
        raise RecipeError("\n".join([f"data.name: {error}", *_declared(recipe, None)])) from None
    if recipe.bases:  # which versions they are may change
        return check_for(recipe, data)
    memory, identity = settings().state / "checked" / f"{recipe.name}.json", _identity(recipe, data)
    with suppress(OSError, ValueError):
        if (past := read_json(memory))["identity"] == identity:
            return dict(past["metrics"])
    found = check_for(recipe, data)
    with suppress(OSError):  # where nothing may be written it is checked each time
        state_folder()
        write_json(memory, {"identity": identity, "metrics": found})
    return found


def _identity(recipe: Recipe, data: Mapping[str, Any]) -> str:
    """Return a hash of all that a check's outcome depends on."""
    asked = {
        "recipe": recipe.model_dump(mode="json"),
        "data": data,
        "judged": None if recipe.judge is None else _own_data(recipe.judge, data),
        "code": stamp(),
        "environment": environment(),
    }
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def check_for(recipe: Recipe, data: Mapping[str, Any]) -> dict[str, str]:
    """As `check`, for a dataset as `data.catalog.known` returns it.

    First what needs no torch, so that the usual slips are told within a second; then what the configs themselves say.
    """
    from flows.evaluating.pipeline import MODALITIES

    _refuse(_declared(recipe, data))
    with at_rest():  # torch, and each family's
        models, lines = _built(recipe, data)
    _refuse(lines)
    out = _out(recipe, models)
    _refuse(_unjudged(recipe, models, out))
    made = MODALITIES[out.kind]
    _refuse(_misjudged(recipe, made, out, data))
    prompted = any(model.capabilities.condition == "text" for model in models.values())
    found = measured(
        data,
        {name: Able.surely(model) for name, model in models.items()},
        judged=recipe.judge is not None,
        prompted=prompted,
        seeds=len(recipe.evaluation.seeds),
        draws=made != "embedding",
        made=made,
    )
    if made in {"image", "clip"}:
        undrawn = unmeasured(data, recipe.evaluation, prompted=prompted)
        found |= {name: found[name] or undrawn[name] for name in found.keys() & undrawn.keys()}
    _refuse([f"gate.metrics: {line}" for line in refusals(tuple(recipe.gate.metrics), found)])
    if recipe.search is not None:
        from flows.tuning.plan import check as check_search

        check_search(recipe)
    return found


def _refuse(lines: Sequence[str]) -> None:
    if lines:
        raise RecipeError("\n".join(lines))


def _declared(recipe: Recipe, data: Mapping[str, Any] | None) -> list[str]:
    """Return what is wrong by what families and dataset declare."""
    lines = _named(_stages(recipe), data) or _named(_broken(recipe), data)
    if data is None:
        return lines
    if recipe.judge is not None and not data["attributes"]:
        seen = data["modality"] in {"image", "clip"}
        what = "has no captions that are classes" if seen else "is no pictures"
        lines.append(f"judge: {data['name']} {what}: leave the judge out")
    if all(stage.family in FAMILIES for stage in recipe.stages.values()):
        able = {name: Able.perhaps(declared(one.family)) for name, one in recipe.stages.items()}
        seeds = len(recipe.evaluation.seeds)
        judged = recipe.judge is not None
        found = measured(data, able, judged=judged, prompted=None, seeds=seeds)
        other: Modality | None = OTHERS.get(data["modality"])
        if other is not None:
            found |= measured(data, able, judged=judged, prompted=None, seeds=seeds, made=other)
        asked = refusals(tuple(recipe.gate.metrics), found)
        lines += [f"gate.metrics: {line}" for line in asked]
    return lines


def _named(stages: Sequence[tuple[str, Stage]], data: Mapping[str, Any] | None) -> list[str]:
    """Return what no family, or not the stage's, is called or can learn."""
    lines: list[str] = []
    for where, stage in stages:
        table = JUDGES if where == "judge" else FAMILIES
        if stage.family not in table:
            wrong = f"unknown family {stage.family!r}{near(stage.family, sorted(table))}"
            lines.append(f"{where}.family: {wrong}")
            continue
        says = declared(stage.family)
        lines += [f"{where}.{line}" for line in _unknown(stage, says)]
        if data is not None:
            lines += [f"{where}: {line}" for line in unsuited(stage, says, _own_data(stage, data))]
    return lines


def _own_data(stage: Stage, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a stage learns: the recipe's data, or a judge's own."""
    if not isinstance(stage, Judge) or stage.data is None:
        return data
    try:
        return known(stage.data.name, settings().project)
    except CatalogError as error:
        raise RecipeError(f"judge.data.name: {error}") from None


def _stages(recipe: Recipe) -> list[tuple[str, Stage]]:
    """Return every stage and the judge, by what an error calls them."""
    found = [(f"stages.{name}", stage) for name, stage in recipe.stages.items()]
    if recipe.judge is not None:
        found.append(("judge", recipe.judge))
    return found


def _broken(recipe: Recipe) -> list[tuple[str, Stage]]:
    """Return the stages that the controls change."""
    return [
        (f"control: stages.{name}", stage)
        for number in range(len(recipe.control))
        for name, stage in control_of(recipe, number).stages.items()
        if stage != recipe.stages.get(name)
    ]


def _unknown(stage: Stage, says: Declared) -> list[str]:
    """Return the names that the stage's family does not have."""
    asked = [
        ("preset", "preset", [stage.preset], says.presets),
        ("config", "setting", stage.config, says.settings),
        ("training.optimizers", "player", stage.training.optimizers, says.players),
    ]
    return [
        f"{where}: {stage.family} has no {what} {name!r}{near(name, known)}"
        for where, what, names, known in asked
        for name in names
        if name not in known
    ]


def unsuited(stage: Stage | TrainingSpec, says: Declared, data: Mapping[str, Any]) -> list[str]:
    """Return why a family cannot learn a dataset, as `data.catalog.known` returns it, in the way that a stage asks."""
    lines = []
    kind, name = data["modality"], data["name"]
    if LEARNED[kind] not in says.settings and not says.needs:
        lines.append(f"{stage.family} learns no {kind}, and {name} is {kind}")
    elif kind == "audio" and "front_end" in says.settings:
        lines.append(
            f"{stage.family} learns speech, texts and who says them, and {name} is {kind}: prepare its"
            " files by `atelier data prepare speech`"
        )
    else:
        try:
            facts = modality(kind).network_facts(data, stage.image_size)
        except ValueError as error:
            lines.append(str(error))
        else:
            lines += _missized(stage, says, facts, name)
    wanted, given = {*says.needs}, {*stage.needs}
    missing = sorted(wanted - given)
    if missing and stage.training.lora is None:
        lines.append(
            f"{stage.family} learns from {missing[0]}: say whose they are, as in"
            f" needs: {{{missing[0]}: STAGE/ENTRY}}"
        )
    elif missing and isinstance(stage, TrainingSpec):  # a recipe's stage has not asked its base yet
        lines.append(
            f"training.lora: {stage.family} learns from {missing[0]}, and only a pipeline says whose:"
            " name one that does as its base, not the stage alone"
        )
    lines += [f"needs.{name}: {stage.family} learns from no such thing" for name in given - wanted]
    if stage.training.cuda_graph and (says.counts or len(says.players) > 1):
        what = "counts" if says.counts else f"has {len(says.players)} players"
        lines.append(f"training.cuda_graph holds the step of one player, and {stage.family} {what}")
    if stage.training.cuda_graph and kind == "speech":
        lines.append("training.cuda_graph holds a step of one shape, and rows of speech have many")
    if stage.training.keep == "best" and says.counts:
        lines.append(f"training.keep: {stage.family} counts, and what it ends with is all there is")
    if stage.training.start is not None and says.counts:
        lines.append(f"training.from: {stage.family} counts, and keeps nothing of earlier weights")
    if isinstance(stage, Stage) and stage.starts_from and says.counts:
        lines.append(f"starts_from: {stage.family} counts, and keeps nothing of earlier weights")
    if stage.training.lora is not None and not says.adapts:
        lines.append(f"training.lora: {stage.family} has no attention for an adapter to change")
    return lines + [f"training.augment{line}" for line in _misaugmented(stage, says, data)]


def _missized(
    stage: Stage | TrainingSpec, says: Declared, facts: Mapping[str, Any], name: str
) -> Iterator[str]:
    """Yield why pictures of several sizes cannot be learned, where a dataset has such."""
    if "sizes" not in facts:
        return
    there = ", ".join(facts["sizes"])
    if "sizes" not in says.settings:
        yield (
            f"{stage.family} learns pictures of one size, and {name} has {there}: take ddpm, or latent-diffusion"
            " with kl-autoencoder, or prepare it without sizes"
        )
    if stage.training.cuda_graph:
        yield f"training.cuda_graph holds a step of one shape, and {name} has {there}"


def _misaugmented(
    stage: Stage | TrainingSpec, says: Declared, data: Mapping[str, Any]
) -> Iterator[str]:
    """Yield why a dataset's pictures, if it has any, cannot be changed as a stage asks."""
    rules, kind, name = stage.training.augment, data["modality"], data["name"]
    if "augmented" in stage.config:
        yield ".edm: config.augmented follows from it; leave that out"
    if not rules.asked:
        return
    if kind != "image":
        yield f": only pictures are changed, and {name} is {kind}; leave it out"
        return
    if says.counts:
        yield f": {stage.family} counts every picture as it is; leave it out"
    if rules.edm and "augmented" not in says.settings:
        yield (
            f".edm: {stage.family} cannot be told how a picture was changed, and would draw changed"
            " ones; take flip, or family edm"
        )
    if rules.flip and (told := _told_apart(stage, data)):
        yield f".flip: {told} leave it out"


def _told_apart(stage: Stage | TrainingSpec, data: Mapping[str, Any]) -> str:
    """Return why pictures of a dataset, mirrored, are not what captions or classes say; it goes on with a way out."""
    classes = {value for values in data["attributes"].values() for value in values}
    if signs := sorted(one for one in classes if one in NUMERALS or len(one) == 1):
        return f"a mirrored {signs[0]!r} of {data['name']} is another sign, or none;"
    sides = sorted(SIDES & {*data["vocabulary"], *classes})
    if sides and stage.config.get("text") != "none":
        told = f"captions of {data['name']} say {sides[0]!r}, which mirrored is the other side"
        return f"{told}; set config.text: none, which learns no captions, or"
    return ""


def _built(recipe: Recipe, data: Mapping[str, Any]) -> "tuple[dict[str, Family], list[str]]":
    """Return the recipe's stages as networks without weights, and what their configs refuse."""
    from flows.evaluating.pipeline import StageMismatch, check_fit, entrances_of, ports_of
    from infra.pipelines import PinnedStage, Pipeline
    from models.family import Family

    models: dict[str, Family] = {}
    lines: list[str] = []
    for where, stage in [*_stages(recipe), *_broken(recipe)]:
        try:
            learned = _own_data(stage, data)
            model = _network(stage, where.rpartition(".")[2], learned, models)
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            lines.append(f"{where}: {error}")
            continue
        if isinstance(model, Family):
            wrong = missampled(model, stage.sampling, prepared="splits" in learned)
            lines += [f"{where}.{line}" for line in wrong]
            if (name := where.removeprefix("stages.")) in recipe.stages:
                models[name] = model
    models = {name: model for name, model in models.items() if name in drawing(recipe)}
    if not lines:
        try:
            stages = [
                PinnedStage(
                    **{"stage": name, "name": name, "version": 0, "sha256": "", "family": ""},
                    **ports_of(model),
                )
                for name, model in models.items()
            ]
            check_fit(
                Pipeline(
                    endpoint=recipe.name, stages=stages, entrances=entrances_of(recipe, stages)
                )
            )
        except StageMismatch as error:
            lines.append(f"stages: {error}")
        for model in models.values():
            lines += _unreadable(recipe, data, model)
        reads = {port.kind for model in models.values() for port in model.inputs.values()}
        if recipe.try_prompts and data["modality"] != "text" and "text" not in reads:
            lines.append("try_prompts: no stage of this recipe reads text; leave them out")
    return models, lines


def _out(recipe: Recipe, models: "Mapping[str, Family]") -> Port:
    """Return what comes out of a recipe's stages."""
    wires = recipe.pipeline["generate"] if recipe.pipeline else recipe.stages
    stage, entry = split([*wires][-1])
    ways = models[stage].entries[entry] if entry else models[stage]
    return next(iter(ways.outputs.values()))


def _unjudged(recipe: Recipe, models: "Mapping[str, Family]", out: Port) -> list[str]:
    """Return that what comes out is nothing to give out, or that nobody could judge it."""
    from flows.evaluating.pipeline import MODALITIES

    last = last_of(recipe)
    if out.kind not in MODALITIES:
        given = "what another stage makes of it: pictures, clips, meshes, sound or text"
        return [f"stages: {out.kind} comes out of {last}, and can only be given as {given}"]
    if out.kind == "embedding" and not (len(models) == 1 and models[last].ranks):
        alone = "of one stage alone that embeds captions and pictures alike, as clip does"
        return [f"stages: embeddings come out of {last}, and can be judged {alone}"]
    return []


def _misjudged(recipe: Recipe, made: Modality, out: Port, data: Mapping[str, Any]) -> list[str]:
    """Return that a judge sees clips where pictures come out, or the other way round, or another size."""
    if recipe.judge is None:
        return []
    if why := unseen(made):
        return [f"judge: {why}"]
    sees = "clip" if "frames" in declared(recipe.judge.family).settings else "image"
    shown = "image" if made == "mesh" else made  # it is seen in pictures
    if sees == shown:
        return _missized_judge(recipe, recipe.judge, out, data)
    right = {"clip": "clip-judge", "image": "attribute-judge"}[shown]
    return [f"judge: {recipe.judge.family} sees {sees}s, and {made}s come out: take {right}"]


def _missized_judge(recipe: Recipe, judge: Judge, out: Port, data: Mapping[str, Any]) -> list[str]:
    """Return that a judge sees another size than comes out; of several sizes each is made its own."""
    adapts = any(stage.training.lora for stage in recipe.stages.values())  # a pipeline stays around
    drawn = None if adapts or out.kind == "volume" or not out.shape else out.shape[-1]
    side = judge.image_size or _own_data(judge, data)["image_size"]
    if drawn is None or side == drawn:
        return []
    return [
        f"judge.image_size must be {drawn}, the size that comes out of {last_of(recipe)}, got {side}"
    ]


def _network(
    stage: Stage, name: str, data: Mapping[str, Any], before: "Mapping[str, Family]"
) -> "Trainable":
    """Return a stage's network on no device, behind those before it: its sizes are checked and no memory is taken."""
    from flows.training import starting
    from models import trainable
    from models.outline import outline

    kind = modality(data["modality"])
    if "frames" not in declared(stage.family).settings:
        kind = kind.stills()
    facts = kind.network_facts(data, stage.image_size)
    if "splits" not in data:
        facts.pop("tokenizer", None)  # it is trained when the dataset is prepared
    base, directory = _base(stage, name)
    told = {**facts, **_facts_of_needs(stage, before), **stage.training.facts}
    config = starting.config_beside(stage, directory, told)
    if directory is not None:
        starting.check(stage, config, directory, base)
    model = outline(trainable(stage.family), config)
    if stage.starts_from and stage.starts_from in before:
        starting.inherited(model, before[stage.starts_from].state_dict(), stage.starts_from)
    if model.counts:
        from flows.training.counting import check_passes

        check_passes(stage, model)
    check_rows(stage, model)
    return model


def missampled(
    model: "Family", sampling: Mapping[str, Any], *, prepared: bool = True
) -> Iterator[str]:
    """Yield why a stage cannot draw by its own options, which its sampler would tell once it is trained.

    Words, voices and sizes are known of data that are `prepared`.
    """
    guidance = sampling.get("guidance", getattr(model.config, "guidance", None))
    yield from model.useless(sampling)
    for name, value in {**sampling, "guidance": guidance}.items():
        if name in model.takes and value is not None:
            try:
                _check_option(model, name, value, prepared)
            except ValueError as error:
                yield str(error)
    if "negative_prompt" in sampling and guidance in {0, 1}:
        yield "negative_prompt: guidance leads away from it, and there is none; leave it out"


def _check_option(model: "Family", name: str, value: Any, prepared: bool) -> None:
    """Refuse a value that an option of a model cannot have."""
    from models.parts import bounds
    from models.parts.sizes import chosen
    from models.request import RANGES, type_of

    config, kind = model.config, type_of(model.Options, name)
    kinds: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if type(value) not in kinds:  # a bool is an int, too
        raise ValueError(f"{name} must be {TYPES[kind]}, got {str(value)[:40]!r}")
    if name == "strength":
        raise ValueError("strength: it is of a change to a picture, which a request gives")
    if name in RANGES:
        bounds.within(name, value, RANGES[name])
    elif name == "guidance" and hasattr(config, "check_guidance"):
        config.check_guidance(value)
    elif name == "frame_rate" and hasattr(config, "check_frame_rate"):
        config.check_frame_rate(value)
    elif name in RANGED and hasattr(config, name):
        replace(config, **{name: value})
    elif prepared and name == "size":
        chosen(value, config.sizes)
    elif prepared and name == "voice":
        config.encode_voices([value])
    elif prepared and name == "negative_prompt":
        try:
            model.encode([value])
        except ValueError as error:
            raise ValueError(f"negative_prompt: {error}") from None


def _facts_of_needs(stage: Stage, before: "Mapping[str, Family]") -> dict[str, Any]:
    """Return what a stage must know of what it needs.

    Raises:
        ValueError: an entry that a stage does not have.
    """
    from flows.training.frozen import entry_of

    found: dict[str, Any] = {}
    for name, wanted in stage.needs.items():
        source, entry = split(wanted)
        if source not in before:
            continue  # what is wrong with it is told already
        try:
            found |= entry_of(before[source], entry).facts
        except ValueError as error:
            raise ValueError(f"needs.{name}: {wanted}: {error}") from None
    return found


def _base(stage: Stage, name: str) -> tuple[str, Path | None]:
    """Return what a stage starts from, as errors call it, with its files; none where MLflow does not answer.

    Raises:
        ValueError: there is no such version.
    """
    if stage.training.start is None:
        return "", None
    from flows.provenance.bases import version_of
    from infra.registry.registry import RegistryError, Unreachable

    try:
        version = version_of(stage.training.start, name)
        return f"{version.ref} (sha256 {version.digest[:12]})", registry().fetch(version)
    except Unreachable:  # `atelier check` says so
        return "", None
    except RegistryError as error:
        raise ValueError(f"training.from: {error}") from None


def _unreadable(recipe: Recipe, data: Mapping[str, Any], model: "Family") -> list[str]:
    """Return what a stage cannot read of the prompts to try, where captions, or the tokenizer, are known."""
    if model.capabilities.condition != "text" or "splits" not in data:
        return []
    try:
        if data["modality"] == "text":
            _begin(model, recipe.try_prompts or (model.readable,))
        else:
            model.encode(recipe.try_prompts)
    except ValueError as error:
        return [f"try_prompts: {error}"]
    return []


def _begin(model: "Family", prompts: Sequence[str]) -> None:
    """Have a network on no device read prompts; beyond that it computes nothing.

    Raises:
        ValueError: it could not write on from one, or answer it.
    """
    from models.request import Request

    chats = model.capabilities.chats
    with suppress(RuntimeError):  # of the device
        model.sample(
            Request(
                seeds=tuple(range(len(prompts))),
                prompts=() if chats else tuple(prompts),
                dialogues=tuple((("user", one),) for one in prompts) if chats else (),
                max_tokens=1,
            )
        )
