"""The bodies of requests: what all of them have, and that of POST /v1/images/generations with its limits."""

import secrets
import unicodedata
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

LARGEST_SEED: Final = 2**53 - 1  # every JSON reader keeps it exact
LONGEST_PROMPT: Final = 1000
LARGEST_COST: Final = 2000  # n times sampler steps of the first stage
LARGEST_STEPS: Final = 250
LARGEST_GUIDANCE: Final = 50.0

Label = Annotated[str, Field(max_length=256)]


class Strict(BaseModel):
    """A body, or a part of one, in which every field is known."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Order(Strict):
    """A request for samples."""

    model: Annotated[str, Field(max_length=100)] | None = None  # None: the only one in production
    n: Annotated[int, Field(ge=1, le=10)] | None = 1
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = None  # sample i has seed + i

    @property
    def count(self) -> int:
        """How many samples, of each prompt where there are several."""
        return self.n or 1

    @property
    def session(self) -> str:
        """Whose request it is, as far as it says."""
        return ""

    def seeds(self) -> tuple[int, ...]:
        """Return a seed a sample: the asked one and those after it, or random ones that a person can copy."""
        first = secrets.randbelow(2**32 - 16) if self.seed is None else self.seed
        return tuple(first + number for number in range(self.count))

    @model_validator(mode="after")
    def _last_seed_is_one(self) -> Self:
        if self.seed is not None and self.seed + self.count - 1 > LARGEST_SEED:
            raise ValueError(
                f"seed: sample i has seed + i, so with n {self.count} it is at most"
                f" {LARGEST_SEED - self.count + 1}, got {self.seed}"
            )
        return self


def plain_text(text: str) -> str:
    """Return the text.

    Raises:
        ValueError: it has half of a surrogate pair, which no tokenizer reads.
    """
    odd = next((sign for sign in text if "\ud800" <= sign <= "\udfff"), None)
    if odd is not None:
        raise ValueError(f"half of a surrogate pair, U+{ord(odd):04X}, is no character")
    return text


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


class ImageOrder(Order):
    """A request for pictures, in OpenAI's words; `seed`, `steps` and `guidance` (or their longer names) are ours."""

    prompt: Annotated[str, Field(max_length=LONGEST_PROMPT), AfterValidator(one_line)]
    size: Annotated[str, Field(max_length=20)] | None = "auto"  # or WIDTHxHEIGHT
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png"] | None = "png"
    stream: bool | None = False
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = 0

    steps: Annotated[int, Field(ge=1, le=LARGEST_STEPS)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=LARGEST_STEPS)] | None = None
    guidance: Annotated[float, Field(ge=0, le=LARGEST_GUIDANCE)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=LARGEST_GUIDANCE)] | None = None

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

    @model_validator(mode="after")
    def _one_name_each(self) -> Self:
        for short, long in (("steps", "num_inference_steps"), ("guidance", "guidance_scale")):
            if getattr(self, short) is not None and getattr(self, long) is not None:
                raise ValueError(f"give {short} or {long}, not both")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images needs stream: true")
        return self

    @property
    def sampler_steps(self) -> int | None:
        """Steps of the first stage, or None for the pipeline's own."""
        return self.steps if self.steps is not None else self.num_inference_steps

    @property
    def scale(self) -> float | None:
        """Guidance of the first stage, or None for the pipeline's own."""
        return self.guidance if self.guidance is not None else self.guidance_scale

    @property
    def session(self) -> str:
        """Whose request it is, as far as it says: the user, else the prompt; empty where it says nothing."""
        return self.user or self.safety_identifier or self.prompt
