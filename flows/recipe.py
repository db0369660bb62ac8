"""A recipe: one YAML file that names data, stages, training, judging, gate and serving; everything else follows."""

import math
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from flows.training.adapting import Lora, Ref
from flows.tuning.space import Found, Number, Positive, Search, Seed, Strict, Whole
from infra.pipelines import SAMPLING

NAME: Final = r"^[a-z][a-z0-9-]{0,40}$"  # of a recipe, and of the model that it makes
STAGE: Final = r"^[a-z][a-z0-9_-]{0,40}$"
ENDLESS: Final = 1e18  # samples: a half-life after which nothing has changed

Fraction = Annotated[Number, Field(ge=0, le=1)]


class Control(Strict):
    """A broken model that the gate must refuse: `atelier bench families` runs it, so that the gate is known to bite."""

    set: Annotated[dict[str, Any], Field(min_length=1)]  # by path in the recipe, like --set
    refused_by: Annotated[tuple[str, ...], Field(min_length=1)]  # metrics of the gate


class Peer(Strict):
    """What another program, or the paper with its own means, reached at the same work."""

    name: str
    metric: str  # of the gate
    value: Number


class Resources(Strict):
    """What a training asks of the cluster. `num_workers: 0` trains in this process, without Ray."""

    num_workers: Annotated[Whole, Field(ge=0, le=4096)] = 1
    cpus_per_worker: Annotated[Number, Field(gt=0)] = 1
    gpus_per_worker: Annotated[Number, Field(ge=0)] | Literal["auto"] = (
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

    learning_rate: Annotated[Number, Field(gt=0)] = 1e-3  # the highest
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    weight_decay: Annotated[Number, Field(ge=0)] = 0.01
    warmup_steps: Annotated[Whole, Field(ge=0)] = 50
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
    batch_size: Annotated[Positive, Field(le=2**20)] = 64
    accumulate: Positive = 1
    optimizers: dict[str, Optimizer] = Field(
        default_factory=dict
    )  # by player; the default where absent
    clip_norm: Annotated[Number, Field(gt=0)] = 1.0
    max_skipped: Positive = (
        10  # steps in a row with a gradient that is not finite; then it diverged
    )
    ema_half_life: Annotated[Number, Field(ge=0)] = 44_340
    """Samples after which weights count half in the averaged ones, which are published; 0: the last weights. The
    default is a decay of .999 a step of 64 samples. At the start the last weights count more."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    compile: bool = False
    cuda_graph: bool = False  # on a GPU: one player's loss and backward pass as one graph
    log_every: Positive = 20
    sample_every: Positive | None = None  # sample grids; None: at the end only
    checkpoint_every: Positive = 200
    keep_checkpoints: Annotated[Whole, Field(ge=2)] = 2
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
    starts_from: str | None = None
    """An earlier stage of the recipe whose trained weights are the first ones, as far as the family takes them over: a
    network of clips that begins as one of pictures. None: weights by lot, or as `training.from` says."""
    training: Training
    resources: Resources = Resources()
    steps: Positive | None = None  # sampler steps; None: the family's default
    guidance: Annotated[Number, Field(ge=0)] | None = None
    seconds: Annotated[Number, Field(gt=0, le=60)] | None = None  # of sound
    max_tokens: Positive | None = None  # of text; None: as many as the context has room for
    temperature: Annotated[Number, Field(ge=0, le=10)] | None = None  # of text; 0: the likeliest
    top_k: Positive | None = None  # only the k likeliest tokens
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None  # the likeliest of this probability
    options: dict[str, Any] = Field(default_factory=dict)  # further ones that the family has

    @model_validator(mode="after")
    def _adapts_what_is_there(self) -> "Stage":
        if self.training.lora and (self.config or self.preset != "base"):
            field = "config" if self.config else "preset"
            raise ValueError(f"{field}: an adapter has the network of its base: leave it out")
        if self.training.lora and self.needs:
            raise ValueError("needs: an adapter learns from what its base did: leave it out")
        return self

    @model_validator(mode="after")
    def _starts_once(self) -> "Stage":
        if self.starts_from and self.training.start:
            raise ValueError(
                f"starts_from: {self.starts_from} and training: {self.training.start} are two beginnings: leave one out"
            )
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

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    samples: Annotated[Positive, Field(le=2**20)] = 512  # drawn where there are no prompts
    bootstrap: Annotated[Positive, Field(le=100_000)] = 1000
    gallery: Annotated[Positive, Field(le=1024)] = 32

    @field_validator("seeds")
    @classmethod
    def _are_different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed said twice draws the same samples twice")
        return value


class Bound(Strict):
    """A condition on one metric: both ends of its 95 % interval must lie inside."""

    at_least: Number | None = None
    at_most: Number | None = None

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
    hours: Annotated[Number, Field(gt=0, le=24 * 90)] = 24  # then the promotion is over

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
    margin: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    """What may be lost at most against production, as a share of its value, by the interval's lower end."""
    baseline: Annotated[Whole, Field(gt=0)] | None = None
    """The version of this name that must hold as well; None: the first that stood in production."""
    judge_accuracy: Annotated[Number, Field(ge=0.95, le=1)] = 0.95
    max_slowdown: Annotated[Number, Field(gt=1)] = 1.5  # of served latency, over production's
    wins: Wins | None = None
    approvals: Approvals | None = None


class Drift(Strict):
    """What is kept of the answers in production, so that `atelier drift` can look at them."""

    sample: Annotated[
        float, Field(gt=0, le=1)
    ]  # share of the answered pictures, with their prompts


class Recipe(Strict):
    """The whole way of one model: what `atelier run` walks from left to right."""

    name: Annotated[str, Field(pattern=NAME)]
    description: str = ""
    seed: Seed = 0
    data: Data
    stages: Annotated[
        dict[Annotated[str, Field(pattern=STAGE)], Stage], Field(min_length=1, max_length=8)
    ]
    pipeline: (
        Annotated[
            dict[
                Literal["generate", "edit", "vary", "blend", "animate", "alter", "extend"],
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
        return [value] if isinstance(value, dict) else () if value is None else value

    @field_validator("stages")
    @classmethod
    def _are_no_judge(cls, value: dict[str, Stage]) -> dict[str, Stage]:
        if "judge" in value:
            raise ValueError("judge is the name of the recipe's judge: call the stage otherwise")
        return value


def split(node: str) -> tuple[str, str]:
    """Return the stage and the entry that "dvae/decode" names; no entry is the stage's sampler.

    What follows a # tells nodes of one stage apart.
    """
    stage, _, entry = node.partition("#")[0].partition("/")
    return stage, entry


def drawing(recipe: Recipe) -> dict[str, Stage]:
    """Return the stages that a pipeline of the recipe has: not those that others only start from."""
    if recipe.pipeline is None:
        return dict(recipe.stages)
    used = {split(node)[0] for nodes in recipe.pipeline.values() for node in nodes}
    starts = {stage.starts_from for stage in recipe.stages.values()}
    return {
        name: stage for name, stage in recipe.stages.items() if name in used or name not in starts
    }


def last_of(recipe: Recipe) -> str:
    """Return the stage that gives what comes out."""
    return split([*(recipe.pipeline["generate"] if recipe.pipeline else recipe.stages)][-1])[0]
