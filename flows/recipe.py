"""A recipe: one YAML file that names data, stages, training, judging, gate and serving; everything else follows."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from flows.training.adapting import Lora, Ref
from flows.tuning.space import Found, Positive, Search, Strict
from infra.documents import DocumentError, parse_yaml, read_yaml
from infra.pipelines import SAMPLING
from models import near
from models.declared import ranks

ENDLESS: Final = 1e18  # samples: a half-life after which nothing has changed
_NOT_SEARCHED: Final = {"training.steps", "training.validate_every"}  # the search sets them

Fraction = Annotated[float, Field(ge=0, le=1)]


class Control(Strict):
    """A broken model that the gate must refuse: `atelier bench families` runs it, so that the gate is known to bite."""

    set: Annotated[dict[str, Any], Field(min_length=1)]  # by path in the recipe, like --set
    refused_by: Annotated[tuple[str, ...], Field(min_length=1)]  # metrics of the gate


class Peer(Strict):
    """What another program, or the paper with its own means, reached at the same work."""

    name: str
    metric: str  # of the gate
    value: float


class Resources(Strict):
    """What a training asks of the cluster. `num_workers: 0` trains in this process, without Ray."""

    num_workers: Annotated[int, Field(ge=0)] = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = (
        "auto"  # auto: one where found
    )
    elastic: tuple[Positive, Positive] | None = None
    """The fewest and the most workers: so many as the cluster has room for, also after a node was lost. The batch
    and its order stay; None: `num_workers`, always."""

    @model_validator(mode="after")
    def _asks_within_its_bounds(self) -> "Resources":
        if self.elastic and not self.elastic[0] <= self.num_workers <= self.elastic[1]:
            raise ValueError(
                f"elastic {list(self.elastic)} must hold num_workers, which is {self.num_workers}"
            )
        return self


class Optimizer(Strict):
    """AdamW, warmed up linearly, then as the schedule says; norms, biases and embeddings have no weight decay."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3  # the highest
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    schedule: Literal["cosine", "constant", "inverse_sqrt"] = "cosine"
    """cosine: down to `final_fraction` of the rate in the last step. constant: the rate as it is. inverse_sqrt: the
    rate by the root of warmup_steps / step (Vaswani et al. 2017), whatever the number of steps."""
    final_fraction: Fraction | None = None  # of a cosine; None: 0.05

    @model_validator(mode="after")
    def _suits_its_schedule(self) -> "Optimizer":
        if self.final_fraction is not None and self.schedule != "cosine":
            raise ValueError(
                f"final_fraction is where a cosine ends, {self.schedule} has none: leave it out"
            )
        if self.schedule == "inverse_sqrt" and not self.warmup_steps:
            raise ValueError("inverse_sqrt falls from the end of the warm-up: set warmup_steps")
        return self


class Augment(Strict):
    """How pictures are changed before they are learned: anew in every epoch, each as its own row says."""

    flip: Fraction = 0.0  # of the pictures are mirrored, left to right
    edm: Fraction = 0.0
    """The probability of each change of EDM's pipe (arXiv:2206.00364, table 6; .12 for CIFAR-10), which also mirrors
    half of the pictures. The network is told of all of them, so that it draws as if there were none."""

    @property
    def asked(self) -> bool:
        """Whether anything is to be changed."""
        return self.flip > 0 or self.edm > 0


