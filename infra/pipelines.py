"""pipeline.json: what a pipeline version is made of, for whoever writes, registers, serves, judges or moves it.

Format 2: stages with ports, wired as a graph for each entrance. Format 1, a chain without ports, is read as such.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Modality: TypeAlias = Literal["image", "audio", "text", "embedding", "clip", "mesh"]
Ability: TypeAlias = Literal[
    "images",
    "edits",
    "variations",
    "blends",
    "videos",
    "animations",
    "alterations",
    "extensions",
    "meshes",
    "speech",
    "completions",
    "chat",
    "embeddings",
    "scores",
    "samples",
]
PIPELINE: Final = "pipeline.json"
SAMPLING: Final = (
    *("steps", "guidance", "seconds", "max_tokens"),
    *("temperature", "top_k", "top_p"),
)
"""The options that had a field of their own in format 1, as they still have in recipes."""
FURTHER: Final[Mapping[str, Ability]] = {
    "edit": "edits",
    "vary": "variations",
    "blend": "blends",
    "animate": "animations",
    "alter": "alterations",
    "extend": "extensions",
}
"""The abilities that come with entrances beside `generate`."""
ASKED: Final[Mapping[str, tuple[str, ...]]] = {
    "edit": ("image", "mask"),
    "vary": ("image",),
    "blend": ("text", "other", "weight"),
    "animate": ("image",),
    "alter": ("clip",),
    "extend": ("clip",),  # whose last frame is the first one of what comes out
}
"""What a request gives at an entrance, and must reach a stage; beside a text, which it may give anywhere."""
NEGATIVE: Final = "negative"
"""What a request gives of a negative prompt, at an entrance where another stage reads it than what draws."""
EDITED: Final = ("image", "mask")
"""The inputs of a stage that changes a picture where a mask is 1."""
NEARLY_SURE: Final = (
    0.1  # of a temperature or top_p: below, the likeliest is drawn as good as always
)
SAMPLED: Final = (
    *("images", "edits", "variations", "blends"),
    *("speech", "completions", "chat", "samples"),
)
"""The abilities that come with samples."""


class PipelineError(ValueError):
    """A folder holds no pipeline version that can be read; one line."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tokenizer(_Part):
    """Which tokenizer a model of text reads by."""

    kind: str  # "WordLevel", "BPE"
    tokens: int
    sha256: str  # of its JSON document


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A model version, named by its digest."""

    name: str
    number: int
    digest: str

    @property
    def ref(self) -> str:
        """The version as people write it: "shapes.base:3"."""
        return f"{self.name}:{self.number}"


class Ports(_Part):
    """What goes into and comes out of one way to run a stage, as `models.ports` writes ports."""

    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: dict[str, str] = Field(default_factory=dict)


class Pinned(_Part):
    """A version, by digest."""

    name: str
    version: int
    sha256: str

    @property
    def ref(self) -> str:
        """The version as people write it."""
        return self.pin.ref

    @property
    def pin(self) -> Pin:
        """The version."""
        return Pin(name=self.name, number=self.version, digest=self.sha256)


class PinnedStage(_Part):
    """One stage of a pipeline version, pinned by digest, with how it draws where a request does not say.

    Ports are written as `models.ports` has them: {"text": "text?"} and {"pixels": "pixels 3x32x32"}.
    """

    stage: str
    name: str
    version: int
    sha256: str
    family: str
    interface: str | None = None  # hash of what it takes, gives and reads; None: an old pin
    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: dict[str, str] = Field(default_factory=dict)
    entries: dict[str, Ports] = Field(default_factory=dict)  # ways to run it beside its sampler
    needs: dict[str, str] = Field(
        default_factory=dict
    )  # what it learned from: "codes": "vq/encode"
    options: dict[str, Any] = Field(
        default_factory=dict
    )  # of the family's Options, none of them null
    takes: tuple[str, ...] = ()  # names of the family's Options; empty: nobody said
    speakers: tuple[str, ...] = ()  # in whose voices it speaks, the default first
    adapts: Pinned | None = None  # the stage whose weights it adds to, where it is an adapter

    @model_validator(mode="before")
    @classmethod
    def _was_of_format_1(cls, document: Any) -> Any:
        return _stage_of_format_1(document) if isinstance(document, dict) else document

    @property
    def pin(self) -> Pin:
        """The version to draw with."""
        return Pin(name=self.name, number=self.version, digest=self.sha256)

    @property
    def sampled(self) -> list[str]:
        """How it draws where a request does not say, as people read it: "guidance 2.5", "voice george"."""
        return [
            f"{name.replace('_', ' ')} {format(value, 'g') if isinstance(value, int | float) else value}"
            for name, value in self.options.items()
        ]

    @property
    def pins(self) -> tuple[Pin, ...]:
        """All versions that are loaded for it: that which it adapts before it."""
        return (*([self.adapts.pin] if self.adapts else []), self.pin)

    def ports(self, entry: str = "") -> Ports:
        """Return the ports of its sampler, or of an entry."""
        return self.entries[entry] if entry else Ports(inputs=self.inputs, outputs=self.outputs)

    @property
    def reads_text(self) -> bool:
        """Whether it draws what a text says."""
        return any(_kind(port) == "text" for port in self.inputs.values())


class Node(_Part):
    """A stage's place in a graph."""

    stage: str
    entry: str = ""  # of the stage; empty: its sampler
    wires: dict[str, str]  # by input: "request.text", "base.pixels", "clip/text.embedding"
    salt: str = ""  # of its seeds, so that no two nodes share noise; empty: the request's own


