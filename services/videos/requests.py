"""The bodies of /v1/videos, in OpenAI's words; `seed`, `output_format` and how a clip is drawn are ours or peers'."""

import base64
import binascii
from typing import Annotated, Final, Literal

from pydantic import Field

from services.api.requests import Caption, JobOrder, Strict
from services.gateway.errors import invalid

DATA_URL: Final = r"^data:image/[a-z+.-]{1,20};base64,[A-Za-z0-9+/]+={0,2}$"

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


class Sampling(JobOrder):
    """How a clip is drawn and written."""

    fps: Annotated[float, Field(gt=0, le=240)] | None = None
    output_format: Literal["mp4", "gif", "webp"] | None = "mp4"


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
