"""The bodies of requests: what all of them have, and that of POST /v1/images/generations with its limits."""

import re
import secrets
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.annotated_handlers import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

SEEDS: Final = 2**64  # as many as OpenAI has: from -2^63 on
LONGEST_PROMPT: Final = 1000
LARGEST_COST: Final = 2000  # n times sampler steps of the first stage
LARGEST_STEPS: Final = 250
MOST_CANDIDATES: Final = 32  # of a picture; of all pictures of a request MOST_DRAWN
MOST_DRAWN: Final = 64
LARGEST_GUIDANCE: Final = 50.0
LARGEST_TOKEN: Final = 2**31 - 1

Label = Annotated[str, Field(max_length=256)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


@dataclass(frozen=True, slots=True)
class Absent:
    """Marks a field of OpenAI's for what is not done here: values that ask for nothing are taken, others refused."""

    what: str
    nothing: tuple[Any, ...] = ()  # beside null

    def __get_pydantic_core_schema__(
        self, _source: Any, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return what checks a value."""
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the values that are taken."""
        return {"enum": [None, *self.nothing]}

    def _check(self, value: Any) -> None:
        alike = (one for one in self.nothing if one == value)
        if value is not None and not any(
            isinstance(one, bool) == isinstance(value, bool) for one in alike
        ):
            message = "there are no {what} here; leave it out"
            raise PydanticCustomError("unsupported", message, {"what": self.what})


def number(text: str) -> float:
    """Return a number of a body: to a JSON schema, and so to clients, 3.0 is an integer."""
    value = float(text)
    return int(value) if value.is_integer() else value


def apart(*names: str) -> JsonSchemaValue:
    """Return the JSON schema of bodies in which only one of these fields, or none, is other than null."""
    given = {name: {"not": {"type": "null"}} for name in names}
    return {"not": {"required": [*names], "properties": given}}


def needs_stream(name: str, asked: JsonSchemaValue) -> JsonSchemaValue:
    """Return the JSON schema of bodies in which `name`, where it is like `asked`, comes with stream: true."""
    return {
        "if": {"required": [name], "properties": {name: asked}},
        "then": {"required": ["stream"], "properties": {"stream": {"const": True}}},
    }


class Strict(BaseModel):
    """A body, or a part of one, in which every field is known."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Order(Strict):
    """A request for samples."""

    model: Annotated[str, Field(max_length=100)] | None = None  # None: the only one in production
    n: Annotated[int, Field(ge=1, le=10)] | None = 1
    seed: Seed | None = None  # sample i has seed + i; after the largest one comes the smallest

    @property
    def count(self) -> int:
        """How many samples, of each prompt where there are several."""
        return self.n or 1

    @property
    def asked(self) -> str | None:
        """Which model it names; None: the only one in production."""
        return self.model

    @property
    def session(self) -> str:
        """Whose request it is, as far as it says."""
        return ""

    @property
    def drawn(self) -> int:
        """How many are drawn for that."""
        return self.count

    def seeds(self) -> tuple[int, ...]:
        """Return a seed a sample that is drawn: the asked one and those after it, or random ones to be copied."""
        first = secrets.randbelow(2**32 - 1024) if self.seed is None else self.seed
        half = SEEDS // 2
        return tuple((first + number + half) % SEEDS - half for number in range(self.drawn))


def plain_text(text: str) -> str:
    """Return the text.

    Raises:
        ValueError: it has half of a surrogate pair, which no tokenizer reads.
    """
    odd = next((sign for sign in text if "\ud800" <= sign <= "\udfff"), None)
    if odd is not None:
        raise ValueError(f"half of a surrogate pair, U+{ord(odd):04X}, is no character")
    return text


ONE_LINE: Final = Field(json_schema_extra={"pattern": r"^[^\x00-\x1f\x7f-\x9f]*$"})
"""What `one_line` takes, as a JSON schema says it."""


def one_line(prompt: str) -> str:
    """Return a caption in NFC, without blanks around it.

    Raises:
        ValueError: it has control characters.
    """
    text = unicodedata.normalize("NFC", prompt)
    odd = next((sign for sign in text if unicodedata.category(sign) in {"Cc", "Cs"}), None)
    if odd is not None:
        raise ValueError(f"a prompt has no control characters, found U+{ord(odd):04X}")
    return text.strip()


TOGETHER: Final[JsonSchemaValue] = {
    "allOf": [
        apart("steps", "num_inference_steps"),
        apart("guidance", "guidance_scale"),
        needs_stream("partial_images", {"type": "integer", "minimum": 1}),
        {
            "if": {"required": ["lora"], "properties": {"lora": {"not": {"type": "null"}}}},
            "then": {
                "required": ["model"],
                "properties": {"model": {"type": "string", "pattern": "^[^+]*$"}},
            },
        },
    ]
}
"""What the fields of a request for pictures may say together."""


TopK: TypeAlias = Annotated[int, Field(ge=1, le=LARGEST_TOKEN)]
ADAPTER: Final = Field(pattern=r"^[a-z0-9-]{1,40}$")


class Adapter(Strict):
    """An adapter, as other servers have it; never a path."""

    name: Annotated[str, ADAPTER]


class Guided(Strict):
    """How steps are taken, by our names or by other servers'; whatever is left out is as pinned."""

    steps: Annotated[int, Field(ge=1, le=LARGEST_STEPS)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=LARGEST_STEPS)] | None = None
    guidance: Annotated[float, Field(ge=0, le=LARGEST_GUIDANCE)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=LARGEST_GUIDANCE)] | None = None
    negative_prompt: (
        Annotated[str, ONE_LINE, Field(max_length=LONGEST_PROMPT), AfterValidator(one_line)] | None
    ) = None  # what guidance leads away from; an empty one asks for nothing

    @model_validator(mode="after")
    def _steps_and_guidance_have_one_name(self) -> Self:
        for short, long in (("steps", "num_inference_steps"), ("guidance", "guidance_scale")):
            if getattr(self, short) is not None and getattr(self, long) is not None:
                raise ValueError(f"{short}: give {short} or {long}, not both")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What it asks of the first stage, by the names of the family's options."""
        asked = {
            "steps": self.num_inference_steps if self.steps is None else self.steps,
            "guidance": self.guidance_scale if self.guidance is None else self.guidance,
            "negative_prompt": self.negative_prompt or None,
        }
        return {name: value for name, value in asked.items() if value is not None}