class Training(Strict):
    """How one network is trained; a step is one optimiser step over `batch_size` samples, all workers together."""

    base: Annotated[Ref | None, Field(alias="from")] = None
    """The registered version, NAME[:v|@alias], whose weights of this stage are the first ones: a pipeline (shapes:3)
    or a stage (shapes.base:3). None: weights by lot."""
    lora: Lora | None = None
    steps: Positive
    batch_size: Positive = 64
    accumulate: Positive = 1
    optimizers: dict[str, Optimizer] = Field(
        default_factory=dict
    )  # by player; the default where absent
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    max_skipped: Positive = (
        10  # steps in a row with a gradient that is not finite; then it diverged
    )
    ema_half_life: Annotated[float, Field(ge=0)] = 44_340
    """Samples after which weights count half in the averaged ones, which are published; 0: the last weights. The
    default is a decay of .999 a step of 64 samples. At the start the last weights count more."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    compile: bool = False
    cuda_graph: bool = False  # on a GPU: one player's loss and backward pass as one graph
    log_every: Positive = 20
    sample_every: Positive | None = None  # sample grids; None: at the end only
    checkpoint_every: Positive = 200
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    validate_every: Positive | None = None  # the loss on the validation split; None: never
    keep: Literal["last", "best"] = (
        "last"  # the averaged weights of the end, or of the least such loss
    )
    patience: Positive | None = (
        None  # so many such losses without a lower one end it; None: none do
    )
    augment: Augment = Augment()
    shuffle_captions: bool = False  # the broken control: pictures learn other pictures' captions

    @model_validator(mode="before")
    @classmethod
    def _had_a_decay_a_step(cls, document: Any) -> Any:
        """Read what was written before half-lives: `ema_decay`, of a step."""
        if not isinstance(document, dict) or "ema_decay" not in document:
            return document
        rest = {name: value for name, value in document.items() if name != "ema_decay"}
        decay, rows = document["ema_decay"], rest.get("batch_size", 64)
        if "ema_half_life" in rest:
            raise ValueError("ema_decay, of a step, became ema_half_life in samples: leave it out")
        if not isinstance(decay, int | float) or not 0 <= decay <= 1 or not isinstance(rows, int):
            raise ValueError(f"ema_decay must be from 0 to 1, got {decay!r}; give ema_half_life")
        half = 0.0 if decay == 0 else ENDLESS if decay == 1 else -rows / math.log2(decay)
        return {**rest, "ema_half_life": half}

    @property
    def start(self) -> str | None:
        """The version that it starts from, whatever of it learns."""
        return self.lora.base if self.lora else self.base

    @property
    def ema_decay(self) -> float:
        """The share of the averaged weights that is left after a step."""
        return 0.5 ** (self.batch_size / self.ema_half_life) if self.ema_half_life else 0.0

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a network must know of its training, for `models.configure` beside the dataset's facts."""
        return {"augmented": self.augment.edm > 0}

    @model_validator(mode="after")
    def _starts_once(self) -> "Training":
        if self.lora and self.base:
            raise ValueError(f"lora starts from {self.lora.base}: leave `from` out")
        return self

    @model_validator(mode="after")
    def _is_captured_whole(self) -> "Training":
        if self.cuda_graph and self.accumulate > 1:
            raise ValueError(
                f"cuda_graph takes a step whole: accumulate must be 1, got {self.accumulate}"
            )
        return self

    @model_validator(mode="after")
    def _measures_what_is_best(self) -> "Training":
        if self.keep == "best" and self.validate_every is None:
            raise ValueError("keep: best is by the validation loss: set validate_every, too")
        if self.patience is not None and self.keep != "best":
            raise ValueError("patience waits for better weights: set keep: best, too")
        return self


class Stage(Strict):
    """One network of the pipeline: a family, its sizes, its training, and how it is sampled."""

    family: str
    preset: str = "base"
    config: dict[str, Any] = Field(default_factory=dict)  # over the preset
    image_size: Positive | None = None  # learned at this size; None: the dataset's
    needs: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str] = Field(
        default_factory=dict
    )
    """What it learns from beside the data: the outputs of trained stages, by input, like `codes: dvae/encode`. They are
    made once, of every row, and kept."""
    training: Training
    resources: Resources = Resources()
    steps: Positive | None = None  # sampler steps; None: the family's default
    guidance: Annotated[float, Field(ge=0)] | None = None
    seconds: Annotated[float, Field(gt=0, le=60)] | None = None  # of sound
    max_tokens: Positive | None = None  # of text; None: as many as the context has room for
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None  # of text; 0: the likeliest
    top_k: Positive | None = None  # only the k likeliest tokens
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None  # the likeliest of this probability
    options: dict[str, Any] = Field(default_factory=dict)  # further ones that the family has

    @model_validator(mode="after")
    def _adapts_what_is_there(self) -> "Stage":
        if self.training.lora and (self.config or self.preset != "base"):
            field = "config" if self.config else "preset"
            raise ValueError(f"{field}: an adapter has the network of its base: leave it out")
        return self

    @property
    def sampling(self) -> dict[str, Any]:
        """How it is sampled where a request does not say, by the names of the family's options."""
        found = {**self.options, **{name: getattr(self, name) for name in SAMPLING}}
        return {name: value for name, value in found.items() if value is not None}


class Data(Strict):
    """Which prepared dataset; one of params.yaml's `datasets`."""

    name: str


class Judge(Stage):
    """A network that judges what the stages make."""

    data: Data | None = None  # which it learns, and its accuracy is measured on; None: the recipe's


class Evaluation(Strict):
    """The fixed prompts x seeds that every version of this recipe is judged on."""

    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    samples: Positive = 512  # drawn where there are no prompts
    bootstrap: Positive = 1000
    gallery: Positive = 32


