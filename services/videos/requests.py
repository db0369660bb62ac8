"""The bodies of /v1/videos, in OpenAI's words; `seed`, `output_format` and how a clip is drawn are ours or peers'."""

import base64
import binascii
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from services.api.requests import (
    LARGEST_GUIDANCE,
    LARGEST_STEPS,
    LONGEST_PROMPT,
    ONE_LINE,
    Caption,
    Label,
    Seed,
    Strict,
    apart,
    one_line,
)
from services.gateway.errors import invalid

DATA_URL: Final = r"^data:image/[a-z+.-]{1,20};base64,[A-Za-z0-9+/]+={0,2}$"
FORMATS: Final = ("mp4", "gif", "webp")
TOGETHER: Final[JsonDict] = {
    "allOf": [apart("steps", "num_inference_steps"), apart("guidance", "guidance_scale")]
}

Seconds = Annotated[str, Field(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4})?$")]


class PictureUrl(Strict):
    """A picture in the body itself."""

    image_url: Annotated[str, Field(pattern=DATA_URL, max_length=6 * 2**20)]

    def content(self) -> bytes:
        """Return its file.

        Raises:
            ApiError: 400, its base64 is none.
        """
        try:
            return base64.b64decode(self.image_url.partition(",")[2], validate=True)
        except binascii.Error:
            message = "input_reference.image_url: no base64"
            raise invalid(message, "input_reference.image_url") from None


class ClipReference(Strict):
    """A clip that was made here, and is kept still."""

    id: Annotated[str, Field(pattern=r"^video_[0-9A-Z]{26}$")]


class VideoRemix(Strict):
    """A clip again, with the same seed and settings, of another prompt."""

    prompt: Caption


class Sampling(Strict):
    """How a clip is drawn and written; whatever is left out is as its pipeline pins it."""

    model_config = ConfigDict(json_schema_extra=TOGETHER)

    prompt: Caption
    model: Annotated[str, Field(max_length=100)] | None = None  # None: the only one in production
    seed: Seed | None = None
    steps: Annotated[int, Field(ge=1, le=LARGEST_STEPS)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=LARGEST_STEPS)] | None = None
    guidance: Annotated[float, Field(ge=0, le=LARGEST_GUIDANCE)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=LARGEST_GUIDANCE)] | None = None
    negative_prompt: (
        Annotated[str, ONE_LINE, Field(max_length=LONGEST_PROMPT), AfterValidator(one_line)] | None
    ) = None
    fps: Annotated[float, Field(gt=0, le=240)] | None = None
    output_format: Literal["mp4", "gif", "webp"] | None = "mp4"
    user: Label | None = None

    @model_validator(mode="after")
    def _one_name_each(self) -> Self:
        for short, long in (("steps", "num_inference_steps"), ("guidance", "guidance_scale")):
            if getattr(self, short) is not None and getattr(self, long) is not None:
                raise ValueError(f"{short}: give {short} or {long}, not both")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What it asks of the lead stage, by the names of the family's options."""
        asked = {
            "steps": self.num_inference_steps if self.steps is None else self.steps,
            "guidance": self.guidance_scale if self.guidance is None else self.guidance,
            "negative_prompt": self.negative_prompt or None,
        }
        return {name: value for name, value in asked.items() if value is not None}


class VideoOrder(Sampling):
    """A clip of what a prompt says, perhaps one that begins with a picture."""

    seconds: Seconds | Annotated[float, Field(gt=0, le=9999)] | None = None
    size: Annotated[str, Field(max_length=20)] | None = "auto"  # or WIDTHxHEIGHT
    num_frames: Annotated[int, Field(ge=1)] | None = None
    input_reference: PictureUrl | None = None  # of a form: a file


class VideoEditOrder(Sampling):
    """A clip that shows something else than another one does."""

    video: ClipReference | None = None  # of a form: a file, or video[id]


class VideoExtensionOrder(VideoEditOrder):
    """What comes after a clip."""

    seconds: Seconds | Annotated[float, Field(gt=0, le=9999)] | None = None  # of what is added
