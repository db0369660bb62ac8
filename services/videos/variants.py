"""What is made of a clip beside itself: a picture of it, or a sheet of its frames."""

from typing import Literal, TypeAlias

from infra.media.clips import ClipError, ClipFile, decode, spritesheet, thumbnail
from services.gateway.errors import invalid

Variant: TypeAlias = Literal["video", "thumbnail", "spritesheet"]


def made(content: bytes, variant: Variant) -> ClipFile:
    """Return a thumbnail or spritesheet of a clip.

    Raises:
        ApiError: 400, the clip cannot be read.
    """
    try:
        clip = decode(content)
    except ClipError as error:
        message = f"variant: there is no {variant} of this clip: {error}; take the video itself"
        raise invalid(message, "variant") from None
    return thumbnail(clip) if variant == "thumbnail" else spritesheet(clip)