class PictureOrder(Guided, Order):
    """A request for pictures, in OpenAI's words; `seed`, `steps`, `guidance` and how values are drawn are ours."""

    model_config = ConfigDict(json_schema_extra=TOGETHER)

    size: Annotated[str, Field(max_length=20)] | None = "auto"  # or WIDTHxHEIGHT
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png"] | None = "png"
    stream: bool | None = False
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = 0

    lora: Adapter | Annotated[str, ADAPTER] | None = None  # of the model: shapes+teal
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None  # of codes' draws, as are these:
    top_k: TopK | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None

    # Taken and without effect: there is one quality, one background, one format, and no moderation.
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = (
        None
    )
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    style: Literal["vivid", "natural"] | None = None
    output_compression: Literal[100] | None = None
    user: Label | None = None
    safety_identifier: Label | None = None

    @property
    def asked(self) -> str | None:
        """Which model it names, with its adapter."""
        if self.lora is None or self.model is None:
            return self.model
        name, sign, place = (*re.split("([:@])", self.model, maxsplit=1), "", "")[:3]
        return f"{name}+{self.lora if isinstance(self.lora, str) else self.lora.name}{sign}{place}"

    @model_validator(mode="after")
    def _what_goes_together(self) -> Self:
        if self.lora is not None and (self.model is None or "+" in self.model):
            raise ValueError("lora: say in `model` which one it adapts, without a + of its own")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images: it needs stream: true")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What it asks of the first stage, by the names of the family's options; the rest is as pinned."""
        own = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p")}
        return super().options | {name: one for name, one in own.items() if one is not None}

    @property
    def session(self) -> str:
        """Whose request it is, as far as it says; empty where it says nothing."""
        return self.user or self.safety_identifier or ""


Caption: TypeAlias = Annotated[
    str, ONE_LINE, Field(max_length=LONGEST_PROMPT), AfterValidator(one_line)
]


class JobOrder(Guided):
    """What a job is asked to make, and how it is drawn; whatever is left out is as its pipeline pins it."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [apart("steps", "num_inference_steps"), apart("guidance", "guidance_scale")]
        }
    )

    prompt: Caption
    model: Annotated[str, Field(max_length=100)] | None = None  # None: the only one in production
    seed: Seed | None = None
    user: Label | None = None


class ImageOrder(PictureOrder):
    """A request for pictures of what a prompt says."""

    prompt: Caption
    best_of: Annotated[int, Field(ge=1, le=MOST_CANDIDATES)] | None = None  # drawn; one is kept

    @property
    def drawn(self) -> int:
        """How many pictures are drawn: as many candidates for each as `best_of` says."""
        return self.count * (self.best_of or 1)

    @property
    def session(self) -> str:
        """Whose request it is, as far as it says: the user, else the prompt."""
        return super().session or self.prompt


class Blend(Strict):
    """Where pictures lie on the way from what the prompt says to what another one does."""

    prompt: Caption
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5  # 0: the first prompt alone; 1: this one


class GenerationOrder(ImageOrder):
    """A request for pictures of what a prompt says, perhaps on the way to another one."""

    blend: Blend | None = None  # ours