class Bound(Strict):
    """A condition on one metric: both ends of its 95 % interval must lie inside."""

    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _has_a_side(self) -> "Bound":
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least, at_most or both")
        return self

    @property
    def says(self) -> str:
        """Return the condition as people write it: ">= 0.5", "1 .. 2"."""
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} .. {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


class Wins(Strict):
    """How often people must have preferred a version to the one in production, seeing neither's name."""

    at_least: Fraction
    votes: Positive  # so many at least; a tie is half a win


class Approvals(Strict):
    """Who must agree before a version goes into production: never the one who asked for it."""

    count: Positive = 1
    by: tuple[str, ...] = ()  # who may; empty: everybody else
    hours: Annotated[float, Field(gt=0, le=24 * 90)] = 24  # then the promotion is over

    @model_validator(mode="after")
    def _can_be_met(self) -> "Approvals":
        if self.by and self.count > len(set(self.by)):
            raise ValueError(f"{self.count} approvals cannot come from {len(set(self.by))} people")
        return self


class Gate(Strict):
    """What a version must show before it may be promoted."""

    metrics: dict[str, Bound] = Field(default_factory=dict)
    no_worse_than: Literal["production", "base"] | None = None
    """base: of adapters, the pipeline that they adapt, on its own prompts, seeds, data and judge."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """What may be lost at most against production, as a share of its value, by the interval's lower end."""
    baseline: Annotated[int, Field(gt=0)] | None = None
    """The version of this name that must hold as well; None: the first that stood in production."""
    judge_accuracy: Annotated[float, Field(ge=0.95, le=1)] = 0.95
    max_slowdown: Annotated[float, Field(gt=1)] = 1.5  # of served latency, over production's
    wins: Wins | None = None
    approvals: Approvals | None = None


class Drift(Strict):
    """What is kept of the answers in production, so that `atelier drift` can look at them."""

    sample: Annotated[
        float, Field(gt=0, le=1)
    ]  # share of the answered pictures, with their prompts


class Recipe(Strict):
    """The whole way of one model: what `atelier run` walks from left to right."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    data: Data
    stages: Annotated[dict[str, Stage], Field(min_length=1, max_length=8)]
    pipeline: (
        Annotated[
            dict[
                Literal["generate", "edit", "vary", "blend"],
                Annotated[dict[str, dict[str, str]], Field(min_length=1)],
            ],
            Field(min_length=1),
        ]
        | None
    ) = None
    """By entrance: the stages, or entries of stages, in the order they run, each with where its inputs come from, like
    `upsampler: {low: base.pixels, text: request.text}` or `dvae/decode: {codes: prior.codes}`; the last one's output
    is what comes out. None: one stage behind the other, and `edit` where every stage can keep a part of a picture."""
    judge: Judge | None = None
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    control: tuple[Control, ...] = ()  # one, or a list of them
    peer: Peer | None = None
    drift: Drift | None = None  # None: nothing that users asked for is kept
    try_prompts: tuple[str, ...] = ()
    search: Search | None = None
    found_by: Found | None = None  # written by `atelier tune`

    @property
    def judged_by(self) -> Data:
        """What the judge learns from."""
        return (self.judge and self.judge.data) or self.data

    @property
    def bases(self) -> dict[str, str]:
        """The versions that stages, and the judge, start from, as `training.from` names them."""
        found = {**self.stages, **({"judge": self.judge} if self.judge else {})}
        return {name: one.training.start for name, one in found.items() if one.training.start}

    @field_validator("control", mode="before")
    @classmethod
    def _is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value or ()


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
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from None
    except DocumentError as error:
        raise RecipeError(str(error)) from None
    if not isinstance(document, dict):
        raise RecipeError(f"{path} must hold a mapping, like flows/recipes/shapes.yaml")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set takes a.b=value, got {override!r}")
        try:
            _set(document, key.split("."), parse_yaml(value, repr(value)), f"--set {override}")
        except DocumentError as error:
            raise RecipeError(f"--set {override}: {error}") from None
    try:
        recipe = Recipe.model_validate(document)
        _check_pipeline(recipe)
        _check_needs(recipe)
        _check_judge(recipe)
        _check_bases(recipe)
        if recipe.search is not None:
            _check_search(recipe, recipe.search)
        for number in range(len(recipe.control)):
            _check_control(recipe, number)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_first(error)}") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    return recipe


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
    drawing = [name for name, stage in recipe.stages.items() if not ranks(stage.family)]
    if idle := [name for name in drawing if name not in used]:
        raise RecipeError(f"pipeline: the stage {idle[0]} is trained and in no entrance")


def split(node: str) -> tuple[str, str]:
    """Return the stage and the entry that "dvae/decode" names; no entry is the stage's sampler.

    What follows a # tells nodes of one stage apart.
    """
    stage, _, entry = node.partition("#")[0].partition("/")
    return stage, entry


def last_of(recipe: Recipe) -> str:
    """Return the stage that gives what comes out."""
    return split([*(recipe.pipeline["generate"] if recipe.pipeline else recipe.stages)][-1])[0]


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


def _check_judge(recipe: Recipe) -> None:
    """Refuse a judge of pictures of another size before anything is trained."""
    last = [*recipe.stages.values()][-1]
    drawn = None if last.training.lora else last.image_size  # a pipeline stays around an adapter
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


def _check_control(recipe: Recipe, number: int) -> None:
    control_of(recipe, number)
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