class Entrance(_Part):
    """One way to ask a pipeline for something: nodes in the order they run, and what comes out."""

    nodes: Annotated[dict[str, Node], Field(min_length=1, max_length=16)]
    output: str  # "upsampler.pixels"

    @property
    def wires(self) -> dict[str, dict[str, str]]:
        """The wires of every node."""
        return {name: node.wires for name, node in self.nodes.items()}

    @property
    def entries(self) -> frozenset[str]:
        """The nodes that draw nothing."""
        return frozenset(name for name, node in self.nodes.items() if node.entry)

    @property
    def asks(self) -> frozenset[str]:
        """The names of what a request may give."""
        wires = (wire for node in self.nodes.values() for wire in node.wires.values())
        return frozenset(
            name
            for source, _, name in (wire.partition(".") for wire in wires)
            if source == "request"
        )


class Pipeline(_Part):
    """The stages of a pipeline version, how they are wired, and what it can be asked for."""

    format: Literal[2] = 2
    endpoint: str
    base: Pinned | None = None  # the pipeline that this is, but for the stages that adapt its own
    modality: Modality = "image"
    abilities: tuple[Ability, ...] = ()  # empty: written before there were any
    stages: Annotated[tuple[PinnedStage, ...], Field(min_length=1)]
    entrances: dict[str, Entrance] = Field(default_factory=dict)  # always has "generate"
    vocabulary: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None  # width, height
    sizes: tuple[str, ...] = ()  # that may be asked for, like 40x24; empty: that one alone
    frames: int | None = None  # of a clip
    frame_rate: float | None = None  # of a clip, frames a second, where a request asks for no other
    sample_rate: int | None = None  # Hz, of sound
    resolution: int | None = None  # voxels a side, of what a mesh is cut from
    tokenizer: Tokenizer | None = None  # of text
    sample: float = 0.0  # share of the answers in production that the gateway keeps
    try_prompts: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _was_of_format_1(cls, document: Any) -> Any:
        if not isinstance(document, dict) or document.get("format", 2) != 1:
            return document
        return {**document, "format": 2}

    @model_validator(mode="after")
    def _is_wired(self) -> "Pipeline":
        known = {stage.stage for stage in self.stages}
        for entrance in self.entrances.values():
            if odd := {node.stage for node in entrance.nodes.values()} - known:
                raise ValueError(f"an entrance names the stage {min(odd)!r}, which is not pinned")
            for node in entrance.nodes.values():
                if node.entry and node.entry not in self.stage(node.stage).entries:
                    raise ValueError(f"the stage {node.stage!r} has no entry {node.entry!r}")
        if not self.entrances:  # of format 1: one behind the other, and seeds as they are
            self.entrances["generate"] = chained(self.stages, salted=False)
        return self

    @property
    def reads_text(self) -> bool:
        """Whether it draws what a prompt says."""
        return "text" in self.entrances["generate"].asks

    @property
    def lead(self) -> PinnedStage:
        """The stage that a request's options are for."""
        return self.node("generate", self.lead_of("generate"))

    def lead_of(self, entrance: str) -> str:
        """Return the node that a request's options are for: the first that draws, if it can, more than an embedding."""
        nodes = self.entrances[entrance].nodes
        draw = [name for name, node in nodes.items() if not node.entry]
        more = [name for name in draw if self._kinds(entrance, name) != {"embedding"}]
        return next(iter(more or draw or nodes))

    def _kinds(self, entrance: str, name: str) -> set[str]:
        return {_kind(port) for port in self.ports(entrance, name).outputs.values()}

    def options_of(self, entrance: str, name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a node draws by: the options that its stage is pinned with; of the lead, a request's over them.

        A negative prompt that a stage of its own reads is none of them.
        """
        way = self.entrances[entrance]
        if way.nodes[name].entry:
            return {}
        over = asked if name == self.lead_of(entrance) else {}
        options = {**self.node(entrance, name).options, **over}
        if NEGATIVE in way.asks:
            options.pop("negative_prompt", None)
        return options

    def negative_of(self, entrance: str, asked: Mapping[str, Any]) -> str | None:
        """Return the negative prompt that a stage of its own reads, if there is such a stage and such a prompt."""
        if NEGATIVE not in self.entrances[entrance].asks:
            return None
        lead = self.node(entrance, self.lead_of(entrance))
        found: str | None = {**lead.options, **asked}.get("negative_prompt")
        return found

    def options(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request's options over those that are pinned; None asks for nothing."""
        return {**self.lead.options, **{k: v for k, v in asked.items() if v is not None}}

    def varies(self, asked: Mapping[str, Any]) -> bool:
        """Return whether what is drawn with these options must differ from seed to seed, its prompt being the same.

        Not where the likeliest is taken each time, or nearly; nor are the same words spoken differently.
        """
        options = self.options(asked)
        sure = options.get("top_k") == 1 or any(
            options.get(name, 1) < NEARLY_SURE for name in ("temperature", "top_p")
        )
        return not sure and not self.speaks

    def node(self, entrance: str, name: str) -> PinnedStage:
        """Return the stage of a node."""
        return self.stage(self.entrances[entrance].nodes[name].stage)

    def stage(self, name: str) -> PinnedStage:
        """Return a stage by what the pipeline calls it."""
        return next(stage for stage in self.stages if stage.stage == name)

    @property
    def speaks(self) -> bool:
        """Whether it says sentences, in a voice, and does not draw one of the sounds that it learned labels of."""
        return self.modality == "audio" and "voice" in self.lead.takes

    @property
    def ranker(self) -> PinnedStage | None:
        """The stage that embeds captions and pictures alike, if there is one: it says which picture fits a caption."""
        for stage in self.stages:
            ways = [stage.entries[name] for name in ("text", "pixels") if name in stage.entries]
            spaces = {way.outputs.get("embedding") for way in ways}
            if len(ways) == 2 and len(spaces) == 1 and None not in spaces:
                return stage
        return None

    def ports(self, entrance: str, name: str) -> Ports:
        """Return what goes into and comes out of a node."""
        node = self.entrances[entrance].nodes[name]
        return self.stage(node.stage).ports(node.entry)

    def shows(self, entrance: str) -> bool:
        """Return whether pictures can be seen on the way: the lead draws some, or what only has to be decoded."""
        nodes = self.entrances[entrance].nodes
        lead = self.lead_of(entrance)
        later = list(nodes)[list(nodes).index(lead) + 1 :]
        pixels = "pixels" in self._kinds(entrance, lead)
        return pixels or (bool(later) and all(nodes[name].entry for name in later))

    @property
    def size(self) -> str | None:
        """WIDTHxHEIGHT of a picture or of a clip's frames."""
        return None if self.image_size is None else f"{self.image_size[0]}x{self.image_size[1]}"

    def size_of(self, asked: Mapping[str, Any]) -> str | None:
        """Return the size of what is drawn with these options."""
        found: str | None = self.options(asked).get("size") if self.sizes else None
        return found or self.size

    def sides_of(self, asked: Mapping[str, Any]) -> tuple[int, int] | None:
        """Return that size as width and height."""
        width, _, height = (self.size_of(asked) or "").partition("x")
        return (int(width), int(height)) if width else None

    def seconds(self, asked: Mapping[str, Any]) -> float | None:
        """Return how long a clip is that is drawn with these options."""
        rate = self.rate(asked)
        return None if self.frames is None or rate is None else self.frames / rate

    def rate(self, asked: Mapping[str, Any]) -> float | None:
        """Return the frames a second of a clip that is drawn with these options."""
        rate: float | None = self.options(asked).get("frame_rate", self.frame_rate)
        return rate

    @property
    def able(self) -> tuple[Ability, ...]:
        """What it can be asked for."""
        given = self.abilities or ("images",)
        if "samples" in given or not set(given) & set(SAMPLED):
            return given
        return (*given, "samples")


def chained(stages: Sequence[PinnedStage], *, salted: bool = True, edits: bool = False) -> Entrance:
    """Return stages one behind the other: each has its text from the request, the rest from the stage before it.

    With `edits` each that can has a picture and a mask from the request, too.
    """
    nodes: dict[str, Node] = {}
    before = "nothing"  # no node: what needs it is refused by the check of the graph
    for stage in stages:
        wires = {}
        for name, port in stage.inputs.items():
            if _kind(port) == "text" or (edits and name in EDITED):
                wires[name] = f"request.{name}"
            elif not port.partition(" ")[0].endswith("?"):
                wires[name] = before
        nodes[stage.stage] = Node(
            stage=stage.stage, wires=wires, salt=stage.stage if salted else ""
        )
        before = f"{stage.stage}.{next(iter(stage.outputs), '')}"
    return Entrance(nodes=nodes, output=before)


def _kind(port: str) -> str:
    return port.partition(" ")[0].rstrip("?")


def _stage_of_format_1(document: dict[str, Any]) -> dict[str, Any]:
    """Return a pin as format 2 has it: ports in place of `accepts` and `gives`, options in place of fields."""
    found = {name: value for name, value in document.items() if name not in SAMPLING}
    asked = {name: document[name] for name in SAMPLING if document.get(name) is not None}
    if asked:
        found["options"] = {**document.get("options", {}), **asked}
    if "accepts" not in found:
        return found
    accepts, gives = found.pop("accepts"), found.pop("gives")
    found["interface"] = None  # was a hash of these
    inputs = {"text": "text"} if accepts.get("prompt") == "text" else {}
    if accepts.get("picture"):
        inputs["low"] = "pixels " + "x".join(map(str, accepts["picture"]))
    outputs = {
        "image": {"pixels": "pixels " + "x".join(map(str, gives.get("picture") or ()))},
        "audio": {"sound": f"sound * of {gives.get('sample_rate')} Hz"},
        "text": {"text": "text"},
    }
    return {**found, "inputs": inputs, "outputs": outputs[gives.get("modality", "image")]}


def is_pipeline(directory: Path) -> bool:
    """Return whether a fetched version is a pipeline's."""
    return (directory / PIPELINE).is_file()


def read_pipeline(directory: Path) -> Pipeline:
    """Return what a fetched pipeline version is made of.

    Raises:
        PipelineError: it holds no pipeline.json, or one that a newer Atelier wrote or nobody did.
    """
    path = directory / PIPELINE
    try:
        return Pipeline.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the document"
        raise PipelineError(
            f"{path} is no pipeline of format 1 or 2: {field}: {first['msg']}"
        ) from None
